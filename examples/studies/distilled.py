"""The `pit` commands that distil an improver into a policy, and those that write what the distilled policy writes."""

from typing import NamedTuple

from scales import StudyScale, setting_of
from steps import ONCE, RL_DRAFTS, improve, rl, sample

POLICY = "distill-sft"  # of the first round


class _Round(NamedTuple):
    """What all rounds of one seed share."""

    scale: StudyScale
    seed: int

    @property
    def questions(self) -> str:
        return self.scale.rl_questions or "data/rl.jsonl"

    @property
    def own(self) -> str:
        """The name of the drafts of the policy that the first round improves."""
        return RL_DRAFTS if self.scale.rl_questions else "own-policy"

    @property
    def start(self) -> str:
        return f"--policy {self.scale.policy}" if self.scale.policy else f"--model {self.scale.model}"

    def drafts(self) -> list[str]:
        """The teacher, if it is not a base step, and the drafts."""
        return [*self.teacher(), self.drafted(self.own, "", self.questions)]

    def teacher(self) -> list[str]:
        return [rl(self.scale, self.seed, "rl", "--curriculum")] if self.scale.improver == "runs/rl" else []

    def taught(self, name: str, drafts: str) -> str:
        """The drafts after the teacher."""
        return improve(self.scale, self.seed, name, f"--run {self.scale.improver} --max-iters 5", drafts)

    def trained(self, method: str, data: str, start: str, out: str, settings: str) -> str:
        shared = f"--data {data}.jsonl --out runs/{out} {start} --seed {self.seed}"
        return f"pit distill --method {method} {shared} {settings}"

    def by_sft(self, own: str, start: str, out: str) -> list[str]:
        """One round of method sft: the drafts improved, and the policy trained on the improvements."""
        improved = f"improved-{own}"
        return [self.taught(improved, own), self.trained("sft", improved, start, out, self.scale.distill)]

    def drafted(self, name: str, policy: str, questions: str) -> str:
        return f"{sample(self.scale, self.seed, name, self.scale.temperature, questions)} {policy}".strip()

    def written(self, name: str, policy: str, settings: str = f"--method resample {ONCE}") -> str:
        return improve(self.scale, self.seed, name, f"--policy runs/{policy} {settings}")


def distilled_steps(scale: StudyScale, seed: int, value: str) -> list[str]:
    """The commands that make distill@VALUE.jsonl: what a distilled policy writes.

    VALUE: a method of pit distill, one response per prompt; twice: of a second round of sft, on improved drafts of the
    first; longer: of sft with as many epochs as both rounds; teacher: the improver that is distilled, on the drafts of
    the policy before; best-of-n: of the policy of sft, with the tokens of teacher (the draft, which the policy before
    wrote, is one of the n); improved: the teacher on its drafts.
    """
    made, name = _Round(scale, seed), f"distill@{value}"
    start, own, out = made.start, made.own, f"distill-{value}"
    first = [*made.drafts(), *made.by_sft(own, start, POLICY)]
    of_teacher = made.taught("distill@teacher", "drafts")
    match value:
        case "teacher":
            steps = [*made.teacher(), of_teacher]
        case "sft":
            steps = [*first, made.written(name, POLICY)]
        case "longer":
            epochs = 2 * int(setting_of(scale.distill, "--epochs") or 1)
            trained = made.trained("sft", f"improved-{own}", start, out, f"{scale.distill} --epochs {epochs}")
            steps = [*first[:-1], trained, made.written(name, out)]
        case "dpo":
            trained = made.trained("dpo", f"improved-{own}", start, out, scale.distill)
            steps = [*first[:-1], trained, made.written(name, out)]
        case "on-policy":
            trained = made.trained("on-policy", own, start, out, f"--run {scale.improver} {scale.on_policy}")
            steps = [*made.drafts(), trained, made.written(name, out)]
        case "twice":
            again = made.drafted(f"own-{POLICY}", f"--policy runs/{POLICY}", made.questions)
            second = made.by_sft(f"own-{POLICY}", f"--policy runs/{POLICY}", out)
            steps = [*first, again, *second, made.written(name, out)]
        case "best-of-n":
            equal_tokens = "--method best-of-n --equal-tokens distill@teacher.jsonl"
            steps = [*first, of_teacher, made.written(name, POLICY, equal_tokens)]
        case "improved":
            drafts = made.drafted("drafts-distill", f"--policy runs/{POLICY}", f"{scale.questions} {scale.drafts}")
            steps = [*first, drafts, made.taught(name, "drafts-distill")]
        case _:
            raise ValueError(value)
    return steps

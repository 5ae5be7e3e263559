"""The ways to train an improver that the study `ways_to_train` compares, as `pit` commands."""

import shlex
from typing import NamedTuple

from changes import MEMBERS
from scales import VERIFIER, StudyScale
from steps import RL_DRAFTS, base_steps, improve, rl, sample

ITERATIONS = 5
LOSSES = ("dpo", "ipo", "kto")
GAP_MODELS = {"five-term": "--gap-loss five-term", "pointwise": "--gap-loss pointwise", "ensemble": MEMBERS}
WAYS = (
    *("sft", "sft-both", *LOSSES, *(f"sft-{loss}" for loss in LOSSES)),
    *("sft-own-best", *(f"rloo-{gap_model}" for gap_model in GAP_MODELS), "rloo-verifier"),
)


class Way(NamedTuple):
    """The commands that train an improver, beginning with the base model; and the name of its run."""

    trainings: list[str]
    run: str


def ways(scale: StudyScale, seed: int) -> dict[str, Way]:
    """Return the ways by name. Each uses the pairs of the folds sft and reward, some the prompts of fold rl too."""
    model = f"--model {scale.model} --seed {seed}"
    shared = base_steps(scale, seed)
    sft, reward = (
        next(step for step in shared if begin in step) for begin in ("--role improver", "--data data/reward")
    )
    both = "data/sft.jsonl,data/reward.jsonl"

    def dpo(loss: str, out: str, start: str) -> str:
        return f"pit dpo --role improver --loss {loss} --out runs/{out} {start} {model} {scale.dpo}"

    def rloo(gap_model: str, settings: str) -> Way:
        if settings in scale.reward:
            return Way([sft, reward, rl(scale, seed, "rl", "--curriculum")], "rl")
        folder, run = f"runs/reward-{gap_model}", f"rl-{gap_model}"
        other = f"pit train-reward --data data/reward.jsonl {model} --out {folder} {scale.reward} {settings}"
        return Way([sft, other, rl(scale, seed, run, f"--curriculum --reward {folder}")], run)

    def own_best() -> Way:
        """SFT on the best of four improvements of new drafts by the gap model (expert iteration)."""
        drafts = [] if scale.rl_questions else [sample(scale, seed, "drafts-own", scale.temperature, "data/rl.jsonl")]
        best = "--run runs/sft --reward runs/reward --width 4 --max-iters 1 --threshold 0.65 --only-changed"
        pairs = "--fields prompt=prompt,chosen=response,rejected=original_response --init runs/sft"
        improved = improve(
            scale, seed, "own-best", f"{best} --temperature 0.8", RL_DRAFTS if not drafts else "drafts-own"
        )
        again = (
            f"pit sft --role improver --data own-best.jsonl {pairs} --out runs/sft-own-best {model} {scale.own_best}"
        )
        return Way([sft, reward, *drafts, improved, again], "sft-own-best")

    verified = rl(scale, seed, "rl-verifier", f"--curriculum --reward {shlex.quote(VERIFIER)}")
    found = [
        Way([sft], "sft"),
        Way([f"pit sft --role improver --data {both} --out runs/sft-both {model} {scale.sft}"], "sft-both"),
        *(Way([dpo(loss, loss, f"--data {both} --from-base")], loss) for loss in LOSSES),
        *(Way([sft, dpo(loss, f"sft-{loss}", "--data data/reward.jsonl")], f"sft-{loss}") for loss in LOSSES),
        own_best(),
        *(rloo(gap_model, settings) for gap_model, settings in GAP_MODELS.items()),
        Way([sft, verified], "rl-verifier"),
    ]
    return dict(zip(WAYS, found, strict=True))


def way_steps(scale: StudyScale, seed: int, name: str) -> list[str]:
    """The commands that make way@NAME.jsonl, all iterations, and way@NAME-stop.jsonl, which one gap model stops."""
    trainings, run = ways(scale, seed)[name]
    use, rows = f"--run runs/{run} --max-iters {ITERATIONS}", f"way@{name}"
    return [
        *trainings,
        improve(scale, seed, rows, f"{use} --stop none"),
        improve(scale, seed, f"{rows}-stop", f"{use} --reward runs/reward"),
    ]

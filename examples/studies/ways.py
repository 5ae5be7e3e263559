"""The ways to train an improver that the study `ways_to_train` compares, as `pit` commands."""

import shlex
from typing import NamedTuple

from changes import MEMBERS
from scales import VERIFIER, StudyScale
from steps import RL_DRAFTS, gap_model, improve, rl, sample, sft_improver

ITERATIONS = 5
LOSSES = ("dpo", "ipo", "kto")
GAP_MODELS = {"five-term": "--gap-loss five-term", "pointwise": "--gap-loss pointwise", "ensemble": MEMBERS}
STOP = "runs/reward-stop"  # the same for all, and the reward of none
KEEP = "--keep-diverged"  # one that fails is a result


class Way(NamedTuple):
    """The commands that train an improver, beginning with the base model; and the name of its run."""

    trainings: list[str]
    run: str


def joined(*files: str) -> str:
    """The files as --data takes them, each once."""
    return ",".join(dict.fromkeys(files))


class _Ways(NamedTuple):
    """The commands of the ways of one seed."""

    scale: StudyScale
    seed: int

    @property
    def model(self) -> str:
        return f"--model {self.scale.model} --seed {self.seed}"

    @property
    def sft(self) -> str:
        return sft_improver(self.scale, self.seed)

    @property
    def after_sft(self) -> str:
        """The pairs that RL on a gap model uses after SFT: those of the gap model, and its references."""
        return joined(self.scale.dpo_data, self.scale.rl_data)

    @property
    def pairs(self) -> str:
        """All pairs, those of SFT too."""
        return joined("data/sft.jsonl", self.scale.dpo_data, self.scale.rl_data)

    @property
    def drafts(self) -> list[str]:
        """The drafts that RL improves, if they are written before."""
        scale = self.scale
        return (
            [sample(scale, self.seed, RL_DRAFTS, scale.temperature, scale.rl_questions)] if scale.rl_questions else []
        )

    def tuned(self, name: str) -> str:
        return f"{KEEP} {self.scale.tuned.get(name, '')}".strip()

    def sft_all(self) -> Way:
        shared = f"--out runs/sft-all {self.model} {self.scale.sft} {KEEP}"
        return Way([f"pit sft --role improver --data {self.pairs} {shared}"], "sft-all")

    def dpo(self, loss: str) -> Way:
        return Way([self._dpo(loss, loss, f"--data {self.pairs} --from-base")], loss)

    def dpo_after_sft(self, loss: str) -> Way:
        name = f"sft-{loss}"
        return Way([self.sft, self._dpo(name, loss, f"--data {self.after_sft}")], name)

    def _dpo(self, name: str, loss: str, start: str) -> str:
        shared = f"--out runs/{name} {start} {self.model} {self.scale.dpo} {self.tuned(name)}"
        return f"pit dpo --role improver --loss {loss} {shared}"

    def own_best(self) -> Way:
        """SFT on the best of four improvements of new drafts by the gap model (expert iteration)."""
        scale, seed = self.scale, self.seed
        own, name = (self.drafts, RL_DRAFTS) if self.drafts else ([], "drafts-own")
        own = own or [sample(scale, seed, name, scale.temperature, "data/rl.jsonl")]
        best = "--run runs/sft --reward runs/reward --width 4 --max-iters 1 --threshold 0.65 --only-changed"
        pairs = "--fields prompt=prompt,chosen=response,rejected=original_response --init runs/sft"
        improved = improve(scale, seed, "own-best", f"{best} --temperature 0.8", name)
        shared = f"--out runs/sft-own-best {self.model} {scale.own_best} {KEEP}"
        again = f"pit sft --role improver --data own-best.jsonl {pairs} {shared}"
        return Way([self.sft, gap_model(scale, seed), *own, improved, again], "sft-own-best")

    def rloo(self, name: str, settings: str) -> Way:
        scale, seed = self.scale, self.seed
        if settings in scale.reward:
            return Way([self.sft, gap_model(scale, seed), *self.drafts, rl(scale, seed, "rl", "--curriculum")], "rl")
        folder, run = f"runs/reward-{name}", f"rl-way-{name}"
        other = gap_model(scale, seed, f"--out {folder} {settings}")
        trained = rl(scale, seed, run, f"--curriculum --force --reward {folder} {self.tuned(f'rloo-{name}')}")
        return Way([self.sft, other, *self.drafts, trained], run)

    def on_the_oracle(self) -> Way:
        settings = f"--curriculum --reward {shlex.quote(VERIFIER)} {self.tuned('rloo-verifier')}"
        run = "rl-way-verifier"
        return Way([self.sft, *self.drafts, rl(self.scale, self.seed, run, settings)], run)


def ways(scale: StudyScale, seed: int) -> dict[str, Way]:
    """Return the ways by name.

    On the synthetic task `sft` has the pairs of fold sft only; the others all pairs, but for the verifier, which needs
    none of fold reward. RL has the pairs of fold rl as references, and sft-own-best has their prompts only.
    """
    made = _Ways(scale, seed)
    found = {
        "sft": Way([made.sft], "sft"),
        "sft-all": made.sft_all(),
        **{loss: made.dpo(loss) for loss in LOSSES},
        **{f"sft-{loss}": made.dpo_after_sft(loss) for loss in LOSSES},
        "sft-own-best": made.own_best(),
        **{f"rloo-{name}": made.rloo(name, settings) for name, settings in GAP_MODELS.items()},
        "rloo-verifier": made.on_the_oracle(),
    }
    # SFT has all pairs already; a loss of pairs reads a text once for each of its pairs: here, eight times as much
    left_out = {"sft-all": made.pairs == "data/sft.jsonl", "rloo-five-term": scale.gap_loss == "pointwise"}
    return {name: way for name, way in found.items() if not left_out.get(name)}


def way_steps(scale: StudyScale, seed: int, name: str) -> list[str]:
    """The commands that make way@NAME.jsonl, all iterations, and way@NAME-stop.jsonl, which one gap model stops."""
    trainings, run = ways(scale, seed)[name]
    use, rows = f"--run runs/{run} --max-iters {ITERATIONS}", f"way@{name}"
    return [
        *trainings,
        gap_model(scale, seed + 2000, f"--out {STOP}"),
        improve(scale, seed, rows, f"{use} --stop none"),
        improve(scale, seed, f"{rows}-stop", f"{use} --reward {STOP}"),
    ]

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


def ways(scale: StudyScale, seed: int) -> dict[str, Way]:
    """Return the ways by name.

    On the synthetic task `sft` has the pairs of fold sft only; the others those of fold reward too, but for the
    verifier. RL and sft-own-best use the prompts of fold rl as well, RL also its pairs, as references.
    """
    sft, reward = sft_improver(scale, seed), gap_model(scale, seed)
    drafts = [sample(scale, seed, RL_DRAFTS, scale.temperature, scale.rl_questions)] if scale.rl_questions else []
    model = f"--model {scale.model} --seed {seed}"
    both = ",".join(dict.fromkeys(("data/sft.jsonl", scale.dpo_data)))

    def tuned(name: str) -> str:
        return f"{KEEP} {scale.tuned.get(name, '')}".strip()

    def dpo(name: str, loss: str, start: str) -> str:
        return f"pit dpo --role improver --loss {loss} --out runs/{name} {start} {model} {scale.dpo} {tuned(name)}"

    def rloo(name: str, settings: str) -> Way:
        if settings in scale.reward:
            return Way([sft, reward, *drafts, rl(scale, seed, "rl", "--curriculum")], "rl")
        folder, run = f"runs/reward-{name}", f"rl-way-{name}"
        other = gap_model(scale, seed, f"--out {folder} {settings}")
        trained = rl(scale, seed, run, f"--curriculum --force --reward {folder} {tuned(f'rloo-{name}')}")
        return Way([sft, other, *drafts, trained], run)

    def own_best() -> Way:
        """SFT on the best of four improvements of new drafts by the gap model (expert iteration)."""
        own = drafts or [sample(scale, seed, "drafts-own", scale.temperature, "data/rl.jsonl")]
        best = "--run runs/sft --reward runs/reward --width 4 --max-iters 1 --threshold 0.65 --only-changed"
        pairs = "--fields prompt=prompt,chosen=response,rejected=original_response --init runs/sft"
        improved = improve(scale, seed, "own-best", f"{best} --temperature 0.8", RL_DRAFTS if drafts else "drafts-own")
        again = (
            f"pit sft --role improver --data own-best.jsonl {pairs} --out runs/sft-own-best {model} {scale.own_best}"
        )
        return Way([sft, reward, *own, improved, f"{again} {KEEP}"], "sft-own-best")

    verifier = f"--curriculum --reward {shlex.quote(VERIFIER)} {tuned('rloo-verifier')}"
    sft_both = f"pit sft --role improver --data {both} --out runs/sft-both {model} {scale.sft} {KEEP}"
    found = {
        "sft": Way([sft], "sft"),
        "sft-both": Way([sft_both], "sft-both"),
        **{loss: Way([dpo(loss, loss, f"--data {both} --from-base")], loss) for loss in LOSSES},
        **{
            f"sft-{loss}": Way([sft, dpo(f"sft-{loss}", loss, f"--data {scale.dpo_data}")], f"sft-{loss}")
            for loss in LOSSES
        },
        "sft-own-best": own_best(),
        **{f"rloo-{name}": rloo(name, settings) for name, settings in GAP_MODELS.items()},
        "rloo-verifier": Way([sft, *drafts, rl(scale, seed, "rl-way-verifier", verifier)], "rl-way-verifier"),
    }
    # SFT has all pairs already; a loss of pairs reads a text once for each of its pairs: here, eight times as much
    left_out = {"sft-both": both == "data/sft.jsonl", "rloo-five-term": scale.gap_loss == "pointwise"}
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

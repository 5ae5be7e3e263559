"""Whether both sides did the same thing; if they did not, a ratio of times says nothing."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from gate import Figures
from workloads import NEW_TOKENS, SAMPLES, Workload

# the most that is allowed in fp32, and in bf16, in which the sides round at different points
FIRST_LOSS = (1e-4, 2e-2)  # relative
SEPARATE_LOSS = (1e-5, 1e-2)  # packed trees against rows of their own
LATER_LOSS = (0.05, 0.05)  # relative: Adam amplifies gradients that are zero but for rounding
FIRST_KL = (5e-3, 0.2)  # nats, of the whole sample
# relative, after all runs: the samples differ, but Adam's steps are as long; in bf16 TRL's adapters move less
MOVED = (0.3, 0.6)
REWARD = (1e-3, 0.2)  # of the mean size of a reward
OTHER_OUTPUTS = (0.1, 0.3)  # share of drafts: a gap or two logits may be closer together than rounding


class Check(NamedTuple):
    """One figure of both sides. apart: their difference, in the measure that the figure names; allowed: at most."""

    figure: str
    ours: float
    theirs: float
    apart: float
    allowed: float

    @property
    def agrees(self) -> bool:
        return self.apart <= self.allowed  # False for NaN


def checks_of(
    workload: Workload,
    sizes: dict[str, Any],
    ours: list[Figures],
    theirs: list[Figures],
    checked: list[Figures],
    in_bf16: bool,
) -> list[Check]:
    """ours, theirs: the figures of each run, the warm-up first. checked: those of both sides outside of a run."""
    if workload.trains == "improve":
        return improvements(ours[0], theirs[0], OTHER_OUTPUTS[in_bf16])
    if workload.trains == "rl":
        expected = sizes["rl"] * SAMPLES * NEW_TOKENS
        mine, other = ours[0]["tokens"][0], theirs[0]["tokens"][0]
        farthest = max(abs(mine - expected), abs(other - expected))
        kl, other_kl = abs(ours[0]["kl"][0]), abs(theirs[0]["kl"][0])
        return [
            rewards(checked[0]["rewards"], checked[1]["rewards"], REWARD[in_bf16]),
            Check(f"tokens generated in a step, {expected} expected", mine, other, farthest, 0),
            Check("KL of the first step", kl, other_kl, max(kl, other_kl), FIRST_KL[in_bf16]),
            relative("how far the adapter has moved", checked[0]["moved"], checked[1]["moved"], MOVED[in_bf16]),
        ]
    share = 5.0 if workload.against == "RewardTrainer" else 1.0
    losses = [
        [loss * factor for run in side for loss in run["losses"]] for side, factor in ((ours, 1.0), (theirs, share))
    ]
    first = (SEPARATE_LOSS if workload.against == "separate" else FIRST_LOSS)[in_bf16]
    return [
        relative(
            "loss of the first step" + (", theirs times 5" if share > 1 else ""), losses[0][0], losses[1][0], first
        ),
        relative(f"loss of step {len(losses[0])}", losses[0][-1], losses[1][-1], LATER_LOSS[in_bf16]),
    ]


def relative(figure: str, ours: float, theirs: float, allowed: float) -> Check:
    return Check(f"{figure}, relative", ours, theirs, abs(ours - theirs) / abs(theirs), allowed)


def rewards(ours: Sequence[float], theirs: Sequence[float], allowed: float) -> Check:
    size = sum(map(abs, theirs)) / len(theirs)
    apart = max(abs(mine - other) for mine, other in zip(ours, theirs, strict=True)) / size
    figure = "mean reward of the same texts, the farthest apart as a part of their mean size"
    return Check(figure, sum(ours) / len(ours), sum(theirs) / len(theirs), apart, allowed)


def improvements(ours: Figures, theirs: Figures, allowed: float) -> list[Check]:
    checks = []
    for name, figure in (("written", "improvements"), ("reasons", "stop reasons")):
        pairs = list(zip(ours[name], theirs[name], strict=True))
        other = sum(mine != their for mine, their in pairs) / len(pairs)
        checks.append(Check(f"share of drafts with other {figure}", len(pairs), len(pairs), other, allowed))
    return checks

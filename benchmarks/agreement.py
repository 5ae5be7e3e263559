"""Checks that both sides computed the same results; otherwise a ratio of times means nothing."""

from collections.abc import Sequence
from typing import Any, NamedTuple

from gate import Figures
from workloads import NEW_TOKENS, RESPONSES, SAMPLES, Workload

# largest differences allowed, (in fp32, in bf16); in bf16 the sides round at different points
FIRST_LOSS = (1e-4, 2e-2)  # relative
SEPARATE_LOSS = (1e-5, 1e-2)  # relative: packed trees compared with separate rows
FIRST_GRADIENT = (1e-3, 0.1)  # relative
LATER_LOSS = (0.05, 0.05)  # relative: Adam amplifies gradients that are zero except for rounding
FIRST_KL = (5e-3, 0.2)  # nats, of the whole sample
# relative, after all runs: the samples differ, but Adam's steps have the same size; in bf16 TRL's adapters move less
MOVED = (0.3, 0.6)
REWARD = (1e-3, 0.2)  # relative to the mean absolute reward
GAPS = (1e-5, 0.1)  # absolute, of gaps that are not divided by T
OTHER_OUTPUTS = (0.1, 0.3)  # share of drafts: rounding can decide the sign of a gap or the larger of two logits


class Check(NamedTuple):
    """One figure of both sides. apart: their difference, in the unit that the figure names. allowed: the largest."""

    figure: str
    ours: float
    theirs: float
    apart: float
    allowed: float

    @property
    def agrees(self) -> bool:
        """Whether the difference is allowed."""
        return self.apart <= self.allowed  # False for NaN


def checks_of(
    workload: Workload,
    sizes: dict[str, Any],
    ours: list[Figures],
    theirs: list[Figures],
    outside: list[Figures],
    in_bf16: bool,
) -> list[Check]:
    """Return the checks of a workload.

    ours, theirs: the figures of each run, the warm-up first. outside: the figures of both sides outside the runs.
    """
    if workload.trains in ("improve", "endpoint"):
        return improvements(ours[0], theirs[0], OTHER_OUTPUTS[in_bf16])
    if workload.trains in RESPONSES:
        return [gaps(ours[0]["gaps"], theirs[0]["gaps"], GAPS[in_bf16])]
    if workload.trains == "rl":
        expected = sizes["rl"] * SAMPLES * NEW_TOKENS
        mine, other = ours[0]["tokens"][0], theirs[0]["tokens"][0]
        farthest = max(abs(mine - expected), abs(other - expected))
        kl, other_kl = abs(ours[0]["kl"][0]), abs(theirs[0]["kl"][0])
        return [
            rewards(outside[0]["rewards"], outside[1]["rewards"], REWARD[in_bf16]),
            Check(f"tokens generated in a step (expected {expected})", mine, other, farthest, 0),
            Check("KL of the first step", kl, other_kl, max(kl, other_kl), FIRST_KL[in_bf16]),
            relative("distance that the adapter has moved", outside[0]["moved"], outside[1]["moved"], MOVED[in_bf16]),
        ]
    gradients = []
    if workload.against == "DPOTrainer":  # its first loss is ln 2, whatever the log-probs are
        mine, other = min(1.0, ours[0]["grad_norm"][0]), theirs[0]["grad_norm"][0]
        gradients = [relative("norm of the first gradient, clipped", mine, other, FIRST_GRADIENT[in_bf16])]
    share = 5.0 if workload.against == "RewardTrainer" else 1.0
    losses = [
        [loss * factor for run in side for loss in run["losses"]] for side, factor in ((ours, 1.0), (theirs, share))
    ]
    first = (SEPARATE_LOSS if workload.against == "separate" else FIRST_LOSS)[in_bf16]
    return [
        relative(
            "loss of the first step" + (", theirs times 5" if share > 1 else ""), losses[0][0], losses[1][0], first
        ),
        *gradients,
        relative(f"loss of step {len(losses[0])}", losses[0][-1], losses[1][-1], LATER_LOSS[in_bf16]),
    ]


def relative(figure: str, ours: float, theirs: float, allowed: float) -> Check:
    """Return a check of the difference relative to theirs."""
    return Check(f"{figure}, relative", ours, theirs, abs(ours - theirs) / abs(theirs), allowed)


def rewards(ours: Sequence[float], theirs: Sequence[float], allowed: float) -> Check:
    """Return a check of the largest difference between the rewards of the same texts."""
    size = sum(map(abs, theirs)) / len(theirs)
    apart = max(abs(mine - other) for mine, other in zip(ours, theirs, strict=True)) / size
    figure = "mean reward of the same texts, largest difference relative to the mean absolute reward"
    return Check(figure, sum(ours) / len(ours), sum(theirs) / len(theirs), apart, allowed)


def gaps(ours: list[list[list[float]]], theirs: list[list[list[float]]], allowed: float) -> Check:
    """Return a check of the largest difference between the gaps of the same pairs."""
    flat = [[gap for matrix in side for row in matrix for gap in row] for side in (ours, theirs)]
    sizes = [sum(map(abs, side)) / len(side) for side in flat]
    apart = max(abs(mine - other) for mine, other in zip(*flat, strict=True))
    return Check("mean absolute gap of all pairs; largest difference", sizes[0], sizes[1], apart, allowed)


def improvements(ours: Figures, theirs: Figures, allowed: float) -> list[Check]:
    """Return checks of the share of drafts with different improvements and stop reasons."""
    checks = []
    for name, figure in (("written", "improvements"), ("reasons", "stop reasons")):
        pairs = list(zip(ours[name], theirs[name], strict=True))
        differing = sum(our != their for our, their in pairs) / len(pairs)
        checks.append(Check(f"share of drafts with different {figure}", len(pairs), len(pairs), differing, allowed))
    return checks

"""Certified harm: the smallest threshold of the stop rule whose harm rate is at most a cap, with a given confidence."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from scipy.stats import beta

from pitcli.data.rows import Comparison, Draft
from pitcli.engine.generation.methods import Proposal
from pitcli.engine.improving.stop_rule import Attempt, after_proposal, at_end
from pitcli.settings.base import StopRule
from pitcli.settings.generating import ImproveConfig

# from the strictest to 0.5, below which the gap model itself prefers the draft; fixed before any row is seen
THRESHOLDS = (0.9999, 0.999, 0.995, *(round(0.99 - step / 100, 2) for step in range(50)))
MOST_ROWS = 10_000_000


class Chain(NamedTuple):
    """A draft and all its proposals, each made from the one before: what every threshold keeps can be replayed."""

    draft: Draft
    proposals: tuple[tuple[Proposal, float], ...]  # each with its gap / T over the one before; NaN if not finite

    def kept(self, config: ImproveConfig, threshold: float) -> str:
        """The response that the stop rule with this threshold keeps."""
        config = config.model_copy(update={"stop": StopRule.gap, "threshold": threshold})
        attempt = Attempt(self.draft, self.draft.response, [])
        for proposal, gap in self.proposals:
            if attempt.stop_reason is not None:
                break
            attempt = after_proposal(attempt, proposal, gap, config)
        return at_end(attempt, config).best

    def against_draft(self, response: str) -> Comparison:
        return Comparison(self.draft.prompt, response, self.draft.response)


class Tested(NamedTuple):
    """A tested threshold: the share of drafts that it changes, the share that it makes worse, and the upper bound."""

    threshold: float
    changed: float
    harm: float
    bound: float


def clopper_pearson_upper(failures: int, trials: int, confidence: float) -> float:
    """The one-sided upper bound of Clopper and Pearson (1934) on a probability of failure.

    Whatever the probability is, the bound is at or above it in at least `confidence` of all samples.
    """
    return 1.0 if failures >= trials else float(beta.ppf(confidence, failures + 1, trials - failures))


def certify(harmed: Sequence[int], rows: int, max_harm: float, confidence: float) -> int | None:
    """The index of the last threshold that is certified, None if the first is not.

    harmed: how many rows each threshold harms, from the strictest down. "Learn then test" (arXiv 2110.01052) by
    fixed-sequence testing: the thresholds are tested in this order, each at the full level, until the first that is not
    certified. So the probability that any certified threshold has a harm rate above the cap is at most 1 - confidence,
    without a correction for their number.
    """
    certified = None
    for index, count in enumerate(harmed):
        if clopper_pearson_upper(count, rows, confidence) > max_harm:
            break
        certified = index
    return certified


def rows_for_certificate(harm: float, max_harm: float, confidence: float) -> int | None:
    """About how many rows with this harm rate would be certified; None if no number would."""
    if harm >= max_harm:
        return None

    def fails(rows: int) -> bool:
        return clopper_pearson_upper(math.ceil(harm * rows), rows, confidence) > max_harm

    high = 1
    while fails(high):
        high *= 2
        if high > MOST_ROWS:
            return None
    low = high // 2
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fails(middle) else (low, middle)
    return high

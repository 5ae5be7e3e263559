"""Explains improvements: what each of their edits does, by the gap model."""

import math
from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from pitcli.data.edits import Edit, edits_between, reverted
from pitcli.data.explained import ExplainedEdit
from pitcli.data.rows import Comparison
from pitcli.engine.improving.scoring import GapModel

MIN_GAP = 0.1  # P(better) of 0.525


class Explanation(NamedTuple):
    """gap: gap / T of the response over its draft. edits: in the order of the response."""

    gap: float
    edits: list[ExplainedEdit]

    def are_finite(self) -> bool:
        return math.isfinite(self.gap)


def explain(gap_model: GapModel, improvements: Sequence[Comparison]) -> list[Explanation]:
    """Return what each edit between the draft (the reference response) and the response does.

    G is gap / T of the response over the draft, G_i that of the response with edit i alone reverted, each the mean over
    the members m of an ensemble. The gap of edit i is G - G_i: what goes with it, below 0 if the response is better
    without it. Its share is (G - G_i) / G. Shares do not add up to 1 if edits need one another or do the same; an
    only edit has the share 1. If G is below MIN_GAP, negative too, there is no improvement to share: shares are None.
    Their range is that of (G^m - G_i^m) / G over the members. It divides by the mean, because a member's G^m may be
    near 0; so the share is the mean of the members' shares. A reversal that is too long for the model has no gap.
    """
    edits = [edits_between(improvement.reference_response, improvement.response) for improvement in improvements]
    compared = [variants(*each) for each in zip(improvements, edits, strict=True)]
    gaps_MB = gap_model.member_gaps([comparison for comparisons in compared for comparison in comparisons])
    by_improvement = gaps_MB.split([len(comparisons) for comparisons in compared], dim=1)
    return [_explanation(found, gaps_MB) for found, gaps_MB in zip(edits, by_improvement, strict=True)]


def variants(improvement: Comparison, edits: Sequence[Edit]) -> list[Comparison]:
    """Return the improvement, then it with each edit reverted: neighbours with one reference, which share a tree."""
    responses = [reverted(improvement.response, [edit]) for edit in edits]
    return [improvement, *(improvement._replace(response=response) for response in responses)]


def _explanation(edits: Sequence[Edit], gaps_MB: Tensor) -> Explanation:
    gap = float(gaps_MB[:, 0].mean())
    drops_ME = gaps_MB[:, :1] - gaps_MB[:, 1:]
    explained = []
    for edit, drops_M in zip(edits, drops_ME.T, strict=True):
        drop = float(drops_M.mean())
        if not math.isfinite(drop):
            explained.append(ExplainedEdit(edit, None, None))
        elif not gap >= MIN_GAP:
            explained.append(ExplainedEdit(edit, drop, None))
        elif len(drops_M) == 1:
            explained.append(ExplainedEdit(edit, drop, drop / gap))
        else:
            low, high = float(drops_M.min()) / gap, float(drops_M.max()) / gap
            explained.append(ExplainedEdit(edit, drop, drop / gap, low, high))
    return Explanation(gap, explained)

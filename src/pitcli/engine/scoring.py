"""Gaps as they are used: symmetrised, calibrated, and spoken of as a probability."""

from collections.abc import Sequence

from torch import Tensor

from pitcli.data.records import Comparison
from pitcli.data.templates import ChatFormat
from pitcli.engine.equations import symmetrised_gap
from pitcli.engine.models import RoleModel
from pitcli.engine.pair_tree import swapped_tree


def calibrated_gaps(
    model: RoleModel,
    chat: ChatFormat,
    comparisons: Sequence[Comparison],
    gap_temperature: float,
    micro_batch_size: int,
) -> Tensor:
    """gap(response, reference_response) / T of each comparison, shape (B,).

    sigmoid of it is P(response is preferred); it is exactly 0 where the two are the same.
    """
    trees = [swapped_tree(c.prompt, c.response, c.reference_response, chat) for c in comparisons]
    scores_B2 = model.score_trees(trees, micro_batch_size)
    gaps_B = symmetrised_gap(scores_B2[:, 0], scores_B2[:, 1]) / gap_temperature
    gaps_B[[c.response == c.reference_response for c in comparisons]] = 0.0  # a last bit may differ between branches
    return gaps_B

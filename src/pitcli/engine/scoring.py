"""Gaps as they are used: symmetrised, calibrated, and spoken of as a probability."""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from pitcli.data.records import Prompt
from pitcli.data.templates import ChatFormat
from pitcli.engine.equations import symmetrised_gap
from pitcli.engine.models import RoleModel


class Comparison(NamedTuple):
    """Is `response` better than `reference_response` as an answer to `prompt`?"""

    prompt: Prompt
    response: str
    reference_response: str


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
    both_orders = [chat.gap_input(c.prompt, c.response, c.reference_response) for c in comparisons]
    both_orders += [chat.gap_input(c.prompt, c.reference_response, c.response) for c in comparisons]
    scores_2B = model.score_conversations(both_orders, micro_batch_size).view(2, -1)
    gaps_B = symmetrised_gap(scores_2B[0], scores_2B[1]) / gap_temperature
    copies_B = [c.response == c.reference_response for c in comparisons]
    gaps_B[copies_B] = 0.0  # the two orders may sit in batches of different shape, which costs a last bit
    return gaps_B

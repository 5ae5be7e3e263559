"""Gaps as pit uses them: symmetrised and calibrated."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pitcli.data.rows import Comparison
from pitcli.data.templates import ChatFormat
from pitcli.engine.models.gaps import score_comparisons
from pitcli.engine.models.roles import RoleModel
from pitcli.equations import symmetrised_gap
from pitcli.settings.base import GapLoss


class GapModel(NamedTuple):
    """The gap model with its calibration.

    temperature: T of P(better) = sigmoid(gap / T). micro_batch_size: sequences per pass. loss: what the model was
    trained with, which decides what it reads.
    """

    model: RoleModel
    chat: ChatFormat
    temperature: float
    micro_batch_size: int
    loss: GapLoss

    def gaps(self, comparisons: Sequence[Comparison]) -> Tensor:
        """Return gap(response, reference_response) / T of each comparison, shape (B,), fp32, on the CPU.

        gap(y, y_ref) = 1/2 [r_gap(x, y, y_ref) - r_gap(x, y_ref, y)] (equations.symmetrised_gap), and the sigmoid of
        gap / T is P(better). Two equal responses have the gap 0; the model does not score them.
        """
        indices = [index for index, c in enumerate(comparisons) if c.response != c.reference_response]
        gaps_B = torch.zeros(len(comparisons))
        scores_N2 = score_comparisons(
            self.model, self.chat, self.loss, [comparisons[index] for index in indices], self.micro_batch_size
        )
        gaps_B[indices] = symmetrised_gap(scores_N2[:, 0], scores_N2[:, 1]) / self.temperature
        return gaps_B

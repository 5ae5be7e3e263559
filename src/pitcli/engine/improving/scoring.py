"""Gaps as pit uses them: symmetrised and calibrated."""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from pitcli.data.rows import Comparison
from pitcli.data.templates import ChatFormat
from pitcli.engine.models.forward import score_trees
from pitcli.engine.models.roles import RoleModel
from pitcli.engine.models.trees import swapped_tree
from pitcli.equations import symmetrised_gap


class GapModel(NamedTuple):
    """The gap model with its calibration.

    temperature: T of P(better) = sigmoid(gap / T). micro_batch_size: sequences per pass.
    """

    model: RoleModel
    chat: ChatFormat
    temperature: float
    micro_batch_size: int

    def gaps(self, comparisons: Sequence[Comparison]) -> Tensor:
        """Return gap(response, reference_response) / T of each comparison, shape (B,), fp32, on the CPU.

        gap(y, y_ref) = 1/2 [r_gap(x, y, y_ref) - r_gap(x, y_ref, y)] (equations.symmetrised_gap), and the sigmoid of
        gap / T is P(better). Two equal responses have the gap 0; the model does not score them. Neighbouring
        comparisons with the same prompt and reference, such as the samples of a rollout, share one tree.
        """
        indices = [index for index, c in enumerate(comparisons) if c.response != c.reference_response]
        trees = []
        for (prompt, reference), group in groupby(
            (comparisons[index] for index in indices), key=lambda c: (c.prompt, c.reference_response)
        ):
            responses = [comparison.response for comparison in group]
            together = max(1, self.micro_batch_size // 2)
            parts = [responses[start : start + together] for start in range(0, len(responses), together)]
            trees += [swapped_tree(prompt, part, reference, self.chat) for part in parts]
        gaps_B = torch.zeros(len(comparisons))
        if trees:
            scores_N2 = torch.cat(score_trees(self.model, trees, self.micro_batch_size)).view(-1, 2)
            gaps_B[indices] = symmetrised_gap(scores_N2[:, 0], scores_N2[:, 1]) / self.temperature
        return gaps_B

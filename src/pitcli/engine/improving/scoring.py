"""Gaps as they are used: symmetrised, calibrated, and given as a probability."""

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
    """The gap role of a model, with its calibration; micro_batch_size: sequences for each pass."""

    model: RoleModel
    chat: ChatFormat
    temperature: float
    micro_batch_size: int

    def gaps(self, comparisons: Sequence[Comparison]) -> Tensor:
        """gap(response, reference_response) / T of each comparison, shape (B,).

        sigmoid of it is P(response is preferred). It is 0 if the two are the same, which the model is not asked for.
        Neighbours with the same prompt and reference, such as the samples of a rollout, are read together.
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

"""Gaps as they are used: symmetrised, calibrated, and spoken of as a probability."""

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from pitcli.data.records import Comparison
from pitcli.data.templates import ChatFormat
from pitcli.engine.models.roles import RoleModel
from pitcli.engine.models.trees import swapped_tree
from pitcli.equations import symmetrised_gap


def calibrated_gaps(
    model: RoleModel,
    chat: ChatFormat,
    comparisons: Sequence[Comparison],
    gap_temperature: float,
    micro_batch_size: int,
) -> Tensor:
    """gap(response, reference_response) / T of each comparison, shape (B,).

    sigmoid of it is P(response is preferred); it is 0 where the two are the same, which the model is not asked for.
    Neighbours with the same prompt and reference, such as the samples of a rollout, are read together.
    """
    places = [place for place, c in enumerate(comparisons) if c.response != c.reference_response]
    trees = []
    for (prompt, reference), group in groupby(
        (comparisons[place] for place in places), key=lambda c: (c.prompt, c.reference_response)
    ):
        responses = [comparison.response for comparison in group]
        together = max(1, micro_batch_size // 2)
        parts = [responses[start : start + together] for start in range(0, len(responses), together)]
        trees += [swapped_tree(prompt, part, reference, chat) for part in parts]
    gaps_B = torch.zeros(len(comparisons))
    if trees:
        scores_N2 = torch.cat(model.score_trees(trees, micro_batch_size)).view(-1, 2)
        gaps_B[places] = symmetrised_gap(scores_N2[:, 0], scores_N2[:, 1]) / gap_temperature
    return gaps_B

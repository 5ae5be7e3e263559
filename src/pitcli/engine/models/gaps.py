"""What a gap model reads for a comparison, and the gaps of its scores: the one place that knows its two forms.

A gap model of pairs reads [x; y2; y1] and scores r_gap(x, y1, y2). A pointwise one (--gap-loss pointwise) reads [x; y]
as the policy writes it and scores r(x, y); its r_gap(x, y1, y2) is r(x, y1) - r(x, y2).
"""

from collections.abc import Sequence
from itertools import groupby
from typing import NamedTuple

import torch
from torch import Tensor

from pitcli.data.rows import Comparison, PreferencePair, Prompt
from pitcli.data.templates import ChatFormat
from pitcli.engine.models.forward import score_trees
from pitcli.engine.models.roles import GAP, RoleModel
from pitcli.engine.models.trees import Tree, all_pairs_tree, comparison_tree, group_tree, swapped_tree
from pitcli.equations import ORDERINGS
from pitcli.settings.base import GapLoss


class Responses(NamedTuple):
    """Different responses to one prompt, each to be compared with all the others."""

    prompt: Prompt
    texts: Sequence[str]


class TrainingRow(NamedTuple):
    """What a gap loss reads of some pairs of one prompt.

    orderings: of each pair, the leaves of the tree that have its scores, from (w,l) to (l,w); for pointwise w and l.
    """

    tree: Tree
    orderings: list[list[int]]


def training_row(pairs: Sequence[PreferencePair], chat: ChatFormat, loss: GapLoss) -> TrainingRow:
    """Return what a loss reads of pairs of one prompt: all orderings, only (w,l) and (l,w), or for pointwise w and l.

    What several pairs have in common is read once.
    """
    prompt = pairs[0].prompt
    texts = [{"w": pair.chosen, "l": pair.rejected} for pair in pairs]
    if loss is GapLoss.pointwise:
        leaves = {
            text: leaf for leaf, text in enumerate(dict.fromkeys(text for pair in texts for text in pair.values()))
        }
        tree = group_tree(chat.policy_prompt(prompt), [chat.completion(text) for text in leaves])
        return TrainingRow(tree, [[leaves[text] for text in pair.values()] for pair in texts])
    read = ORDERINGS if loss is GapLoss.five_term else (ORDERINGS[0], ORDERINGS[-1])
    compared = [[(pair[first], pair[second]) for first, second in read] for pair in texts]
    leaf_of = {both: leaf for leaf, both in enumerate(dict.fromkeys(both for pair in compared for both in pair))}
    return TrainingRow(
        comparison_tree(prompt, [*leaf_of], chat), [[leaf_of[both] for both in pair] for pair in compared]
    )


def scoring_tree(
    prompt: Prompt, responses: Sequence[str], reference_response: str, chat: ChatFormat, loss: GapLoss
) -> Tree:
    """Return the tree from which a gap model compares each response with the reference response.

    Its leaves are both orders of each response and the reference, or for pointwise the responses and the reference.
    """
    if loss is GapLoss.pointwise:
        return group_tree(chat.policy_prompt(prompt), [chat.completion(y) for y in (*responses, reference_response)])
    return swapped_tree(prompt, responses, reference_response, chat)


def both_orders(scores_N: Tensor, loss: GapLoss) -> Tensor:
    """Return r_gap(response, reference) and r_gap(reference, response) of each response, shape (responses, 2).

    scores_N: of the leaves of a scoring tree.
    """
    if loss is GapLoss.pointwise:
        gaps_B = scores_N[:-1] - scores_N[-1]
        return torch.stack([gaps_B, -gaps_B], dim=1)
    return scores_N.view(-1, 2)


def score_comparisons(
    model: RoleModel,
    chat: ChatFormat,
    loss: GapLoss,
    comparisons: Sequence[Comparison],
    micro_batch_size: int,
    role: str = GAP,
) -> Tensor:
    """Return r_gap(response, reference) and r_gap(reference, response) of each comparison, shape (B, 2), on the CPU.

    loss: what the gap model was trained with. role: which gap model. Neighbouring comparisons with the same prompt and
    reference, such as the samples of a rollout, share one tree.
    """
    trees = []
    together = max(1, micro_batch_size // 2)
    for (prompt, reference), group in groupby(comparisons, key=lambda c: (c.prompt, c.reference_response)):
        responses = [comparison.response for comparison in group]
        parts = [responses[start : start + together] for start in range(0, len(responses), together)]
        trees += [scoring_tree(prompt, part, reference, chat, loss) for part in parts]
    scores = score_trees(model, trees, micro_batch_size, role)
    return torch.cat([torch.empty(0, 2), *(both_orders(scores_N, loss) for scores_N in scores)])


def score_all_pairs(
    model: RoleModel,
    chat: ChatFormat,
    loss: GapLoss,
    groups: Sequence[Responses],
    micro_batch_size: int,
    role: str = GAP,
) -> list[Tensor]:
    """Return r_gap(y_i, y_j) of all responses of each group, shape (K, K), with zeros on the diagonal, on the CPU.

    The responses of a group share their prompt, and those with one reference the reference too.
    """
    parts = [
        part for number, group in enumerate(groups) for part in _parts(number, group, chat, loss, micro_batch_size)
    ]
    scores = score_trees(model, [part.tree for part in parts], micro_batch_size, role)
    gaps = [torch.zeros(len(group.texts), len(group.texts)) for group in groups]
    for (group, rows, _), scores_N in zip(parts, scores, strict=True):
        if loss is GapLoss.pointwise:
            gaps[group][rows] += scores_N[:, None]
            gaps[group][:, rows] -= scores_N
            continue
        count = len(gaps[group])
        for reference, scores_of_others in zip(rows, scores_N.split(count - 1), strict=True):
            gaps[group][[row for row in range(count) if row != reference], reference] = scores_of_others
    return gaps


class _Part(NamedTuple):
    """A tree with a part of the responses of a group: as references or, for a pointwise gap model, as what is read."""

    group: int
    rows: list[int]
    tree: Tree


def _parts(group: int, responses: Responses, chat: ChatFormat, loss: GapLoss, micro_batch_size: int) -> list[_Part]:
    """Split the comparisons of a group into trees of at most `micro_batch_size` leaves, or of one reference."""
    count = len(responses.texts)
    if count < 2:
        return []
    together = max(1, micro_batch_size // (1 if loss is GapLoss.pointwise else count - 1))
    parts = []
    for start in range(0, count, together):
        rows = list(range(start, min(start + together, count)))
        if loss is GapLoss.pointwise:
            completions = [chat.completion(responses.texts[row]) for row in rows]
            tree = group_tree(chat.policy_prompt(responses.prompt), completions)
        else:
            tree = all_pairs_tree(responses.prompt, responses.texts, rows, chat)
        parts.append(_Part(group, rows, tree))
    return parts

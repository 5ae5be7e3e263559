"""The orderings of a pair in one sequence: shared beginnings are read once, under tree attention.

r(w,l), r(w,w), r(l,l) and r(l,w) share x, and two each share [x; y_ref]. So a pair is laid out as
[x, w, (w), (l), l, (w), (l)], every token sees its own branch back to x alone, and its position counts along that
branch: |x| + 6|y| tokens instead of 4|x| + 8|y|, with the same scores.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pitcli.data.records import PreferencePair, Prompt
from pitcli.data.templates import ChatFormat
from pitcli.engine.batches import pad_right


class Tree(NamedTuple):
    """Conversations with shared beginnings.

    segments: token ids, each parent before its children; parents: the index of the segment that each continues
    (-1 for the root); leaves: the segments that end a conversation, in the order that their scores are wanted.
    """

    segments: list[list[int]]
    parents: list[int]
    leaves: list[int]

    def conversations(self) -> list[list[int]]:
        """The conversation that ends in each leaf, written out."""
        written: list[list[int]] = []
        for segment, parent in zip(self.segments, self.parents, strict=True):
            written.append(segment if parent < 0 else written[parent] + segment)
        return [written[leaf] for leaf in self.leaves]

    def tokens(self) -> int:
        return sum(len(segment) for segment in self.segments)


class TreeBatch(NamedTuple):
    """Packed trees, right-padded.

    input_ids_BT, position_ids_BT: tokens and their places along their branches; attention_mask_B1TT: additive,
    0 where a token sees another; rows_N, ends_N: row and place of the last token of each leaf, tree by tree.
    """

    input_ids_BT: Tensor
    position_ids_BT: Tensor
    attention_mask_B1TT: Tensor
    rows_N: Tensor
    ends_N: Tensor

    def to(self, device: torch.device) -> "TreeBatch":
        return TreeBatch(*(tensor.to(device) for tensor in self))


def ordered_tree(pair: PreferencePair, chat: ChatFormat) -> Tree:
    """All four orderings of a pair; leaves in the order of equations.ORDERINGS: (w,l), (w,w), (l,l), (l,w)."""
    chosen, rejected = chat.completion(pair.chosen), chat.completion(pair.rejected)
    segments = [
        chat.policy_prompt(pair.prompt),
        chat.after_prompt(pair.chosen),
        chosen,
        rejected,
        chat.after_prompt(pair.rejected),
        chosen,
        rejected,
    ]
    return Tree(segments, [-1, 0, 1, 1, 0, 4, 4], [5, 2, 6, 3])


def swapped_tree(prompt: Prompt, response: str, reference_response: str, chat: ChatFormat) -> Tree:
    """Both orders of two responses; leaves (response, reference) and (reference, response)."""
    segments = [
        chat.policy_prompt(prompt),
        chat.after_prompt(reference_response),
        chat.completion(response),
        chat.after_prompt(response),
        chat.completion(reference_response),
    ]
    return Tree(segments, [-1, 0, 1, 0, 3], [2, 4])


def separate_batch(trees: Sequence[Tree], pad_id: int) -> TreeBatch:
    """Each conversation in a row of its own, under the usual mask of shape (B, T): for models that take no trees."""
    input_ids_BT, mask_BT = pad_right([ids for tree in trees for ids in tree.conversations()], pad_id)
    position_ids_BT = torch.arange(input_ids_BT.shape[1]).expand_as(input_ids_BT)
    return TreeBatch(input_ids_BT, position_ids_BT, mask_BT, torch.arange(len(mask_BT)), mask_BT.sum(-1) - 1)


def tree_batch(trees: Sequence[Tree], pad_id: int, dtype: torch.dtype) -> TreeBatch:
    """Pack each tree into one row."""
    width = max(tree.tokens() for tree in trees)
    input_ids_BT = torch.full((len(trees), width), pad_id)
    position_ids_BT = torch.zeros_like(input_ids_BT)
    sees_BTT = torch.eye(width, dtype=torch.bool).repeat(len(trees), 1, 1)
    rows, ends = [], []
    for row, tree in enumerate(trees):
        size = tree.tokens()
        input_ids_BT[row, :size] = torch.tensor([token for segment in tree.segments for token in segment])
        position_ids_BT[row, :size], sees_BTT[row, :size, :size], last = _layout(tree)
        rows += [row] * len(tree.leaves)
        ends += [last[leaf] for leaf in tree.leaves]
    attention_mask_BTT = torch.zeros(sees_BTT.shape, dtype=dtype).masked_fill(~sees_BTT, torch.finfo(dtype).min)
    return TreeBatch(input_ids_BT, position_ids_BT, attention_mask_BTT[:, None], torch.tensor(rows), torch.tensor(ends))


def _layout(tree: Tree) -> tuple[Tensor, Tensor, list[int]]:
    """(positions of shape (T,), who sees whom of shape (T, T), the last token of each segment)."""
    lengths = torch.tensor([len(segment) for segment in tree.segments])
    count = len(lengths)
    is_ancestor_SS = torch.eye(count, dtype=torch.bool)
    depth = [0] * count
    for index, parent in enumerate(tree.parents):
        if parent >= 0:
            is_ancestor_SS[index] |= is_ancestor_SS[parent]
            depth[index] = depth[parent] + len(tree.segments[parent])
    starts = lengths.cumsum(0) - lengths
    segment_T = torch.repeat_interleave(torch.arange(count), lengths)
    place_T = torch.arange(len(segment_T))
    positions_T = place_T - starts[segment_T] + torch.tensor(depth)[segment_T]
    sees_TT = is_ancestor_SS[segment_T][:, segment_T] & (place_T[:, None] >= place_T[None, :])
    return positions_T, sees_TT, (starts + lengths - 1).tolist()

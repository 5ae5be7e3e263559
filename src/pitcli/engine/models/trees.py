"""Trees: conversations in one sequence, in which what they begin with alike is read once (tree attention).

r(w,l), r(w,w), r(l,l) and r(l,w) share x, and two each share [x; y_ref]. So a pair is laid out as
[x, w, (w), (l), l, (w), (l)]. Each token sees only its own branch back to x, and positions count along that branch.
That is |x| + 6|y| tokens instead of 4|x| + 8|y|, with the same scores, and fewer if w and l begin alike, as a text and
its improvement often do. In RL the samples of one prompt share it likewise.
"""

from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import NamedTuple

import torch
from torch import Tensor

from pitcli.data.rows import PreferencePair, Prompt
from pitcli.data.templates import ChatFormat, Example
from pitcli.engine.models.attention import branches_of
from pitcli.engine.models.batches import Batch, common_prefix, pad_right
from pitcli.settings.base import Role

SHARED_TOKENS = 8  # the fewest that are worth a segment of their own after the first one


class Tree(NamedTuple):
    """Conversations with shared beginnings.

    segments: token ids, each parent before its children. parents: the index of the segment that each one continues (-1
    for the root). leaves: the indices of the segments that end a conversation, in the order of their scores. prompts:
    the tokens of each conversation before its completion; not needed if only scores are read.
    """

    segments: list[list[int]]
    parents: list[int]
    leaves: list[int]
    prompts: Sequence[int] = ()

    def conversations(self) -> list[list[int]]:
        """Return the token ids of the whole conversation that ends in each leaf."""
        written: list[list[int]] = []
        for segment, parent in zip(self.segments, self.parents, strict=True):
            written.append(segment if parent < 0 else written[parent] + segment)
        return [written[leaf] for leaf in self.leaves]

    def examples(self) -> list[Example]:
        """Return the prompt and the completion of each conversation."""
        conversations = zip(self.conversations(), self.prompts, strict=True)
        return [Example(ids[:prompt], ids[prompt:]) for ids, prompt in conversations]

    def lengths(self) -> list[int]:
        """Return how many tokens each conversation has."""
        until: list[int] = []
        for segment, parent in zip(self.segments, self.parents, strict=True):
            until.append(len(segment) + (0 if parent < 0 else until[parent]))
        return [until[leaf] for leaf in self.leaves]

    def completion_lengths(self) -> list[int]:
        """Return how many tokens the completion of each conversation has."""
        return [length - prompt for length, prompt in zip(self.lengths(), self.prompts, strict=True)]

    def tokens(self) -> int:
        """Return the tokens of the packed tree."""
        return sum(len(segment) for segment in self.segments)


def prefix_tree(examples: Sequence[Example]) -> Tree:
    """Return the tree of some conversations; its leaves are in their order.

    All share the first segment. After it, a beginning is shared if two of them share SHARED_TOKENS there.
    """
    conversations = [prompt + completion for prompt, completion in examples]
    tree = Tree([], [], [0] * len(examples), [len(prompt) for prompt, _ in examples])

    def grow(rows: Sequence[int], start: int, parent: int) -> None:
        """Add the segment that these conversations share from `start` on, and all after it."""
        end = start + shared_tokens(conversations[row][start:] for row in rows)
        segment = len(tree.segments)
        tree.segments.append(conversations[rows[0]][start:end])
        tree.parents.append(parent)
        going_on: dict[int, list[int]] = {}
        for row in rows:
            if len(conversations[row]) == end:
                tree.leaves[row] = segment
            else:
                going_on.setdefault(conversations[row][end], []).append(row)
        for group in going_on.values():
            rests = [conversations[row][end:] for row in group]
            together = any(common_prefix(*pair) >= SHARED_TOKENS for pair in combinations(rests, 2))
            for part in [group] if together else [[row] for row in group]:
                grow(part, end, segment)

    grow(range(len(examples)), 0, -1)
    return tree


def shared_tokens(sequences: Iterable[Sequence[int]]) -> int:
    """Return how many leading tokens all of the sequences share."""
    first, *others = sequences
    return min((common_prefix(first, other) for other in others), default=len(first))


def comparison_tree(prompt: Prompt, comparisons: Sequence[tuple[str, str]], chat: ChatFormat) -> Tree:
    """Return the tree of what a gap model of pairs reads for each (response, reference) of one prompt."""
    contexts = {reference: chat.improver_prompt(prompt, reference) for _, reference in comparisons}
    return prefix_tree([Example(contexts[reference], chat.completion(y)) for y, reference in comparisons])


def swapped_tree(prompt: Prompt, responses: Sequence[str], reference: str, chat: ChatFormat) -> Tree:
    """Return the tree of both orders of each response and the reference.

    The leaves are (response, reference), (reference, response) of the first response, then of the next.
    """
    both = [order for response in responses for order in ((response, reference), (reference, response))]
    return comparison_tree(prompt, both, chat)


def all_pairs_tree(prompt: Prompt, responses: Sequence[str], references: Sequence[int], chat: ChatFormat) -> Tree:
    """Return the tree in which each of some responses is the reference of all the others.

    references: indices of these responses. The leaves are the others of the first one in their order, then of the next.
    """
    comparisons = [
        (response, responses[reference])
        for reference in references
        for index, response in enumerate(responses)
        if index != reference
    ]
    return comparison_tree(prompt, comparisons, chat)


def preference_tree(pair: PreferencePair, chat: ChatFormat, role: Role, rated: PreferencePair | None = None) -> Tree:
    """Return the tree of both responses of a pair as a role writes them.

    Policy: the leaves are w, l. Improver: w, l after [x; l], then w, l after [x; w]. A truncated response has no stop
    token. rated: another pair whose responses to write instead, in the contexts of this one.
    """
    rated = rated or pair
    completions = [
        chat.completion(rated.chosen, ends=not rated.chosen_truncated),
        chat.completion(rated.rejected, ends=not rated.rejected_truncated),
    ]
    if role is Role.policy:
        return group_tree(chat.policy_prompt(pair.prompt), completions)
    contexts = [chat.improver_prompt(pair.prompt, reference) for reference in (pair.rejected, pair.chosen)]
    return prefix_tree([Example(context, completion) for context in contexts for completion in completions])


def group_tree(prompt: list[int], completions: Sequence[list[int]]) -> Tree:
    """Return the tree of several completions of one prompt; leaves in their order."""
    return prefix_tree([Example(prompt, completion) for completion in completions])


def completion_batch(examples: Sequence[Example], pad_id: int) -> Batch:
    """Return a batch with one example per row; the states that predict its completion are selected."""
    return separate_batch([prefix_tree([example]) for example in examples], pad_id, of_tokens=True)


def separate_batch(trees: Sequence[Tree], pad_id: int, of_tokens: bool = False) -> Batch:
    """Return a batch with one conversation per row and causal attention, for models without tree attention.

    It selects the last state of each leaf or, with of_tokens, the states that predict the tokens of the leaves.
    """
    conversations = [ids for tree in trees for ids in tree.conversations()]
    prompts = [prompt for tree in trees for prompt in (tree.prompts if of_tokens else [None] * len(tree.leaves))]
    input_ids_BT = pad_right(conversations, pad_id)
    selected = [
        _selected(row, range(len(ids)), ids, prompt)
        for row, (ids, prompt) in enumerate(zip(conversations, prompts, strict=True))
    ]
    branches_BS2 = branches_of([([-1], [len(ids)]) for ids in conversations])
    return Batch(input_ids_BT, None, branches_BS2, *_flat(selected), tokens=sum(map(len, conversations)))


def packed_batch(trees: Sequence[Tree], pad_id: int, of_tokens: bool = False) -> Batch:
    """Return a batch with one tree per row; selects the same states as separate_batch."""
    input_ids_BT = pad_right([[token for segment in tree.segments for token in segment] for tree in trees], pad_id)
    position_ids_BT = torch.zeros_like(input_ids_BT)
    selected = []
    for row, tree in enumerate(trees):
        position_ids_BT[row, : tree.tokens()], columns = _layout(tree)
        prompts = tree.prompts if of_tokens else [None] * len(tree.leaves)
        for leaf, ids, prompt in zip(tree.leaves, tree.conversations(), prompts, strict=True):
            selected.append(_selected(row, columns[leaf], ids, prompt))
    branches_BS2 = branches_of([(tree.parents, [len(ids) for ids in tree.segments]) for tree in trees])
    tokens = sum(tree.tokens() for tree in trees)
    return Batch(input_ids_BT, position_ids_BT, branches_BS2, *_flat(selected), tokens=tokens)


class _SelectedStates(NamedTuple):
    """The selected states of one leaf."""

    row: int
    columns: Sequence[int]
    targets: Sequence[int]


def _selected(row: int, path: Sequence[int], ids: list[int], prompt: int | None) -> _SelectedStates:
    """The states that predict the completion after a prompt of that length, or the last one.

    path: the columns of the conversation's tokens.
    """
    if prompt is None:
        return _SelectedStates(row, path[-1:], [])
    return _SelectedStates(row, path[prompt - 1 : -1], ids[prompt:])


def _flat(selected: Sequence[_SelectedStates]) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows_N, columns_N and targets_N of a batch."""
    rows = [states.row for states in selected for _ in states.columns]
    columns = [column for states in selected for column in states.columns]
    targets = [target for states in selected for target in states.targets]
    return torch.tensor(rows), torch.tensor(columns), torch.tensor(targets, dtype=torch.long)


def _layout(tree: Tree) -> tuple[Tensor, list[list[int]]]:
    """Return (positions along the branches, shape (T,); the columns from the root to the end of each segment)."""
    paths: list[list[int]] = []
    positions: list[int] = []
    for segment, parent in zip(tree.segments, tree.parents, strict=True):
        before = paths[parent] if parent >= 0 else []
        paths.append([*before, *range(len(positions), len(positions) + len(segment))])
        positions += range(len(before), len(paths[-1]))
    return torch.tensor(positions), paths

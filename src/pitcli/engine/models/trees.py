"""Trees: conversations with a shared prefix in one sequence, so that the prefix is read once (tree attention).

r(w,l), r(w,w), r(l,l) and r(l,w) share x, and two each share [x; y_ref]. So a pair is laid out as
[x, w, (w), (l), l, (w), (l)]. Each token sees only its own branch back to x, and positions count along that branch.
That is |x| + 6|y| tokens instead of 4|x| + 8|y|, with the same scores. In RL the samples of one prompt share it
likewise.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pitcli.data.rows import PreferencePair, Prompt
from pitcli.data.templates import ChatFormat, Example
from pitcli.engine.models.attention import branches_of
from pitcli.engine.models.batches import Batch, common_prefix, pad_right
from pitcli.settings.base import Role


class Tree(NamedTuple):
    """Conversations with shared prefixes.

    segments: token ids, each parent before its children. parents: the index of the segment that each one continues (-1
    for the root). leaves: the indices of the segments that end a conversation, in the order of their scores.
    """

    segments: list[list[int]]
    parents: list[int]
    leaves: list[int]

    def conversations(self) -> list[list[int]]:
        """Return the token ids of the whole conversation that ends in each leaf."""
        written: list[list[int]] = []
        for segment, parent in zip(self.segments, self.parents, strict=True):
            written.append(segment if parent < 0 else written[parent] + segment)
        return [written[leaf] for leaf in self.leaves]

    def lengths(self) -> list[int]:
        """Return how many tokens each conversation has."""
        until: list[int] = []
        for segment, parent in zip(self.segments, self.parents, strict=True):
            until.append(len(segment) + (0 if parent < 0 else until[parent]))
        return [until[leaf] for leaf in self.leaves]

    def tokens(self) -> int:
        """Return the tokens of the packed tree."""
        return sum(len(segment) for segment in self.segments)


def ordered_tree(pair: PreferencePair, chat: ChatFormat) -> Tree:
    """Return the tree of the four orderings of a pair; leaves as in equations.ORDERINGS: (w,l), (w,w), (l,l), (l,w)."""
    chosen, rejected = chat.completion(pair.chosen), chat.completion(pair.rejected)
    shared, (after_chosen, after_rejected) = split_prompts(pair.prompt, [pair.chosen, pair.rejected], chat)
    return crossed_tree(shared, [after_chosen, after_rejected], [chosen, rejected])._replace(leaves=[5, 2, 6, 3])


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
    shared, contexts = split_prompts(pair.prompt, [pair.rejected, pair.chosen], chat)
    return crossed_tree(shared, contexts, completions)


def crossed_tree(shared: list[int], contexts: Sequence[list[int]], completions: Sequence[list[int]]) -> Tree:
    """Return the tree of each completion after each context, which share what is before them.

    The leaves are the completions of the first context, then of the next.
    """
    segments, parents, leaves = [shared], [-1], list[int]()
    for context in contexts:
        parent = len(segments)
        segments += [context, *completions]
        parents += [0, *[parent] * len(completions)]
        leaves += range(parent + 1, parent + 1 + len(completions))
    return Tree(segments, parents, leaves)


def swapped_tree(prompt: Prompt, responses: Sequence[str], reference_response: str, chat: ChatFormat) -> Tree:
    """Return the tree of both orders of each response and the reference; the responses share x and [x; reference].

    The leaves are (response, reference), (reference, response) of the first response, then of the next.
    """
    reference = chat.completion(reference_response)
    shared, (after_reference, *after_responses) = split_prompts(prompt, [reference_response, *responses], chat)
    segments = [shared, after_reference]
    parents, leaves = [-1, 0], []
    for response, after_response in zip(responses, after_responses, strict=True):
        first = len(segments)
        segments += [chat.completion(response), after_response, reference]
        parents += [1, 0, first + 1]
        leaves += [first, first + 2]
    return Tree(segments, parents, leaves)


def all_pairs_tree(prompt: Prompt, responses: Sequence[str], references: Sequence[int], chat: ChatFormat) -> Tree:
    """Return the tree in which each of some responses is the reference of all the others; they share x and [x; y_ref].

    references: indices of these responses. The leaves are the others of the first one in their order, then of the next.
    """
    completions = [chat.completion(response) for response in responses]
    shared, after_x = split_prompts(prompt, [responses[index] for index in references], chat)
    segments, parents, leaves = [shared], [-1], list[int]()
    for reference, after in zip(references, after_x, strict=True):
        parent = len(segments)
        others = [completion for index, completion in enumerate(completions) if index != reference]
        leaves += range(parent + 1, parent + 1 + len(others))
        segments += [after, *others]
        parents += [0, *[parent] * len(others)]
    return Tree(segments, parents, leaves)


def split_prompts(
    prompt: Prompt, reference_responses: Sequence[str], chat: ChatFormat
) -> tuple[list[int], list[list[int]]]:
    """Return what the improver's prompts with these references share up to the reference, and the rest of each."""
    prompts = [chat.improver_prompt(prompt, reference) for reference in reference_responses]
    before = chat.before_reference(prompt)
    # a reference that begins with white space may change the token before it
    shared = min(common_prefix(before, ids) for ids in prompts)
    return before[:shared], [ids[shared:] for ids in prompts]


def group_tree(prompt: list[int], completions: Sequence[list[int]]) -> Tree:
    """Return the tree of several completions of one prompt; leaves in their order."""
    return Tree([prompt, *completions], [-1, *[0] * len(completions)], list(range(1, len(completions) + 1)))


def completion_batch(examples: Sequence[Example], pad_id: int) -> Batch:
    """Return a batch with one example per row; the states that predict its completion are selected."""
    return separate_batch(
        [group_tree(example.prompt, [example.completion]) for example in examples], pad_id, of_tokens=True
    )


def separate_batch(trees: Sequence[Tree], pad_id: int, of_tokens: bool = False) -> Batch:
    """Return a batch with one conversation per row and causal attention, for models without tree attention.

    It selects the last state of each leaf or, with of_tokens, the states that predict the tokens of the leaves.
    """
    conversations = [ids for tree in trees for ids in tree.conversations()]
    leaves = [tree.segments[leaf] for tree in trees for leaf in tree.leaves]
    input_ids_BT = pad_right(conversations, pad_id)
    selected = []
    for row, (ids, leaf) in enumerate(zip(conversations, leaves, strict=True)):
        path = range(len(ids) - len(leaf) - 1, len(ids))
        columns, targets = (path[:-1], leaf) if of_tokens else (path[-1:], [])
        selected.append(_SelectedStates(row, columns, targets))
    branches_BS2 = branches_of([([-1], [len(ids)]) for ids in conversations])
    return Batch(input_ids_BT, None, branches_BS2, *_flat(selected), tokens=sum(map(len, conversations)))


def packed_batch(trees: Sequence[Tree], pad_id: int, of_tokens: bool = False) -> Batch:
    """Return a batch with one tree per row; selects the same states as separate_batch."""
    input_ids_BT = pad_right([[token for segment in tree.segments for token in segment] for tree in trees], pad_id)
    position_ids_BT = torch.zeros_like(input_ids_BT)
    selected = []
    for row, tree in enumerate(trees):
        position_ids_BT[row, : tree.tokens()], ends = _layout(tree)
        for leaf in tree.leaves:
            segment = tree.segments[leaf]
            path = [ends[tree.parents[leaf]], *range(ends[leaf] + 1 - len(segment), ends[leaf] + 1)]
            columns, targets = (path[:-1], segment) if of_tokens else (path[-1:], [])
            selected.append(_SelectedStates(row, columns, targets))
    branches_BS2 = branches_of([(tree.parents, [len(ids) for ids in tree.segments]) for tree in trees])
    tokens = sum(tree.tokens() for tree in trees)
    return Batch(input_ids_BT, position_ids_BT, branches_BS2, *_flat(selected), tokens=tokens)


class _SelectedStates(NamedTuple):
    """The selected states of one leaf."""

    row: int
    columns: Sequence[int]
    targets: Sequence[int]


def _flat(selected: Sequence[_SelectedStates]) -> tuple[Tensor, Tensor, Tensor]:
    """Return rows_N, columns_N and targets_N of a batch."""
    rows = [states.row for states in selected for _ in states.columns]
    columns = [column for states in selected for column in states.columns]
    targets = [target for states in selected for target in states.targets]
    return torch.tensor(rows), torch.tensor(columns), torch.tensor(targets, dtype=torch.long)


def _layout(tree: Tree) -> tuple[Tensor, list[int]]:
    """Return (positions along the branches, shape (T,); index of the last token of each segment)."""
    positions: list[int] = []
    ends, depth = list[int](), list[int]()
    for segment, parent in zip(tree.segments, tree.parents, strict=True):
        start = 0 if parent < 0 else depth[parent]
        depth.append(start + len(segment))
        positions += range(start, depth[-1])
        ends.append(len(positions) - 1)
    return torch.tensor(positions), ends

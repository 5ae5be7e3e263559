"""Attention for CPUs that computes little more than what a token of a tree may see.

torch's CPU kernel computes all T x T scores under a mask, and most of them without one. But half of these are hidden in
a conversation, and two thirds in the tree of a pair. Here a sequence is split into blocks of neighbouring tokens, and a
block attends only to the tokens of its own branch up to its end, in the forward and in the backward pass. These are
matrix products in fp32, of factors in bf16 if the states are bf16: torch's kernel reaches a third of their speed.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from itertools import groupby, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

BLOCK = 128  # tokens; 64 and 256 are hardly slower


def attend_by_block(
    query: Tensor, key: Tensor, value: Tensor, scaling: float | None, rows: Sequence[Sequence[Sequence[int]]]
) -> Tensor:
    """Attend so that each token sees its own branch.

    States have shape (B, heads, T, D), the outputs (B, T, heads, D). rows: the segments of each row, as (parent,
    length); see attention.branches_of. scaling: of the scores; None: 1 / sqrt(D).
    """
    blocks = [_blocks(_branches(row, query.shape[2])) for row in rows]
    output: Tensor = _ByBlock.apply(query, key, value, scaling, blocks)
    return output


def by_key(states_BHTD: Tensor, groups: int) -> Tensor:
    """Return states as shape (B, G, R, T, D): R query heads for each of G key heads."""
    return states_BHTD.unflatten(1, (groups, -1))


Span = tuple[int, int]  # tokens of a row: from start to stop, exclusive


class _Block(NamedTuple):
    """Neighbouring tokens of a row. sees: the spans that they see, the last of which ends with the block itself."""

    tokens: Span
    sees: list[Span]

    @property
    def size(self) -> int:
        return self.tokens[1] - self.tokens[0]

    @property
    def lengths(self) -> list[int]:
        return [end - begin for begin, end in self.sees]

    def rows(self, heads: int) -> slice:
        """Return where the queries of the block are, if there are this many of each token."""
        return slice(self.tokens[0] * heads, self.tokens[1] * heads)

    def seen_of(self, states_XTD: Tensor) -> Tensor:
        """Return the states that the block sees, shape (X, S, D)."""
        parts = [states_XTD[:, begin:end] for begin, end in self.sees]
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def add_to(self, total_XTD: Tensor, part_XSD: Tensor) -> None:
        """Add a value for each state that the block sees."""
        for (begin, end), span_XSD in zip(self.sees, part_XSD.split(self.lengths, 1), strict=True):
            total_XTD[:, begin:end] += span_XSD


def _branches(row: Sequence[Sequence[int]], width: int) -> tuple[tuple[int, int], ...]:
    """Return the branches of a row; one over the whole width, its padding included, if they do not fork.

    Rows of one branch are then alike, whatever their lengths. Nothing attends to padding.
    """
    forks = any(length and parent != index - 1 for index, (parent, length) in enumerate(row))
    return tuple((parent, length) for parent, length in row) if forks else ((-1, width),)


def spans_of(row: Sequence[Sequence[int]]) -> list[list[Span]]:
    """Return the branch of each segment: the spans of its ancestors, then its own."""
    spans: list[list[Span]] = []
    start = 0
    for parent, length in row:
        spans.append([*(spans[parent] if parent >= 0 else []), (start, start + length)])
        start += length
    return spans


@lru_cache(maxsize=256)  # each layer needs it
def _blocks(row: tuple[tuple[int, int], ...]) -> list[_Block]:
    """Split each segment of a row, given as (parent, length), into blocks."""
    blocks = []
    for spans in spans_of(row):
        *ancestors, (start, stop) = spans
        for first, last in pairwise([*range(start, stop, BLOCK), stop]):
            blocks.append(_Block((first, last), _joined([*ancestors, (start, last)])))
    return blocks


def _joined(spans: Sequence[Span]) -> list[Span]:
    """Merge neighbouring spans."""
    joined: list[Span] = []
    for begin, end in spans:
        follows = bool(joined) and joined[-1][1] == begin
        joined.append((joined.pop()[0] if follows else begin, end))
    return joined


class _ByBlock(torch.autograd.Function):
    """Attention by blocks, which computes the weights of a block again in the backward pass instead of keeping them.

    X: the key heads of all rows. M: queries, those of one token's R query heads next to one another. S: keys.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, blocks: list[list[_Block]]
    ) -> Tensor:
        heads_of_key, ctx.blocks = query.shape[1] // key.shape[1], blocks
        ctx.scaling = query.shape[-1] ** -0.5 if scaling is None else scaling
        query_XMD = _queries(query, key.shape[1]) * ctx.scaling
        key_XSD, value_XSD = (_wide(states).flatten(0, 1) for states in (key, value))
        output_XMD = torch.zeros_like(query_XMD)
        with _products_in(query.dtype):
            for heads, block in _parts(blocks, key.shape[1]):
                own = block.rows(heads_of_key)
                weights_XMS = _weights(query_XMD[heads, own], block.seen_of(key_XSD[heads]), block)
                output_XMD[heads, own] = weights_XMS @ block.seen_of(value_XSD[heads])
        output = _by_token(output_XMD, query).to(query.dtype)
        ctx.save_for_backward(query, key, value, output)
        return output

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output = ctx.saved_tensors
        heads_of_key = query.shape[1] // key.shape[1]
        query_XMD = _queries(query, key.shape[1]) * ctx.scaling
        key_XSD, value_XSD = (_wide(states).flatten(0, 1) for states in (key, value))
        slopes_XMD, output_XMD = (_queries(x.transpose(1, 2), key.shape[1]) for x in (slopes[0], output))
        inner_XM1 = (slopes_XMD * output_XMD).sum(-1, keepdim=True)
        query_slopes_XMD, key_slopes_XSD, value_slopes_XSD = map(torch.zeros_like, (query_XMD, key_XSD, value_XSD))
        with _products_in(query.dtype):
            for heads, block in _parts(ctx.blocks, key.shape[1]):
                own = block.rows(heads_of_key)
                queries, outputs, keys = query_XMD[heads, own], slopes_XMD[heads, own], block.seen_of(key_XSD[heads])
                weights_XMS = _weights(queries, keys, block)
                block.add_to(value_slopes_XSD[heads], weights_XMS.mT @ outputs)
                score_slopes_XMS = outputs @ block.seen_of(value_XSD[heads]).mT
                score_slopes_XMS.sub_(inner_XM1[heads, own]).mul_(weights_XMS)
                query_slopes_XMD[heads, own] = score_slopes_XMS @ keys
                block.add_to(key_slopes_XSD[heads], score_slopes_XMS.mT @ queries)
        query_slopes = _by_token(query_slopes_XMD.mul_(ctx.scaling), query).transpose(1, 2).to(query.dtype)
        return (
            query_slopes,
            key_slopes_XSD.view_as(key).to(key.dtype),
            value_slopes_XSD.view_as(value).to(value.dtype),
            None,
            None,
        )


def _parts(blocks: list[list[_Block]], groups: int) -> Iterator[tuple[slice, _Block]]:
    """Yield each block with its key heads among those of all rows; neighbouring rows with the same blocks at once."""
    first = 0
    for row_blocks, rows in groupby(blocks):
        heads = slice(first * groups, (first := first + len(list(rows))) * groups)
        yield from ((heads, block) for block in row_blocks)


def _weights(query_XMD: Tensor, key_XSD: Tensor, block: _Block) -> Tensor:
    """Return the attention weights of a block, shape (X, M, S), fp32."""
    scores_XMS = query_XMD @ key_XSD.mT
    later_MT = later_mask(block.size, query_XMD.shape[1] // block.size)
    scores_XMS[..., -block.size :].add_(later_MT)
    return scores_XMS.softmax(-1)


@lru_cache(maxsize=256)
def later_mask(tokens: int, heads: int) -> Tensor:
    """Return what hides from each token the later ones of its block, added to scores, shape (M, tokens)."""
    return torch.full((tokens, tokens), -torch.inf).triu_(1).repeat_interleave(heads, 0)


def _queries(states_BHTD: Tensor, groups: int) -> Tensor:
    """Return states of queries as shape (X, M, D), fp32."""
    return _wide(by_key(states_BHTD, groups).transpose(2, 3)).flatten(2, 3).flatten(0, 1)


def _wide(states: Tensor) -> Tensor:
    """Return states in fp32, or in fp64 if they are."""
    return states.to(torch.promote_types(states.dtype, torch.float32))


def _by_token(states_XMD: Tensor, query: Tensor) -> Tensor:
    """Return states of queries as shape (B, T, H, D)."""
    batch, heads, tokens, size = query.shape
    states_BGTRD = states_XMD.view(batch, -1, tokens, heads * batch // len(states_XMD), size)
    return states_BGTRD.transpose(1, 2).reshape(batch, tokens, heads, size)


@contextmanager
def _products_in(dtype: torch.dtype) -> Iterator[None]:
    """Let oneDNN round the factors of fp32 products to bf16, if the states are bf16: the sums stay in fp32."""
    matmul = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    before = matmul.fp32_precision
    if dtype is torch.bfloat16:
        matmul.fp32_precision = "bf16"
    try:
        with torch.autocast("cpu", enabled=False):  # which would round the sums too
            yield
    finally:
        matmul.fp32_precision = before

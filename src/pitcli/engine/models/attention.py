"""Attention for CPUs that computes little more than what the mask lets tokens see.

torch's CPU kernel computes all T x T scores under a mask, and most of them without one. But half of these are hidden in
a conversation, and two thirds in the tree of a pair. Here a sequence is split into blocks of neighbouring tokens, and a
block attends only to the tokens of its own branch up to its end, in the forward and in the backward pass. It attends in
fp32: torch's CPU kernel is slower in bf16, by half in the backward pass, up to seven times for one query.
"""

from collections.abc import Iterator, Sequence
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BY_BRANCH = "pit_by_branch"  # its name in transformers; its mask is the branches of each row
MASK_STRIDE = 16  # elements; the row strides that GPU kernels need are multiples of it
BLOCK = 128  # tokens; 64 and 256 are hardly slower
# options of transformers' attention beyond a mask
NOT_PLAIN = ("position_bias", "softcap", "s_aux", "sinks", "indices", "block_indices")


def branches_of(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
    """Return the branches of a batch, shape (B, S, 2): (parent, length) of each of a row's segments.

    rows: the parents (-1: none) and the lengths of each row's segments. Rows with fewer segments are padded with empty
    ones.
    """
    width = max(len(lengths) for _, lengths in rows)
    branches_BS2 = torch.tensor([-1, 0]).repeat(len(rows), width, 1)
    for row, (parents, lengths) in enumerate(rows):
        branches_BS2[row, : len(lengths)] = torch.tensor([parents, lengths]).T
    return branches_BS2


def tree_mask(branches_BS2: Tensor, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return branches as an additive mask for any attention, shape (B, 1, width, width); padding sees itself.

    The mask has the row stride that GPU kernels need; otherwise each layer would copy it and keep the copy.
    """
    size = (len(branches_BS2), width, -(-width // MASK_STRIDE) * MASK_STRIDE)
    mask_BTT = torch.full(size, torch.finfo(dtype).min, dtype=dtype, device=device)[..., :width]
    mask_BTT.diagonal(dim1=1, dim2=2).zero_()
    for mask_TT, row in zip(mask_BTT, branches_BS2.tolist(), strict=True):
        for spans in _spans(row):
            start, stop = spans[-1]
            for first, last in spans[:-1]:
                mask_TT[start:stop, first:last] = 0
            mask_TT[start:stop, start:stop].triu_(1)
    return mask_BTT[:, None]


def branches_mask(branches_BS2: Tensor) -> Tensor:
    """Return the mask with which `attend` attends by branch, shape (B, 1, S, 2); see branches_of."""
    return branches_BS2[:, None]


def pieces_mask(pieces: Sequence[tuple[int, int, int]]) -> Tensor:
    """Return the mask with which `attend` generates without padding, shape (1, 1, R, 3).

    The only row of queries is the pieces one after another. Each piece is (tokens, row of the KV cache that it
    continues, tokens cached there before it).
    """
    return torch.tensor([[pieces]])


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Compute attention for transformers: states of shape (B, heads, T, D) to outputs of shape (B, T, heads, D).

    transformers passes any mask on unchanged, and the mask selects what is computed:

    | made by       | dtype         | shape        | attention                                          |
    |---------------|---------------|--------------|----------------------------------------------------|
    | branches_mask | int64         | (B, 1, S, 2) | each token sees its own branch                     |
    | pieces_mask   | int64         | (1, 1, R, 3) | each piece sees its cached row, and itself         |
    | transformers  | None or other | any          | torch's scaled-dot-product attention               |

    Raises ValueError if transformers needs more than a mask, such as dropout or a softcap.
    """
    if attention_mask is None or attention_mask.dtype != torch.long:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    scaling: float | None = options.get("scaling")
    if options.get("dropout") or any(options.get(name) is not None for name in NOT_PLAIN):
        raise ValueError("expected attention with a mask only, got further options")
    if attention_mask.shape[-1] == 3:
        return _by_piece(query, key, value, scaling, pieces=attention_mask[0, 0].tolist()), None
    blocks = [_blocks(tuple(map(tuple, row))) for row in attention_mask[:, 0].tolist()]
    output: Tensor = _ByBranch.apply(query, key, value, scaling, blocks)
    return output, None


@cache
def kernels_work() -> bool:
    """Return whether torch's private kernels work as they are called here, by trying them."""
    states = [torch.ones(1, heads, 4, 8, requires_grad=True) for heads in (2, 1, 1)]
    try:
        with torch.enable_grad():
            output: Tensor = _ByBranch.apply(*states, None, [_blocks(((-1, 4),))])
            slopes = torch.autograd.grad(output.sum(), states)
    except (AttributeError, RuntimeError, TypeError, ValueError):
        return False
    return all(bool(slope.isfinite().all()) for slope in slopes)


AttentionInterface.register(BY_BRANCH, attend)
AttentionMaskInterface.register(BY_BRANCH, sdpa_mask)


def _by_piece(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, pieces: list[list[int]]) -> Tensor:
    """Attend in generation, in the type of the cache: each piece of the query continues a cached row."""
    dtype, query = query.dtype, query.to(key.dtype)
    query_GRTD = _by_key(query, key.shape[1])[0]
    heads = query_GRTD.shape[1]
    causal = _Causal.of(max(piece[0] for piece in pieces), max(piece[2] for piece in pieces), query.dtype)
    outputs, first = [], 0
    for tokens, row, cached in pieces:
        outputs.append(
            nn.functional.scaled_dot_product_attention(
                query_GRTD[:, :, first : first + tokens],
                _shared(key[row, :, : cached + tokens], heads),
                _shared(value[row, :, : cached + tokens], heads),
                attn_mask=causal.part(tokens, cached + tokens),
                scale=scaling,
            )
        )
        first += tokens
    return torch.cat(outputs, 2).flatten(0, 1).transpose(0, 1)[None].to(dtype)


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

    @property
    def seen(self) -> int:
        return sum(self.lengths)


def _spans(row: Sequence[Sequence[int]]) -> list[list[Span]]:
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
    for spans in _spans(row):
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


class _Causal(NamedTuple):
    """An additive causal mask of tokens that follow `before` others; the masks of all blocks are parts of it."""

    mask: Tensor
    before: int

    @classmethod
    def of(cls, most: int, before: int, dtype: torch.dtype) -> "_Causal":
        """Return a mask for parts of at most `most` tokens that follow at most `before` others."""
        return cls(torch.full((most, before + most), torch.finfo(dtype).min, dtype=dtype).triu_(before + 1), before)

    def part(self, tokens: int, seen: int) -> Tensor:
        """Return the mask of the last `tokens` of the `seen` tokens, shape (1, 1, tokens, seen)."""
        return self.mask[None, None, :tokens, self.before + tokens - seen : self.before + tokens]


def _causal(blocks: Sequence[Sequence[_Block]], dtype: torch.dtype) -> _Causal:
    """Return one causal mask for the blocks of all rows."""
    flat = [block for row_blocks in blocks for block in row_blocks]
    return _Causal.of(max(block.size for block in flat), max(block.seen - block.size for block in flat), dtype)


class _ByBranch(torch.autograd.Function):
    """Attention by blocks. Query heads that share a key head have a separate axis R, of stride 0 in keys and values.

    It calls the kernel under scaled_dot_product_attention, because only that returns the log-sum-exps, and accepts them
    in the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, blocks: list[list[_Block]]
    ) -> Tensor:
        saved, dtype = (query, key, value), query.dtype
        query, key, value = _without_bf16(*saved)
        batch, heads, tokens, size = query.shape
        output = query.new_zeros(batch, tokens, heads, size)
        query_BGRTD, output_BGRTD = (_by_key(x, key.shape[1]) for x in (query, output.transpose(1, 2)))
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        sums, causal = [], _causal(blocks, query.dtype)
        for row, row_blocks in enumerate(blocks):
            for block in row_blocks:
                states = _seen_by(block, query_BGRTD[row], key[row], value[row])
                attended, sum_GRT = flash(*states, attn_mask=causal.part(block.size, block.seen), scale=scaling)
                output_BGRTD[row, :, :, slice(*block.tokens)] = attended
                sums.append(sum_GRT)
        output = output.to(dtype)
        ctx.save_for_backward(*saved, output, *sums)
        ctx.scaling, ctx.blocks = scaling, blocks
        return output

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, *sums = ctx.saved_tensors
        dtype = query.dtype
        query, key, value, output, slope = _without_bf16(query, key, value, output, slopes[0])
        query_slopes, key_slopes, value_slopes = (
            x.new_zeros(len(x), x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2) for x in (query, key, value)
        )
        query_BGRTD, query_slopes_BGRTD, output_BGRTD, slopes_BGRTD = (
            _by_key(x, key.shape[1]) for x in (query, query_slopes, output.transpose(1, 2), slope.transpose(1, 2))
        )
        flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        sums_of_blocks, causal = iter(sums), _causal(ctx.blocks, query.dtype)
        for row, row_blocks in enumerate(ctx.blocks):
            for block in row_blocks:
                states = _seen_by(block, query_BGRTD[row], key[row], value[row])
                own = slice(*block.tokens)
                found = flash_backward(
                    slopes_BGRTD[row, :, :, own],
                    *states,
                    output_BGRTD[row, :, :, own],
                    next(sums_of_blocks),
                    0.0,
                    False,
                    attn_mask=causal.part(block.size, block.seen),
                    scale=ctx.scaling,
                )
                query_slopes_BGRTD[row, :, :, own] = found[0]
                for total, part in ((key_slopes[row], found[1].sum(1)), (value_slopes[row], found[2].sum(1))):
                    for (begin, end), span_slopes in zip(block.sees, part.split(block.lengths, 1), strict=True):
                        total[:, begin:end] += span_slopes
        return query_slopes.to(dtype), key_slopes.to(dtype), value_slopes.to(dtype), None, None


def _without_bf16(*states: Tensor) -> Iterator[Tensor]:
    return (x.float() if x.dtype is torch.bfloat16 else x for x in states)


def _by_key(states_BHTD: Tensor, groups: int) -> Tensor:
    """Return states as shape (B, G, R, T, D): R query heads for each of G key heads."""
    return states_BHTD.unflatten(1, (groups, -1))


def _shared(states_GSD: Tensor, heads: int) -> Tensor:
    """Repeat keys or values for each query head without a copy, shape (G, R, S, D)."""
    return states_GSD[:, None].expand(-1, heads, -1, -1)


def _seen_by(block: _Block, query_GRTD: Tensor, key_GTD: Tensor, value_GTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the queries of a block, and the keys and values that they see."""
    heads = query_GRTD.shape[1]

    def seen(states_GTD: Tensor) -> Tensor:
        parts = [states_GTD[:, begin:end] for begin, end in block.sees]
        return _shared(parts[0] if len(parts) == 1 else torch.cat(parts, 1), heads)

    return query_GRTD[:, :, slice(*block.tokens)], seen(key_GTD), seen(value_GTD)

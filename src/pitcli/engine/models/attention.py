"""Attention on CPUs that computes what is seen, and little else.

torch's kernel for CPUs goes through all T x T of a sequence under a mask, and through most of it without one: half of a
conversation is hidden, and two thirds of a pair's tree are. Here a sequence is cut into blocks of neighbouring tokens,
and a block meets the tokens of its own branch up to its end and no others; in the backward pass too.
"""

from collections.abc import Sequence
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

BY_BRANCH = "pit_by_branch"  # as transformers knows it; for a mask it is given the branches of each row
MASK_STRIDE = 16  # elements
BLOCK = 128  # tokens; with 64 or 256 it is hardly slower
# what else transformers may ask of an attention
NOT_PLAIN = ("position_bias", "softcap", "s_aux", "sinks", "indices", "block_indices")


def branches_of(rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> Tensor:
    """The branches of a batch, shape (B, S, 2): parent (-1: none) and length of each row's segments in order.

    rows: parents and lengths. A row with fewer segments than others has empty ones at its end.
    """
    width = max(len(lengths) for _, lengths in rows)
    branches_BS2 = torch.tensor([-1, 0]).repeat(len(rows), width, 1)
    for row, (parents, lengths) in enumerate(rows):
        branches_BS2[row, : len(lengths)] = torch.tensor([parents, lengths]).T
    return branches_BS2


def tree_mask(branches_BS2: Tensor, width: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The same as an additive mask for any attention, shape (B, 1, width, width); padding sees itself.

    Its rows are as far apart as GPUs' kernels want them, or each layer would copy it and keep the copy.
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
    """What `attend` takes for rows with branches: shape (B, 1, S, 2), as branches_of."""
    return branches_BS2[:, None]


def pieces_mask(pieces: Sequence[tuple[int, int, int]]) -> Tensor:
    """What `attend` takes for generation without padding: shape (1, 1, R, 3).

    Each piece is some of the only row's tokens in turn: how many, the row of keys that they go on from (there may be
    many), and how many keys that row held before.
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
    """For transformers: of states of shape (B, heads, T, D) the attention of shape (B, T, heads, D).

    The mask says who sees whom; transformers hands on whatever it is given for one:

    | made by       | dtype         | shape        | attention                                          |
    |---------------|---------------|--------------|----------------------------------------------------|
    | branches_mask | int64         | (B, 1, S, 2) | each token sees its own branch                     |
    | pieces_mask   | int64         | (1, 1, R, 3) | each piece sees the keys of its row, and itself    |
    | transformers  | None or other | any          | torch's scaled-dot-product attention               |
    """
    if attention_mask is None or attention_mask.dtype != torch.long:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    scaling: float | None = options.get("scaling")
    if options.get("dropout") or any(options.get(name) is not None for name in NOT_PLAIN):
        raise ValueError("this attention is more than a mask")
    if attention_mask.shape[-1] == 3:
        return _by_piece(query, key, value, scaling, pieces=attention_mask[0, 0].tolist()), None
    blocks = [_blocks(tuple(map(tuple, row))) for row in attention_mask[:, 0].tolist()]
    output: Tensor = _ByBranch.apply(query, key, value, scaling, blocks)
    return output, None


@cache
def kernels_work() -> bool:
    """Whether torch's kernels, which are not in its interface, are here as they are called; seen by trying it."""
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
    """For generation: tokens that go on from what rows hold already, without padding."""
    query_GRTD = _by_key(query, key.shape[1])[0]
    heads = query_GRTD.shape[1]
    causal = _Causal.of(max(piece[0] for piece in pieces), max(piece[2] for piece in pieces), query.dtype)
    outputs, first = [], 0
    for tokens, row, held in pieces:
        outputs.append(
            nn.functional.scaled_dot_product_attention(
                query_GRTD[:, :, first : first + tokens],
                _shared(key[row, :, : held + tokens], heads),
                _shared(value[row, :, : held + tokens], heads),
                attn_mask=causal.part(tokens, held + tokens),
                scale=scaling,
            )
        )
        first += tokens
    return torch.cat(outputs, 2).flatten(0, 1).transpose(0, 1)[None]


Span = tuple[int, int]  # tokens of a row, from the first to before the last


class _Block(NamedTuple):
    """Neighbouring tokens of a row, and the spans of what they see; the last ends with themselves."""

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
    """For each segment its branch: where its ancestors stand, and itself last."""
    spans: list[list[Span]] = []
    start = 0
    for parent, length in row:
        spans.append([*(spans[parent] if parent >= 0 else []), (start, start + length)])
        start += length
    return spans


@lru_cache(maxsize=256)  # every layer asks for it
def _blocks(row: tuple[tuple[int, int], ...]) -> list[_Block]:
    blocks = []
    for spans in _spans(row):
        *ancestors, (start, stop) = spans
        for first, last in pairwise([*range(start, stop, BLOCK), stop]):
            blocks.append(_Block((first, last), _joined([*ancestors, (start, last)])))
    return blocks


def _joined(spans: Sequence[Span]) -> list[Span]:
    joined: list[Span] = []
    for begin, end in spans:
        follows = bool(joined) and joined[-1][1] == begin
        joined.append((joined.pop()[0] if follows else begin, end))
    return joined


class _Causal(NamedTuple):
    """An additive mask of tokens that come after `before` others, whose parts are the masks of all blocks."""

    mask: Tensor
    before: int

    @classmethod
    def of(cls, most: int, before: int, dtype: torch.dtype) -> "_Causal":
        """For parts of so many tokens, after so many others, at most."""
        return cls(torch.full((most, before + most), torch.finfo(dtype).min, dtype=dtype).triu_(before + 1), before)

    def part(self, tokens: int, seen: int) -> Tensor:
        """Shape (1, 1, tokens, seen); the tokens are the last of what they see."""
        return self.mask[None, None, :tokens, self.before + tokens - seen : self.before + tokens]


def _causal(blocks: Sequence[Sequence[_Block]], dtype: torch.dtype) -> _Causal:
    every = [block for of_row in blocks for block in of_row]
    return _Causal.of(max(block.size for block in every), max(block.seen - block.size for block in every), dtype)


class _ByBranch(torch.autograd.Function):
    """Heads that share their keys are an axis of their own (R), along which keys and values have no stride.

    What it calls is the kernel under scaled_dot_product_attention, which takes and gives the sums that a backward pass
    of parts needs.
    """

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, scaling: float | None, blocks: list[list[_Block]]
    ) -> Tensor:
        batch, heads, tokens, size = query.shape
        output = query.new_zeros(batch, tokens, heads, size)
        query_BGRTD, output_BGRTD = (_by_key(x, key.shape[1]) for x in (query, output.transpose(1, 2)))
        flash = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        sums, causal = [], _causal(blocks, query.dtype)
        for row, of_row in enumerate(blocks):
            for block in of_row:
                states = _met(query_BGRTD[row], key[row], value[row], block)
                attended, sum_GRT = flash(*states, attn_mask=causal.part(block.size, block.seen), scale=scaling)
                output_BGRTD[row, :, :, slice(*block.tokens)] = attended
                sums.append(sum_GRT)
        ctx.save_for_backward(query, key, value, output, *sums)
        ctx.scaling, ctx.blocks = scaling, blocks
        return output

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, *sums = ctx.saved_tensors
        of_query, of_key, of_value = (
            x.new_zeros(len(x), x.shape[2], x.shape[1], x.shape[3]).transpose(1, 2) for x in (query, key, value)
        )
        query_BGRTD, of_query_BGRTD, output_BGRTD, slopes_BGRTD = (
            _by_key(x, key.shape[1]) for x in (query, of_query, output.transpose(1, 2), slopes[0].transpose(1, 2))
        )
        flash_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
        left, causal = iter(sums), _causal(ctx.blocks, query.dtype)
        for row, of_row in enumerate(ctx.blocks):
            for block in of_row:
                states = _met(query_BGRTD[row], key[row], value[row], block)
                own = slice(*block.tokens)
                found = flash_backward(
                    slopes_BGRTD[row, :, :, own],
                    *states,
                    output_BGRTD[row, :, :, own],
                    next(left),
                    0.0,
                    False,
                    attn_mask=causal.part(block.size, block.seen),
                    scale=ctx.scaling,
                )
                of_query_BGRTD[row, :, :, own] = found[0]
                for total, part in ((of_key[row], found[1].sum(1)), (of_value[row], found[2].sum(1))):
                    for (begin, end), of_span in zip(block.sees, part.split(block.lengths, 1), strict=True):
                        total[:, begin:end] += of_span
        return of_query, of_key, of_value, None, None


def _by_key(states_BHTD: Tensor, groups: int) -> Tensor:
    """Shape (B, G, R, T, D): R heads of queries for each of keys."""
    return states_BHTD.unflatten(1, (groups, -1))


def _shared(states_GSD: Tensor, heads: int) -> Tensor:
    """The same keys or values for each of so many heads of queries, shape (G, R, S, D)."""
    return states_GSD[:, None].expand(-1, heads, -1, -1)


def _met(query_GRTD: Tensor, key_GTD: Tensor, value_GTD: Tensor, block: _Block) -> tuple[Tensor, Tensor, Tensor]:
    """Queries of a block, and the keys and values that they see."""
    heads = query_GRTD.shape[1]

    def seen(states_GTD: Tensor) -> Tensor:
        parts = [states_GTD[:, begin:end] for begin, end in block.sees]
        return _shared(parts[0] if len(parts) == 1 else torch.cat(parts, 1), heads)

    return query_GRTD[:, :, slice(*block.tokens)], seen(key_GTD), seen(value_GTD)

"""The attention that pit registers with transformers: trees on CPUs, and generation without padding."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from pitcli.engine.models.block_attention import BLOCK, attend_by_block, by_key, later_mask, spans_of

BY_BRANCH = "pit_by_branch"  # its name in transformers; its mask is the branches of each row
MASK_STRIDE = 16  # elements; the row strides that GPU kernels need are multiples of it
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
        for spans in spans_of(row):
            start, stop = spans[-1]
            for first, last in spans[:-1]:
                mask_TT[start:stop, first:last] = 0
            mask_TT[start:stop, start:stop].triu_(1)
    return mask_BTT[:, None]


def prefix_mask(columns_BT: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Return an additive mask of tokens that see the keys up to their own column, shape (B, T, width).

    It is made on the device of the columns, with the row stride that GPU kernels need.
    """
    stride = -(-width // MASK_STRIDE) * MASK_STRIDE
    hidden_BTS = torch.arange(stride, device=columns_BT.device) > columns_BT[:, :, None]
    mask_BTS = torch.zeros(hidden_BTS.shape, dtype=dtype, device=columns_BT.device)
    return mask_BTS.masked_fill_(hidden_BTS, torch.finfo(dtype).min)[..., :width]


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
    return attend_by_block(query, key, value, scaling, attention_mask[:, 0].tolist()), None


AttentionInterface.register(BY_BRANCH, attend)
AttentionMaskInterface.register(BY_BRANCH, sdpa_mask)


def _by_piece(query: Tensor, key: Tensor, value: Tensor, scaling: float | None, pieces: list[list[int]]) -> Tensor:
    """Attend in generation, in the type of the cache: each piece of the query continues a cached row.

    M: queries, those of one token's R query heads next to one another. S: the keys that a piece sees.
    """
    query_GTRD = by_key(query.to(key.dtype), key.shape[1])[0].transpose(1, 2)
    tokens_and_heads = query_GTRD.shape[1:3]
    query_GMD = query_GTRD.flatten(1, 2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    outputs, first, heads = [], 0, query_GTRD.shape[2]
    with torch.autocast(query.device.type, enabled=False):  # which would convert the cache to bf16 in every pass
        for tokens, row, cached in _in_blocks(pieces):
            last = first + tokens * heads
            weights_GMS = query_GMD[:, first:last] @ key[row, :, : cached + tokens].mT
            if tokens > 1:
                weights_GMS[..., cached:].add_(later_mask(tokens, heads))
            outputs.append(weights_GMS.softmax(-1) @ value[row, :, : cached + tokens])
            first = last
    return torch.cat(outputs, 1).unflatten(1, tokens_and_heads).transpose(0, 1).flatten(1, 2)[None].to(query.dtype)


def _in_blocks(pieces: Sequence[Sequence[int]]) -> Iterator[tuple[int, int, int]]:
    """Split pieces so that the scores of a long one do not all exist at once."""
    for tokens, row, cached in pieces:
        for start in range(0, tokens, BLOCK):
            yield min(BLOCK, tokens - start), row, cached + start

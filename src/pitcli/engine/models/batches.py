"""Padded batches of token ids, and how rows are split into them. In masks 1 means keep."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

# the fixed cost of a pass, in tokens; on GPUs: thousands of small kernels, and the weights of a 4-bit base, which are
# dequantised to bf16 in every pass
PASS_TOKENS = {"cpu": 64, "cuda": 2048, "mps": 2048}


class Batch(NamedTuple):
    """Right-padded sequences, and which of their hidden states are selected.

    input_ids_BT: token ids. position_ids_BT: positions along the branches, or None if each row is one conversation with
    ordinary causal attention. branches_BS2: which tokens see which (attention.branches_of). rows_N, columns_N: indices
    of the selected states. targets_N: the token that each selected state predicts; empty if only the states are used.
    tokens: how many of the B x T are not padding.
    """

    input_ids_BT: Tensor
    position_ids_BT: Tensor | None
    branches_BS2: Tensor
    rows_N: Tensor
    columns_N: Tensor
    targets_N: Tensor
    tokens: int

    def to(self, device: torch.device) -> "Batch":
        """Move all tensors but the branches, which no kernel reads."""
        moved: dict[str, Any] = {
            name: part.to(device)
            for name, part in self._asdict().items()
            if isinstance(part, Tensor) and name != "branches_BS2"
        }
        return self._replace(**moved)


def pad_right(sequences: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """Return token ids padded at the end, shape (B, T)."""
    width = max(len(ids) for ids in sequences)
    return torch.tensor([[*ids, *[pad_id] * (width - len(ids))] for ids in sequences])


def pad_left(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Return (input_ids_BT, attention_mask_BT), padded at the start so that generation begins in the same column.

    Only the mask marks the padding: the pad id can also be a token of a row.
    """
    width = max(len(ids) for ids in sequences)
    input_ids = [[*[pad_id] * (width - len(ids)), *ids] for ids in sequences]
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in sequences]
    return torch.tensor(input_ids), torch.tensor(mask)


def padding_share(batches: Sequence[Batch]) -> float:
    """Return the share of padding in the batches of a step."""
    cells = sum(batch.input_ids_BT.numel() for batch in batches)
    return sum((batch.input_ids_BT.numel() - batch.tokens) / cells for batch in batches)


def length_sorted_chunks(
    lengths: Sequence[int], size: int, device: torch.device, budget: int | None = None
) -> list[list[int]]:
    """Split indices, sorted from long to short, into chunks of at most `size` at the least cost of padding and passes.

    budget: most tokens per chunk, with padding; a single longer sequence is a chunk too. The split is optimal, by
    dynamic programming.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    # cost[start]: least cost of order[start:]; end[start]: where its first chunk ends
    cost, end = [0] * (len(order) + 1), [0] * len(order)
    for start in reversed(range(len(order))):
        width = lengths[order[start]]
        most = max(1, min(size, budget // width)) if budget else size
        stops = range(start + 1, min(start + most, len(order)) + 1)
        end[start] = min(reversed(stops), key=lambda stop: width * (stop - start) + cost[stop])
        cost[start] = width * (end[start] - start) + cost[end[start]] + PASS_TOKENS[device.type]
    starts = [0]
    while starts[-1] < len(order):
        starts.append(end[starts[-1]])
    return [order[start:stop] for start, stop in pairwise(starts)]


def common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Return how many leading tokens two sequences share."""
    for index, (token, other) in enumerate(zip(first, second, strict=False)):
        if token != other:
            return index
    return min(len(first), len(second))

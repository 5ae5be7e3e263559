"""Token ids of conversations to padded tensors. Masks always mean keep."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

# what a pass costs besides that for each of its tokens, in tokens; on GPUs thousands of small kernels and the weights
# of a 4-bit base, which become bf16 each time
PASS_TOKENS = {"cpu": 64, "cuda": 2048}


class Batch(NamedTuple):
    """Right-padded sequences, and which of their hidden states are selected.

    input_ids_BT: token ids. position_ids_BT: None if each row is one conversation, in which every token sees all
    before it. branches_BS2: who sees whom (attention.branches_of). rows_N, columns_N: where the selected states are;
    targets_N: the token that each of them predicts, empty if only the states are used. tokens: how many of the B x T
    are no padding.
    """

    input_ids_BT: Tensor
    position_ids_BT: Tensor | None
    branches_BS2: Tensor
    rows_N: Tensor
    columns_N: Tensor
    targets_N: Tensor
    tokens: int

    def to(self, device: torch.device) -> "Batch":
        """All but the branches, which no kernel reads."""
        moved: dict[str, Any] = {
            name: part.to(device)
            for name, part in self._asdict().items()
            if isinstance(part, Tensor) and name != "branches_BS2"
        }
        return self._replace(**moved)


def pad_right(sequences: Sequence[Sequence[int]], pad_id: int) -> Tensor:
    """Token ids as input_ids_BT, the padding after the tokens."""
    width = max(len(ids) for ids in sequences)
    return torch.tensor([[*ids, *[pad_id] * (width - len(ids))] for ids in sequences])


def pad_left(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids as (input_ids_BT, attention_mask_BT), padded so that all rows end, and generation begins, together.

    The mask, not the pad id, says what is padding.
    """
    width = max(len(ids) for ids in sequences)
    input_ids = [[*[pad_id] * (width - len(ids)), *ids] for ids in sequences]
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in sequences]
    return torch.tensor(input_ids), torch.tensor(mask)


def padding_share(batches: Sequence[Batch]) -> float:
    """The share of padding among all that a step's passes read."""
    cells = sum(batch.input_ids_BT.numel() for batch in batches)
    return sum((batch.input_ids_BT.numel() - batch.tokens) / cells for batch in batches)


def length_sorted_chunks(
    lengths: Sequence[int], size: int, device: torch.device, budget: int | None = None
) -> list[list[int]]:
    """Indices in chunks of at most `size`, longest first, such that padding and passes cost the least together.

    budget: the most tokens, with padding, that a chunk of several may hold.
    """
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    cost, end = [0] * (len(order) + 1), [0] * len(order)  # of the chunks from a place on; where the first of them ends
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

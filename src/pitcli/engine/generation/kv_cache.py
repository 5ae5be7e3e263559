"""The KV cache of continuous batching: slots, each with the keys and values of the tokens that it holds."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin


class SlotIndex:
    """Where the tokens of the next pass go, and which slots its rows read; shared by all layers."""

    def __init__(self, slots: int, device: torch.device) -> None:
        self.slots, self.device = slots, device
        self.width = 0

    def go_to(self, slots_BT: Tensor, positions_BT: Tensor, rows_B: Tensor | None) -> None:
        """Each token of the batch to its slot and position there; rows_B: the slot of each row (None: all slots)."""
        self.slots_BT, self.positions_BT = slots_BT.to(self.device), positions_BT.to(self.device)
        if rows_B is not None and rows_B.tolist() == list(range(self.slots)):
            rows_B = None
        self.rows_B = rows_B if rows_B is None else rows_B.to(self.device)
        self.width = int(positions_BT.max()) + 1

    def write(self, held: Tensor | None, states_BHTD: Tensor) -> Tensor:
        states_BTHD = states_BHTD.transpose(1, 2)
        if held is None or held.shape[1] < self.width:
            wider = states_BTHD.new_zeros(self.slots, self.width * 5 // 4 + 16, *states_BTHD.shape[2:])
            if held is not None:
                wider[:, : held.shape[1]] = held
            held = wider
        held[self.slots_BT, self.positions_BT] = states_BTHD
        return held

    def read(self, held: Tensor) -> Tensor:
        part = held[:, : self.width] if self.rows_B is None else held[self.rows_B, : self.width]
        return part.transpose(1, 2)


class SlotCacheLayer(CacheLayerMixin):
    """Keys and values of one layer, of shape (slots, width, heads, D)."""

    def __init__(self, index: SlotIndex) -> None:
        super().__init__()
        self.index = index

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Both states of shape (B, heads, T, D); all that the slots read hold, of shape (slots, heads, W, D)."""
        index = self.index
        self.keys = index.write(self.keys, key_states)
        self.values = index.write(self.values, value_states)
        return index.read(self.keys), index.read(self.values)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the first write lays the slots out."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.index.width, 0

    def get_seq_length(self) -> int:
        return self.index.width

    def get_max_length(self) -> int:
        return -1

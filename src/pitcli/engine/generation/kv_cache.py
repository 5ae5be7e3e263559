"""The KV cache of continuous batching: one row of keys and values per slot."""

from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin


class SlotIndex:
    """Where the next pass writes its keys and values, and which slots it reads; shared by all layers.

    dtype: of the cached keys and values.
    """

    def __init__(self, slots: int, device: torch.device, dtype: torch.dtype) -> None:
        self.slots, self.device, self.dtype = slots, device, dtype
        self.width = 0

    def go_to(self, slots_BT: Tensor, positions_BT: Tensor, rows_B: Tensor | None) -> None:
        """Set the slot and the position of each token of the next pass, shape (B, T) each.

        rows_B: the slot that each row of the pass reads (None: the pass reads all slots).
        """
        self.slots_BT, self.positions_BT = slots_BT.to(self.device), positions_BT.to(self.device)
        if rows_B is not None and rows_B.tolist() == list(range(self.slots)):
            rows_B = None
        self.rows_B = rows_B if rows_B is None else rows_B.to(self.device)
        self.width = int(positions_BT.max()) + 1

    def write(self, cached: Tensor | None, states_BHTD: Tensor) -> Tensor:
        """Write keys or values into the cached ones, shape (slots, W, H, D); grow them if the pass is beyond them."""
        states_BTHD = states_BHTD.transpose(1, 2)
        if cached is None or cached.shape[1] < self.width:
            size = (self.slots, self.width * 5 // 4 + 16, *states_BTHD.shape[2:])
            wider = states_BTHD.new_zeros(size, dtype=self.dtype)
            if cached is not None:
                wider[:, : cached.shape[1]] = cached
            cached = wider
        cached[self.slots_BT, self.positions_BT] = states_BTHD.to(self.dtype)
        return cached

    def read(self, cached: Tensor) -> Tensor:
        """Return the keys or values that the pass reads, shape (rows, H, W, D)."""
        part = cached[:, : self.width] if self.rows_B is None else cached[self.rows_B, : self.width]
        return part.transpose(1, 2)


class SlotCacheLayer(CacheLayerMixin):
    """The keys and values of one layer, shape (slots, width, heads, D) each."""

    def __init__(self, index: SlotIndex) -> None:
        super().__init__()
        self.index = index

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Store keys and values, shape (B, heads, T, D); return those the pass reads, shape (rows, heads, W, D)."""
        index = self.index
        self.keys = index.write(self.keys, key_states)
        self.values = index.write(self.values, value_states)
        return index.read(self.keys), index.read(self.values)

    def copy(self, source: int, target: int, length: int) -> None:
        """Copy the first keys and values of a slot to another."""
        for cached in (self.keys, self.values):
            assert cached is not None  # the source has been written
            cached[target, :length] = cached[source, :length]

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing: the first write allocates the slots."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Return (keys that the pass reads, offset 0)."""
        return self.index.width, 0

    def get_seq_length(self) -> int:
        """Return the keys that the pass reads."""
        return self.index.width

    def get_max_length(self) -> int:
        """Return -1: the cache grows without a limit."""
        return -1

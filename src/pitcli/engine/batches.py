"""Token ids of conversations to padded tensors. Masks always mean keep."""

import random
from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from pitcli.data.templates import Example
from pitcli.launch import process_count
from pitcli.sections import OptimSettings


class Batch(NamedTuple):
    """Right-padded conversations.

    input_ids_BT: token ids; attention_mask_BT: 1 where a token is; completion_mask_BT: True at the tokens that
    the model wrote or shall write.
    """

    input_ids_BT: Tensor
    attention_mask_BT: Tensor
    completion_mask_BT: Tensor

    def to(self, device: torch.device) -> "Batch":
        return Batch(*(tensor.to(device) for tensor in self))


def pad_right(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids to (input_ids_BT, attention_mask_BT); the mask, not the pad id, says what is padding."""
    width = max(len(ids) for ids in sequences)
    input_ids = [[*ids, *[pad_id] * (width - len(ids))] for ids in sequences]
    mask = [[1] * len(ids) + [0] * (width - len(ids)) for ids in sequences]
    return torch.tensor(input_ids), torch.tensor(mask)


def pad_left(sequences: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """As pad_right with the padding before the tokens, so that all rows end, and generation begins, together."""
    width = max(len(ids) for ids in sequences)
    input_ids = [[*[pad_id] * (width - len(ids)), *ids] for ids in sequences]
    mask = [[0] * (width - len(ids)) + [1] * len(ids) for ids in sequences]
    return torch.tensor(input_ids), torch.tensor(mask)


def completion_batch(examples: Sequence[Example], pad_id: int) -> Batch:
    """Examples of (prompt, completion) to one batch whose completion mask covers the completions."""
    input_ids_BT, attention_mask_BT = pad_right([e.prompt + e.completion for e in examples], pad_id)
    completion_mask_BT = torch.zeros_like(attention_mask_BT, dtype=torch.bool)
    for row, example in enumerate(examples):
        start = len(example.prompt)
        completion_mask_BT[row, start : start + len(example.completion)] = True
    return Batch(input_ids_BT, attention_mask_BT, completion_mask_BT)


def steps_per_epoch(rows: int, batch_size: int) -> int:
    return -(-rows // batch_size)


def planned_steps(rows: int, config: OptimSettings) -> int:
    """The steps of all epochs, or --max-steps where that is less."""
    steps = steps_per_epoch(rows, config.batch_size) * config.epochs
    return min(config.max_steps or steps, steps)


def rows_of_step(step: int, rows: int, batch_size: int, seed: int) -> list[int]:
    """Which rows a step trains on: each epoch is its own shuffle, a function of the seed and the epoch alone."""
    epoch, place = divmod(step, steps_per_epoch(rows, batch_size))
    return list(_order(epoch, rows, seed)[place * batch_size : (place + 1) * batch_size])


@lru_cache(maxsize=2)  # every step of an epoch asks for it
def _order(epoch: int, rows: int, seed: int) -> tuple[int, ...]:
    order = list(range(rows))
    random.Random(f"{seed}-{epoch}").shuffle(order)
    return tuple(order)


def micro_batch_rows(
    step: int, lengths: Sequence[int], batch_size: int, micro_batch_size: int, seed: int
) -> list[list[int]]:
    """The rows of a step in its micro-batches, those of like length together."""
    rows = rows_of_step(step, len(lengths), batch_size, seed)
    chunks = length_sorted_chunks([lengths[row] for row in rows], one_for_each(len(rows), micro_batch_size))
    return [[rows[place] for place in chunk] for chunk in chunks]


def one_for_each(rows: int, micro_batch_size: int) -> int:
    """The micro-batch size, smaller where not every process would get a micro-batch of so many rows."""
    return max(1, min(micro_batch_size, -(-rows // process_count())))


def length_sorted_chunks(lengths: Sequence[int], size: int) -> list[list[int]]:
    """Indices in chunks of at most `size`, longest first, so that a chunk holds little padding."""
    order = sorted(range(len(lengths)), key=lambda index: (-lengths[index], index))
    return [order[start : start + size] for start in range(0, len(order), size)]

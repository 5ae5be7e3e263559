"""Which rows each step trains on, and in which micro-batches: functions of the seed and the step alone."""

import random
from collections.abc import Sequence
from functools import lru_cache

import torch

from pitcli.engine.models.batches import length_sorted_chunks
from pitcli.processes.ranks import world_size
from pitcli.settings.base import OptimSettings
from pitcli.settings.training import RlConfig


def steps_per_epoch(rows: int, batch_size: int) -> int:
    return -(-rows // batch_size)


def planned_steps(rows: int, config: OptimSettings) -> int:
    """The steps of all epochs, or --max-steps where that is less."""
    steps = steps_per_epoch(rows, config.batch_size) * config.epochs
    return min(config.max_steps or steps, steps)


def rows_of_step(step: int, rows: int, batch_size: int, seed: int) -> list[int]:
    """Which rows a step trains on: each epoch is its own shuffle, a function of the seed and the epoch alone."""
    epoch, step_of_epoch = divmod(step, steps_per_epoch(rows, batch_size))
    return list(_order(epoch, rows, seed)[step_of_epoch * batch_size : (step_of_epoch + 1) * batch_size])


@lru_cache(maxsize=2)  # every step of an epoch asks for it
def _order(epoch: int, rows: int, seed: int) -> tuple[int, ...]:
    order = list(range(rows))
    random.Random(f"{seed}-{epoch}").shuffle(order)
    return tuple(order)


def micro_batch_rows(
    step: int, lengths: Sequence[int], config: OptimSettings, at_once: int, device: torch.device
) -> list[list[int]]:
    """The rows of a step in its micro-batches, those of like length together; at_once as in training_chunks."""
    rows = rows_of_step(step, len(lengths), config.batch_size, config.seed)
    chunks = training_chunks([lengths[row] for row in rows], config, at_once, device)
    return [[rows[index] for index in chunk] for chunk in chunks]


def training_chunks(
    lengths: Sequence[int], config: OptimSettings, at_once: int, device: torch.device
) -> list[list[int]]:
    """A step's rows in micro-batches: at_once rows each, or what --tokens-per-batch holds.

    They are smaller where not every process would get one.
    """
    size = len(lengths) if config.tokens_per_batch else at_once
    one_for_each = max(1, min(size, -(-len(lengths) // world_size())))
    return length_sorted_chunks(lengths, one_for_each, device, config.tokens_per_batch)


def rollouts_by_stage(config: RlConfig, rows: Sequence[int]) -> list[int]:
    """How many rollouts each stage gets: its epochs, or an equal part of --max-steps. rows: of each stage."""
    full = [steps_per_epoch(count, config.batch_size) * config.epochs for count in rows]
    if config.max_steps is None:
        return full
    total = max(len(rows), config.max_steps // config.updates_per_rollout)
    even = [total * (index + 1) // len(rows) - total * index // len(rows) for index in range(len(rows))]
    return [min(most, share) for most, share in zip(full, even, strict=True)]


def stage_of(rollout: int, rollouts: Sequence[int]) -> tuple[int, int]:
    """(stage, rollout within it)."""
    for stage, count in enumerate(rollouts):
        if rollout < count:
            return stage, rollout
        rollout -= count
    raise ValueError("beyond the last rollout")

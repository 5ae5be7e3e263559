"""The rows of each step and their micro-batches: functions of the seed and the step only."""

import random
from collections.abc import Sequence
from functools import lru_cache

import torch

from pitcli.engine.models.batches import length_sorted_chunks
from pitcli.processes.ranks import world_size
from pitcli.settings.base import OptimSettings
from pitcli.settings.training import RolloutSettings


def steps_per_epoch(rows: int, batch_size: int) -> int:
    """Return rows / batch_size, rounded up."""
    return -(-rows // batch_size)


def planned_steps(rows: int, config: OptimSettings) -> int:
    """Return the steps of all epochs, at most --max-steps."""
    steps = steps_per_epoch(rows, config.batch_size) * config.epochs
    return min(config.max_steps or steps, steps)


def rows_of_step(step: int, rows: int, batch_size: int, seed: int) -> list[int]:
    """Return the rows of a step. Each epoch shuffles them again, as a function of the seed and the epoch only."""
    epoch, step_of_epoch = divmod(step, steps_per_epoch(rows, batch_size))
    return list(_order(epoch, rows, seed)[step_of_epoch * batch_size : (step_of_epoch + 1) * batch_size])


@lru_cache(maxsize=2)  # each step of an epoch needs it
def _order(epoch: int, rows: int, seed: int) -> tuple[int, ...]:
    order = list(range(rows))
    random.Random(f"{seed}-{epoch}").shuffle(order)
    return tuple(order)


def member_seed(seed: int, member: int) -> int:
    """Return the seed of a member of an ensemble; the first has that of the run."""
    return (seed + 104_729 * member) % 2**32


def micro_batch_rows(
    step: int, lengths: Sequence[int], config: OptimSettings, at_once: int, device: torch.device
) -> list[list[int]]:
    """Return the rows of each micro-batch of a step, grouped by length.

    lengths: tokens of every row. at_once: most rows per micro-batch.
    """
    rows = rows_of_step(step, len(lengths), config.batch_size, config.seed)
    chunks = training_chunks([lengths[row] for row in rows], config, at_once, device)
    return [[rows[index] for index in chunk] for chunk in chunks]


def training_chunks(
    lengths: Sequence[int], config: OptimSettings, at_once: int, device: torch.device
) -> list[list[int]]:
    """Split a step into micro-batches of at most at_once rows, or of --tokens-per-batch tokens; return indices.

    lengths: tokens of the step's rows. Micro-batches are smaller if otherwise some process would get none.
    """
    size = len(lengths) if config.tokens_per_batch else at_once
    size_per_rank = max(1, min(size, -(-len(lengths) // world_size())))
    return length_sorted_chunks(lengths, size_per_rank, device, config.tokens_per_batch)


def rollouts_by_stage(config: RolloutSettings, rows: Sequence[int]) -> list[int]:
    """Return the rollouts of each curriculum stage: its epochs, at most an equal part of --max-steps.

    rows: how many rows each stage has.
    """
    full = [steps_per_epoch(count, config.batch_size) * config.epochs for count in rows]
    if config.max_steps is None:
        return full
    total = max(len(rows), config.max_steps // config.updates_per_rollout)
    even = [total * (index + 1) // len(rows) - total * index // len(rows) for index in range(len(rows))]
    return [min(most, share) for most, share in zip(full, even, strict=True)]


def default_learning_rate(parameters: int) -> float:
    """Return the peak learning rate of LoRA for SFT and the gap model of a base of this size; RL takes a tenth of it.

    Below 0.5B parameters 1e-3; beyond, it falls as 1/sqrt(parameters): 7e-4 at 1B, 2.5e-4 at 8B.
    """
    return float(f"{1e-3 * min(1.0, (5e8 / parameters) ** 0.5):.1e}")


def stage_of(index: int, counts: Sequence[int]) -> tuple[int, int]:
    """Return (stage, index within it) of a rollout or a step. counts: the rollouts, or the steps, of each stage."""
    for stage, count in enumerate(counts):
        if index < count:
            return stage, index
        index -= count
    raise ValueError(f"expected an index below {sum(counts)}")

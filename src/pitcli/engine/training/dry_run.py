"""--dry-run of a training command: its settings, a row as the model reads it, what it takes in memory and time."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from torch import Tensor

from pitcli.console import marked, note, table
from pitcli.engine.models.batches import Batch
from pitcli.engine.models.roles import RoleModel
from pitcli.engine.training.footprint import Held, all_micro_batches, footprint, memory_there, padded
from pitcli.engine.training.inputs import Base
from pitcli.errors import RunError
from pitcli.processes.ranks import is_first, process_count
from pitcli.runs.folder import check_out
from pitcli.runs.manifest import Manifest
from pitcli.settings.base import LoraSettings
from pitcli.settings.flags import settings_yaml
from pitcli.settings.training import TrainingConfig

MARGIN = 1.2  # the truth may be so much above the estimate


class Work(NamedTuple):
    """What a training command is about to do.

    lengths: tokens of each row of the data; at_once: how many rows a micro-batch takes; steps: optimiser steps;
    roles: adapters that the model holds; logit_rows: how many tokens of a micro-batch have logits; run: from a model
    and the rows of a micro-batch to what is differentiated; first: the first row in parts that the loss is taken over
    (True) and parts that it is not; share: of a row that is in one micro-batch; besides: seconds that go to other
    things than the passes over the micro-batches, from those of one token there and back.
    """

    role: str
    lengths: Sequence[int]
    at_once: int
    steps: int
    roles: int
    logit_rows: Callable[[Sequence[int]], int]
    run: Callable[[RoleModel, Sequence[int]], Tensor]
    first: Sequence[tuple[str, bool]]
    share: float = 1.0
    besides: Callable[[float], float] = lambda seconds_per_token: 0.0


def rehearse(config: TrainingConfig, manifest: Manifest, lora: LoraSettings, base: Base, work: Work) -> None:
    """Show what would happen on stderr, the settings on stdout; RunError where memory would not hold it."""
    check_out(config.run_folder, manifest, config.resume, config.overwrite)
    if is_first():
        print(settings_yaml(config), end="", flush=True)
    note("the first row, marked where the loss is taken:")
    marked(work.first)
    chunks = all_micro_batches(work.lengths, work.steps, config, work.at_once, base.device)
    largest = max(chunks, key=lambda chunk: padded(chunk, work.lengths))
    middle = sorted(chunks, key=lambda chunk: padded(chunk, work.lengths))[len(chunks) // 2]
    tokens = sum(work.lengths[row] for chunk in chunks for row in chunk)
    with_padding = sum(padded(chunk, work.lengths) for chunk in chunks)
    need = footprint(
        base.folder,
        base.identity.load_in_4bit,
        base.device,
        lora,
        Held(work.role, work.roles, process_count() if config.shard_base else 1, config.gradient_checkpointing),
        work.logit_rows(largest),
        lambda model, other: work.run(model, middle if other else largest),
    )
    longest = max(work.lengths[row] for row in largest)
    per_token = need.seconds / (padded(largest, work.lengths) * work.share)
    seconds = (with_padding * per_token + work.besides(per_token)) / process_count()
    there, wanted = memory_there(base.device), need.peak()
    lines = [
        ("rows", f"{len(work.lengths):,}, of each {sum(work.lengths) / len(work.lengths):.0f} tokens in a step"),
        ("steps", f"{work.steps:,}, {tokens:,} tokens and {1 - tokens / with_padding:.1%} padding"),
        ("largest micro-batch", f"{len(largest)} rows, the longest of {longest:,} tokens"),
        ("time", f"about {duration(seconds)}, by the speed of one layer just now"),
        *((name, f"{size / 2**20:,.0f} MiB") for name, size in need.parts()),
        ("memory at the peak", f"about {wanted / 2**30:.2f} GiB of {there / 2**30:.2f} GiB"),
    ]
    table("What it takes", ["", ""], lines)
    if wanted > there:
        raise RunError(
            f"about {wanted / 2**30:.1f} GiB are wanted and {there / 2**30:.1f} GiB are there; "
            "--micro-batch-size, --gradient-checkpointing, --max-length and --lora-rank make it less"
        )
    if wanted * MARGIN > there:
        note("that is close: an estimate may be 20% off")


def completion_logprob(model: RoleModel, batch: Batch) -> Tensor:
    """What is differentiated where the loss is over completions; shape ()."""
    return model.completion_logprobs(known(batch.to(model.device), model)).sum()


def known(batch: Batch, model: RoleModel) -> Batch:
    """The batch with token ids that a model of few words knows."""
    words = model.base.config.get_text_config().vocab_size
    return batch._replace(input_ids_BT=batch.input_ids_BT % words, targets_N=batch.targets_N % words)


def duration(seconds: float) -> str:
    """As people say it: 40 s, 12 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"

"""--dry-run of a training command: its settings, a row as the model reads it, what it takes in memory and time."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pitcli.console import marked, note, table
from pitcli.engine.models.opening import Base
from pitcli.engine.models.roles import RoleModel
from pitcli.engine.training.footprint import Footprint, Holding, Sizes, footprint, memory_available
from pitcli.engine.training.loop import Task
from pitcli.errors import RunError
from pitcli.processes.ranks import is_rank_0, world_size
from pitcli.runs.folder import check_out
from pitcli.runs.manifest import Manifest
from pitcli.settings.base import LoraSettings
from pitcli.settings.flags import settings_yaml
from pitcli.settings.training import TrainingConfig

MARGIN = 1.2  # the truth may be so much above the estimate


class DryRunPlan(NamedTuple):
    """What a training command is about to do.

    task_on: its task on a model; roles: adapters that the model holds; first_row: in parts that the loss is taken over
    (True) and parts that it is not.
    """

    task_on: Callable[[RoleModel], Task]
    roles: int
    first_row: Sequence[tuple[str, bool]]


def dry_run(config: TrainingConfig, manifest: Manifest, lora: LoraSettings, base: Base, plan: DryRunPlan) -> None:
    """Show what would happen on stderr, the settings on stdout; RunError if memory would not hold it."""
    check_out(config.run_folder, manifest, config.resume, config.overwrite)
    if is_rank_0():
        print(settings_yaml(config), end="", flush=True)
    note("the first row, marked where the loss is taken:")
    marked(plan.first_row)
    holding = Holding(
        folder=base.folder,
        load_in_4bit=base.identity.load_in_4bit,
        device=base.device,
        lora=lora,
        roles=plan.roles,
        shards=world_size() if config.shard_base else 1,
        recompute=config.gradient_checkpointing,
    )
    need, sizes = footprint(holding, plan.task_on, config)
    there, wanted = memory_available(base.device), need.peak()
    lines = [
        *size_lines(sizes, training_seconds(need, sizes)),
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


def training_seconds(need: Footprint, sizes: Sizes) -> float:
    """Of the whole training, from the largest micro-batch."""
    per_token = need.seconds / (sizes.in_largest * sizes.longest * sizes.share)
    besides = sizes.besides.seconds(per_token) if sizes.besides else 0.0
    return (sizes.padded_tokens * per_token + besides) / world_size()


def size_lines(sizes: Sizes, seconds: float) -> list[tuple[str, str]]:
    padding = 1 - sizes.tokens / sizes.padded_tokens
    return [
        ("rows", f"{sizes.rows:,}, of each {sizes.row_tokens / sizes.rows:.0f} tokens in a step"),
        ("steps", f"{sizes.steps:,}, {sizes.tokens:,} tokens and {padding:.1%} padding"),
        ("largest micro-batch", f"{sizes.in_largest} rows, the longest of {sizes.longest:,} tokens"),
        ("time", f"about {duration(seconds)}, by the speed of one layer just now"),
    ]


def duration(seconds: float) -> str:
    """As people say it: 40 s, 12 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"

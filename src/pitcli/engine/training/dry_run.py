"""--dry-run of a training command: shows its settings, its first row as tokens, and the memory and time it needs."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pitcli.console import marked, note, table
from pitcli.engine.models.opening import Base
from pitcli.engine.models.roles import RoleModel
from pitcli.engine.training.footprint import Footprint, Setup, Sizes, footprint, memory_available
from pitcli.engine.training.loop import Task
from pitcli.errors import RunError
from pitcli.processes.ranks import is_rank_0, world_size
from pitcli.runs.folder import check_out
from pitcli.runs.manifest import Manifest
from pitcli.settings.base import LoraSettings
from pitcli.settings.flags import settings_yaml
from pitcli.settings.training import TrainingConfig

MARGIN = 1.2  # actual memory use can be this many times the estimate


class DryRunPlan(NamedTuple):
    """What a dry run needs to know of a training command.

    task_on: builds its task for a model. roles: how many adapters the model has. first_row: (text, whether it is in the
    loss) of each part of the first row. trained: how many of the adapters are trained, one after another. left_out:
    work that the time does not include.
    """

    task_on: Callable[[RoleModel], Task]
    roles: int
    first_row: Sequence[tuple[str, bool]]
    trained: int = 1
    left_out: Sequence[str] = ()


def dry_run(config: TrainingConfig, manifest: Manifest, lora: LoraSettings, base: Base, plan: DryRunPlan) -> None:
    """Print the settings to stdout and a forecast to stderr; RunError if there is not enough memory."""
    check_out(config.run_folder, manifest, config.resume, config.overwrite)
    if is_rank_0():
        print(settings_yaml(config), end="", flush=True)
    note("the first row, with the tokens in the loss marked:")
    marked(plan.first_row)
    setup = Setup(
        folder=base.folder,
        load_in_4bit=base.identity.load_in_4bit,
        dtype=base.dtype,
        device=base.device,
        lora=lora,
        roles=plan.roles,
        trained=plan.trained,
        shards=world_size() if config.shard_base else 1,
        recompute=config.gradient_checkpointing,
    )
    need, sizes = footprint(setup, plan.task_on, config)
    available, needed = memory_available(base.device), need.peak()
    lines = [
        *size_lines(sizes, training_seconds(need, sizes)),
        *([("not in this time", ", ".join(plan.left_out))] if plan.left_out else []),
        *((name, f"{size / 2**20:,.0f} MiB") for name, size in need.parts()),
        ("memory at the peak", f"about {needed / 2**30:.2f} GiB of {available / 2**30:.2f} GiB"),
    ]
    table("Estimated cost", ["", ""], lines)
    if needed > available:
        raise RunError(
            f"needs about {needed / 2**30:.1f} GiB; {available / 2**30:.1f} GiB available; "
            "use --gradient-checkpointing, or a smaller --micro-batch-size, --max-length or --lora-rank"
        )
    if needed * MARGIN > available:
        note("this may run out of memory: the estimate can be 20% too low")


def training_seconds(need: Footprint, sizes: Sizes) -> float:
    """Return the seconds of the whole training, extrapolated from the largest micro-batch."""
    per_token = need.seconds / (sizes.in_largest * sizes.longest * sizes.share)
    rollouts = sizes.rollout_cost.seconds(per_token) if sizes.rollout_cost else 0.0
    return (sizes.padded_tokens * per_token + rollouts) / world_size()


def size_lines(sizes: Sizes, seconds: float) -> list[tuple[str, str]]:
    """Return (name, value) rows of the forecast: rows, steps, largest micro-batch, time."""
    padding = 1 - sizes.tokens / sizes.padded_tokens
    return [
        ("rows", f"{sizes.rows:,}, {sizes.row_tokens / sizes.rows:.0f} tokens per row on average"),
        ("steps", f"{sizes.steps:,}, {sizes.tokens:,} tokens in total, {padding:.1%} padding"),
        ("largest micro-batch", f"{sizes.in_largest} rows, the longest of {sizes.longest:,} tokens"),
        ("time", f"about {duration(seconds)}, extrapolated from a few layers"),
    ]


def duration(seconds: float) -> str:
    """Format seconds for people: 40 s, 12 min, 3 h 20 min."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"

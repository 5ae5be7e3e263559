"""The `pit` command: parse, validate, import one stage, run it, and turn errors into lines and exit codes."""

import importlib
import os
import signal
import sys
import time
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.exceptions import TyperException

from pitcli import __version__, console
from pitcli.errors import PitError, RunError, SettingsError, is_out_of_memory
from pitcli.processes.collectives import leave
from pitcli.processes.ranks import SPREAD, is_first, process_count, process_index
from pitcli.runs.folder import is_finished, refuse_busy
from pitcli.runs.tracking import refuse_missing
from pitcli.settings.base import Role, Settings
from pitcli.settings.flags import command_of, smaller_command
from pitcli.settings.tools import (
    AgreeConfig,
    AnnotateConfig,
    DoctorConfig,
    EvaluateConfig,
    ExportConfig,
    PipelineConfig,
    PrepareConfig,
    ReportConfig,
    VerifyConfig,
)
from pitcli.settings.training import ImproveConfig, RewardConfig, RlConfig, SampleConfig, SftConfig, TrainingConfig

INTERRUPTED, BROKEN_PIPE, TERMINATED = (128 + number for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGTERM))
ENVIRONMENT = 3
OUT_OF_MEMORY = "out of memory; use a smaller --sample-batch-size or --max-new-tokens"

LINGER = 10.0  # seconds, in which the first of several processes can say what all of them have to say

SHARED_WITH_SFT = (
    *("data", "max_rows", "skip_long", "truncate", "max_length", "model", "load_in_4bit", "device"),
    *("seed", "max_steps", "micro_batch_size", "gradient_checkpointing", "shard_base", "save_every"),
    *("dry_run", "track"),
)

app = typer.Typer(
    name="pit",
    help="Learn to improve text from preference pairs, and run the improver over drafts (arXiv 2310.00898).",
    # Rich help costs 0.1 s a call and boxes that do not paste; plain help is also what the docs quote.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]},
)


def _run_stage(module: str, config: Settings) -> int | None:
    # Here, not above: torch takes seconds to import, and a typo in a flag has been answered by now.
    return importlib.import_module(f"pitcli.stages.{module}").run(config)


def _train(module: str, config: TrainingConfig) -> int | None:
    """A training stage, on a run folder that no other process has, with a way out where memory runs out."""
    refuse_missing(config.track)
    if config.shard_base and process_count() == 1:
        raise SettingsError("--shard-base: there is one process; start several (torchrun, accelerate launch)")
    if is_first():
        refuse_busy(config.run_folder)
    try:
        return _run_stage(module, config)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        raise RunError(f"out of memory; this takes less: {smaller_command(config)}") from error


def _train_rl(config: RlConfig) -> int | None:
    """RL starts from an SFT improver; where there is none, train it from the same settings."""
    if is_first():
        refuse_busy(config.run_folder)
    if config.sft is None and config.role is Role.improver:
        shared = {name: getattr(config, name) for name in SHARED_WITH_SFT}
        sft = SftConfig(role=Role.improver, **shared)
        if not is_finished(sft.run_folder):
            console.note("no --sft and no finished runs/sft: training the improver by SFT first, then RL")
            if code := _train("sft", sft.model_copy(update={"resume": sft.run_folder.exists()})):
                return code
            if config.dry_run:
                console.note("that was the SFT; what RL itself takes is told once runs/sft is there")
                return None
    return _train("rl", config)


def _run_recipe(config: PipelineConfig) -> int | None:
    commands = {name: (config_class, run) for name, config_class, run, _ in COMMANDS}
    return importlib.import_module("pitcli.stages.run").run(config, commands)


COMMANDS: tuple[tuple[str, type[Settings], Callable[[Any], int | None], str], ...] = (
    ("prepare", PrepareConfig, partial(_run_stage, "prepare"), "pit prepare --data hh.jsonl --out data"),
    ("sft", SftConfig, partial(_train, "sft"), "pit sft --data data/sft.jsonl"),
    ("train-reward", RewardConfig, partial(_train, "train_reward"), "pit train-reward --data hh.jsonl"),
    (
        "sample",
        SampleConfig,
        partial(_run_stage, "sample"),
        "pit sample --data hh.jsonl --output drafts.jsonl",
    ),
    ("rl", RlConfig, _train_rl, "pit rl --curriculum"),
    (
        "improve",
        ImproveConfig,
        partial(_run_stage, "improve"),
        "pit improve --input drafts.jsonl --max-iters 5",
    ),
    (
        "evaluate",
        EvaluateConfig,
        partial(_run_stage, "evaluate"),
        "pit evaluate --input improved.jsonl --judge gap:runs/judge",
    ),
    (
        "annotate",
        AnnotateConfig,
        partial(_run_stage, "annotate"),
        "pit annotate --input improved.jsonl --output labels.jsonl --annotator ada",
    ),
    ("agree", AgreeConfig, partial(_run_stage, "agree"), "pit agree --labels labels.jsonl"),
    ("run", PipelineConfig, _run_recipe, "pit run examples/recipes/quickstart.yaml"),
    ("verify", VerifyConfig, partial(_run_stage, "verify"), "pit verify runs/rl"),
    ("report", ReportConfig, partial(_run_stage, "report"), "pit report runs/rl"),
    ("export", ExportConfig, partial(_run_stage, "export"), "pit export runs/rl --out improver"),
    ("doctor", DoctorConfig, partial(_run_stage, "doctor"), "pit doctor --model smollm2"),
)


def _alone(name: str, run: Callable[[Any], int | None], config: Settings) -> int | None:
    """Refuse to do N times what one process does."""
    if process_count() > 1 and name not in SPREAD:
        raise SettingsError(f"pit {name} is one process; {', '.join(SPREAD)} can be more (torchrun, accelerate launch)")
    return run(config)


def _add_commands() -> None:
    for name, config_class, run, example in COMMANDS:
        _, _, summary = (config_class.__doc__ or "").partition(": ")
        summary = summary[:1].upper() + summary[1:]
        help_text = f"{summary}\n\nExample: {example}"
        app.command(name, help=help_text, short_help=summary)(command_of(config_class, partial(_alone, name, run)))


_add_commands()


@app.callback(invoke_without_command=True)
def _pit(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    if version:
        typer.echo(f"pit {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), err=True)
        raise typer.Exit(2)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code; only a bug, or PIT_DEBUG=1, shows a traceback."""
    signal.signal(signal.SIGTERM, _terminate)
    try:
        code = app(arguments, prog_name="pit", standalone_mode=False) or 0
        leave()
        _flush_stdout()
    except (PitError, TyperException, OSError, MemoryError, RuntimeError) as error:
        ending = _ending(error)
        if ending is None or os.environ.get("PIT_DEBUG"):
            raise
        code, lines = ending
        if not is_first():
            lines = _not_told_by_the_first(lines)
        for line in lines:
            console.error(line) if code else console.note(line)
    except SystemExit as ended:
        # Typer answers a broken pipe by sys.exit(1) on its own; a shell expects 128 + SIGPIPE.
        if not isinstance(ended.__context__, BrokenPipeError):
            raise
        code = BROKEN_PIPE
    if code == INTERRUPTED:
        console.note("interrupted")
    _leave_stdout_quiet(broken=code == BROKEN_PIPE)
    return code


def _not_told_by_the_first(lines: list[str]) -> list[str]:
    """What a process says of its own trouble. Where all have the same, the first says it, and the launcher ends us."""
    time.sleep(LINGER)
    console.speak()
    return [f"process {process_index()}: {line}" for line in lines]


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(TERMINATED)


def _ending(error: Exception) -> tuple[int, list[str]] | None:
    """Exit code and lines for what a user can cause; None for a bug."""
    ending: tuple[int, list[str]] | None = None
    match error:
        case PitError():
            ending = error.exit_code, error.problems
        case TyperException():
            ending = 2, [_usage_line(error)]
        case BrokenPipeError():
            ending = BROKEN_PIPE, []
        case OSError():
            what = error.strerror or " ".join(str(error).split())
            ending = ENVIRONMENT, [f"{what}: {error.filename}" if error.filename else what]
        case _ if is_out_of_memory(error):
            ending = ENVIRONMENT, [OUT_OF_MEMORY]
    return ending


def _usage_line(error: TyperException) -> str:
    message = error.message.rstrip(".")
    if near := getattr(error, "possibilities", None):
        message += f"; did you mean {near[0]}?"
    if context := getattr(error, "ctx", None):
        message += f" (see {context.command_path} --help)"
    return message[:1].lower() + message[1:]


def _flush_stdout() -> None:
    if sys.stdout is not None:  # as in: pit rl >&-
        sys.stdout.flush()


def _leave_stdout_quiet(broken: bool) -> None:
    """Where stdout takes no more, drop what is buffered: the interpreter's last flush would complain."""
    try:
        _flush_stdout()
    except OSError:
        broken = True
    if broken:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

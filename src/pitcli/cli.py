"""The `pit` command: parses and validates arguments, starts one stage, turns errors into lines and exit codes."""

import io
import os
import signal
import sys
import time
import traceback
from contextlib import suppress
from functools import cache, partial
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.exceptions import TyperException

from pitcli import __version__, console, events
from pitcli.errors import PitError, is_out_of_memory, naming
from pitcli.processes.collectives import leave_group
from pitcli.processes.ranks import is_rank_0, rank
from pitcli.settings.commands import COMMANDS
from pitcli.settings.flags import command_of
from pitcli.settings.help import SectionedCommand, SectionedGroup
from pitcli.stages import start

INTERRUPTED, BROKEN_PIPE, TERMINATED = (128 + number for number in (signal.SIGINT, signal.SIGPIPE, signal.SIGTERM))
ENVIRONMENT = 3
BUG = 70  # EX_SOFTWARE of sysexits.h
LINGER = 10.0  # seconds in which rank 0 reports an error that all processes have

# the same for every command, and kept from version to version
EXIT_CODES = """\
0    done
1    some rows failed, each named on stderr
2    bad input or settings: nothing was done
3    disk, memory, lock, damaged run, diverged training
70   a bug in pit, with a traceback
130  interrupted; 143 terminated; 141 stdout was closed"""

app = typer.Typer(
    name="pit",
    cls=SectionedGroup,
    help="Learn to improve text from preference pairs, and improve drafts (PIT, arXiv 2310.00898).\n\n"
    "`pit COMMAND --help` shows the options of a command, with examples.",
    epilog=f"\b\nExit codes of every command:\n{EXIT_CODES}",
    # Rich help costs 0.1 s per call, and its boxes are bad to copy; the docs quote the plain help too.
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"max_content_width": 110, "help_option_names": ["-h", "--help"]},
)


def _add_commands() -> None:
    for name, command in COMMANDS.items():
        examples = "\n".join(f"  {example}" for example in command.examples)
        app.command(
            name,
            cls=SectionedCommand,
            # \b: click must not wrap the lines that follow it
            help=f"{command.summary}\n\n\b\n{'Examples' if command.examples[1:] else 'Example'}:\n{examples}",
            epilog=f"\b\nExit codes:\n{EXIT_CODES}",
            short_help=command.summary,
            rich_help_panel=command.purpose,
        )(command_of(command.settings, partial(start, name)))


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
    """Run one command and return its exit code. A traceback is shown only for a bug, or with PIT_DEBUG=1."""
    with events.turned_on(sys.argv[1:] if arguments is None else arguments):
        try:
            code = _run(arguments)
        except SystemExit as ended:
            console.emit("end", exit_code=ended.code)
            raise
        except Exception as error:
            console.emit("end", exit_code=_code_of(error))
            raise
        console.emit("end", exit_code=code)
    return code


@cache
def _command() -> Any:
    """The click command; Typer itself would build all of its subcommands for each call."""
    return typer.main.get_command(app)


def entry() -> int:
    """Run the command of this process; a bug has an exit code of its own, so that nobody takes it for failed rows."""
    try:
        return main()
    except Exception as error:
        traceback.print_exc()
        return _code_of(error)


def _code_of(error: Exception) -> int:
    """The exit code of an error that is shown with its traceback: a bug, or any error with PIT_DEBUG=1."""
    ending = _ending(error)
    return ending[0] if ending else BUG


def _run(arguments: list[str] | None) -> int:
    signal.signal(signal.SIGTERM, _terminate)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # the terminal is gone; nohup ignores that
        signal.signal(signal.SIGHUP, _terminate)
    _prepare_streams()
    try:
        with naming("stdout"):  # files and run folders name themselves
            code = _command()(arguments, prog_name="pit", standalone_mode=False) or 0
            leave_group()
            _flush_stdout()
    except (PitError, TyperException, OSError, MemoryError, RuntimeError) as error:
        ending = _ending(error)
        if ending is None or os.environ.get("PIT_DEBUG"):
            raise
        code, lines = ending
        if not is_rank_0():
            lines = _lines_of_other_rank(lines)
        with suppress(OSError):  # stderr itself may be full
            for line in lines:
                console.error(line) if code else console.note(line)
    except SystemExit as ended:
        # Typer itself calls sys.exit(1) on a broken pipe; a shell expects 128 + SIGPIPE.
        if not isinstance(ended.__context__, BrokenPipeError):
            raise
        code = BROKEN_PIPE
    if code == INTERRUPTED:
        console.note("interrupted")
    _discard_unwritable_stdout(broken=code == BROKEN_PIPE)
    return code


def _prepare_streams() -> None:
    """Write UTF-8 to stdout whatever the locale, and keep files from getting the numbers of closed streams."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, this one
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(encoding="utf-8")


def _lines_of_other_rank(lines: list[str]) -> list[str]:
    """The error lines of a rank other than 0, labelled with the rank.

    Waits first: if all ranks fail alike, rank 0 reports the error and the launcher ends this process meanwhile.
    """
    time.sleep(LINGER)
    console.enable_output()
    return [f"process {rank()}: {line}" for line in lines]


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(TERMINATED)


def _ending(error: Exception) -> tuple[int, list[str]] | None:
    """The exit code and the lines for an error that a user can cause; None for a bug."""
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
            ending = ENVIRONMENT, ["out of memory; use smaller batches or shorter texts (--help, Hardware and memory)"]
    return ending


def _usage_line(error: TyperException) -> str:
    message = error.message.rstrip(".")
    if near := getattr(error, "possibilities", None):
        message += f"; did you mean {near[0]}?"
    if context := getattr(error, "ctx", None):
        message += f" (see {context.command_path} --help)"
    return message[:1].lower() + message[1:]


def _flush_stdout() -> None:
    if sys.stdout is not None:  # None after: pit rl >&-
        sys.stdout.flush()


def _discard_unwritable_stdout(broken: bool) -> None:
    """If stdout cannot be written, discard its buffer: the interpreter's last flush would print an error."""
    try:
        _flush_stdout()
    except OSError:
        broken = True
    if broken:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)

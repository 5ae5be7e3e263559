"""What people read, on stderr: notes, warnings, progress bars, tables and samples."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.console import Console

SAMPLE_CHARACTERS = 300

# Controls (but not tab and newline), bidirectional overrides and lone surrogates: rows are untrusted text,
# and a terminal obeys what it is sent.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@cache
def _console() -> "Console":
    from rich.console import Console

    return Console(stderr=True, highlight=False)


def visible(text: str) -> str:
    """The text with everything that could steer a terminal written out, e.g. ``\\x1b``."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def note(message: str) -> None:
    """One plain line."""
    _labelled("", "", message)


def warn(message: str) -> None:
    """One line after a yellow `warning:`."""
    _labelled("warning: ", "yellow", message)


def error(message: str) -> None:
    """One line after a red `error:`."""
    _labelled("error: ", "bold red", message)


def next_command(line: str) -> None:
    """What to run next."""
    _labelled("next: ", "bold", line)


def _labelled(label: str, style: str, message: str) -> None:
    from rich.text import Text

    # soft_wrap: a line stays one line, for grep and for log files.
    _console().print(Text.assemble((label, style), visible(message).replace("\n", "\\n")), soft_wrap=True)


@contextmanager
def progress(description: str, total: int | None, rows: TextIO | None = None) -> Iterator[Callable[..., None]]:
    """A bar on stderr, if that is a terminal; yields advance(n=1, **fields), e.g. advance(loss=0.53).

    rows: the stream that rows go to meanwhile; where that is a terminal too, a bar would be written over them.
    """
    if not _console().is_terminal or (rows is not None and rows.isatty()):
        yield lambda n=1, **fields: None
        return
    from rich import progress as bars

    columns = [
        bars.TextColumn("{task.description}", markup=False),
        bars.BarColumn(bar_width=24),
        bars.MofNCompleteColumn(),
        bars.TextColumn("{task.fields[rate]}", markup=False),
        bars.TimeRemainingColumn(),
        bars.TextColumn("{task.fields[shown]}", markup=False),
    ]
    # redirect_stdout would send the rows on stdout to stderr.
    with bars.Progress(*columns, console=_console(), redirect_stdout=False) as bar:
        task = bar.add_task(visible(description), total=total, rate="", shown="")

        def advance(n: int = 1, **fields: object) -> None:
            shown = " ".join(f"{name}={_cell(value)}" for name, value in fields.items())
            speed = bar.tasks[0].speed
            bar.update(task, advance=n, shown=shown, rate=f"{speed:.3g}/s" if speed else "")

        yield advance


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table; columns that hold only numbers stand to the right, nothing is cut off."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=Text(visible(title)), title_justify="left", box=box.SIMPLE_HEAD)
    for place, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[place], int | float) for row in rows)
        grid.add_column(Text(visible(column)), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(_cell(value)) for value in row))
    # A log file has no width to keep to; 80 columns would fold the cells.
    console = _console() if _console().is_terminal else Console(stderr=True, width=10_000)
    console.print(grid)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else visible(str(value))


def samples(pairs: Sequence[tuple[str, str, str]]) -> None:
    """Blocks of prompt, before and after, each shortened."""
    from rich.text import Text

    for texts in pairs:
        for label, text in zip(("prompt", "before", "after"), texts, strict=True):
            indented = visible(_shortened(text)).replace("\n", "\n" + " " * 8)
            _console().print(Text.assemble((f"{label:<8}", "bold"), indented), soft_wrap=True)
        _console().print()


def _shortened(text: str) -> str:
    text = text.strip()
    return text if len(text) <= SAMPLE_CHARACTERS else f"{text[: SAMPLE_CHARACTERS - 1]}…"

"""Output for people, on stderr: notes, warnings, progress bars, tables, samples, and the live training panel."""

import re
import sys
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple, TextIO

from pitcli.processes.ranks import is_rank_0

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.panel import Panel
    from rich.progress import Progress

SAMPLE_CHARACTERS = 300
BLOCKS = "▁▂▃▄▅▆▇█"
PANEL_COLUMNS = 88
SPARKLINE_COLUMNS = 48
SPARKLINE_STEPS = 2000  # the latest steps that a sparkline shows
SPEED_STEPS = 20
SPEED_SECONDS = 600  # the period over which the time left is estimated

# Control characters (but not tab and newline), bidirectional overrides and lone surrogates: rows are untrusted text,
# and a terminal executes the escape sequences in its input.
_UNSAFE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


@cache
def _console() -> "Console":
    from rich.console import Console

    return Console(stderr=True, highlight=False, quiet=not is_rank_0())  # one process prints for all


def enable_output() -> None:
    """Let a rank other than 0 print."""
    _console().quiet = False


def visible(text: str) -> str:
    """The text with every character that could control a terminal escaped, e.g. ``\\x1b``."""
    return _UNSAFE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def counted(count: int, things: str) -> str:
    """The count and what is counted; `things` begins with a plural: 2 blank lines skipped, 1 blank line skipped."""
    if count == 1:
        things = re.sub(r"([^s\W])s\b", r"\1", things, count=1)
    return f"{count:,} {things}"


def note(message: str) -> None:
    """Print one plain line."""
    _labelled("", "", message)


def warn(message: str) -> None:
    """Print one line after a yellow `warning:`."""
    _labelled("warning: ", "yellow", message)


def error(message: str) -> None:
    """Print one line after a red `error:`."""
    _labelled("error: ", "bold red", message)


def next_command(line: str) -> None:
    """Print the command to run next."""
    _labelled("next: ", "bold", line)


def _labelled(label: str, style: str, message: str) -> None:
    from rich.text import Text

    # soft_wrap: one message is one line, for grep and log files.
    _console().print(Text.assemble((label, style), visible(message).replace("\n", "\\n")), soft_wrap=True)


@contextmanager
def progress(description: str, total: int | None, rows: TextIO | None = None) -> Iterator[Callable[..., None]]:
    """Show a progress bar if stderr is a terminal; yields advance(n=1, **fields), e.g. advance(loss=0.53).

    rows: the stream that rows are written to meanwhile; if it is a terminal too, no bar is shown, as it would overwrite
    them.
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


class Sparkline(NamedTuple):
    """The values of a metric as a sparkline that fits the available width."""

    values: Sequence[float]

    def __rich_console__(self, console: "Console", options: "ConsoleOptions") -> "RenderResult":
        # A terminal without UTF-8 cannot show the blocks.
        if not options.ascii_only:
            yield sparkline(self.values, min(options.max_width, SPARKLINE_COLUMNS))


def sparkline(values: Sequence[float], width: int) -> str:
    """At most `width` blocks; each shows the mean of an equal part of the values.

    The lowest block is the minimum of the means, the highest the maximum.
    """
    count = min(width, len(values))
    means = [fmean(values[len(values) * i // count : len(values) * (i + 1) // count]) for i in range(count)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[round(top * (mean - low) / (high - low)) if high > low else 0] for mean in means)


@contextmanager
def training_panel(
    title: str, total: int, names: Sequence[str], rows: Sequence[Mapping[str, float]], per_step: int
) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Show a live panel of training if stderr is a terminal; yields show(metrics), to be called after each step.

    The panel has a bar with the time left, and the latest value and a sparkline of each metric in `names`. rows: the
    metrics of the steps before a resumed run continues. per_step: rows of data per step, for the speed of tasks without
    a metric `tokens`.
    """
    if not (_console().is_interactive and sys.stderr is not None and sys.stderr.isatty()):
        yield lambda metrics: None
        return
    from rich import progress as bars
    from rich.live import Live

    columns = [bars.BarColumn(bar_width=None), bars.MofNCompleteColumn(), bars.TimeRemainingColumn()]
    bar = bars.Progress(*columns, speed_estimate_period=SPEED_SECONDS, expand=True)
    task = bar.add_task("", total=total, completed=len(rows))
    history: dict[str, deque[float]] = {}
    done: deque[tuple[float, float]] = deque([(time.monotonic(), 0.0)], maxlen=SPEED_STEPS)

    def add(metrics: Mapping[str, float]) -> None:
        for name in names:
            if name in metrics:
                history.setdefault(name, deque(maxlen=SPARKLINE_STEPS)).append(metrics[name])

    def show(metrics: Mapping[str, float]) -> None:
        add(metrics)
        done.append((time.monotonic(), metrics.get("tokens", per_step)))
        bar.advance(task)
        unit = "tokens/s" if "tokens" in metrics else "rows/s"
        live.update(_panel(title, bar, history, (unit, _speed(done))))

    for row in rows:
        add(row)
    # redirect_stdout would send the output on stdout to stderr.
    with Live(
        _panel(title, bar, history, None), console=_console(), redirect_stdout=False, refresh_per_second=4
    ) as live:
        yield show


def _speed(done: Sequence[tuple[float, float]]) -> float:
    """The amount per second, from steps as (end time, amount); the first one only marks the start of the second."""
    (began, _), (ended, _) = done[0], done[-1]
    return sum(amount for _, amount in list(done)[1:]) / max(ended - began, 1e-9)


def _panel(
    title: str, bar: "Progress", history: Mapping[str, Sequence[float]], speed: tuple[str, float] | None
) -> "Panel":
    from rich.console import Group
    from rich.panel import Panel
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0), expand=True)
    grid.add_column(no_wrap=True)
    grid.add_column(no_wrap=True, justify="right", min_width=9)
    grid.add_column(no_wrap=True, ratio=1, style="cyan")
    for name, values in history.items():
        grid.add_row(Text(visible(name)), Text(_cell(float(values[-1]))), Sparkline(list(values)))
    if speed:
        unit, number = speed
        grid.add_row(Text(unit), Text(f"{number:,.0f}" if number >= 10 else f"{number:.2g}"))
    width = min(_console().width, PANEL_COLUMNS)
    return Panel(Group(bar, grid), title=Text(visible(title)), title_align="left", border_style="dim", width=width)


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; columns of numbers are right-aligned, and no cell is truncated."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=Text(visible(title)), title_justify="left", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        grid.add_column(Text(visible(column)), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(_cell(value)) for value in row))
    # A log file has no width; with the default of 80 columns the cells would be folded.
    console = _console() if _console().is_terminal else Console(stderr=True, width=10_000, quiet=not is_rank_0())
    console.print(grid)


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else visible(str(value))


def samples(rows: Sequence[Sequence[str]], labels: Sequence[str] = ("prompt", "before", "after")) -> None:
    """Print each row as a block: one shortened text per label."""
    from rich.text import Text

    width = max(map(len, labels)) + 2
    for texts in rows:
        for label, text in zip(labels, texts, strict=True):
            indented = visible(_shortened(text)).replace("\n", "\n" + " " * width)
            _console().print(Text.assemble((f"{label:<{width}}", "bold"), indented), soft_wrap=True)
        _console().print()


def marked(parts: Sequence[tuple[str, bool]]) -> None:
    """Print one text in parts; marked parts are bold green, or between ⟦ and ⟧ if there are no colours."""
    from rich.text import Text

    plain = not _has_colours()
    text = Text()
    for part, is_marked in parts:
        shown = visible(part)
        text.append(f"⟦{shown}⟧" if plain and is_marked else shown, "bold green" if is_marked else "")
    _console().print(text, soft_wrap=True)


def word_changes(title: str, parts: Iterable[tuple[str, str]]) -> None:
    """Print a text with its changes: removed parts (kind "-") in red, added ones ("+") in green.

    Without colours (NO_COLOR, or stderr is not a terminal), they are between [- and -], and {+ and +}, as in git.
    """
    from rich.text import Text

    text = Text.assemble((f"{visible(title)}\n", "bold"))
    for kind, part in parts:
        shown = visible(part)
        if shown and kind != " " and not _has_colours():
            shown = f"[-{shown}-]" if kind == "-" else f"{{+{shown}+}}"
        text.append(shown, {"-": "red strike", "+": "bold green"}.get(kind, ""))
    _console().print(text, "", sep="\n", soft_wrap=True)


def _has_colours() -> bool:
    return _console().color_system is not None and not _console().no_color


def _shortened(text: str) -> str:
    text = text.strip()
    return text if len(text) <= SAMPLE_CHARACTERS else f"{text[: SAMPLE_CHARACTERS - 1]}…"

"""The live panel of training: a bar, the latest values and sparklines; or an event per step, for programs."""

import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import count
from statistics import fmean
from typing import TYPE_CHECKING, NamedTuple

from pitcli import console, events

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.panel import Panel
    from rich.progress import Progress

BLOCKS = "▁▂▃▄▅▆▇█"
PANEL_COLUMNS = 88
SPARKLINE_COLUMNS = 48
SPARKLINE_STEPS = 2000  # the latest steps that a sparkline shows
SPEED_STEPS = 20
SPEED_SECONDS = 600  # the period over which the time left is estimated


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
    """Show a live panel of training on a terminal, otherwise lines; yields show(metrics), to call after each step.

    The panel has a bar with the time left, and the latest value and a sparkline of each metric in `names`. rows: the
    metrics of the steps before a resumed run continues. per_step: rows of data per step, for the speed of tasks without
    a metric `tokens`.
    """
    if events.are_on():
        yield _step_events(title, total, done=len(rows))
        return
    if not (console._console().is_interactive and sys.stderr is not None and sys.stderr.isatty()):
        advance = console.progress_lines(title, total, done=len(rows))
        yield lambda metrics: advance(**{name: metrics[name] for name in names if name in metrics})
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
        _panel(title, bar, history, None), console=console._console(), redirect_stdout=False, refresh_per_second=4
    ) as live:
        yield show


def _step_events(task: str, total: int, done: int) -> Callable[[Mapping[str, float]], None]:
    start, steps = time.monotonic(), count(done + 1)

    def show(metrics: Mapping[str, float]) -> None:
        seconds = round(time.monotonic() - start, 3)
        console.emit("progress", task=task, done=next(steps), total=total, seconds=seconds, metrics=dict(metrics))

    return show


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
        grid.add_row(Text(console.visible(name)), Text(console.cell(float(values[-1]))), Sparkline(list(values)))
    if speed:
        unit, number = speed
        grid.add_row(Text(unit), Text(f"{number:,.0f}" if number >= 10 else f"{number:.2g}"))
    width = min(console._console().width, PANEL_COLUMNS)
    return Panel(
        Group(bar, grid), title=Text(console.visible(title)), title_align="left", border_style="dim", width=width
    )

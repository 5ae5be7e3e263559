"""Output on stderr: for people notes, warnings, progress bars, tables and samples; for programs events (events.py)."""

import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, TextIO

from pitcli import events
from pitcli.processes.ranks import is_rank_0

if TYPE_CHECKING:
    from rich.console import Console

SAMPLE_CHARACTERS = 300
LINE_SECONDS = 300.0  # between two lines of progress in a log file

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


def emit(event: str, **fields: object) -> bool:
    """Write an event if programs read stderr (--json-progress); returns whether they do, so that no text is due."""
    if not events.are_on():
        return False
    if not _console().quiet:
        events.write(event, fields)
    return True


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
    if emit(label.rstrip(": ") or "note", message=message):
        return
    from rich.text import Text

    # soft_wrap: one message is one line, for grep and log files.
    _console().print(Text.assemble((label, style), visible(message).replace("\n", "\\n")), soft_wrap=True)


@contextmanager
def progress(description: str, total: int | None, rows: TextIO | None = None) -> Iterator[Callable[..., None]]:
    """Show a progress bar on a terminal, otherwise lines; yields advance(n=1, **fields), e.g. advance(loss=0.53).

    rows: the stream that rows are written to meanwhile; if it is a terminal too, no bar is shown, as it would overwrite
    them.
    """
    if events.are_on():
        yield _progress_events(description, total)
        return
    if not _console().is_terminal:
        yield progress_lines(description, total)
        return
    if rows is not None and rows.isatty():
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
            shown = " ".join(f"{name}={cell(value)}" for name, value in fields.items())
            speed = bar.tasks[0].speed
            bar.update(task, advance=n, shown=shown, rate=f"{speed:.3g}/s" if speed else "")

        yield advance


def progress_lines(task: str, total: int | None, done: int = 0) -> Callable[..., None]:
    """Return advance(n=1, **fields), which prints a line of progress every five minutes. done: before the first."""
    start = printed = time.monotonic()
    now_done = done

    def advance(n: int = 1, **fields: float) -> None:
        nonlocal now_done, printed
        now_done, now = now_done + n, time.monotonic()
        if now - printed < LINE_SECONDS or now_done in (total, done):
            return
        printed = now
        parts = [f"{now_done:,} of {total:,}" if total else f"{now_done:,}"]
        parts += [f"{name} {cell(value)}" for name, value in fields.items()]
        if total:
            parts.append(f"about {(total - now_done) * (now - start) / (now_done - done) / 60:.0f} minutes left")
        note(f"{task}: {', '.join(parts)}")

    return advance


def _progress_events(task: str, total: int | None) -> Callable[..., None]:
    start, done = time.monotonic(), 0

    def advance(n: int = 1, **fields: object) -> None:
        nonlocal done
        done += n
        emit("progress", task=task, done=done, total=total, seconds=round(time.monotonic() - start, 3), **fields)

    return advance


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table; columns of numbers are right-aligned, and no cell is truncated."""
    if emit("table", title=title, columns=columns, rows=rows):
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table(title=Text(visible(title)), title_justify="left", box=box.SIMPLE_HEAD)
    for index, column in enumerate(columns):
        numeric = bool(rows) and all(isinstance(row[index], int | float) for row in rows)
        grid.add_column(Text(visible(column)), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        grid.add_row(*(Text(cell(value)) for value in row))
    # A log file has no width; with the default of 80 columns the cells would be folded.
    console = _console() if _console().is_terminal else Console(stderr=True, width=10_000, quiet=not is_rank_0())
    console.print(grid)


def cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else visible(str(value))


def samples(rows: Sequence[Sequence[str]], labels: Sequence[str] = ("prompt", "before", "after")) -> None:
    """Print each row as a block: one shortened text per label."""
    if events.are_on():
        for texts in rows:
            emit("sample", **dict(zip(labels, texts, strict=True)))
        return
    from rich.text import Text

    width = max(map(len, labels)) + 2
    for texts in rows:
        for label, text in zip(labels, texts, strict=True):
            indented = visible(_shortened(text)).replace("\n", "\n" + " " * width)
            _console().print(Text.assemble((f"{label:<{width}}", "bold"), indented), soft_wrap=True)
        _console().print()


def marked(parts: Sequence[tuple[str, bool]]) -> None:
    """Print one text in parts; marked parts are bold green, or between ⟦ and ⟧ if there are no colours."""
    if emit("text", parts=parts):
        return
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
    if events.are_on():
        emit("changes", title=title, parts=list(parts))
        return
    from rich.text import Text

    text = Text.assemble((f"{visible(title)}\n", "bold"))
    for kind, part in parts:
        shown = visible(part)
        if shown and kind != " " and not _has_colours():
            shown = f"[-{shown}-]" if kind == "-" else f"{{+{shown}+}}"
        text.append(shown, {"-": "red strike", "+": "bold green"}.get(kind, ""))
    _console().print(text, "", sep="\n", soft_wrap=True)


def edit_shares(title: str, text: str, edits: Sequence[Mapping[str, Any]]) -> None:
    """Print a text with its edits as explained rows have them: green by their share of the gap, red if they lower it.

    What an edit removed is struck out. Without colours as `word_changes`. Its share is behind it, or its gap.
    """
    if emit("edits", title=title, text=text, edits=edits):
        return
    from rich.text import Text

    plain = not _has_colours()
    shown, end = Text.assemble((f"{visible(title)}\n", "bold")), 0
    for edit in edits:
        start, edit_end = edit["at"]
        shown.append(visible(text[end:start]))
        style = _share_style(edit["gap"], edit["share"])
        for part, left, right, also in ((edit["from"], "[-", "-]", " strike"), (edit["to"], "{+", "+}", "")):
            if part:
                shown.append(f"{left}{visible(part)}{right}" if plain else visible(part), style + also)
        shown.append(f"({share_text(edit['gap'], edit['share'])})", "dim")
        end = edit_end
    shown.append(visible(text[end:]))
    _console().print(shown, "", sep="\n", soft_wrap=True)


def share_text(gap: float | None, share: float | None) -> str:
    """The share of an edit, otherwise its gap."""
    if share is not None:
        return f"{share:.0%}"
    return "no gap" if gap is None else f"gap {gap:+.2f}"


def _share_style(gap: float | None, share: float | None) -> str:
    """The colour of an edit: red if the text is better without it, otherwise greener with its share."""
    if gap is None or share is None:
        return "yellow"
    if gap <= 0:
        return "red"
    grey, bold = round(150 * (1 - min(1.0, share))), "bold " if share >= 0.5 else ""
    return f"{bold}rgb({grey},{210 - grey * 2 // 5},{grey})"


def _has_colours() -> bool:
    return _console().color_system is not None and not _console().no_color


def _shortened(text: str) -> str:
    text = text.strip()
    return text if len(text) <= SAMPLE_CHARACTERS else f"{text[: SAMPLE_CHARACTERS - 1]}…"

"""Rows that cannot be used: errors, or skipped and counted by reason; and the file that lists all of them."""

import os
import re
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

from pitcli.console import counted
from pitcli.data.conversations import PublishedProblem
from pitcli.data.reading import MAX_LISTED, write_row
from pitcli.data.rows import RowError
from pitcli.data.sources import HUB
from pitcli.data.strict_json import RowProblem, Unused
from pitcli.errors import SettingsError
from pitcli.processes.ranks import is_rank_0

MOST_REASONS = 20  # that are counted separately
SKIPPED = "rows skipped: "
REMEDY = "use --skip-bad to skip such rows and count them by reason; --list-bad FILE lists all of them"


class BadRows:
    """Decides for each row that cannot be used whether it is skipped and counted, or an error.

    skip: None skips all of a hub data set, and otherwise those that published formats are known to have. keep_all:
    keep the errors of all rows in memory, for --list-bad; otherwise those that an error lists.
    """

    def __init__(
        self, skip: bool | None, notes: Counter[str], on_error: Callable[[RowError], None], keep_all: bool = False
    ) -> None:
        self.skip, self.notes, self.on_error, self.keep_all = skip, notes, on_error, keep_all
        self.all: list[RowError] = []
        self.skipped = 0
        self.unused: Counter[str] = Counter()

    def add(self, error: RowError, problem: RowProblem | None = None) -> None:
        """Add a row. problem: why it is not a pair; None if it is not even a valid row."""
        if isinstance(problem, Unused):
            self.unused[f"{SKIPPED}{problem.reason}"] += 1
            self._count(f"{SKIPPED}{problem.reason}")
            return
        if self.keep_all or len(self.all) < MAX_LISTED:
            self.all.append(error)
        if self.skip or (self.skip is None and (isinstance(problem, PublishedProblem) or error.file.startswith(HUB))):
            self.skipped += 1
            self._count(reason_of(error))
        else:
            self.on_error(error)

    def _count(self, reason: str) -> None:
        if reason not in self.notes and sum(note.startswith(SKIPPED) for note in self.notes) >= MOST_REASONS:
            reason = f"{SKIPPED}other reasons"
        self.notes[reason] += 1

    def reasons(self) -> str:
        """The valid rows that were left out, counted by reason."""
        return ", ".join(counted(count, reason) for reason, count in self.unused.items())

    def first_lines(self) -> list[str]:
        return [str(error) for error in self.all[:MAX_LISTED]]


def reason_of(error: RowError) -> str:
    """The reason without what differs from row to row (numbers, quotations), and without its remedy."""
    field = re.sub(r"\[\d+\]", "[…]", error.field)
    reason = re.sub(r'"[^"]*"|\d+', "…", error.reason.partition(";")[0])
    return f"{SKIPPED}{field}: {reason}" if field else f"{SKIPPED}{reason}"


def check_list(path: str | None, files: Sequence[str]) -> None:
    """Raises SettingsError if --list-bad would overwrite a file that is read, or cannot be written."""
    if path is None or path == "-":
        return
    if any(os.path.exists(path) and os.path.exists(file) and os.path.samefile(path, file) for file in files):
        raise SettingsError(f"--list-bad: {path} is the input; choose another file")
    if not Path(path).parent.is_dir():
        raise SettingsError(f"--list-bad: {Path(path).parent} is not an existing folder; create it first")


def write_list(path: str | None, errors: Sequence[RowError], append: bool = False) -> None:
    """Write the rows to --list-bad, if it is given. append: after those of another file of the same command."""
    if path is None or not is_rank_0():
        return
    try:
        with nullcontext(sys.stdout) if path == "-" else open(path, "a" if append else "w", encoding="utf-8") as stream:
            for error in errors:
                write_row(error._asdict(), stream)
    except OSError as problem:
        raise SettingsError(f"--list-bad: {path}: {problem.strerror}") from None

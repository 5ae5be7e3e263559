"""The rows that pit improve writes: beside them what they were made with, and which drafts have theirs already."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TextIO

from pitcli.data.formats import parse_draft
from pitcli.data.reading import listed, load_rows, parsed_rows
from pitcli.data.rows import Draft, RowError
from pitcli.data.streams import open_growing, row_key
from pitcli.data.strict_json import RowProblem
from pitcli.errors import RunError, SettingsError
from pitcli.processes.collectives import on_rank_0
from pitcli.runs.files import write_file


class DoneDrafts:
    """How often each draft has its row in an output, by its key."""

    def __init__(self, rows: Counter[int]) -> None:
        self._rows = rows

    def take(self, draft: Draft) -> bool:
        """Whether one of these rows is the draft's; each row is taken once."""
        if not self._rows or not self._rows[row_key(draft)]:
            return False
        self._rows[row_key(draft)] -= 1
        return True


@contextmanager
def open_improved_rows(
    output: str, resume: bool, overwrite: bool, made_with: Callable[[], dict[str, Any]]
) -> Iterator[tuple[TextIO, DoneDrafts]]:
    """The stream that rows go to, and the drafts that have theirs; of several ranks only rank 0 writes.

    SettingsError if the rows that are resumed were made with anything else.
    """
    with ExitStack() as stack:
        streams = []

        def begin() -> Counter[int]:
            streams.append(stack.enter_context(open_growing(output, resume, overwrite)))
            return _begin(output, resume, made_with)

        rows = on_rank_0(begin)
        yield (streams or [stack.enter_context(open(os.devnull, "w"))])[0], DoneDrafts(rows)


def _begin(output: str, resume: bool, made_with: Callable[[], dict[str, Any]]) -> Counter[int]:
    """The rows that the output holds already, by key; a new output gets its record."""
    if output == "-" or not Path(output).is_file():
        return Counter()
    now, record = made_with(), Path(f"{output}.manifest.json")
    if resume and Path(output).stat().st_size:
        if not record.is_file():
            raise SettingsError(f"--resume: {record} is missing, so nobody knows what the rows were made with")
        _refuse_differences(record, now)
        return _done_rows(output)
    write_file(record, json.dumps(now, indent=1))
    return Counter()


def _refuse_differences(record: Path, now: dict[str, Any]) -> None:
    try:
        before = json.loads(record.read_bytes())
        pairs = [(before[part], now[part]) for part in now]
    except (ValueError, KeyError, TypeError) as problem:
        raise RunError(f"{record}: damaged, or not of this version of pit") from problem
    flat = [side if isinstance(side, dict) else {"gap_temperature": side} for pair in pairs for side in pair]
    problems = [
        f"--resume: {key} was {old.get(key)!r} in {record} and is now {new.get(key)!r}"
        for old, new in zip(flat[::2], flat[1::2], strict=True)
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if problems:
        raise SettingsError(problems)


def _done_rows(output: str) -> Counter[int]:
    """How often each draft has its row in the output."""
    errors: list[RowError] = []
    done = Counter(row_key(draft) for _, draft in parsed_rows(output, improved_draft, errors.append))
    if errors:
        raise RunError([f"{error}; the rows there cannot be gone on with" for error in listed(errors)])
    return done


def improved_draft(row: dict[str, Any], file: str, line: int) -> Draft:
    """The draft that an improved row was made from."""
    if "original_response" not in row:
        raise RowProblem("original_response", "missing; rows of pit improve have it")
    return parse_draft({**row, "response": row["original_response"]}, file, line)


def read_budgets(path: str) -> dict[int, int]:
    """The tokens that each draft took, by its key, in rows of another pit improve."""

    def parse(row: dict[str, Any], file: str, line: int) -> tuple[int, int]:
        draft = improved_draft(row, file, line)
        if not isinstance(tokens := row.get("generated_tokens"), int):
            raise RowProblem("generated_tokens", "a number is wanted; is it the output of pit improve?")
        return row_key(draft), tokens

    return dict(load_rows(path, parse))

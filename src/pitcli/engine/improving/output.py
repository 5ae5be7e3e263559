"""The output of pit improve: its rows, the manifest next to them, and which drafts are done when it is resumed."""

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
from pitcli.data.strict_json import RowProblem, describe
from pitcli.errors import RunError, SettingsError
from pitcli.processes.collectives import on_rank_0
from pitcli.runs.files import write_file


class DoneDrafts:
    """How many finished rows each draft has in an output, by row key."""

    def __init__(self, rows: Counter[int]) -> None:
        self._rows = rows

    def take(self, draft: Draft) -> bool:
        """Return whether the draft has a row, and use that row up: duplicate drafts need one row each."""
        if not self._rows or not self._rows[row_key(draft)]:
            return False
        self._rows[row_key(draft)] -= 1
        return True


@contextmanager
def open_improved_rows(
    output: str, resume: bool, overwrite: bool, made_with: Callable[[], dict[str, Any]]
) -> Iterator[tuple[TextIO, DoneDrafts]]:
    """Yield the stream for the rows and the drafts that have theirs already. Only rank 0 writes.

    made_with: computes the settings, base, adapters and gap temperature that the rows are made with; stored as
    OUTPUT.manifest.json. Raises SettingsError if the rows to resume from were made with different ones.
    """
    with ExitStack() as stack:
        streams = []

        def begin() -> Counter[int]:
            streams.append(stack.enter_context(open_growing(output, resume, overwrite)))
            return _begin(output, resume, made_with)

        rows = on_rank_0(begin)
        yield (streams or [stack.enter_context(open(os.devnull, "w"))])[0], DoneDrafts(rows)


def _begin(output: str, resume: bool, made_with: Callable[[], dict[str, Any]]) -> Counter[int]:
    """Return how many rows each draft has in the output, by key; write the manifest of a new output."""
    if output == "-" or not Path(output).is_file():
        return Counter()
    now, manifest = made_with(), Path(f"{output}.manifest.json")
    if resume and Path(output).stat().st_size:
        if not manifest.is_file():
            raise SettingsError(
                f"--resume: {manifest} is missing, so the settings of the existing rows are unknown; "
                "use --overwrite to replace the rows"
            )
        _refuse_differences(manifest, now)
        return _done_rows(output)
    write_file(manifest, json.dumps(now, indent=1))
    return Counter()


def _refuse_differences(manifest: Path, now: dict[str, Any]) -> None:
    """Raise SettingsError with every value that differs between the manifest and this command."""
    try:
        before = json.loads(manifest.read_bytes())
        pairs = [(before[part], now[part]) for part in now]
    except (ValueError, KeyError, TypeError) as problem:
        raise RunError(f"{manifest}: damaged, or written by another version of pit") from problem
    flat = [side if isinstance(side, dict) else {"gap_temperature": side} for pair in pairs for side in pair]
    problems = [
        f"--resume: {key} was {old.get(key)!r} in {manifest} and is now {new.get(key)!r}"
        for old, new in zip(flat[::2], flat[1::2], strict=True)
        for key in sorted(old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if problems:
        raise SettingsError(problems)


def _done_rows(output: str) -> Counter[int]:
    """Return how many rows each draft has in the output, by key; RunError if a row cannot be read."""
    errors: list[RowError] = []
    done = Counter(row_key(draft) for _, draft in parsed_rows(output, improved_draft, errors.append))
    if errors:
        raise RunError([f"{error}; cannot resume from this file" for error in listed(errors)])
    return done


def improved_draft(row: dict[str, Any], file: str, line: int) -> Draft:
    """Return the draft that an improved row was made from; RowProblem if it is not a row of pit improve."""
    if "original_response" not in row:
        raise RowProblem("original_response", "missing; expected a row that pit improve wrote")
    return parse_draft({**row, "response": row["original_response"]}, file, line)


def read_budgets(path: str) -> dict[int, int]:
    """Return the tokens that each draft cost in the output of another pit improve, by row key."""

    def parse(row: dict[str, Any], file: str, line: int) -> tuple[int, int]:
        draft = improved_draft(row, file, line)
        if not isinstance(tokens := row.get("generated_tokens"), int):
            raise RowProblem(
                "generated_tokens", f"expected a number, got {describe(tokens)}; is this the output of pit improve?"
            )
        return row_key(draft), tokens

    return dict(load_rows(path, parse))

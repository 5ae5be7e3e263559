"""An output that grows by rows: those from an earlier start, and the manifest of what they were made with."""

import json
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TextIO

from pitcli.data.reading import load_rows, write_row
from pitcli.data.streams import open_growing
from pitcli.errors import RunError, SettingsError
from pitcli.runs.files import write_file


class GrowingOutput(Protocol):
    """The settings of an output that grows."""

    @property
    def output(self) -> str: ...

    @property
    def resume(self) -> bool: ...

    @property
    def overwrite(self) -> bool: ...


class GrowingRows(NamedTuple):
    """An output, and how many rows of each key it has from an earlier start. stream: None: no rows are written."""

    stream: TextIO | None
    done: Counter[int]
    key: Callable[[dict[str, Any]], int]

    def take(self, row: dict[str, Any]) -> bool:
        """Return whether the row is done, and use that up."""
        return bool(self.done) and take(self.done, self.key(row))

    def write(self, row: dict[str, Any]) -> None:
        if self.stream is not None:
            write_row(row, self.stream)
            self.stream.flush()


NO_ROWS = GrowingRows(None, Counter(), lambda row: 0)  # of a command that writes none


@contextmanager
def growing_rows(
    config: GrowingOutput, key: Callable[[dict[str, Any]], int], made_with: dict[str, Any]
) -> Iterator[GrowingRows]:
    """Open --output; see open_growing and rows_before for the errors."""
    with open_growing(config.output, config.resume, config.overwrite) as stream:
        yield GrowingRows(stream, rows_before(config.output, key, made_with), key)


def rows_before(output: str, key: Callable[[dict[str, Any]], int], made_with: dict[str, Any]) -> Counter[int]:
    """Return how many rows of each key the output has; begin the manifest of a new output.

    Raises SettingsError if the rows were made with something else.
    """
    if output == "-" or not Path(output).is_file():
        return Counter()
    manifest = Path(f"{output}.manifest.json")
    done = Counter(load_rows(output, lambda row, file, line: key(row)))
    if done:
        refuse_differences(manifest, made_with)
    else:
        write_file(manifest, json.dumps(made_with, indent=1))
    return done


def take(done: Counter[int], key: int) -> bool:
    """Return whether a row with this key is done, and use that up: equal rows are done once each."""
    if not done[key]:
        return False
    done[key] -= 1
    return True


def refuse_differences(manifest: Path, now: dict[str, Any]) -> None:
    """Raise SettingsError with every value that differs between the manifest and this command."""
    if not manifest.is_file():
        raise SettingsError(
            f"--resume: {manifest} is missing, so the settings of the existing rows are unknown; "
            "use --overwrite to replace the rows"
        )
    try:
        before = json.loads(manifest.read_bytes())
        pairs = [(before[part], now[part]) for part in now]
    except (ValueError, KeyError, TypeError) as problem:
        raise RunError(f"{manifest}: damaged, or written by another version of pit") from problem
    flat = [
        side if isinstance(side, dict) else {part: side} for part, pair in zip(now, pairs, strict=True) for side in pair
    ]
    problems = [
        f"--resume: {key} was {old.get(key)!r} in {manifest} and is now {new.get(key)!r}"
        for part, old, new in zip(now, flat[::2], flat[1::2], strict=True)
        # where the gap model runs (--gap-url) adds to the origin, and may change
        for key in sorted(old.keys() & new.keys() if part == "origin" else old.keys() | new.keys())
        if old.get(key) != new.get(key)
    ]
    if problems:
        raise SettingsError(problems)

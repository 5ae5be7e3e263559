"""The output of pit improve: a growing file, the manifest next to it, and which drafts are done when it is resumed.

Also that of pit sample with a writer behind an endpoint.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TextIO

from pitcli.data.drafts import parse_draft
from pitcli.data.reading import listed, load_rows, parsed_rows
from pitcli.data.rows import Draft, RowError
from pitcli.data.streams import open_growing, row_key
from pitcli.data.strict_json import RowProblem, describe
from pitcli.errors import RunError, SettingsError
from pitcli.processes.collectives import on_rank_0
from pitcli.runs.done_rows import refuse_differences, take
from pitcli.runs.files import write_file
from pitcli.settings.generating import ImproveConfig, SampleConfig

JOURNAL = ".progress"  # next to an output that does not itself show which drafts are done


class ImprovedRows:
    """An output that grows by one text per finished draft, and knows which drafts are in it from an earlier start.

    done: how many finished drafts there are, by row key. size: of the output, in bytes. journal: gets a line per
    finished draft, its key and the size of the output after it, if that cannot be seen from the output (None: it can).
    """

    def __init__(self, stream: TextIO, done: Counter[int], size: int = 0, journal: BinaryIO | None = None) -> None:
        self.stream = stream
        self.size = size
        self._done = done
        self._journal = journal

    def take(self, draft: Draft) -> bool:
        """Return whether the draft is done, and use that up: duplicate drafts are done once each."""
        return bool(self._done) and take(self._done, row_key(draft))

    def write(self, draft: Draft, text: str) -> None:
        """Write what a draft has become; nothing is lost of it if the command is then killed."""
        self.stream.write(text)
        self.stream.flush()
        self.size += len(text.encode())
        if self._journal is not None:
            self._journal.write(b"%d %d\n" % (row_key(draft), self.size))


@contextmanager
def open_improved_rows(
    config: ImproveConfig | SampleConfig, made_with: Callable[[], dict[str, Any]]
) -> Iterator[ImprovedRows]:
    """Yield the output of pit improve. Only rank 0 writes.

    made_with: computes the settings, base, adapters and gap temperature that the rows are made with; stored as
    OUTPUT.manifest.json. Raises SettingsError if the rows to resume from were made with different ones.
    """
    with ExitStack() as stack:
        opened: list[ImprovedRows] = []

        def begin() -> Counter[int]:
            stream = stack.enter_context(open_growing(config.output, config.resume, config.overwrite))
            if config.output == "-" or not Path(config.output).is_file():
                opened.append(ImprovedRows(stream, Counter()))
                return Counter()
            _begin_manifest(config, made_with())
            if config.rows_tell_what_is_done():
                done = _done_rows(config.output)
                opened.append(ImprovedRows(stream, done, Path(config.output).stat().st_size))
                return done
            path = Path(f"{config.output}{JOURNAL}")
            done, size = _read_journal(path, Path(config.output))
            journal = stack.enter_context(path.open("ab", buffering=0))
            opened.append(ImprovedRows(stream, done, size, journal))
            return done

        done = on_rank_0(begin)
        yield (opened or [ImprovedRows(stack.enter_context(open(os.devnull, "w")), done)])[0]


def _begin_manifest(config: ImproveConfig | SampleConfig, now: dict[str, Any]) -> None:
    """Write the manifest of a new output; refuse to resume one that was made with other settings."""
    manifest = Path(f"{config.output}.manifest.json")
    journal = Path(f"{config.output}{JOURNAL}")
    if not (config.resume and Path(config.output).stat().st_size):
        journal.unlink(missing_ok=True)
        write_file(manifest, json.dumps(now, indent=1))
        return
    refuse_differences(manifest, now)
    if not config.rows_tell_what_is_done() and not journal.is_file():
        raise SettingsError(
            f"--resume: {journal} is missing, so which drafts are done is unknown; use --overwrite to replace the rows"
        )


def _read_journal(path: Path, output: Path) -> tuple[Counter[int], int]:
    """Return how often each draft is done, by key, and the size of the output; cut both files to what both have."""
    done, size, read = Counter[int](), 0, 0
    most = output.stat().st_size
    for line in path.open("rb") if path.is_file() else ():
        numbers = line.split()
        if not line.endswith(b"\n") or len(numbers) != 2 or not all(map(bytes.isdigit, numbers)):
            break
        if int(numbers[1]) > most:
            break
        done[int(numbers[0])] += 1
        size, read = int(numbers[1]), read + len(line)
    os.truncate(output, size)
    if path.is_file():
        os.truncate(path, read)
    return done, size


def _done_rows(output: str) -> Counter[int]:
    """Return how many rows each draft has in the output, by key; RunError if a row cannot be read."""
    if not Path(output).stat().st_size:
        return Counter()
    errors: list[RowError] = []
    done = Counter(row_key(draft) for _, draft in parsed_rows(output, improved_draft, errors.append))
    if errors:
        raise RunError([f"{error}; cannot resume from this file" for error in listed(errors)])
    return done


def improved_draft(row: dict[str, Any], file: str, line: int) -> Draft:
    """Return the draft that an improved row was made from; RowProblem if it is not a row of pit improve."""
    if "original_response" not in row:
        raise RowProblem("original_response", "missing; expected a row of pit improve --output-format rows")
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

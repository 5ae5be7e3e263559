"""An output that grows by rows: those from an earlier start, and the manifest of what they were made with.

The manifest, OUTPUT.manifest.json, says whether the command that wrote the rows has come to its end.
"""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, Protocol, TextIO

from pitcli.console import note, warn
from pitcli.data.reading import load_rows
from pitcli.data.streams import is_stream, open_growing
from pitcli.errors import InputError, RunError, SettingsError
from pitcli.processes.collectives import on_rank_0
from pitcli.runs.files import write_file

JOURNAL = ".progress"  # next to an output that does not itself show which rows are done
COMPLETE = "complete"  # in the manifest: whether the command came to its end

MadeWith = Callable[[], Mapping[str, Any]]
KeysOf = Callable[[str], Counter[int]]


class GrowingOutput(Protocol):
    """The settings of an output that grows."""

    @property
    def output(self) -> str: ...

    @property
    def resume(self) -> bool: ...

    @property
    def overwrite(self) -> bool: ...


class GrowingRows:
    """An output that grows by one text per finished row, and knows which rows are in it from an earlier start.

    done: how many rows of each key there are and not taken yet. size: of the output, in bytes. before_first: is called
    before the first text is written; returns the journal, which gets a line per row, its key and the size of the output
    after it, if that cannot be seen from the output. at_end: is called once all rows are written.
    """

    def __init__(
        self,
        stream: TextIO,
        done: Counter[int] | None = None,
        size: int = 0,
        before_first: Callable[[], BinaryIO | None] = lambda: None,
        at_end: Callable[[], None] = lambda: None,
    ) -> None:
        self.stream = stream
        self.done = Counter[int]() if done is None else done
        self.size = size
        self._before_first = before_first
        self._at_end = at_end
        self._begun = False
        self._journal: BinaryIO | None = None

    def take(self, key: int) -> bool:
        """Return whether a row with this key is done, and use that up: equal rows are done once each."""
        if not self.done[key]:
            return False
        self.done[key] -= 1
        if not self.done[key]:
            del self.done[key]
        return True

    def write(self, key: int, text: str) -> None:
        """Write what a row has become; nothing is lost of it if the command is then killed."""
        self._begin()
        self.stream.write(text)
        self.stream.flush()
        self.size += len(text.encode())
        if self._journal is not None:
            self._journal.write(b"%d %d\n" % (key, self.size))

    def finish(self) -> None:
        self._begin()  # an output without rows replaces an earlier one, too
        self._at_end()

    def _begin(self) -> None:
        if not self._begun:
            self._begun = True
            self._journal = self._before_first()


@contextmanager
def growing_rows(config: GrowingOutput, made_with: MadeWith, keys_of: KeysOf | None) -> Iterator[GrowingRows]:
    """Yield --output. Only rank 0 writes; with --overwrite, the old rows are there until the first new one.

    made_with: the settings, models and data that the rows depend on, for the manifest. keys_of: reads the keys of the
    rows from the output; None: it does not show them, so a journal next to it does. Raises SettingsError if the rows to
    resume from were made with something else; see open_growing for the other errors.
    """
    with ExitStack() as stack:
        opened: list[GrowingRows] = []

        def begin() -> Counter[int]:
            stream = stack.enter_context(open_growing(config.output, config.resume, config.overwrite))
            if _is_file(config.output):
                opened.append(_in_file(Path(config.output), config.resume, stream, made_with(), keys_of, stack))
            else:
                opened.append(GrowingRows(stream))
            return opened[0].done

        done = on_rank_0(begin)
        try:
            yield (opened or [GrowingRows(stack.enter_context(open(os.devnull, "w")), done)])[0]
        except (KeyboardInterrupt, SystemExit):
            if opened and opened[0].size and _is_file(config.output):
                instead = " instead of --overwrite" if config.overwrite else ""
                note(f"{config.output} has the rows so far; the same command with --resume{instead} continues it")
            raise
        if opened:
            opened[0].finish()


def keys_by(key: Callable[[dict[str, Any]], int]) -> KeysOf:
    """Return what reads the keys of rows that are JSON objects."""
    return lambda path: Counter(load_rows(path, lambda row, *_: key(row)))


def manifest_of(output: str | Path) -> Path:
    return Path(f"{output}.manifest.json")


def is_incomplete(record: Mapping[str, Any]) -> bool:
    """Whether a manifest says that the command which wrote the rows has not come to its end."""
    return record.get(COMPLETE) is False


def _is_file(output: str) -> bool:
    return not is_stream(output) and Path(output).is_file()


def _in_file(
    output: Path, resume: bool, stream: TextIO, made_with: Mapping[str, Any], keys_of: KeysOf | None, stack: ExitStack
) -> GrowingRows:
    journal = Path(f"{output}{JOURNAL}")
    continues = resume and output.stat().st_size > 0

    def before_first() -> BinaryIO | None:
        if not continues:
            os.truncate(output, 0)
            journal.unlink(missing_ok=True)
        _write_manifest(output, made_with, complete=False)
        return None if keys_of else stack.enter_context(journal.open("ab", buffering=0))

    done, size = Counter[int](), 0
    if continues:
        refuse_differences(manifest_of(output), made_with)
        if keys_of:
            done, size = keys_of(str(output)), output.stat().st_size
        elif journal.is_file():
            done, size = _read_journal(journal, output)
        else:
            unknown = f"{journal} is missing, so which rows are done is unknown"
            raise SettingsError(f"--resume: {unknown}; use --overwrite to replace the rows")

    def at_end() -> None:
        stream.flush()
        os.fsync(stream.fileno())  # before the manifest says that all rows are there
        _write_manifest(output, made_with, complete=True)

    return GrowingRows(stream, done, size, before_first, at_end)


def _write_manifest(output: str | Path, made_with: Mapping[str, Any], complete: bool) -> None:
    write_file(manifest_of(output), json.dumps({**made_with, COMPLETE: complete}, indent=1))


def _read_journal(path: Path, output: Path) -> tuple[Counter[int], int]:
    """Return how often each row is done, by key, and the size of the output; cut both files to what both have."""
    done, size, read = Counter[int](), 0, 0
    most = output.stat().st_size
    for line in path.open("rb"):
        numbers = line.split()
        if not line.endswith(b"\n") or len(numbers) != 2 or not all(map(bytes.isdigit, numbers)):
            break
        if int(numbers[1]) > most:
            break
        done[int(numbers[0])] += 1
        size, read = int(numbers[1]), read + len(line)
    os.truncate(output, size)
    os.truncate(path, read)
    return done, size


def refuse_other_output(file: str) -> dict[str, Any]:
    """The manifest that `pit improve --output` wrote next to its rows; empty if there is none.

    Warns if that command has not come to its end. Raises InputError if it wrote another format than rows, which has
    neither the original responses nor the attempts.
    """
    path = manifest_of(file)
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_bytes())
    except ValueError:
        record = None
    if not isinstance(record, dict) or not isinstance(settings := record.get("settings", {}), dict):
        raise InputError(f"{path}: damaged; run pit improve again")
    made_as = settings.get("output_format") or ("text" if settings.get("prompt") else "rows")
    if made_as != "rows":
        raise InputError(f"{file}: expected rows of pit improve, got --output-format {made_as}; improve with rows")
    if is_incomplete(record):
        warn(f"{file}: not whole: the command that writes it was stopped, or still runs; --resume continues it")
    return record


def refuse_differences(manifest: Path, now: Mapping[str, Any]) -> None:
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

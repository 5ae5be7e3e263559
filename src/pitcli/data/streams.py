"""Rows on their way: in batches, each with its own seed, out to a file that appears whole or grows by whole rows."""

import fcntl
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TextIO, TypeVar

from pitcli.data.rows import Draft
from pitcli.errors import RunError, SettingsError

Item = TypeVar("Item")
BLOCK = 2**16
WINDOW = 4  # rows that are held at a time, as a multiple of those that are generated together


def windows(items: Iterable[Item], size: int, path: str) -> Iterator[list[Item]]:
    """Items in windows of `size`; of a pipe first 1, 2, 4 ..., so that the first rows come out early.

    Which items share a window depends on their places alone, not on when they arrive.
    """
    source, now = iter(items), size if Path(path).is_file() else 1
    while batch := list(islice(source, min(now, size))):
        yield batch
        now *= 2


def row_key(draft: Draft) -> int:
    """What a row is known by when a stopped command goes on: 60 bits of its id and text."""
    key = json.dumps([draft.id, draft.prompt, draft.response])
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 4


def row_seed(seed: int, draft: Draft, iteration: int) -> int:
    """From the row's id and text alone, so that neither order nor batch size changes what is drawn."""
    key = json.dumps([seed, draft.id, draft.prompt, draft.response, iteration])
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:7], "big")


@contextmanager
def open_output(path: str) -> Iterator[TextIO]:
    """stdout for -, else a file that appears under its name once it is whole."""
    if (stream := _open_stream(path)) is not None:
        with stream as opened:
            yield opened
        return
    target = Path(path)
    temporary = target.with_name(f".tmp-{os.getpid()}-{target.name}")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def open_growing(path: str, resume: bool, overwrite: bool) -> Iterator[TextIO]:
    """stdout for -, else a file to whose end whole rows are added; one command at a time may do so.

    resume keeps the rows that are there, but for a last one that was cut short; overwrite starts anew. SettingsError
    where there are rows and neither is given, RunError where another command is writing.
    """
    if (stream := _open_stream(path)) is not None:
        with stream as opened:
            yield opened
        return
    with Path(path).open("a+b") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"{path}: another command is writing there") from error
        if overwrite:
            file.truncate(0)
        elif resume:
            file.truncate(_end_of_last_line(file))
        elif file.tell():
            raise SettingsError(f"--output: {path} holds rows; --resume goes on with them, --overwrite replaces them")
        with io.TextIOWrapper(file, encoding="utf-8", newline="\n") as rows:
            yield rows
            rows.flush()
            os.fsync(rows.fileno())


def _open_stream(path: str) -> AbstractContextManager[TextIO] | None:
    """stdout for -, a pipe or device as it is; None for a file, whose folder must be there."""
    if path == "-":
        return nullcontext(sys.stdout)
    if not Path(path).parent.is_dir():
        raise SettingsError(f"--output: {Path(path).parent} is no folder")
    if Path(path).exists() and not Path(path).is_file():
        return open(path, "w", encoding="utf-8", newline="\n")
    return None


def _end_of_last_line(file: BinaryIO) -> int:
    """The offset after the last newline; 0 where there is none."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - BLOCK)
        file.seek(start)
        if (newline := file.read(end - start).rfind(b"\n")) >= 0:
            return start + newline + 1
        end = start
    return 0

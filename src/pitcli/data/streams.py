"""Streams of rows: windows of rows, a seed per row, and output files that grow by whole rows."""

import fcntl
import hashlib
import io
import json
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from itertools import islice
from pathlib import Path
from typing import BinaryIO, TextIO, TypeVar

from pitcli.data.rows import Draft
from pitcli.errors import RunError, SettingsError, naming

Item = TypeVar("Item")
BLOCK = 2**16
WINDOW = 4  # rows in memory at a time, as a multiple of the rows that are generated together


def windows(items: Iterable[Item], size: int, path: str) -> Iterator[list[Item]]:
    """Yields items in windows of `size`; from a pipe first 1, 2, 4 ..., so that the first rows come out early.

    Which items share a window depends only on their positions, not on when they arrive.
    """
    source, next_size = iter(items), 1 if is_stream(path) else size
    while window := list(islice(source, min(next_size, size))):
        yield window
        next_size *= 2


def is_stream(path: str) -> bool:
    """Whether a path is stdin or stdout, a pipe or a device; /dev/stdout is one even if the shell redirects it."""
    is_descriptor = path == "-" or path.startswith(("/dev/std", "/dev/fd/"))
    return is_descriptor or (Path(path).exists() and not Path(path).is_file())


def row_key(draft: Draft) -> int:
    """Identifies a row when a stopped command is resumed: 60 bits of a hash of its id and text."""
    return content_key([draft.id, draft.prompt, draft.response])


def content_key(value: object) -> int:
    """60 bits of a hash of a JSON value; the order of the fields of objects does not matter."""
    key = json.dumps(value, sort_keys=True)
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:8], "big") >> 4


def row_seed(seed: int, draft: Draft, iteration: int) -> int:
    """A seed that does not depend on the row's position, so that order and batch size do not change what is sampled."""
    key = json.dumps([seed, draft.id, draft.prompt, draft.response, iteration])
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:7], "big")


@contextmanager
def open_growing(path: str, resume: bool, overwrite: bool) -> Iterator[TextIO]:
    """Opens stdout for -, otherwise a file to append whole rows to; only one command at a time may write to it.

    resume keeps the existing rows except an incomplete last one; with overwrite, whoever writes the first new row
    empties the file before. Raises SettingsError if the file contains rows and neither is given, RunError if another
    command is writing to it. An error removes a file that it would leave empty.
    """
    if (stream := _open_stream(path)) is not None:
        with naming("stdout" if path == "-" else path), stream as opened:
            yield opened
        return
    with naming(path), _locked(path) as file, io.TextIOWrapper(file, encoding="utf-8", newline="\n") as rows:
        if resume:
            file.truncate(_end_of_last_line(file))
        elif file.seek(0, os.SEEK_END) and not overwrite:
            remedy = "use --resume to continue it or --overwrite to replace it"
            raise SettingsError(f"--output: {path} already contains rows; {remedy}")
        try:
            yield rows
            rows.flush()
            os.fsync(rows.fileno())
        except BaseException:
            with suppress(OSError):
                rows.flush()
            # under the lock, and never the link that leads to it
            if not os.fstat(rows.fileno()).st_size and not os.path.islink(path):
                os.unlink(path)
            raise


def _locked(path: str) -> BinaryIO:
    """The file, opened for appending and locked; RunError if another command has locked it."""
    while True:
        file = Path(path).open("a+b")  # noqa: SIM115 (the caller closes it)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise RunError(f"{path}: another command is writing to this file; wait until it ends") from error
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
        file.close()  # another command has removed it since it was opened


def _open_stream(path: str) -> AbstractContextManager[TextIO] | None:
    """stdout for -, an opened pipe or device, or None for a file; raises SettingsError if its folder does not exist."""
    if path == "-":
        if sys.stdout is None:
            raise SettingsError("--output: stdout is closed; name a file")
        return nullcontext(sys.stdout)
    if not Path(path).parent.is_dir():
        raise SettingsError(f"--output: {Path(path).parent} is not an existing folder; create it first")
    if is_stream(path):
        return open(path, "w", encoding="utf-8", newline="\n")
    return None


def _end_of_last_line(file: BinaryIO) -> int:
    """The offset after the last newline; 0 if there is none."""
    end = file.seek(0, os.SEEK_END)
    while end:
        start = max(0, end - BLOCK)
        file.seek(start)
        if (newline := file.read(end - start).rfind(b"\n")) >= 0:
            return start + newline + 1
        end = start
    return 0

"""Rows on their way: in batches, each with its own seed, out to a file that appears whole."""

import hashlib
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import TextIO, TypeVar

from pitcli.data.records import Draft
from pitcli.errors import SettingsError

Item = TypeVar("Item")


def batched(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    """Lists of up to `size` items (itertools.batched is newer than Python 3.11)."""
    while batch := list(islice(items, size)):
        yield batch


def row_seed(seed: int, draft: Draft, iteration: int) -> int:
    """From the row's id and text alone, so that neither order nor batch size changes what is drawn."""
    key = json.dumps([seed, draft.id, draft.prompt, draft.response, iteration])
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest()[:7], "big")


@contextmanager
def open_output(path: str) -> Iterator[TextIO]:
    """stdout for -, else a file that appears under its name once it is whole."""
    if path == "-":
        yield sys.stdout
        return
    target = Path(path)
    if not target.parent.is_dir():
        raise SettingsError(f"--output: {target.parent} is no folder")
    temporary = target.with_name(f".tmp-{os.getpid()}-{target.name}")
    try:
        with temporary.open("w", encoding="utf-8", newline="\n") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(target)
    finally:
        temporary.unlink(missing_ok=True)

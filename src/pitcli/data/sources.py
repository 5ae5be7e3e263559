"""Reads rows from JSON lines, CSV, parquet, the hub (hub:OWNER/NAME), or the instruction task (instructions:train)."""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pitcli.data.csv_rows import csv_rows
from pitcli.data.reading import read_rows, refuse_pointer_file
from pitcli.data.rows import OnError, Row, RowError
from pitcli.data.strict_json import RowProblem, check_values
from pitcli.errors import InputError
from pitcli.settings.base import INSTRUCTIONS

if TYPE_CHECKING:
    from pyarrow import RecordBatch


HUB = "hub:"
BATCH = 256
HUB_FORMS = "hub:OWNER/NAME, hub:OWNER/NAME:SPLIT, hub:OWNER/NAME/SUBSET:SPLIT or hub:FOLDER"


def open_rows(path: str | Path, on_error: OnError, notes: Counter[str] | None = None) -> Iterator[tuple[int, Row]]:
    """Opens the source now, so that an unusable one is refused here; then streams (line or row number, object)."""
    label = str(path)
    notes = Counter() if notes is None else notes
    bare = label.lower().removesuffix(".gz")
    if label.startswith(INSTRUCTIONS):
        # not imported at the top: it reads its word lists
        from pitcli.data.instructions.requests import request_rows

        return enumerate(request_rows(label), start=1)
    if label.startswith(HUB):
        return _checked(_batched(_hub_batches(label), notes), label, on_error)
    if bare.endswith((".csv", ".tsv")):
        return _checked(csv_rows(label, "\t" if bare.endswith(".tsv") else ",", notes), label, on_error)
    if bare.endswith(".parquet"):
        return _checked(_batched(_parquet_batches(label), notes), label, on_error)
    return read_rows(path, on_error, notes)


def _checked(rows: Iterator[tuple[int, Row | RowProblem]], label: str, on_error: OnError) -> Iterator[tuple[int, Row]]:
    """Yields the rows that are valid as JSON lines; reports the others as row errors."""
    for number, row in rows:
        try:
            if isinstance(row, RowProblem):
                raise row
            check_values(row)
        except RowProblem as problem:
            on_error(RowError.of(label, number, problem))
        else:
            yield number, row


def _parquet_batches(path: str) -> Iterator["RecordBatch"]:
    """Opens the file now and reads it as the batches are iterated."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, pyarrow.ArrowException) as error:
        refuse_pointer_file(path)
        raise InputError(f"{path}: not a parquet file: {_one_line(error)}") from None

    def batches() -> Iterator["RecordBatch"]:
        with file:
            try:
                yield from file.iter_batches(batch_size=BATCH)
            except (OSError, pyarrow.ArrowException) as error:
                raise InputError(f"{path}: cannot be read: {_one_line(error)}") from None

    return batches()


def _hub_batches(label: str) -> Iterator["RecordBatch"]:
    """Batches of a split of a hub data set, or of a folder that `datasets` reads; runs no code of the data set."""
    import datasets
    from huggingface_hub.utils import logging as hub_logging

    hub_logging.set_verbosity_error()  # five retries must not print five warnings
    source, _, split = label.removeprefix(HUB).partition(":")
    name, subset = source, None
    if not source or not Path(source).is_dir():
        if source.count("/") not in (1, 2) or not all(source.split("/")):
            raise InputError(f"{label}: expected {HUB_FORMS}")
        owner, base, *rest = source.split("/")
        name, subset = f"{owner}/{base}", rest[0] if rest else None
    try:
        splits = datasets.load_dataset(name, subset)
    # ValueError: no such subset; RuntimeError: the data set is a script; DatasetsError: rows that do not fit
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        raise InputError(f"{label}: not usable ({type(error).__name__}): {_one_line(error)}") from error
    only = next(iter(splits)) if len(splits) == 1 else "train"
    if (split or only) not in splits:
        raise InputError(
            f"{label}: expected one of the splits {', '.join(splits)}, as in hub:{source}:{next(iter(splits))}"
        )
    table = splits[split or only].with_format("arrow")
    return (batch for piece in table.iter(batch_size=BATCH) for batch in piece.to_batches())


def _batched(batches: Iterator["RecordBatch"], notes: Counter[str]) -> Iterator[tuple[int, Row]]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            yield number, {name: _plain(value, notes) for name, value in row.items()}


def _plain(value: Any, notes: Counter[str]) -> Any:
    """The value as JSON: dates and decimals become text, and what JSON cannot hold (NaN, data) becomes null."""
    if isinstance(value, dict):
        return {str(key): _plain(inner, notes) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, notes) for inner in value]
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")  # some programs write text without saying that it is text
        except UnicodeDecodeError:
            notes["values that are not text, read as null"] += 1
            return None
    if isinstance(value, float) and not math.isfinite(value):
        notes["values that are not finite numbers, read as null"] += 1
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

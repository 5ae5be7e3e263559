"""Reads rows from JSON lines, CSV, parquet, the hub (hub:OWNER/NAME), or the instruction task (instructions:train)."""

import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from pitcli.data.reading import BYTE_ORDER_MARK, read_rows
from pitcli.data.rows import RowError
from pitcli.data.strict_json import MAX_LINE_BYTES, RowProblem, check_values
from pitcli.errors import InputError
from pitcli.settings.base import INSTRUCTIONS

if TYPE_CHECKING:
    from pyarrow import RecordBatch

Row = dict[str, Any]
OnError = Callable[[RowError], None]

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
        return _checked(_batched(_hub_batches(label)), label, on_error)
    if bare.endswith((".csv", ".tsv")):
        rows = _csv_rows(_open(label), label, "\t" if bare.endswith(".tsv") else ",", notes)
        return _checked(rows, label, on_error)
    if bare.endswith(".parquet"):
        return _checked(_batched(_parquet_batches(label)), label, on_error)
    return read_rows(path, on_error, notes)


def _checked(rows: Iterator[tuple[int, Row | RowProblem]], label: str, on_error: OnError) -> Iterator[tuple[int, Row]]:
    """Yields the rows that are valid as JSON lines; reports the others as row errors."""
    for number, row in rows:
        try:
            if isinstance(row, RowProblem):
                raise row
            check_values(row)
        except RowProblem as problem:
            on_error(RowError(label, number, problem.field, problem.reason))
        else:
            yield number, row


def _open(path: str) -> BinaryIO:
    try:
        return cast(BinaryIO, gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror}") from None


def _csv_rows(
    stream: BinaryIO, label: str, delimiter: str, notes: Counter[str]
) -> Iterator[tuple[int, Row | RowProblem]]:
    """Yields rows with the line that each begins on; every cell is text, and the first row names the fields."""
    csv.field_size_limit(MAX_LINE_BYTES)
    header: list[str] | None = None
    start = 1
    with stream:
        reader = csv.reader(_text_lines(stream, label, notes), delimiter=delimiter, strict=True)
        while True:
            try:
                cells = next(reader, None)
            except csv.Error as error:
                # strict: otherwise a quote that is never closed would swallow all rows after it
                raise InputError(f"{label}:{start}: not CSV: {error}; write a quote in a cell twice") from None
            if cells is None:
                break
            line, start = start, reader.line_num + 1
            if not cells:
                notes["blank lines"] += 1
            elif header is None:
                header = _header(cells, label)
            elif len(cells) != len(header):
                yield line, RowProblem("", f"expected {len(header)} cells, as in the header, got {len(cells)}")
            else:
                yield line, dict(zip(header, cells, strict=True))


def _text_lines(stream: BinaryIO, label: str, notes: Counter[str]) -> Iterator[str]:
    number = 1
    try:
        # readline with a limit: a line over it is not read whole
        while line := stream.readline(MAX_LINE_BYTES + 1):
            if number == 1 and line.startswith(BYTE_ORDER_MARK):
                notes["byte order mark"] += 1
                line = line.removeprefix(BYTE_ORDER_MARK)
            if len(line) > MAX_LINE_BYTES:
                raise InputError(f"{label}:{number}: the line is longer than {MAX_LINE_BYTES // 2**20} MiB")
            yield line.decode("utf-8")
            number += 1
    except UnicodeDecodeError as error:
        byte = f"byte 0x{line[error.start]:02x} at byte {error.start + 1}"
        raise InputError(f"{label}:{number}: not UTF-8: {byte}; convert the file with iconv -t UTF-8") from None
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{label}:{number}: cannot be read: {error}") from None


def _header(cells: list[str], label: str) -> list[str]:
    if twice := [name for name, count in Counter(cells).items() if count > 1]:
        raise InputError(f"{label}:1: duplicate field {json.dumps(twice[0][:60])} in the header")
    if len(cells) == 1 and ";" in cells[0]:
        raise InputError(f"{label}:1: expected commas between fields, got one field {json.dumps(cells[0][:60])}")
    return cells


def _parquet_batches(path: str) -> Iterator["RecordBatch"]:
    """Opens the file now and reads it as the batches are iterated."""
    import pyarrow
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, pyarrow.ArrowException) as error:
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


def _batched(batches: Iterator["RecordBatch"]) -> Iterator[tuple[int, Row | RowProblem]]:
    number = 0
    for batch in batches:
        for row in batch.to_pylist():
            number += 1
            try:
                yield number, {name: _plain(value, name) for name, value in row.items()}
            except RowProblem as problem:
                yield number, problem


def _plain(value: Any, field: str) -> Any:
    """The value as JSON; dates and decimals become text, bytes are refused."""
    if value is None or isinstance(value, str | int | float):
        return value
    if isinstance(value, dict):
        return {str(key): _plain(inner, f"{field}.{key}") for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{field}[{index}]") for index, inner in enumerate(value)]
    if isinstance(value, bytes):
        raise RowProblem(field, "expected text or numbers, got bytes; remove the column")
    return str(value)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]

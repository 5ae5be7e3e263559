"""Reads rows from CSV and TSV files: any delimiter, any line ends."""

import csv
import gzip
import json
import zlib
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from typing import BinaryIO, cast

from pitcli.data.reading import BYTE_ORDER_MARK, refuse_pointer, refuse_pointer_file, split_lines
from pitcli.data.rows import Row
from pitcli.data.strict_json import MAX_LINE_BYTES, RowProblem, decoded
from pitcli.errors import InputError

DELIMITERS = ",;\t|"


def csv_rows(path: str, delimiter: str, notes: Counter[str]) -> Iterator[tuple[int, Row | RowProblem]]:
    """Opens the file now; then yields rows with the line that each begins on. The header may show another delimiter."""
    return _rows(_open(path), path, delimiter, notes)


def _open(path: str) -> BinaryIO:
    try:
        return cast(BinaryIO, gzip.open(path, "rb") if path.lower().endswith(".gz") else open(path, "rb"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror}") from None


def _rows(stream: BinaryIO, label: str, delimiter: str, notes: Counter[str]) -> Iterator[tuple[int, Row | RowProblem]]:
    """Every cell is text, and the first row names the fields."""
    csv.field_size_limit(MAX_LINE_BYTES)
    header: list[str] | None = None
    start = 1
    with stream:
        lines = _text_lines(stream, label, notes)
        first = next(lines, "")
        reader = csv.reader(chain([first], lines), delimiter=_delimiter_of(first, delimiter), strict=True)
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


def _delimiter_of(header: str, usual: str) -> str:
    """The delimiter that splits the first line into the most fields; the usual one if several do."""

    def fields(delimiter: str) -> int:
        try:
            return len(next(csv.reader([header], delimiter=delimiter), []))
        except csv.Error:
            return 0

    return max(usual + DELIMITERS, key=fields)


def _text_lines(stream: BinaryIO, label: str, notes: Counter[str]) -> Iterator[str]:
    number = 1
    try:
        for line in split_lines(stream, MAX_LINE_BYTES):
            if number == 1:
                refuse_pointer(line, label)
                if line.startswith(BYTE_ORDER_MARK):
                    notes["byte order mark"] += 1
                    line = line.removeprefix(BYTE_ORDER_MARK)  # noqa: PLW2901
            if len(line) > MAX_LINE_BYTES:
                raise InputError(f"{label}:{number}: the line is longer than {MAX_LINE_BYTES // 2**20} MiB")
            yield decoded(line)
            number += 1
    except RowProblem as problem:
        raise InputError(f"{label}:{number}: {problem.reason}") from None
    except (OSError, EOFError, zlib.error) as error:
        refuse_pointer_file(label)
        raise InputError(f"{label}:{number}: cannot be read: {error}") from None


def _header(cells: list[str], label: str) -> list[str]:
    cells = [name.strip() for name in cells]
    if twice := [name for name, count in Counter(cells).items() if count > 1]:
        raise InputError(f"{label}:1: duplicate field {json.dumps(twice[0][:60])} in the header")
    return cells

"""Reads strict JSON lines, with file:line:field errors, and writes rows."""

import gzip
import os
import re
import shlex
import stat
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, BinaryIO, TextIO, TypeVar, cast

from pitcli.data.rows import OnError, RowError
from pitcli.data.strict_json import MAX_LINE_BYTES, RowProblem, encode, parse_line
from pitcli.errors import InputError, SettingsError
from pitcli.processes.ranks import world_size

BYTE_ORDER_MARK = b"\xef\xbb\xbf"
STDIN = "<stdin>"
MAX_LISTED = 20  # errors listed per file


Parsed = TypeVar("Parsed")
Parse = Callable[[dict[str, Any], str, int], Parsed]  # (row, file, line); raises RowProblem


def file_label(path: str | Path) -> str:
    return STDIN if str(path) == "-" else str(path)


def read_rows(
    path: str | Path, on_error: OnError, notes: Counter[str] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Opens the file now, so that an unusable one is refused here; then streams (line number, object)."""
    source: AbstractContextManager[BinaryIO] = open_stdin() if str(path) == "-" else _open(str(path))
    return _rows(source, file_label(path), on_error, Counter() if notes is None else notes)


def parsed_rows(
    path: str | Path, parse: Parse[Parsed], on_error: OnError, notes: Counter[str] | None = None
) -> Iterator[tuple[int, Parsed]]:
    """Yields parsed rows as they arrive; refuses an unusable file at once and reports each row that does not parse."""
    return _parsed(read_rows(path, on_error, notes), parse, file_label(path), on_error)


def _parsed(
    rows: Iterator[tuple[int, dict[str, Any]]], parse: Parse[Parsed], label: str, on_error: OnError
) -> Iterator[tuple[int, Parsed]]:
    for line, row in rows:
        try:
            parsed = parse(row, label, line)
        except RowProblem as problem:
            on_error(RowError.of(label, line, problem))
        else:
            yield line, parsed


def load_rows(path: str | Path, parse: Parse[Parsed]) -> list[Parsed]:
    """All rows of a file; raises one InputError that lists the problems if there are any."""
    errors: list[RowError] = []
    rows = [row for _, row in parsed_rows(path, parse, errors.append)]
    if errors:
        raise InputError(listed(errors))
    return rows


def listed(errors: Sequence[object]) -> list[str]:
    """The first errors, one per line, and the number of further errors."""
    more = len(errors) - MAX_LISTED
    return [*map(str, errors[:MAX_LISTED]), *([f"and {more} more"] if more > 0 else [])]


def refuse_output_as_input(source: str, output: str) -> None:
    """Raises SettingsError if the output is the input file, even under another name or by redirection."""
    try:
        ends = [os.stat(fd if name == "-" else name) for name, fd in ((source, 0), (output, 1))]
    except OSError:  # does not exist yet, or is closed
        return
    if stat.S_ISREG(ends[0].st_mode) and os.path.samestat(*ends):
        raise SettingsError(f"--output: {'stdout' if output == '-' else output} is the input; choose another file")


def write_row(row: dict[str, Any], stream: TextIO) -> None:
    stream.write(encode(row) + "\n")


def open_stdin() -> AbstractContextManager[BinaryIO]:
    if world_size() > 1:
        raise InputError(f"{STDIN}: only one process can read it, and this command runs as several; name a file")
    if sys.stdin is None:
        raise InputError(f"{STDIN}: is closed; name a file, or pipe rows in: pit ... < rows.jsonl")
    if sys.stdin.isatty():
        raise InputError(f"{STDIN}: is a terminal; name a file, or pipe rows in: pit ... < rows.jsonl")
    return nullcontext(sys.stdin.buffer)


def _open(path: str) -> BinaryIO:
    zipped = path.endswith(".gz")
    try:
        # Opened once and closed by _rows: a named pipe could not be opened a second time.
        stream = gzip.open(path, "rb") if zipped else open(path, "rb")  # noqa: SIM115
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise InputError(f"{path}: is a folder; name a .jsonl or .jsonl.gz file in it") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be opened: {error.strerror}") from None
    try:
        start = stream.peek(4)
        _refuse_other_encodings(start, path)
        _refuse_array(start.removeprefix(BYTE_ORDER_MARK), path)
    except (OSError, EOFError, zlib.error, InputError) as error:
        stream.close()
        if isinstance(error, InputError):
            raise
        raise _unreadable(path, 1, error) from None
    return cast(BinaryIO, stream)


def _unreadable(label: str, line: int, error: Exception) -> InputError:
    if isinstance(error, gzip.BadGzipFile) and line == 1:
        refuse_pointer_file(label)
        return InputError(f"{label}: not gzip data, despite its name; rename it to .jsonl")
    if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
        return InputError(f"{label}:{line}: the gzip data is truncated or damaged here; copy the file again")
    return InputError(f"{label}:{line}: cannot be read: {error}")


def refuse_pointer_file(path: str) -> None:
    """Raises InputError if a file that cannot be read is a git-lfs pointer."""
    if os.path.isfile(path):
        with open(path, "rb") as stream:
            refuse_pointer(stream.read(64), path)


def refuse_pointer(start: bytes, label: str) -> None:
    if start.startswith(b"version https://git-lfs."):
        raise InputError(f"{label}: a git-lfs pointer: run git lfs pull")


def _refuse_other_encodings(start: bytes, label: str) -> None:
    refuse_pointer(start, label)
    name = "FILE" if label == STDIN else shlex.quote(label)
    if start.startswith(b"\x1f\x8b"):
        fix = f"zcat {name} | pit ..." if label == STDIN else f"rename it to .jsonl.gz: mv {name} {_gz_name(label)}"
        raise InputError(f"{label}: expected JSON lines, got gzip data; {fix}")
    if encoding := _utf16(start[:2]):
        fix = f"iconv -f {encoding} -t UTF-8 {name} > utf8.jsonl"
        raise InputError(f"{label}: expected UTF-8, got UTF-16; convert it: {fix}")
    if start.startswith(b"PAR1"):
        raise InputError(f"{label}: expected JSON lines, got parquet; use a file name that ends in .parquet")


def _utf16(start: bytes) -> str | None:
    """iconv's name of the encoding if the first two bytes are UTF-16: a byte order mark or an ASCII character."""
    if len(start) == 2 and start.count(0) == 1:
        return "UTF-16LE" if start[1] == 0 else "UTF-16BE"
    return "UTF-16" if start in (b"\xff\xfe", b"\xfe\xff") else None


def _gz_name(label: str) -> str:
    return shlex.quote(f"{label.removesuffix('.jsonl')}.jsonl.gz")


def _rows(
    source: AbstractContextManager[BinaryIO],
    label: str,
    on_error: OnError,
    notes: Counter[str],
) -> Iterator[tuple[int, dict[str, Any]]]:
    started = False
    with source as stream:
        for number, line in enumerate(_lines(stream, label), start=1):
            text = _without_mark(line, label, notes) if number == 1 else line
            if not text.strip():
                notes["blank lines"] += 1
                continue
            if not started:
                _refuse_array(text, label)
                started = True
            try:
                row = parse_line(text)
            except RowProblem as problem:
                on_error(RowError.of(label, number, problem))
            else:
                yield number, row


def _lines(stream: BinaryIO, label: str) -> Iterator[bytes]:
    """Yields lines as bytes; of a line over the limit only the start, the rest is skipped."""
    number = 1
    try:
        for line in split_lines(stream, MAX_LINE_BYTES):
            yield line
            number += 1
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(label, number, error) from None


def split_lines(stream: BinaryIO, limit: int) -> Iterator[bytes]:
    """Yields lines with their ends: newlines, carriage returns or both; of a line over the limit only the start."""
    rest = b""
    while piece := stream.readline(limit + 1):
        line = rest + piece
        rest = b""
        first_return = line.find(b"\r")
        if first_return < 0 or line[first_return:] == b"\r\n":
            while len(line) > limit and piece and not piece.endswith(b"\n"):
                piece = stream.readline(2**20)
            yield line
            continue
        *lines, last = line.splitlines(keepends=True)
        yield from lines
        if last.endswith(b"\n"):
            yield last
        else:
            rest = last  # its end may be in the next piece
    if rest:
        yield rest


def _without_mark(line: bytes, label: str, notes: Counter[str]) -> bytes:
    _refuse_other_encodings(line, label)
    if not line.startswith(BYTE_ORDER_MARK):
        return line
    notes["byte order mark"] += 1
    return line.removeprefix(BYTE_ORDER_MARK)


def _refuse_array(line: bytes, label: str) -> None:
    if re.match(rb"\s*\[\s*(\{|$)", line[:4096]):
        fix = "jq -c '.[]' FILE" if label == STDIN else f"jq -c '.[]' {shlex.quote(label)} > rows.jsonl"
        raise InputError(f"{label}: expected one object per line, got one JSON array; unpack it: {fix}")

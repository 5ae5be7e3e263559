"""Strict JSON lines: what a row is, how rows are read with file:line:field errors, and how one is written."""

import gzip
import json
import math
import os
import re
import shlex
import stat
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TextIO, cast

from pitcli.errors import InputError, SettingsError

MAX_LINE_BYTES = 16 * 2**20
MAX_DEPTH = 100
BYTE_ORDER_MARK = b"\xef\xbb\xbf"
STDIN = "<stdin>"


class Message(NamedTuple):
    role: str
    content: str


Prompt = tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class PreferencePair:
    id: str
    prompt: Prompt
    chosen: str
    rejected: str
    extra: dict[str, Any]
    line: int = field(default=0, compare=False)
    chosen_cut: bool = False  # its end is missing, so that nothing may be learned from where it ends


@dataclass(frozen=True, slots=True)
class Draft:
    id: str | None
    prompt: Prompt
    response: str
    row: dict[str, Any]
    line: int = field(default=0, compare=False)


class Comparison(NamedTuple):
    """Is `response` better than `reference_response` as an answer to `prompt`?"""

    prompt: Prompt
    response: str
    reference_response: str


class RowError(NamedTuple):
    file: str
    line: int
    field: str
    reason: str

    def __str__(self) -> str:
        field = f":{self.field}" if self.field else ""
        return f"{self.file}:{self.line}{field}: {self.reason}"


class RowProblem(ValueError):
    """What is wrong with a row, before it is known which row that is."""

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        self.reason = reason
        super().__init__(f"{field}: {reason}" if field else reason)


def file_label(path: str | Path) -> str:
    return STDIN if str(path) == "-" else str(path)


def read_rows(
    path: str | Path, on_error: Callable[[RowError], None], notes: Counter[str] | None = None
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Open at once, so that an unusable file is refused here; then stream (line number, object)."""
    source: AbstractContextManager[BinaryIO] = _stdin() if str(path) == "-" else _open(str(path))
    return _rows(source, file_label(path), on_error, Counter() if notes is None else notes)


def refuse_output_as_input(source: str, output: str) -> None:
    """SettingsError where rows would go to the file that they come from, be it by another name or by redirection."""
    try:
        ends = [os.stat(fd if name == "-" else name) for name, fd in ((source, 0), (output, 1))]
    except OSError:  # not there yet, or closed
        return
    if stat.S_ISREG(ends[0].st_mode) and os.path.samestat(*ends):
        raise SettingsError(f"--output: {'stdout' if output == '-' else output} is the input")


def write_row(row: dict[str, Any], stream: TextIO) -> None:
    stream.write(_ENCODER.encode(row) + "\n")


def _stdin() -> AbstractContextManager[BinaryIO]:
    if sys.stdin is None or sys.stdin.isatty():
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
        return InputError(f"{label}: not gzip bytes, in spite of the name; rename it to .jsonl")
    if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
        return InputError(f"{label}:{line}: the gzip data is cut short or damaged here; copy the file again")
    return InputError(f"{label}:{line}: cannot be read: {error}")


def _refuse_other_encodings(start: bytes, label: str) -> None:
    name = "FILE" if label == STDIN else shlex.quote(label)
    if start.startswith(b"\x1f\x8b"):
        fix = f"zcat {name} | pit ..." if label == STDIN else f"rename it to .jsonl.gz: mv {name} {_gz_name(label)}"
        raise InputError(f"{label}: gzip bytes where JSON lines are wanted; {fix}")
    if encoding := _utf16(start[:2]):
        fix = f"iconv -f {encoding} -t UTF-8 {name} > utf8.jsonl"
        raise InputError(f"{label}: UTF-16 where UTF-8 is wanted; convert it: {fix}")
    if start.startswith(b"PAR1"):
        raise InputError(f"{label}: a parquet file where JSON lines are wanted")


def _utf16(start: bytes) -> str | None:
    """iconv's name for what begins with these two bytes, if it is UTF-16: its mark, or an ASCII character."""
    if len(start) == 2 and start.count(0) == 1:
        return "UTF-16LE" if start[1] == 0 else "UTF-16BE"
    return "UTF-16" if start in (b"\xff\xfe", b"\xfe\xff") else None


def _gz_name(label: str) -> str:
    return shlex.quote(f"{label.removesuffix('.jsonl')}.jsonl.gz")


def _rows(
    source: AbstractContextManager[BinaryIO],
    label: str,
    on_error: Callable[[RowError], None],
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
                row = _parse_line(text)
            except RowProblem as problem:
                on_error(RowError(label, number, problem.field, problem.reason))
            else:
                yield number, row


def _lines(stream: BinaryIO, label: str) -> Iterator[bytes]:
    """Lines as bytes, split on newlines alone; of one over the limit only the start, the rest is skipped."""
    number = 1
    try:
        while line := stream.readline(MAX_LINE_BYTES + 1):
            rest = line
            while len(line) > MAX_LINE_BYTES and rest and not rest.endswith(b"\n"):
                rest = stream.readline(2**20)
            yield line
            number += 1
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(label, number, error) from None


def _without_mark(line: bytes, label: str, notes: Counter[str]) -> bytes:
    _refuse_other_encodings(line, label)
    if not line.startswith(BYTE_ORDER_MARK):
        return line
    notes["byte order mark"] += 1
    return line.removeprefix(BYTE_ORDER_MARK)


def _refuse_array(line: bytes, label: str) -> None:
    if re.match(rb"\s*\[\s*(\{|$)", line[:4096]):
        fix = "jq -c '.[]' FILE" if label == STDIN else f"jq -c '.[]' {shlex.quote(label)} > rows.jsonl"
        raise InputError(f"{label}: one JSON array where one object a line is wanted; unpack it: {fix}")


def _parse_line(line: bytes) -> dict[str, Any]:
    if len(line.rstrip(b"\r\n")) > MAX_LINE_BYTES:
        raise RowProblem("", f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB")
    if b"\0" in line:
        raise RowProblem("", f"a NUL byte (column {line.index(0) + 1}); is the file UTF-16 or binary?")
    try:
        row = _DECODER.decode(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise RowProblem("", f"not UTF-8: byte 0x{line[error.start]:02x} at byte {error.start + 1}") from None
    except json.JSONDecodeError as error:
        raise RowProblem("", _explain(error)) from None
    except RecursionError:
        raise RowProblem("", f"nested more than {MAX_DEPTH} deep") from None
    except RowProblem:
        raise
    except ValueError:
        # json raises a bare ValueError only where int() refuses: sys.get_int_max_str_digits.
        raise RowProblem("", f"a number of more than {sys.get_int_max_str_digits()} digits") from None
    if not isinstance(row, dict):
        raise RowProblem("", f"{describe(row)} where an object is wanted")
    _check_values(row)
    return row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise RowProblem(_name(twice), "the key stands twice in one object")
    return made


# made once: json.loads and json.dumps would make one for every row
_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def _explain(error: json.JSONDecodeError) -> str:
    rest = error.doc[error.pos :]
    column = f"(column {error.pos + 1})"
    if error.msg == "Extra data":
        return f"more text after the JSON value {column}; one object a line is wanted"
    if rest.startswith(("'", "None", "True", "False")):
        return f"not JSON but a Python dict {column}; write rows with json.dumps, not str or print"
    if not rest.strip() or error.msg.startswith("Unterminated string"):
        return f"the line ends inside the object {column}: cut short, or one of many (then: jq -c . FILE)"
    return f"not JSON: {error.msg} {column}"


def _check_values(row: dict[str, Any]) -> None:
    # An explicit stack: the depth that json accepts differs between Python versions, ours does not.
    waiting: list[tuple[Any, str, int]] = [(row, "", 1)]
    while waiting:
        value, field, depth = waiting.pop()
        if isinstance(value, str):
            _check_text(value, field)
        elif isinstance(value, float) and not math.isfinite(value):
            raise RowProblem(field, "NaN, Infinity or a number too large; leave the field out or use null")
        elif isinstance(value, dict | list):
            if depth > MAX_DEPTH:
                raise RowProblem(re.split(r"[.\[]", field)[0], f"nested more than {MAX_DEPTH} deep")
            waiting.extend((inner, name, depth + 1) for name, inner in _children(value, field))


def _children(value: dict[str, Any] | list[Any], field: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, list):
        yield from ((f"{field}[{index}]", inner) for index, inner in enumerate(value))
        return
    for key, inner in value.items():
        name = f"{field}.{_name(key)}" if field else _name(key)
        _check_text(key, name)
        yield name, inner


def _check_text(text: str, field: str) -> None:
    if "\0" in text:
        raise RowProblem(field, "a NUL character")
    if not text.isascii() and re.search(r"[\ud800-\udfff]", text):
        raise RowProblem(field, "a lone surrogate: half of a character, cut by whatever wrote the file")


@lru_cache(maxsize=1024)
def _name(key: str) -> str:
    # Quoted where odd: a key must not break the error line or send escapes to the terminal.
    return key if re.fullmatch(r"[A-Za-z0-9_-]{1,60}", key) else json.dumps(key[:60])


def describe(value: object) -> str:
    """The JSON name of a value's type, for an error."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {str: "text", int: "a number", float: "a number", list: "an array", dict: "an object"}
    return names.get(type(value), type(value).__name__)

"""Strict JSON, one object per line: no NaN, no duplicate keys, no lone surrogates, and errors with a remedy."""

import json
import math
import re
import sys
from collections import Counter
from collections.abc import Iterator
from functools import lru_cache
from typing import Any

MAX_LINE_BYTES = 16 * 2**20
MAX_DEPTH = 100


class RowProblem(ValueError):
    """A problem with a row; the caller adds the file and the line."""

    def __init__(self, field: str, reason: str) -> None:
        self.field = field
        self.reason = reason
        super().__init__(f"{field}: {reason}" if field else reason)


class Unused(RowProblem):
    """A valid row that is left out on purpose: counted by its reason, never an error."""


def decoded(data: bytes) -> str:
    """The text of UTF-8; raises RowProblem with the first byte that is not."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte 0x{data[error.start]:02x} at byte {error.start + 1}"
        raise RowProblem("", f"not UTF-8: {byte}; convert it: iconv -t UTF-8") from None


def parse_line(line: bytes) -> dict[str, Any]:
    """The object on a line; raises RowProblem with the field and the reason if the line is not valid."""
    if len(line.rstrip(b"\r\n")) > MAX_LINE_BYTES:
        raise RowProblem("", f"the line is longer than {MAX_LINE_BYTES // 2**20} MiB")
    if b"\0" in line:
        raise RowProblem("", f"a NUL byte (column {line.index(0) + 1}); is the file UTF-16 or binary?")
    try:
        row = _DECODER.decode(decoded(line))
    except json.JSONDecodeError as error:
        raise RowProblem("", _explain(error)) from None
    except RecursionError:
        raise RowProblem("", f"nested more than {MAX_DEPTH} deep") from None
    except RowProblem:
        raise
    except ValueError:
        # json raises a bare ValueError only if int() refuses: sys.get_int_max_str_digits.
        raise RowProblem("", f"a number with more than {sys.get_int_max_str_digits()} digits") from None
    if not isinstance(row, dict):
        raise RowProblem("", f"expected an object, got {describe(row)}")
    check_values(row)
    return row


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        duplicate = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise RowProblem(_name(duplicate), "duplicate key")
    return content


# created once: json.loads and json.dumps would create one per row
_DECODER = json.JSONDecoder(object_pairs_hook=_object)
_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False)


def encode(row: dict[str, Any]) -> str:
    """One line of JSON, without its newline."""
    return _ENCODER.encode(row)


def _explain(error: json.JSONDecodeError) -> str:
    rest = error.doc[error.pos :]
    column = f"(column {error.pos + 1})"
    if error.msg == "Extra data":
        return f"more text after the JSON value {column}; expected one object per line"
    if rest.startswith(("'", "None", "True", "False")):
        return f"expected JSON, got a Python dict {column}; write rows with json.dumps, not str or print"
    if not rest.strip() or error.msg.startswith("Unterminated string"):
        return f"the line ends inside the object {column}: truncated, or spread over lines (join them: jq -c . FILE)"
    return f"not JSON: {error.msg} {column}"


def check_values(row: dict[str, Any]) -> None:
    """Raises RowProblem if a value is not allowed in strict JSON, or if a text contains a NUL or a lone surrogate."""
    # An explicit stack: the depth that json accepts differs between Python versions, ours does not.
    waiting: list[tuple[Any, str, int]] = [(row, "", 1)]
    while waiting:
        value, field, depth = waiting.pop()
        if isinstance(value, str):
            _check_text(value, field)
        elif isinstance(value, float) and not math.isfinite(value):
            raise RowProblem(field, "NaN, Infinity or a number too large; remove the field or use null")
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
        raise RowProblem(field, "a lone surrogate: half of a character, split by the program that wrote the file")


@lru_cache(maxsize=1024)
def _name(key: str) -> str:
    # Unusual keys are quoted: a key must not break the error line or send escapes to the terminal.
    return key if re.fullmatch(r"[A-Za-z0-9_-]{1,60}", key) else json.dumps(key[:60])


def describe(value: object) -> str:
    """The JSON name of a value's type, for an error."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "true or false"
    names = {str: "text", int: "a number", float: "a number", list: "an array", dict: "an object"}
    return names.get(type(value), type(value).__name__)

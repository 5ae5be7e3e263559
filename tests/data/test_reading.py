"""Strict reading: every broken line or file is reported, and everything else is read unchanged."""

import gzip
import io
import json
import os
import random
import sys
import threading
import tracemalloc
from collections import Counter
from pathlib import Path

import pytest

from pitcli.data import reading, strict_json
from pitcli.data.formats import parse_draft
from pitcli.data.pair_formats import parse_pair
from pitcli.data.reading import read_rows, write_row
from pitcli.data.rows import RowError
from pitcli.data.strict_json import MAX_LINE_BYTES, RowProblem
from pitcli.errors import InputError

GOOD = b'{"a": 1}'


def read(path: Path) -> tuple[list, list[RowError], Counter]:
    errors: list[RowError] = []
    notes: Counter[str] = Counter()
    return list(read_rows(path, errors.append, notes)), errors, notes


def fail(error: RowError) -> None:
    pytest.fail(str(error))


def write(tmp_path: Path, data: bytes, name: str = "rows.jsonl") -> Path:
    path = tmp_path / name
    path.write_bytes(data)
    return path


BAD_LINES = {
    "truncated": (b'{"a": "b', "", "the line ends inside the object"),
    "truncated after a comma": (b'{"a": 1,', "", "the line ends inside the object"),
    "invalid UTF-8": (b'{"a": "\xff"}', "", "not UTF-8: byte 0xff at byte 8"),
    "surrogate in UTF-8": (b'{"a": "\xed\xa0\x80"}', "", "not UTF-8"),
    "NUL byte": (b'{"a": "\0"}', "", "a NUL byte (column 8)"),
    "escaped NUL": (b'{"a": "\\u0000"}', "a", "a NUL character"),
    "lone surrogate": (b'{"a": ["x", {"b": "\\ud83d"}]}', "a[1].b", "a lone surrogate"),
    "lone surrogate in a key": (b'{"\\udc00": 1}', '"\\udc00"', "a lone surrogate"),
    "NaN": (b'{"a": NaN}', "a", "NaN, Infinity"),
    "-Infinity": (b'{"a": {"b": -Infinity}}', "a.b", "NaN, Infinity"),
    "a float that overflows": (b'{"a": 1e999}', "a", "NaN, Infinity"),
    "duplicate keys": (b'{"a": 1, "b": 2, "a": 1}', "a", "duplicate key"),
    "nested duplicate keys": (b'{"x": {"a\\n": 1, "a\\n": 1}}', '"a\\n"', "duplicate key"),
    "array row": (b"[1, 2]", "", "expected an object, got an array"),
    "empty array row": (b"[]", "", "expected an object, got an array"),
    "number row": (b"3.5", "", "expected an object, got a number"),
    "null row": (b"null", "", "expected an object, got null"),
    "text row": (b'"a"', "", "expected an object, got text"),
    "boolean row": (b"true", "", "expected an object, got true or false"),
    "two objects": (b'{"a": 1} {"a": 2}', "", "more text after the JSON value (column 10)"),
    "Python dict": (b"{'a': 1}", "", "expected JSON, got a Python dict (column 2)"),
    "Python None": (b'{"a": None}', "", "expected JSON, got a Python dict (column 7)"),
    "not JSON": (b"hello", "", "not JSON: "),
    "arrays 3000 deep": (b'{"a": ' + b"[" * 3000 + b"]" * 3000 + b"}", "", "nested more than 100 deep"),
    "objects 100000 deep": (b'{"a":' * 100000 + b"1" + b"}" * 100000, "", "nested more than 100 deep"),
    "arrays 101 deep": (b'{"a": ' + b"[" * 100 + b"]" * 100 + b"}", "a", "nested more than 100 deep"),
    "5000-digit int": (b'{"a": ' + b"9" * 5000 + b"}", "", "a number with more than 4300 digits"),
    "bare control character": (b'{"a": "\t"}', "", "not JSON: Invalid control character"),
}


@pytest.mark.parametrize(("line", "field", "reason"), BAD_LINES.values(), ids=BAD_LINES.keys())
@pytest.mark.parametrize("last", [False, True], ids=["inside", "last, without newline"])
def test_a_bad_line_is_one_error_and_the_others_are_read(tmp_path, line, field, reason, last):
    path = write(tmp_path, GOOD + b"\n" + line + (b"" if last else b"\n" + GOOD + b"\n"))
    rows, errors, _ = read(path)
    assert [number for number, _ in rows] == ([1] if last else [1, 3])
    assert len(errors) == 1
    assert errors[0][:3] == (str(path), 2, field)
    assert errors[0].reason.startswith(reason)


GOOD_FILES = {
    "no final newline": (b'{"a": 1}\n{"a": 2}', [(1, {"a": 1}), (2, {"a": 2})], {}),
    "CRLF": (b'{"a": 1}\r\n{"a": 2}\r\n', [(1, {"a": 1}), (2, {"a": 2})], {}),
    "returns": (b'\r{"a": 1}\r{"a": 2}', [(2, {"a": 1}), (3, {"a": 2})], {"blank lines": 1}),
    "line ends of three kinds": (b'{"a": 1}\r{"a": 2}\r\n{"a": 3}\n', [(n, {"a": n}) for n in (1, 2, 3)], {}),
    "BOM": (b'\xef\xbb\xbf{"a": 1}\n', [(1, {"a": 1})], {"byte order mark": 1}),
    "blank lines": (b'\n{"a": 1}\n \t\r\n{"a": 2}\n\n', [(2, {"a": 1}), (4, {"a": 2})], {"blank lines": 3}),
    "U+2028": ('{"a": "x\u2028y\x85z"}\n'.encode(), [(1, {"a": "x\u2028y\x85z"})], {}),
    "23-digit int": (b'{"id": 12345678901234567890123}', [(1, {"id": 12345678901234567890123})], {}),
    "surrogate pair": (b'{"a": "\\ud83d\\ude00"}', [(1, {"a": "\U0001f600"})], {}),
    "escaped backslash before u0000": (b'{"a": "\\\\u0000"}', [(1, {"a": "\\u0000"})], {}),
    "NaN as text": (b'{"a": "NaN"}', [(1, {"a": "NaN"})], {}),
    "empty": (b"", [], {}),
}


@pytest.mark.parametrize(("data", "expected", "noted"), GOOD_FILES.values(), ids=GOOD_FILES.keys())
@pytest.mark.parametrize("zipped", [False, True], ids=["plain", "gzip"])
def test_valid_files_are_read(tmp_path, data, expected, noted, zipped):
    path = write(tmp_path, gzip.compress(data), "r.jsonl.gz") if zipped else write(tmp_path, data)
    assert read(path) == (expected, [], noted)


def test_nesting_up_to_the_limit_is_read(tmp_path):
    rows, errors, _ = read(write(tmp_path, b'{"a": ' + b"[" * 99 + b"]" * 99 + b"}"))
    assert len(rows) == 1
    assert errors == []


REFUSED = {
    "gzip bytes": ("rows.jsonl", gzip.compress(GOOD), "rename it to .jsonl.gz: mv "),
    "UTF-16 LE": ("rows.jsonl", '\ufeff{"a": 1}'.encode("utf-16-le"), "iconv -f UTF-16 -t UTF-8 "),
    "UTF-16 BE": ("rows.jsonl", '\ufeff{"a": 1}'.encode("utf-16-be"), "iconv -f UTF-16 -t UTF-8 "),
    "UTF-16 LE without its mark": ("rows.jsonl", '{"a": 1}'.encode("utf-16-le"), "iconv -f UTF-16LE -t UTF-8 "),
    "UTF-16 BE without its mark": ("rows.jsonl", '{"a": 1}'.encode("utf-16-be"), "iconv -f UTF-16BE -t UTF-8 "),
    "UTF-16 in gzip": ("r.jsonl.gz", gzip.compress('{"a": 1}'.encode("utf-16")), "iconv -f UTF-16"),
    "parquet": ("rows.jsonl", b"PAR1\x15\x04", "got parquet"),
    "not gzip data": ("r.jsonl.gz", GOOD, "rename it to .jsonl"),
}


@pytest.mark.parametrize(("name", "data", "remedy"), REFUSED.values(), ids=REFUSED.keys())
def test_a_file_in_another_encoding_is_refused_before_its_first_row(tmp_path, name, data, remedy):
    path = write(tmp_path, data, name)
    with pytest.raises(InputError) as caught:
        read_rows(path, fail)
    assert str(caught.value).startswith(f"{path}:")
    assert remedy in str(caught.value)


@pytest.mark.parametrize("before", [b"", b"\xef\xbb\xbf", b"\n \n"], ids=["", "after a mark", "after blank lines"])
def test_a_file_that_is_one_array_is_refused_before_its_first_row(tmp_path, before):
    with pytest.raises(InputError, match="unpack it: jq"):
        read_rows(write(tmp_path, before + b'[{"a": 1}]\n'), fail)


def test_a_file_of_one_or_two_bytes_is_not_taken_for_utf16(tmp_path):
    for data in (b"\0", b"{", b"\0\0"):
        rows, errors, _ = read(write(tmp_path, data))
        assert (rows, len(errors)) == ([], 1)


def test_a_missing_file_and_a_folder_are_refused_at_once(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_rows(tmp_path / "none.jsonl", fail)
    with pytest.raises(InputError, match="is a folder"):
        read_rows(tmp_path, fail)


ARRAYS = {
    "on one line": b'[{"a": 1}, {"a": 2}]\n',
    "pretty": b'[\n  {"a": 1},\n  {"a": 2}\n]\n',
    "one row per line": b'[{"a": 1},\n{"a": 2}]\n',
    "after a BOM and a blank line": b'\xef\xbb\xbf\n  [ {"a": 1}]',
    "longer than a line may be": b'[{"a": "' + b"x" * MAX_LINE_BYTES + b'"}]',
}


@pytest.mark.parametrize("data", ARRAYS.values(), ids=ARRAYS.keys())
def test_a_file_that_is_one_array_is_refused_with_the_jq_line(tmp_path, data):
    path = write(tmp_path, data)
    with pytest.raises(InputError) as caught:
        read(path)
    assert f"jq -c '.[]' {path}" in str(caught.value)


def test_an_array_of_objects_on_a_later_line_is_a_row_error(tmp_path):
    _, errors, _ = read(write(tmp_path, GOOD + b'\n[{"a": 1}]\n'))
    assert [error.line for error in errors] == [2]


@pytest.mark.parametrize("size", [12, 200], ids=["just after the header", "midway"])
def test_a_truncated_gzip_file_is_refused(tmp_path, size):
    lines = b"".join(b'{"a": "%064x"}\n' % random.Random(seed).getrandbits(256) for seed in range(50))
    path = write(tmp_path, gzip.compress(lines)[:size], "r.jsonl.gz")
    with pytest.raises(InputError, match="truncated or damaged"):
        read(path)


def test_a_100_megabyte_line_is_an_error_and_memory_is_bounded(tmp_path):
    path = write(tmp_path, GOOD + b'\n{"a": "')
    with path.open("r+b") as stream:
        stream.seek(100 * 2**20)
        stream.write(b'"}\n' + GOOD)
    tracemalloc.start()
    try:
        rows, errors, _ = read(path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert [number for number, _ in rows] == [1, 3]
    assert errors == [(str(path), 2, "", "the line is longer than 16 MiB")]
    assert peak < 64 * 2**20


@pytest.mark.parametrize(("extra", "read_whole"), [(0, True), (1, False)])
@pytest.mark.parametrize("end", [b"\n", b""], ids=["newline", "end of file"])
def test_the_line_limit_is_exact(tmp_path, monkeypatch, extra, read_whole, end):
    for module in (reading, strict_json):
        monkeypatch.setattr(module, "MAX_LINE_BYTES", 32)
    line = b'{"a": "' + b"x" * (32 - 9 + extra) + b'"}'
    rows, errors, _ = read(write(tmp_path, line + end))
    assert (len(rows), len(errors)) == ((1, 0) if read_whole else (0, 1))


def test_errors_are_printed_with_file_line_and_field():
    assert str(RowError("f.jsonl", 3, "a[0].b", "empty")) == "f.jsonl:3:a[0].b: empty"
    assert str(RowError("<stdin>", 3, "", "not JSON")) == "<stdin>:3: not JSON"


def test_stdin_is_read_and_named_in_errors(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b'{"a": 1}\n{"a"\n')))
    rows, errors, _ = read(Path("-"))
    assert rows == [(1, {"a": 1})]
    assert errors[0][:3] == ("<stdin>", 2, "")


def test_gzip_bytes_on_stdin_are_refused(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(gzip.compress(GOOD))))
    with pytest.raises(InputError, match=r"<stdin>: expected JSON lines, got gzip data; zcat FILE"):
        read(Path("-"))


def test_a_terminal_as_stdin_is_refused_at_once(monkeypatch):
    leader, follower = os.openpty()
    try:
        with os.fdopen(follower) as terminal:
            monkeypatch.setattr(sys, "stdin", terminal)
            with pytest.raises(InputError, match="is a terminal; name a file"):
                read_rows("-", fail)
    finally:
        os.close(leader)


def test_a_row_is_yielded_before_the_next_line_is_written(monkeypatch):
    read_end, write_end = os.pipe()
    with os.fdopen(read_end) as stdin, os.fdopen(write_end, "wb", buffering=0) as feed:
        monkeypatch.setattr(sys, "stdin", stdin)
        rows = read_rows("-", fail)
        for number in (1, 2):
            feed.write(b'{"n": %d}\n' % number)
            # The write end is closed if no row has arrived by then, so that a fault does not hang the test.
            rescue = threading.Timer(5, feed.close)
            rescue.start()
            assert next(rows) == (number, {"n": number})
            rescue.cancel()
            assert not feed.closed


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"z": "é\u2028\n", "a": [1, None]}, '{"z": "é\u2028\\n", "a": [1, null]}\n'),
        ({"id": 12345678901234567890123}, '{"id": 12345678901234567890123}\n'),
    ],
)
def test_a_row_is_written_as_one_line_in_its_own_order(row, line):
    stream = io.StringIO()
    write_row(row, stream)
    assert stream.getvalue() == line


def test_values_that_are_not_json_are_not_written():
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_row({"a": float("nan")}, io.StringIO())


MUTATED = [
    {"id": 7, "prompt": "Name a colour.", "chosen": "Blue.", "rejected": "A chair 😀."},
    {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"},
    {
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
        "score": -1.5e3,
    },
    {"id": "d", "prompt": "### Human: Hi ### Assistant:", "response": "é\u2028", "tags": [None, True, {}]},
]


def mutate(line: bytes, rng: random.Random) -> bytes:
    data = bytearray(line)
    for _ in range(1 if rng.random() < 0.7 else 3):
        index = rng.randrange(len(data))
        kind = rng.choice(["flip", "insert", "delete"])
        if kind == "flip":
            data[index] ^= 1 << rng.randrange(8)
        elif kind == "insert":
            data[index:index] = rng.choice([b'"', b"{", b"}", b"[", b"\0", b"\xff", b"\n", b"\\u", b"9e999", b"'"])
        elif len(data) > 1:
            del data[index : index + rng.randint(1, 5)]
            data = data or bytearray(b"x")
    return bytes(data)


def consume(path: Path) -> Counter[str]:
    outcome: Counter[str] = Counter()
    errors: list[RowError] = []
    try:
        for number, row in read_rows(path, errors.append):
            stream = io.StringIO()
            write_row(row, stream)
            assert json.loads(stream.getvalue()) == row
            parse = parse_draft if "response" in row else parse_pair
            try:
                parse(row, str(path), number)
                outcome["parsed"] += 1
            except RowProblem as problem:
                errors.append(RowError(str(path), number, problem.field, problem.reason))
    except InputError as refusal:
        outcome["refused"] += 1
        assert str(path) in str(refusal)
    for error in errors:
        assert str(error).startswith(f"{path}:")
        assert str(error).isprintable()
        assert len(str(error)) < len(str(path)) + 400
    outcome["errors"] += len(errors)
    return outcome


def test_2000_mutated_rows_end_in_rows_or_in_errors_that_name_them(tmp_path):
    rng = random.Random(20)
    lines = [json.dumps(row, ensure_ascii=rng.random() < 0.5).encode() for row in MUTATED]
    outcome: Counter[str] = Counter()
    for number in range(100):
        data = b"\n".join(mutate(rng.choice(lines), rng) for _ in range(20))
        outcome += consume(write(tmp_path, data, f"{number}.jsonl"))
    # Both outcomes occur: a changed letter in a text still parses, a changed quote does not.
    assert outcome["parsed"] > 150
    assert outcome["errors"] > 1000


@pytest.mark.parametrize("limit", [8, 9, 10, 11, 12, 40])
def test_lines_that_end_with_returns_may_lie_across_reads(limit: int) -> None:
    text = b"one\rtwo\r\nthree\nfour\r\rfive\r\n"
    assert list(reading.split_lines(io.BytesIO(text), limit)) == text.splitlines(keepends=True)
    assert list(reading.split_lines(io.BytesIO(b"0123456789\r1" * 9), 20)) == (b"0123456789\r1" * 9).splitlines(True)
    assert list(reading.split_lines(io.BytesIO(b"x" * 99 + b"\ny\n"), 20)) == [b"x" * 21, b"y\n"]


def test_a_pointer_on_stdin_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    pointer = io.BytesIO(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(pointer))
    with pytest.raises(InputError, match="<stdin>: a git-lfs pointer: run git lfs pull"):
        list(read_rows("-", fail))

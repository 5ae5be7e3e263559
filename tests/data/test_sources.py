"""JSON lines, CSV, parquet and data sets give the same rows, and errors name the row."""

import gzip
import json
import os
import subprocess
import sys
from collections import Counter
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from pitcli.data import csv_rows, sources
from pitcli.data.pair_reading import load_pairs, read_pairs
from pitcli.data.rows import RowError
from pitcli.data.sources import open_rows
from pitcli.errors import InputError

PAIRS = [
    {"prompt": "Naïve, or\nnot?", "chosen": 'He said "yes"', "rejected": "no", "source": "s"},
    {"prompt": "Name a fish", "chosen": "cod", "rejected": "cow", "source": ""},
]


def read(path: Path | str) -> tuple[list[tuple[int, dict[str, Any]]], list[str], Counter[str]]:
    errors: list[RowError] = []
    notes: Counter[str] = Counter()
    rows = list(open_rows(path, errors.append, notes))
    return rows, [str(error) for error in errors], notes


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


CSV = 'prompt,chosen,rejected,source\n"Naïve, or\nnot?","He said ""yes""",no,s\nName a fish,cod,cow,\n'


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("rows.csv", CSV.encode()),
        ("ROWS.CSV", b"\xef\xbb\xbf" + CSV.replace("\n", "\r\n").replace("or\r\n", "or\n").encode()),
        ("rows.csv.gz", gzip.compress(CSV.encode())),
        ("rows.tsv", CSV.replace(",", "\t").replace("Naïve\t", "Naïve,").encode()),
        ("semicolons.csv", b"\xef\xbb\xbf" + CSV.replace(",", ";").replace("Naïve;", "Naïve,").encode()),
        ("tabs.csv", CSV.replace(",", "\t").replace("Naïve\t", "Naïve,").encode()),
        ("spaces.csv", CSV.replace("prompt,chosen", " prompt, chosen ").encode()),
        ("returns.csv", b"\r".join(CSV.encode().rsplit(b"\n", 2)).replace(b"source\n", b"source\r")),
    ],
)
def test_csv_gives_the_same_rows(name: str, content: bytes, tmp_path: Path) -> None:
    rows, errors, _ = read(write(tmp_path / name, content))
    assert (rows, errors) == ([(2, PAIRS[0]), (4, PAIRS[1])], [])


def test_errors_in_csv_name_the_line_that_the_row_begins_on(tmp_path: Path) -> None:
    text = 'prompt,chosen,rejected\na,b\n\n"c\nd",x,y\ne,,z\nf,"\0",z\n'
    path = write(tmp_path / "rows.csv", text)
    rows, errors, notes = read(path)
    assert [line for line, _ in rows] == [4, 6]
    assert errors == [f"{path}:2: expected 3 cells, as in the header, got 2", f"{path}:7:chosen: a NUL character"]
    assert notes == {"blank lines": 1}
    assert read_pairs(path).errors[1] == f"{path}:6:chosen: empty"


UNUSABLE_CSV = {
    "quote left open": ('a,b\n1,2\n"3,4\n5,6\n', ":3: not CSV: unexpected end of data"),
    "bytes of another encoding": (b"a,b\n1,\xe9\n", ":2: not UTF-8: byte 0xe9 at byte 3"),
    "a duplicate name": ("a,b,a\n", ':1: duplicate field "a" in the header'),
}


@pytest.mark.parametrize(("content", "message"), UNUSABLE_CSV.values(), ids=UNUSABLE_CSV.keys())
def test_csv_that_cannot_be_read_is_refused_with_one_error(content: bytes | str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", content)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_csv_lines_over_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(csv_rows, "MAX_LINE_BYTES", 100)
    with pytest.raises(InputError, match=":2: the line is longer than"):
        read(write(tmp_path / "rows.csv", "a,b\n" + "x" * 101 + ",y\n"))


@pytest.mark.parametrize("name", ["rows.csv", "rows.parquet"])
def test_a_missing_file_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"{name}: no such file"):
        open_rows(tmp_path / name, lambda error: None)


def parquet_of(path: Path, rows: list[dict[str, Any]]) -> Path:
    parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def test_parquet_gives_the_same_rows(tmp_path: Path) -> None:
    rows = [{**row, "day": date(2024, 1, 2), "n": [1, None]} for row in PAIRS]
    found, errors, _ = read(parquet_of(tmp_path / "rows.parquet", rows))
    assert errors == []
    assert found == [(index, {**row, "day": "2024-01-02", "n": [1, None]}) for index, row in enumerate(PAIRS, start=1)]
    messages = [{"role": "assistant", "content": "a"}, {"role": "assistant", "content": "b"}]
    row = {"prompt": [{"role": "user", "content": "p"}], "chosen": messages[:1], "rejected": messages[1:]}
    [pair] = load_pairs(parquet_of(tmp_path / "messages.parquet", [row]))
    assert (pair.prompt[0].content, pair.chosen, pair.rejected) == ("p", "a", "b")


def test_what_json_cannot_hold_is_null_and_counted(tmp_path: Path) -> None:
    """A column that nobody reads must not make a row unusable; bytes that are text are text."""
    rows = [
        {"a": 1.0, "b": "Naïve".encode(), "c": {"d": [float("inf")]}},
        {"a": float("nan"), "b": b"\xff\xd8", "c": {"d": [1.5]}},
    ]
    found, errors, notes = read(parquet_of(tmp_path / "rows.parquet", rows))
    assert found == [(1, {"a": 1.0, "b": "Naïve", "c": {"d": [None]}}), (2, {"a": None, "b": None, "c": {"d": [1.5]}})]
    assert errors == []
    assert notes == {"values that are not finite numbers, read as null": 2, "values that are not text, read as null": 1}


def test_errors_in_parquet_name_the_number_of_the_row(tmp_path: Path) -> None:
    path = parquet_of(tmp_path / "rows.parquet", [{"a": b"", "b": 1}, {"a": b"\0", "b": 2}, {"a": None, "b": 3}])
    found, errors, _ = read(path)
    assert [row["b"] for _, row in found] == [1, 3]
    assert errors == [f"{path}:2:a: a NUL character"]


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 99\n"


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.csv", "a.csv.gz", "a.tsv", "a.parquet"])
def test_a_git_lfs_pointer_is_refused_with_its_remedy(name: str, tmp_path: Path) -> None:
    path = write(tmp_path / name, POINTER)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value) == f"{path}: a git-lfs pointer: run git lfs pull"


def test_parquet_is_read_in_batches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BATCH", 2)
    path = parquet_of(tmp_path / "rows.parquet", [{"a": n} for n in range(5)])
    assert [batch.num_rows for batch in sources._parquet_batches(str(path))] == [2, 2, 1]
    assert [line for line, _ in read(path)[0]] == [1, 2, 3, 4, 5]


def test_a_file_that_is_not_parquet_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.parquet", "no")
    with pytest.raises(InputError) as caught:
        open_rows(path, lambda error: None)
    assert len(caught.value.problems) == 1
    assert str(caught.value).startswith(f"{path}: not a parquet file")
    assert "\n" not in str(caught.value)


@pytest.fixture
def data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A folder that load_dataset reads, with two splits."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    for name, rows in (("train", PAIRS), ("test", PAIRS[:1])):
        write(folder / f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))
    return f"hub:{folder}"


def test_a_data_set_is_read_by_split(data_set: str) -> None:
    assert read(data_set)[0] == list(enumerate(PAIRS, start=1))
    assert read(f"{data_set}:test")[0] == [(1, PAIRS[0])]
    with pytest.raises(InputError, match=r":dev: expected one of the splits train, test, as in hub:.*/set:train"):
        read(f"{data_set}:dev")
    assert [pair.line for pair in load_pairs(data_set)] == [1, 2]


@pytest.mark.parametrize("name", ["hub:", "hub:imdb", "hub:a/b/c/d", "hub:a//b", "hub:/no/such"])
def test_an_invalid_name_of_a_data_set_is_refused(name: str) -> None:
    with pytest.raises(InputError, match="hub:OWNER/NAME"):
        read(name)


def test_a_data_set_that_cannot_be_reached_is_one_error_line(tmp_path: Path) -> None:
    line = [sys.executable, "-m", "pitcli", "prepare", "--data", "hub:nobody/nothing", "--out", str(tmp_path / "out")]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    result = subprocess.run(line, check=False, capture_output=True, text=True, env=environment)
    assert result.returncode == 2
    [message] = result.stderr.splitlines()
    assert message.startswith("error: hub:nobody/nothing: not usable (ConnectionError): Couldn't reach")

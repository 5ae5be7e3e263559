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

from pitcli.data import sources
from pitcli.data.formats import load_pairs, read_pairs
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
    "semicolons": ("a;b;c\n1;2;3\n", ':1: expected commas between fields, got one field "a;b;c"'),
}


@pytest.mark.parametrize(("content", "message"), UNUSABLE_CSV.values(), ids=UNUSABLE_CSV.keys())
def test_csv_that_cannot_be_read_is_refused_with_one_error(content: bytes | str, message: str, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.csv", content)
    with pytest.raises(InputError) as caught:
        read(path)
    assert str(caught.value).startswith(f"{path}{message}")


def test_csv_lines_over_the_limit_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "MAX_LINE_BYTES", 100)
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


def test_errors_in_parquet_name_the_number_of_the_row(tmp_path: Path) -> None:
    rows = [{"a": 1.0, "b": b""}, {"a": float("nan"), "b": None}, {"a": 2.0, "b": None}]
    path = parquet_of(tmp_path / "rows.parquet", rows)
    found, errors, _ = read(path)
    assert found == [(3, {"a": 2.0, "b": None})]
    assert [error.partition(";")[0] for error in errors] == [
        f"{path}:1:b: expected text or numbers, got bytes",
        f"{path}:2:a: NaN, Infinity or a number too large",
    ]


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

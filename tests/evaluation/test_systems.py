"""Rows of systems: reading, checks, and the response after each iteration."""

from pathlib import Path

import pytest

from pitcli.errors import InputError, SettingsError
from pitcli.evaluation.systems import load_systems, named_files
from tests.evaluation.constructed import pairs_file, row, step, steps


def test_rows_that_stopped_early_keep_their_last_response() -> None:
    early = row(0, "o", "i1", steps=steps("o", "i1"))
    assert [early.response_after(k) for k in range(4)] == ["o", "i1", "i1", "i1"]
    refused = row(1, "o", "o", steps=[step("o", "worse", 0.3, kept="o")])
    assert refused.response_after(1) == "o"


def test_rows_and_names_that_cannot_be_read_are_errors(tmp_path: Path) -> None:
    file = pairs_file(tmp_path / "rows.jsonl", [{"prompt": "p", "response": "r"}])
    with pytest.raises(InputError, match=r"rows.jsonl:1:original_response: missing"):
        load_systems([file], "--input", by=None, max_rows=None)
    file = pairs_file(
        tmp_path / "rows.jsonl", [{"prompt": "p", "response": "r", "original_response": "o", "iterations": [1]}]
    )
    with pytest.raises(InputError, match=r"rows.jsonl:1:iterations: not in the format that pit improve writes"):
        load_systems([file], "--input", by=None, max_rows=None)
    with pytest.raises(SettingsError, match="--input: expected FILE or NAME=FILE, got =x"):
        load_systems(["=x"], "--input", by=None, max_rows=None)


def test_a_file_whose_path_has_an_equals_sign_needs_no_name(tmp_path: Path) -> None:
    (folder := tmp_path / "lr=1e-4").mkdir()
    (folder / "improved.jsonl").touch()
    assert named_files([str(folder / "improved.jsonl")], "--input") == {"improved": [str(folder / "improved.jsonl")]}
    assert named_files(["pit=improved.jsonl"], "--input") == {"pit": ["improved.jsonl"]}

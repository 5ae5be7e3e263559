"""The edits of explained rows: written, read back, and refused if they belong to other texts."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pitcli.data.edits import edits_between
from pitcli.data.explained import ExplainedEdit, Improvement, iter_improvements, parse_edits
from pitcli.data.rows import Draft, Message, RowError
from pitcli.data.strict_json import RowProblem

DRAFT, RESPONSE = "a b c d", "a x c d. New words come here."
GOOD = {"from": "b", "to": "x", "at": [2, 3], "gap": 0.5, "share": 0.25}


def explained() -> list[ExplainedEdit]:
    first, second = edits_between(DRAFT, RESPONSE)
    return [ExplainedEdit(first, 0.5, 0.25, 0.125, 0.5), ExplainedEdit(second, None, None)]


def test_edits_are_read_back_from_the_row_they_were_written_to() -> None:
    row = {"prompt": "p", "response": RESPONSE, "original_response": DRAFT, "note": 1, "edits": "of an earlier start"}
    written = Improvement(Draft(None, (Message("user", "p"),), RESPONSE, row), DRAFT).row(explained())
    assert {**row, "edits": written["edits"]} == written
    assert written["edits"] == [
        {"from": "b", "to": "x", "at": [2, 3], "gap": 0.5, "share": 0.25, "low": 0.125, "high": 0.5},
        {"from": "d", "to": "d. New words come here.", "at": [6, 29], "gap": None, "share": None},
    ]
    assert parse_edits(json.loads(json.dumps(written)), DRAFT, RESPONSE) == explained()


@pytest.mark.parametrize(
    "value",
    [None, [], 3, "text", ["b"], [{"at": [2, 3]}], [{"from": "b", "to": "x"}], {"from": "b", "to": "x", "at": 1}],
)
def test_a_field_of_somebody_else_is_no_explanation(value: object) -> None:
    assert parse_edits({"edits": value}, DRAFT, RESPONSE) == []


@pytest.mark.parametrize(
    "change",
    [{"at": [2, 4]}, {"at": [3, 2]}, {"at": [1, 2, 3]}, {"at": None}, {"from": "y"}, {"to": "y"}, {"gap": "much"}],
)
def test_edits_of_other_texts_are_refused(change: dict[str, Any]) -> None:
    assert len(parse_edits({"edits": [GOOD]}, "a b c", "a x c")) == 1
    for edits in ([{**GOOD, **change}], [GOOD, {**GOOD, **change}]):
        with pytest.raises(RowProblem, match=r"pit explain|run it again"):
            parse_edits({"edits": edits}, "a b c", "a x c")


def test_rows_without_a_draft_are_reported(tmp_path: Path) -> None:
    rows = [
        {"prompt": "p", "response": "a x", "draft": "a b"},
        {"prompt": "p", "response": "a x"},
        {"prompt": "p", "response": "a x", "draft": 3},
        {"prompt": "p", "draft": "a b"},
        {"prompt": "p", "completion": "a x", "answers": [{"text": "a"}], "draft": "<think>so</think>a b"},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    errors: list[RowError] = []
    found = iter_improvements(str(tmp_path / "rows.jsonl"), "draft", errors.append, Counter())
    assert [(line, i.original, i.improved.response) for line, i in found] == [(1, "a b", "a x"), (5, "a b", "a x")]
    assert [(error.line, error.field) for error in errors] == [(2, "draft"), (3, "draft"), (4, "response")]
    assert "--against" in errors[0].reason
    nested = list(iter_improvements(str(tmp_path / "rows.jsonl"), "answers.0.text", errors.append, Counter()))
    assert [i.original for _, i in nested] == ["a"]

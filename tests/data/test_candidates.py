"""Rows of pit score become candidates: one response, neighbouring responses to one prompt, or a list of them."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pitcli.data.candidates import MOST, Candidates, iter_candidates, labelled
from pitcli.data.rows import Message, PreferencePair, RowError

PROMPT = (Message("user", "p"),)


def read(
    tmp_path: Path, rows: list[dict[str, Any]], against: str | None = None
) -> tuple[list[Candidates], list[RowError]]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    errors: list[RowError] = []
    return list(iter_candidates(str(path), against, errors.append)), errors


def answer(text: str, prompt: str = "p", **fields: Any) -> dict[str, Any]:
    return {"prompt": prompt, "response": text, **fields}


def test_neighbours_with_one_prompt_are_compared_with_one_another(tmp_path: Path) -> None:
    rows = [answer("a"), answer("b"), answer("c", "q"), answer("d", "q"), answer("e")]
    found, errors = read(tmp_path, rows)
    assert [(each.responses, each.reference, each.line) for each in found] == [
        (("a", "b"), None, 1),
        (("c", "d"), None, 3),
    ]
    assert found[0].rows == (rows[0], rows[1])
    assert [(error.line, error.field) for error in errors] == [(5, "response")]
    assert "--against" in errors[0].reason


def test_a_field_is_the_reference(tmp_path: Path) -> None:
    rows = [answer("a", answers=[{"text": "x"}]), answer("b", answers=[{"text": "<think>t</think>y"}]), answer("c")]
    found, errors = read(tmp_path, rows, "answers.0.text")
    assert [(each.responses, each.reference) for each in found] == [(("a",), "x"), (("b",), "y")]
    assert str(errors[0]).endswith(":3:answers.0.text: missing (--against); expected one of 'prompt', 'response'")


def test_an_improved_row_is_compared_with_its_original_by_default(tmp_path: Path) -> None:
    rows = [answer("a", original_response="x"), answer("b", original_response="x")]
    assert [each.reference for each in read(tmp_path, rows)[0]] == ["x", "x"]
    assert [each.responses for each in read(tmp_path, rows, "others")[0]] == [("a", "b")]


def test_a_row_lists_its_responses_in_the_shapes_of_drafts(tmp_path: Path) -> None:
    message = [{"role": "assistant", "content": "b"}]
    (found,), errors = read(tmp_path, [{"question": "p", "Responses": ["a", message, "a"], "n": 1}])
    assert (found.prompt, found.responses, found.are_listed, errors) == (PROMPT, ("a", "b", "a"), True, [])
    (against,), _ = read(tmp_path, [{"prompt": "p", "responses": ["a"], "gold": "g"}], "gold")
    assert (against.responses, against.reference) == (("a",), "g")


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"prompt": "p", "responses": "a"}, "responses: expected a list of responses, got text"),
        ({"prompt": "p", "responses": []}, f"responses: expected 1 to {MOST} responses, got 0"),
        ({"prompt": "p", "responses": ["a"]}, "responses: expected another response to compare with, got one"),
        ({"prompt": "p", "responses": ["a", ""]}, "responses[1]: empty"),
        ({"prompt": "p", "responses": ["a", 3]}, "responses[1]: expected text, got a number"),
        ({"responses": ["a", "b"]}, "prompt: missing"),
        ({"prompt": "p", "chosen": "a", "rejected": "b"}, "response: missing: the row is a preference pair"),
        ({"prompt": "p", "response": "a", "original_response": " "}, "original_response: empty"),
    ],
)
def test_rows_that_cannot_be_scored(row: dict[str, Any], problem: str, tmp_path: Path) -> None:
    found, (error,) = read(tmp_path, [row])
    assert found == []
    assert f"rows.jsonl:1:{problem}" in str(error)


def test_too_many_neighbours_are_errors(tmp_path: Path) -> None:
    (found,), errors = read(tmp_path, [answer(f"a{number}") for number in range(MOST + 2)])
    assert len(found.responses) == MOST
    assert [error.line for error in errors] == [MOST + 1, MOST + 2]


def test_rows_with_a_reference_are_not_held_back(tmp_path: Path) -> None:
    """So that in a pipe the first row is scored before the third one arrives."""
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(answer("a", gold="g")) + "\n" + json.dumps(answer("b", gold="g")) + "\n")
    stream: Iterator[Candidates] = iter_candidates(str(path), "gold", lambda error: None)
    assert next(stream).responses == ("a",)


def test_a_preference_pair_is_chosen_against_rejected() -> None:
    found = labelled(PreferencePair("7", PROMPT, "good", "bad", {"topic": "t"}, line=3))
    assert (found.responses, found.reference) == (("good",), "bad")
    assert found.rows == ({"topic": "t", "id": "7", "prompt": "p", "chosen": "good", "rejected": "bad"},)

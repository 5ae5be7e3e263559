"""Fields by their paths, and the guess at them for a row of no known format."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from pitcli.data.field_paths import suggested_fields, value_at, with_fields
from pitcli.data.formats import iter_questions
from pitcli.data.pair_reading import ReadingOptions, load_pairs, read_pairs
from pitcli.data.rows import Message
from pitcli.data.strict_json import RowProblem
from pitcli.settings.values import parse_fields

ROW: dict[str, Any] = {
    "id": 7,
    "data": {"ask": "Why?", "style": None},
    "replies": [{"text": "Because."}, {"text": "So."}],
    "a.b": "dotted",
    "lang": "en",
}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("lang", "en"),
        ("data.ask", "Why?"),
        ("replies.1.text", "So."),
        ("replies[1].text", "So."),
        ("replies[-1].text", "So."),
        ("a.b", "dotted"),
        ("data.style", None),
    ],
)
def test_a_path_leads_to_a_value(path: str, value: object) -> None:
    assert value_at(ROW, path) == value


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("data.question", "expected one of 'ask', 'style'"),
        ("replies.2.text", "expected an index below 2"),
        ("replies.text", "expected an index below 2"),
        ("lang.x", "found text"),
        ("Lang", "expected one of 'id', 'data', 'replies', 'a.b', 'lang'"),
    ],
)
def test_a_path_that_leads_nowhere_says_what_is_there_instead(path: str, reason: str) -> None:
    with pytest.raises(RowProblem) as caught:
        value_at(ROW, path)
    assert (caught.value.field, caught.value.reason) == (path, f"missing (--fields); {reason}")


def options(fields: str, **others: Any) -> ReadingOptions:
    return ReadingOptions(fields=parse_fields(fields), **others)


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_rows_are_read_by_the_paths_of_their_fields(tmp_path: Path) -> None:
    fields = "prompt=data.ask,chosen=replies.0.text,rejected=replies.1.text,system=data.style"
    other = {**ROW, "data": {"ask": [{"role": "user", "content": "Why?"}], "style": "Be kind."}}
    first, second = load_pairs(write(tmp_path / "rows.jsonl", ROW, other), options=options(fields))
    assert (first.id, first.prompt, first.chosen, first.rejected) == (
        "7",
        (Message("user", "Why?"),),
        "Because.",
        "So.",
    )
    assert first.extra == {key: ROW[key] for key in ("data", "replies", "a.b", "lang")}
    assert second.prompt == (Message("system", "Be kind."), Message("user", "Why?"))


def test_named_fields_overrule_known_formats(tmp_path: Path) -> None:
    """A row with fields of a format is not read by it; the fields that were moved do not occur twice."""
    row = {"question": "Who?", "answer": "x", "correction": "y", "prompt": "other", "n": 1}
    path = write(tmp_path / "rows.jsonl", row)
    [pair] = load_pairs(path, options=options("prompt=question,chosen=answer,rejected=correction"))
    assert (pair.prompt[0].content, pair.chosen, pair.rejected, pair.extra) == ("Who?", "x", "y", {"n": 1})
    talk = {"a": "\n\nHuman: Hi\n\nAssistant: x", "b": "\n\nHuman: Hi\n\nAssistant: y", "question": "extra"}
    [pair] = load_pairs(write(path, talk), options=options("chosen=a,rejected=b"))
    assert (pair.prompt[0].content, pair.chosen, pair.extra) == ("Hi", "x", {"question": "extra"})


def test_rows_without_a_named_field_are_bad_rows(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROW, {"lang": "de"})
    fields = "prompt=data.ask,chosen=replies.0.text,rejected=replies.1.text"
    assert read_pairs(path, options=options(fields)).errors[0].startswith(f"{path}:2:data.ask: missing (--fields); ")
    assert len(load_pairs(path, options=options(fields, skip_bad=True))) == 1


def test_the_prompt_alone_is_enough_for_questions(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", ROW)
    found = iter_questions(path, lambda error: pytest.fail(str(error)), None, options("prompt=data.ask"))
    assert [question.row["prompt"] for _, question in found] == ["Why?"]


SUGGESTIONS = {
    "plain names": (
        {"query": "q", "good_answer": "a", "bad_answer": "b", "id": "7", "n": 3},
        "prompt=query,chosen=good_answer,rejected=bad_answer",
    ),
    "nested": (
        {
            "meta": {"source": "s"},
            "data": {"user_prompt": "q", "sys": "x"},
            "responses": [{"winner": "a", "loser": "b"}],
        },
        "prompt=data.user_prompt,chosen=responses.0.winner,rejected=responses.0.loser",
    ),
    "messages and a system text": (
        {
            "system": "x",
            "context": [{"role": "user", "content": "q"}],
            "preferred": {"role": "assistant"},
            "dispreferred": "b",
        },
        "prompt=context,chosen=preferred,rejected=dispreferred,system=system",
    ),
    "names that say nothing": ({"x": "q", "y": "a", "z": "b", "n": 3}, "prompt=?,chosen=?,rejected=?"),
}


@pytest.mark.parametrize(("row", "fields"), SUGGESTIONS.values(), ids=SUGGESTIONS)
def test_fields_are_suggested_by_their_names(row: dict[str, Any], fields: str) -> None:
    suggestion = suggested_fields(row)
    assert suggestion
    assert suggestion.fields == fields
    if "?" not in fields:
        assert {"prompt", "chosen", "rejected"} <= with_fields(row, parse_fields(fields)).keys()


def test_a_row_with_too_few_texts_for_a_pair_suggests_nothing() -> None:
    assert suggested_fields({"prompt": "p", "chosen": "a", "n": 1, "empty": ""}) is None


def test_the_error_suggests_fields_once(tmp_path: Path) -> None:
    rows = [{"query": "q", "good": "a", "bad": "b"}] * 3
    errors = read_pairs(write(tmp_path / "rows.jsonl", *rows)).errors
    assert errors[-1] == (
        "to read a row of no known format, name its fields: --fields prompt=query,chosen=good,rejected=bad; "
        "its texts: query, good, bad"
    )
    assert len(errors) == 4


BAD_FIELDS = {
    "prompt=a,choosen=b,rejected=c": "got choosen=b; did you mean chosen?",
    "prompt=a,chosen=,rejected=c": "got chosen=",
    "a,b,c": "expected NAME=PATH with a name of prompt, chosen, rejected, system, history, got a",
    "prompt=a,prompt=b": "prompt is given twice",
    "chosen=a": "expected prompt=PATH,chosen=PATH,rejected=PATH, got chosen=a",
    ",": "expected prompt=PATH,chosen=PATH,rejected=PATH, got ,",
}


@pytest.mark.parametrize(("text", "problem"), BAD_FIELDS.items())
def test_fields_that_are_misspelt_are_refused(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=re.escape(problem) + "$"):
        parse_fields(text)

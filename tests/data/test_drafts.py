"""Drafts in every shape: what is read, what is written back in the same shape, and what improved rows are read as."""

import copy
import json
from typing import Any

import pytest

from pitcli.data.drafts import as_messages, parse_draft, parse_question, with_prompt, with_response
from pitcli.data.improved_rows import improved_draft
from pitcli.data.rows import Message
from pitcli.data.streams import row_key
from pitcli.data.strict_json import RowProblem
from pitcli.engine.improving.stop_rule import Attempt, finished_row

Row = dict[str, Any]


def user(text: str) -> Row:
    return {"role": "user", "content": text}


def assistant(text: Any) -> Row:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be kind."}
ASKED = [user("Name a tree.")]
TWICE = [user("Name a tree."), assistant("Oak."), user("Another.")]
BODY = {"model": "m", "messages": ASKED}
# the row, and the roles of its prompt; the response is Fir.
SHAPES: dict[str, tuple[Row, str]] = {
    "prompt and response": ({"prompt": "Name a tree.", "response": "Fir."}, "user"),
    "prompt as messages": ({"prompt": TWICE, "response": "Fir.", "note": 1}, "user assistant user"),
    "response as a message": ({"prompt": "Name a tree.", "response": assistant("Fir.")}, "user"),
    "response as messages": ({"prompt": ASKED, "response": [assistant("Fir.")]}, "user"),
    "response that repeats the prompt": ({"prompt": ASKED, "response": [*ASKED, assistant("Fir.")]}, "user"),
    "whole conversation as response": ({"response": [*TWICE, assistant("Fir.")]}, "user assistant user"),
    "TRL completion": ({"prompt": "Name a tree.", "completion": "Fir."}, "user"),
    "TRL completion as messages": ({"prompt": ASKED, "completion": [assistant("Fir.")]}, "user"),
    "messages": ({"id": "a", "messages": [SYSTEM, *TWICE, assistant("Fir.")]}, "system user assistant user"),
    "messages next to a prompt": ({"prompt": "Name a tree.", "messages": [*ASKED, assistant("Fir.")]}, "user"),
    "messages and a response": ({"messages": ASKED, "response": "Fir."}, "user"),
    "messages and a system text": ({"system": "Be kind.", "messages": [*ASKED, assistant("Fir.")]}, "system user"),
    "ShareGPT": (
        {"conversations": [{"from": "human", "value": "Name a tree."}, {"from": "gpt", "value": "Fir."}]},
        "user",
    ),
    "ShareGPT, system and response": (
        {"system": "Be kind.", "conversations": [{"from": "human", "value": "Name a tree."}], "response": "Fir."},
        "system user",
    ),
    "batch, response as text": ({"custom_id": "7", "method": "POST", "body": BODY, "response": "Fir."}, "user"),
    "batch, request with the answer": ({"custom_id": "7", "body": {"messages": [*ASKED, assistant("Fir.")]}}, "user"),
    "batch, request and output": (
        {
            "custom_id": "7",
            "body": BODY,
            "response": {"status_code": 200, "body": {"choices": [{"index": 0, "message": assistant("Fir.")}]}},
            "error": None,
        },
        "user",
    ),
    "batch, chat completion": (
        {"custom_id": "7", "body": BODY, "response": {"choices": [{"message": assistant("Fir.")}]}},
        "user",
    ),
    "Alpaca": ({"instruction": "Name a tree.", "input": "In Norway.", "output": "Fir.", "text": "all of it"}, "user"),
    "Alpaca, system and history": (
        {"instruction": "Another.", "system": "Be kind.", "history": [["Name a tree.", "Oak."]], "output": "Fir."},
        "system user assistant user",
    ),
    "Orca": ({"system": "Be kind.", "question": "Name a tree.", "response": "Fir."}, "system user"),
    "question and answer": ({"question": "Name a tree.", "answer": "Fir."}, "user"),
    "system and history next to a prompt": (
        {"system": "Be kind.", "history": [["Name a tree.", "Oak."]], "prompt": "Another.", "response": "Fir."},
        "system user assistant user",
    ),
    "system next to messages as prompt": ({"system": "Be kind.", "prompt": ASKED, "response": "Fir."}, "system user"),
    "HH transcript": (
        {"response": "\n\nHuman: Name a tree.\n\nAssistant: Oak.\n\nHuman: Another.\n\nAssistant: Fir."},
        "user assistant user",
    ),
    "transcript as text": ({"text": "### Human: Name a tree. ### Assistant: Fir."}, "user"),
    "HH prompt": ({"prompt": "\n\nHuman: Name a tree.\n\nAssistant:", "response": "Fir."}, "user"),
    "fields in another case": ({"Prompt": "Name a tree.", "Response": "Fir.", "Note": "n"}, "user"),
    "input and output": ({"input": "Name a tree.", "output": "Fir."}, "user"),
    "developer and model": (
        {"messages": [{"role": "developer", "content": "Be kind."}, *ASKED, {"role": "model", "content": "Fir."}]},
        "system user",
    ),
    "HelpSteer's turns": (
        {
            "prompt": "Name a tree.\n<extra_id_1>Assistant\nOak.\n<extra_id_1>User\nAnother.",
            "response": "Fir.",
            "helpfulness": 3,
        },
        "user assistant user",
    ),
    "history as messages, system_prompt": (
        {"system_prompt": "Be kind.", "history": TWICE[:2], "prompt": "Another.", "response": "Fir."},
        "system user assistant user",
    ),
    "summaries": ({"info": {"title": "Trees", "post": "Many grow."}, "response": "Fir."}, "user"),
    "a pair with a response": (
        {"prompt": "Name a tree.", "chosen": "Ash", "rejected": "Ant", "response": "Fir."},
        "user",
    ),
}


@pytest.fixture(params=SHAPES.values(), ids=SHAPES.keys())
def shape(request: pytest.FixtureRequest) -> tuple[Row, str]:
    found: tuple[Row, str] = copy.deepcopy(request.param)
    return found


def test_a_draft_is_read_and_its_row_is_not_changed(shape: tuple[Row, str]) -> None:
    row, roles = shape
    before = json.dumps(row)
    draft = parse_draft(row, "f", 3)
    assert (draft.response, [message.role for message in draft.prompt]) == ("Fir.", roles.split())
    assert (draft.row, draft.line, json.dumps(row)) == (row, 3, before)
    if draft.prompt[0].role == "system":
        assert draft.prompt[0].content == "Be kind."


def test_the_same_shape_has_the_new_response_in_its_place_and_nothing_else_new(shape: tuple[Row, str]) -> None:
    row, _ = shape
    draft = parse_draft(row, "f", 1)
    written = with_response(draft, "Yew.")
    again = parse_draft(written, "f", 1)
    assert (again.prompt, again.response) == (draft.prompt, "Yew.")
    assert json.dumps(written) == json.dumps(row).replace("Fir.", "Yew.")
    assert with_response(draft, draft.response) is row


def test_as_messages(shape: tuple[Row, str]) -> None:
    row, _ = shape
    draft = parse_draft(row, "f", 1)
    written = as_messages(draft, "Yew.")
    assert written["messages"][-1] == assistant("Yew.")
    again = parse_draft(written, "f", 1)
    assert (again.prompt, again.response) == (draft.prompt, "Yew.")
    assert {name: row.get(name) for name in ("id", "note", "custom_id")} == {
        name: written.get(name) for name in ("id", "note", "custom_id")
    }


def test_an_improved_row_is_read_as_the_same_draft(shape: tuple[Row, str]) -> None:
    """Otherwise --resume would improve it again."""
    draft = parse_draft(shape[0], "f", 1)
    row = json.loads(json.dumps(finished_row(Attempt(draft, "Yew.", []))))
    assert (row["response"], row["original_response"]) == ("Yew.", "Fir.")
    assert row_key(improved_draft(row, "f", 1)) == row_key(draft)
    assert parse_draft(row, "f", 1).prompt == draft.prompt


def test_a_prompt_is_read_from_the_same_rows(shape: tuple[Row, str]) -> None:
    """For pit sample; its new response next to what is in the row is a draft of the same prompt."""
    row, _ = shape
    question = parse_question(row, "f", 1)
    assert question.prompt == parse_draft(row, "f", 1).prompt
    sampled = parse_draft({**question.row, "response": "Elm."}, "f", 1)
    assert (sampled.prompt, sampled.response) == (question.prompt, "Elm.")


REQUESTS: tuple[Row, ...] = (
    {"messages": ASKED},
    {"custom_id": "7", "method": "POST", "url": "/v1/chat/completions", "body": BODY},
    {"question": "Name a tree."},
    {"instruction": "Name a tree."},
    {"conversations": [{"from": "human", "value": "Name a tree."}]},
)


@pytest.mark.parametrize("row", REQUESTS, ids=lambda row: next(iter(row)))
def test_requests_without_a_response_are_questions_and_keep_their_shape(row: Row) -> None:
    question = parse_question(row, "f", 1)
    assert (question.prompt, question.row) == ((Message("user", "Name a tree."),), row)
    with pytest.raises(RowProblem, match=r"^response: missing; the row has .*; pit sample writes drafts"):
        parse_draft(row, "f", 1)
    draft = parse_draft({**question.row, "response": "Elm."}, "f", 1)
    assert with_response(draft, "Fir.") == {**row, "response": "Fir."}


def test_a_response_in_parts_is_written_back_in_one() -> None:
    parts = [{"type": "text", "text": "Fi"}, {"type": "text", "text": "r."}]
    draft = parse_draft({"messages": [*ASKED, assistant(parts)]}, "f", 1)
    assert draft.response == "Fir."
    assert with_response(draft, "Yew.") == {"messages": [*ASKED, assistant([{"type": "text", "text": "Yew."}])]}
    draft = parse_draft({"prompt": "Name a tree.", "response": parts}, "f", 1)
    assert with_response(draft, "Yew.") == {"prompt": "Name a tree.", "response": [{"type": "text", "text": "Yew."}]}


BAD: dict[str, tuple[Row, str, str]] = {
    "output of a batch alone": (
        {"custom_id": "7", "response": {"body": {"choices": [{"message": assistant("Fir.")}]}}},
        "body",
        "missing: a line of a batch's output; join it to its request by custom_id",
    ),
    "failed request of a batch": (
        {"custom_id": "7", "body": BODY, "response": None, "error": {"code": "expired"}},
        "response",
        "null: the batch reports an error",
    ),
    "empty last message": ({"messages": [*ASKED, assistant(" ")]}, "messages[1].content", "empty"),
    "only an answer": ({"messages": [assistant("Fir.")]}, "messages", "empty"),
    "batch, two answers": (
        {"body": {"messages": [*ASKED, assistant("a"), assistant("b")]}},
        "body.messages[1].role",
        "the prompt must end with a user message",
    ),
    "text that is no transcript": ({"text": "Fir."}, "prompt", "missing, and text is not a transcript"),
    "two outputs": ({"instruction": "Name a tree.", "output": ["a", "b"]}, "output[0]", "expected a message"),
    "completion as a number": (
        {"prompt": "Name a tree.", "completion": 4},
        "completion",
        "expected text, got a number",
    ),
    "history as a text": (
        {"prompt": "Name a tree.", "history": "none", "response": "Fir."},
        "history",
        "expected an array of pairs of texts",
    ),
    "null prompt": ({"prompt": None, "response": "Fir."}, "prompt", "expected text or messages, got null"),
    "no prompt": ({"response": "Fir.", "topic": "trees"}, "prompt", "missing, and response is not a transcript"),
}


@pytest.mark.parametrize(("row", "field", "reason"), BAD.values(), ids=BAD.keys())
def test_a_bad_draft_names_its_field(row: Row, field: str, reason: str) -> None:
    with pytest.raises(RowProblem) as caught:
        parse_draft(row, "f", 1)
    assert caught.value.field == field
    assert caught.value.reason.startswith(reason)


def test_the_prompt_is_added_only_to_rows_from_which_it_cannot_be_read_next_to_a_response() -> None:
    plain = parse_draft({"prompt": "Name a tree.", "response": "Fir."}, "f", 1)
    assert with_prompt(plain) is plain.row
    chat = parse_draft({"messages": [*ASKED, assistant("Fir.")]}, "f", 1)
    assert with_prompt(chat) == {**chat.row, "prompt": "Name a tree."}
    brief = [{"role": "system", "content": "Be brief."}, *ASKED, assistant("Fir.")]
    whole = parse_draft({"prompt": "Name a tree.", "response": brief}, "f", 1)
    again = {**with_prompt(whole), "response": "Fir."}
    assert parse_draft(again, "f", 1).prompt == whole.prompt


@pytest.mark.parametrize(
    ("text", "written"),
    [
        ("\n\nHuman: q\n\nAssistant: a\n\nAssistant: b", "\n\nHuman: q\n\nAssistant: BETTER"),
        ("\n\nHuman: hi\r\n\r\nAssistant: a\r\nb", "\n\nHuman: hi\n\nAssistant: BETTER"),
        (
            "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: b",
            "\n\nHuman: q\n\nAssistant: a\n\nHuman: r\n\nAssistant: BETTER",
        ),
    ],
)
def test_a_transcript_whose_end_is_not_as_it_was_read_keeps_its_prompt(text: str, written: str) -> None:
    draft = parse_draft({"text": text}, "f", 1)
    assert with_response(draft, "BETTER") == {"text": written}


@pytest.mark.parametrize(
    "row",
    [
        {"context": "Name a tree.", "response1": "Ash.", "response2": "Fir.", "overall_preference": 0},
        {"prompt": "Name a tree.", "chosen": "Ash.", "rejected": "Fir.", "score_chosen": 5, "score_rejected": 5},
        {"prompt": "Name a tree.", "response_a": "Ash.", "response_b": "Fir.", "winner": "tie"},
    ],
)
def test_a_question_is_read_from_a_pair_of_equally_good_responses(row: Row) -> None:
    """Otherwise the labels would choose the prompts that drafts are written for."""
    assert [message.content for message in parse_question(row, "f", 1).prompt] == ["Name a tree."]

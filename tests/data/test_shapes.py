"""The shapes in which a pair may be written: messages, objects, parts, conversations, context in fields of its own."""

import json
from pathlib import Path
from typing import Any

import pytest

from pitcli.data.formats import iter_questions, parse_draft
from pitcli.data.pair_formats import parse_pair
from pitcli.data.pair_reading import load_pairs
from pitcli.data.rows import Message
from pitcli.data.strict_json import RowProblem

ASKED, A, B = "Where do storks winter?", "In Africa.", "At home."
SYSTEM, USER, ASSISTANT = (lambda text, role=role: Message(role, text) for role in ("system", "user", "assistant"))
EARLIER = (USER("Hi"), ASSISTANT("Hello."))


def user(text: str = ASKED) -> dict[str, Any]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


def system(text: str, role: str = "system") -> dict[str, Any]:
    return {"role": role, "content": text}


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def hh(*turns: str, mark: str = "\n\n") -> str:
    return "".join(f"{mark}{('Human', 'Assistant')[n % 2]}: {turn}" for n, turn in enumerate(turns))


PLAIN = {"chosen": A, "rejected": B}
TALKS = {"chosen": [user("Hi"), assistant("Hello."), user(), assistant(A)]}
TALKS["rejected"] = [*TALKS["chosen"][:-1], assistant(B)]
WITH_SYSTEM = {field: [system("Be kind."), *messages] for field, messages in TALKS.items()}

SHAPES: dict[str, tuple[dict[str, Any], tuple[Message, ...]]] = {
    "completions as one message": ({"prompt": ASKED, "chosen": assistant(A), "rejected": assistant(B)}, (USER(ASKED),)),
    "prompt as one message": ({"prompt": user(), **PLAIN}, (USER(ASKED),)),
    "parts": (
        {"prompt": [user(parts("Where do storks ", "winter?"))], "chosen": [assistant(parts(A))], "rejected": parts(B)},  # type: ignore[arg-type]
        (USER(ASKED),),
    ),
    "parts that are a prompt": ({"prompt": parts(ASKED), **PLAIN}, (USER(ASKED),)),
    "developer": ({"prompt": [system("Be kind.", "developer"), user()], **PLAIN}, (SYSTEM("Be kind."), USER(ASKED))),
    "empty system message": ({"prompt": [system(""), user()], **PLAIN}, (USER(ASKED),)),
    "roles in capitals": ({"prompt": [{"role": "USER", "content": ASKED}], **PLAIN}, (USER(ASKED),)),
    "null fields of a table": (
        {"prompt": [{"role": None, "from": "human", "content": None, "value": ASKED, "tool_calls": None}], **PLAIN},
        (USER(ASKED),),
    ),
    "system beside a prompt": ({"system": "Be kind.", "prompt": ASKED, **PLAIN}, (SYSTEM("Be kind."), USER(ASKED))),
    "system_prompt beside a question": (
        {"system_prompt": "Be kind.", "question": ASKED, **PLAIN},
        (SYSTEM("Be kind."), USER(ASKED)),
    ),
    "system beside messages that have it": (
        {"system": "Be  kind.", "prompt": [system("Be kind."), user()], **PLAIN},
        (SYSTEM("Be kind."), USER(ASKED)),
    ),
    "history beside a prompt": ({"history": [["Hi", "Hello."]], "prompt": ASKED, **PLAIN}, (*EARLIER, USER(ASKED))),
    "history of messages": (
        {"history": [user("Hi"), assistant("Hello.")], "system": "Be kind.", "prompt": [user()], **PLAIN},
        (SYSTEM("Be kind."), *EARLIER, USER(ASKED)),
    ),
    "system beside conversations": ({"system": "Be kind.", **TALKS}, (SYSTEM("Be kind."), *EARLIER, USER(ASKED))),
    "conversations that begin with the prompt": ({"prompt": "Hi", **TALKS}, (*EARLIER, USER(ASKED))),
    "conversations that end with the prompt": ({"prompt": ASKED, **TALKS}, (*EARLIER, USER(ASKED))),
    "conversations and other white space": (
        {"prompt": f" {ASKED}\n", "chosen": [user(), assistant(A)], "rejected": [user(), assistant(B)]},
        (USER(ASKED),),
    ),
    "conversations with a system message": (
        {"prompt": "Hi", **WITH_SYSTEM},
        (SYSTEM("Be kind."), *EARLIER, USER(ASKED)),
    ),
    "conversations and a system column": (
        {"prompt": "Hi", "system": "Be kind.", **TALKS},
        (SYSTEM("Be kind."), *EARLIER, USER(ASKED)),
    ),
    "one conversation, one text": ({"prompt": "Hi", "chosen": TALKS["chosen"], "rejected": B}, (*EARLIER, USER(ASKED))),
    "transcripts beside a prompt": (
        {"prompt": hh(ASKED) + "\n\nAssistant:", "chosen": hh(ASKED, A), "rejected": hh(ASKED, B)},
        (USER(ASKED),),
    ),
    "transcripts with CRLF": (
        {"chosen": hh(ASKED, A, mark="\r\n\r\n"), "rejected": hh(ASKED, B, mark="\r\n\r\n")},
        (USER(ASKED),),
    ),
    "transcripts with a turn per line": (
        {"chosen": hh(ASKED, A, mark="\n")[1:], "rejected": hh(ASKED, B, mark="\n")[1:]},
        (USER(ASKED),),
    ),
    "a transcript's last turn in two parts": (
        {
            "chosen": hh(ASKED) + "\n\nAssistant: \n\nAssistant: In Africa.",
            "rejected": hh(ASKED, B) + "\n\nAssistant: ",
        },
        (USER(ASKED),),
    ),
    "HelpSteer turns": (
        {"prompt": f"Hi\n<extra_id_1>Assistant\nHello.\n<extra_id_1>User\n{ASKED}", **PLAIN},
        (*EARLIER, USER(ASKED)),
    ),
    "fields in capitals": ({" Prompt": ASKED, "Chosen": A, "REJECTED ": B}, (USER(ASKED),)),
}


@pytest.mark.parametrize(("row", "prompt"), SHAPES.values(), ids=SHAPES)
def test_every_shape_is_the_same_pair(row: dict[str, Any], prompt: tuple[Message, ...]) -> None:
    pair = parse_pair(row, "f", 1)
    assert (pair.prompt, pair.chosen, pair.rejected, pair.extra) == (prompt, A, B, {})


def test_parts_of_a_last_turn_are_joined_as_inside() -> None:
    row = {"chosen": hh(ASKED, "Two ways:") + "\n\nAssistant: south.", "rejected": hh(ASKED, "None.")}
    pair = parse_pair(row, "f", 1)
    assert (pair.chosen, pair.rejected, pair.prompt) == ("Two ways:\n\nsouth.", "None.", (USER(ASKED),))


def test_a_response_that_quotes_a_transcript_is_a_text() -> None:
    quoted = hh("Who?", "Me.")[2:]
    assert parse_pair({"prompt": ASKED, "chosen": quoted, "rejected": B}, "f", 1).chosen == quoted


def test_other_spellings_do_not_hide_a_field() -> None:
    pair = parse_pair({"Prompt": "extra", "prompt": ASKED, **PLAIN}, "f", 1)
    assert (pair.prompt, pair.extra) == ((USER(ASKED),), {"Prompt": "extra"})


REFUSED: dict[str, tuple[dict[str, Any], str, str]] = {
    "a tool call": (
        {"prompt": [user(), {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}, user()], **PLAIN},
        "prompt[1].content",
        "a tool call; conversations with tools cannot be used",
    ),
    "an image": (
        {"prompt": [{"role": "user", "content": [{"type": "image", "url": "x"}]}], **PLAIN},
        "prompt[0].content[0]",
        'expected text, got a part of type "image"',
    ),
    "an image beside text": (
        {"prompt": [user()], "chosen": [*parts("a"), {"type": "image_url"}], "rejected": B},
        "chosen[1]",
        'expected text, got a part of type "image_url"',
    ),
    "a part without type": (
        {"prompt": [{"role": "user", "content": [{"text": "x"}]}], **PLAIN},
        "prompt[0].content[0]",
        "expected text, got an object without type",
    ),
    "a part with null": (
        {"prompt": [{"role": "user", "content": [{"type": "text", "text": None}]}], **PLAIN},
        "prompt[0].content[0]",
        "expected text, got null",
    ),
    "other system message": (
        {"system": "Be rude.", "prompt": [system("Be kind."), user()], **PLAIN},
        "system",
        "differs from the system message of the prompt",
    ),
    "conversations with another system message": (
        {"system": "Be rude.", "prompt": "Hi", **WITH_SYSTEM},
        "chosen",
        "its system message differs",
    ),
    "conversations that part before their ends": (
        {"prompt": "Hi", "chosen": TALKS["chosen"], "rejected": [user("Hi"), assistant(B)]},
        "rejected",
        "differs from chosen at turn 2",
    ),
    "a number as system message": ({"system": 3, "prompt": ASKED, **PLAIN}, "system", "expected text, got a number"),
    "a text as history": (
        {"history": "Hi", "prompt": ASKED, **PLAIN},
        "history",
        "expected an array of pairs of texts",
    ),
    "half a history": ({"history": [user("Hi")], "prompt": ASKED, **PLAIN}, "history[1].role", "expected assistant"),
}


@pytest.mark.parametrize(("row", "field", "reason"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_read_is_refused_not_dropped(row: dict[str, Any], field: str, reason: str) -> None:
    with pytest.raises(RowProblem) as caught:
        parse_pair(row, "f", 1)
    assert caught.value.field == field
    assert caught.value.reason.startswith(reason)


def test_drafts_and_questions_have_the_context_of_their_prompts() -> None:
    row = {"system": "Be kind.", "history": [["Hi", "Hello."]], "prompt": ASKED, "response": "x"}
    assert parse_draft(row, "f", 1).prompt == (SYSTEM("Be kind."), *EARLIER, USER(ASKED))


def test_the_rows_of_questions_are_read_as_the_same_prompts(tmp_path: Path) -> None:
    """pit sample writes them, and pit improve reads them."""
    path = tmp_path / "rows.jsonl"
    rows = [
        {"system": "Be kind.", "history": [["Hi", "Hello."]], "instruction": ASKED, "output": [A, B]},
        {"system": "Be kind.", "prompt": ASKED},
        {"prompt": "Hi", **WITH_SYSTEM},
        {"prompt": hh("Hi", "Hello.", ASKED), **PLAIN},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    questions = [question for _, question in iter_questions(path, lambda error: pytest.fail(str(error)))]
    assert [parse_draft({**q.row, "response": "x"}, "f", 1).prompt for q in questions] == [q.prompt for q in questions]
    assert questions[0].prompt == questions[2].prompt == (SYSTEM("Be kind."), *EARLIER, USER(ASKED))


@pytest.mark.parametrize(("second", "warned"), [("Who? You.", True), ("You.", False)])
def test_a_warning_if_every_chosen_begins_with_its_prompt(
    second: str, warned: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "rows.jsonl"
    rows = [
        {"prompt": ASKED, "chosen": f"{ASKED} {A}", "rejected": B},
        {"prompt": "Who?", "chosen": second, "rejected": B},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert len(load_pairs(path)) == 2
    expected = f"warning: {path}: every chosen response begins with its prompt"
    assert capfd.readouterr().err.startswith(expected) is warned

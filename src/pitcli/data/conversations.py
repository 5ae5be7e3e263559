"""Converts texts, transcripts and lists of messages to prompts and completions, and checks them."""

import json
import re
from itertools import groupby
from typing import Any

from pitcli.data.rows import Message, Prompt
from pitcli.data.strict_json import RowProblem, describe

ROLE_OF_SPEAKER = {"Human": "user", "Assistant": "assistant"}
# How a transcript begins, and what separates its turns: HH as published, and the one-line form of OpenAssistant.
TRANSCRIPTS = (
    ("Human:", re.compile(r"\n\n(Human|Assistant):")),
    ("### Human:", re.compile(r"(?:^|(?<=\s))### (Human|Assistant):")),
)


def required(row: dict[str, Any], field: str) -> Any:
    if field not in row:
        present = ", ".join(map(repr, row))[:120] or "no fields"
        raise RowProblem(field, f"missing; the row has {present}")
    return row[field]


def checked_text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise RowProblem(field, f"expected text, got {describe(value)}")
    if not value.strip():
        raise RowProblem(field, "empty")
    return value


def parse_prompt(value: object, field: str) -> Prompt:
    """A prompt from messages, a transcript, or the text of one user message."""
    if isinstance(value, list):
        return checked_prompt(messages_of(value, field), field)
    if not isinstance(value, str):
        raise RowProblem(field, f"expected text or messages, got {describe(value)}")
    turns = turns_of(checked_text(value, field))
    if turns is None:
        return (Message("user", value),)
    if turns[-1] == ("assistant", ""):
        turns.pop()
    return conversation(turns, field)


def written_prompt(prompt: Prompt) -> str | list[dict[str, str]]:
    """The prompt as JSON that is read back as the same prompt: one user message as text, otherwise messages."""
    looks_like_turns = prompt[0].content.lstrip().startswith(tuple(opening for opening, _ in TRANSCRIPTS))
    if len(prompt) == 1 and not looks_like_turns:
        return prompt[0].content
    return [message._asdict() for message in prompt]


def turns_of(text: str) -> list[Message] | None:
    """The turns of a transcript, stripped; None if the text is not a transcript."""
    bare = text.lstrip()
    for opening, mark in TRANSCRIPTS:
        parts = mark.split("\n\n" + bare)
        speakers = parts[1::2]
        if bare.startswith(opening) and ("Assistant" in speakers or text.startswith("\n\nHuman:")):
            return [
                Message(ROLE_OF_SPEAKER[speaker], words.strip())
                for speaker, words in zip(speakers, parts[2::2], strict=True)
            ]
    return None


def conversation(turns: list[Message], field: str) -> Prompt:
    """The turns of a transcript as a prompt."""
    for number, turn in enumerate(turns, start=1):
        if not turn.content:
            raise RowProblem(field, f"turn {number} of the transcript ({turn.role}) is empty")
    # HH as published has a few assistant turns in two parts (9 of 7,195 rows here): they become one message.
    merged = [
        Message(role, "\n\n".join(turn.content for turn in run))
        for role, run in groupby(turns, key=lambda turn: turn.role)
    ]
    return checked_prompt(merged, field)


def messages_of(value: list[Any], field: str) -> list[Message]:
    messages = []
    for index, item in enumerate(value):
        where = f"{field}[{index}]"
        if not isinstance(item, dict):
            raise RowProblem(where, f"expected a message with role and content, got {describe(item)}")
        role, content = (item.get(key) for key in ("role", "content"))
        if role not in ("system", "user", "assistant"):
            raise RowProblem(f"{where}.role", f"expected system, user or assistant, got {_shown(role)}")
        messages.append(Message(role, checked_text(content, f"{where}.content")))
    return messages


def _shown(role: object) -> str:
    return json.dumps(role[:40]) if isinstance(role, str) else describe(role)


def checked_prompt(messages: list[Message], field: str) -> Prompt:
    """The messages as a prompt: an optional system message, then user and assistant in turn, ending with the user."""
    if not messages:
        raise RowProblem(field, "empty")
    offset = messages[0].role == "system"
    for index, message in enumerate(messages[offset:], start=offset):
        expected = "assistant" if (index - offset) % 2 else "user"
        if message.role != expected:
            raise RowProblem(f"{field}[{index}].role", f"expected {expected}, got {message.role}")
    if messages[-1].role != "user":
        raise RowProblem(f"{field}[{len(messages) - 1}].role", "the prompt must end with a user message")
    return tuple(messages)


def completion_of(row: dict[str, Any], field: str, prompt: Prompt) -> str:
    """A completion from a text, or from one assistant message with or without the prompt before it."""
    value = required(row, field)
    if not isinstance(value, list):
        return checked_text(value, field).strip()
    before, completion = _split_completion(messages_of(value, field), field)
    # UltraFeedback repeats the prompt at the head of both conversations.
    if before and tuple(before) != prompt:
        raise RowProblem(field, "expected one assistant message, or the prompt and one assistant message")
    return completion


def parse_implicit_prompt(row: dict[str, Any]) -> tuple[Prompt, str, str]:
    """A pair from two whole conversations; the prompt is what they share: all but the last assistant turn."""
    chosen, rejected = (_whole_conversation(required(row, field), field) for field in ("chosen", "rejected"))
    (before, better), (before_rejected, worse) = (
        _split_completion(chosen, "chosen"),
        _split_completion(rejected, "rejected"),
    )
    if before != before_rejected:
        pairs = zip(before, before_rejected, strict=False)
        shared = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(before), len(before_rejected)))
        difference = (
            f"differs from chosen at turn {shared + 1}, before the last" if shared else "shares no prompt with chosen"
        )
        raise RowProblem("rejected", f"{difference}; both must be identical up to the last assistant turn")
    if isinstance(row["chosen"], str):
        return conversation(before, "chosen"), better, worse
    return checked_prompt(before, "chosen"), better, worse


def _whole_conversation(value: object, field: str) -> list[Message]:
    if isinstance(value, list):
        return messages_of(value, field)
    turns = turns_of(checked_text(value, field))
    if turns is None:
        raise RowProblem("prompt", f"missing, and {field} is not a transcript of Human and Assistant turns")
    return turns


def _split_completion(messages: list[Message], field: str) -> tuple[list[Message], str]:
    if not messages or messages[-1].role != "assistant":
        raise RowProblem(field, "must end with an assistant turn" if messages else "empty")
    completion = messages[-1].content.strip()
    if not completion:
        raise RowProblem(field, "the last assistant turn is empty")
    return messages[:-1], completion

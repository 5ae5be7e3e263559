"""Texts, transcripts and lists of messages to prompts and completions, each checked."""

import json
import re
from itertools import groupby
from typing import Any

from pitcli.data.rows import Message, Prompt
from pitcli.data.strict_json import RowProblem, describe

ROLE_OF_SPEAKER = {"Human": "user", "Assistant": "assistant"}
# How a transcript opens, and what parts its turns: HH as published, and the one-line form of OpenAssistant.
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
        raise RowProblem(field, f"{describe(value)} where text is wanted")
    if not value.strip():
        raise RowProblem(field, "empty")
    return value


def parse_prompt(value: object, field: str) -> Prompt:
    """Messages, a transcript, or the text of one user message."""
    if isinstance(value, list):
        return checked(messages_of(value, field), field)
    if not isinstance(value, str):
        raise RowProblem(field, f"{describe(value)} where text or messages are wanted")
    turns = turns_of(checked_text(value, field))
    if turns is None:
        return (Message("user", value),)
    if turns[-1] == ("assistant", ""):
        turns.pop()
    return conversation(turns, field)


def turns_of(text: str) -> list[Message] | None:
    """The turns of a transcript, stripped; None where the text is not one."""
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
    # HH as published has a few assistant turns in two parts (9 of 7,195 rows here): one message each.
    merged = [
        Message(role, "\n\n".join(turn.content for turn in run))
        for role, run in groupby(turns, key=lambda turn: turn.role)
    ]
    return checked(merged, field)


def messages_of(value: list[Any], field: str) -> list[Message]:
    messages = []
    for index, item in enumerate(value):
        where = f"{field}[{index}]"
        if not isinstance(item, dict):
            raise RowProblem(where, f"{describe(item)} where a message with role and content is wanted")
        role, content = (item.get(key) for key in ("role", "content"))
        if role not in ("system", "user", "assistant"):
            raise RowProblem(f"{where}.role", f"{_shown(role)} is not system, user or assistant")
        messages.append(Message(role, checked_text(content, f"{where}.content")))
    return messages


def _shown(role: object) -> str:
    return json.dumps(role[:40]) if isinstance(role, str) else describe(role)


def checked(messages: list[Message], field: str) -> Prompt:
    """Optional system, then user and assistant in turn, a user last."""
    if not messages:
        raise RowProblem(field, "empty")
    offset = messages[0].role == "system"
    for index, message in enumerate(messages[offset:], start=offset):
        wanted = "assistant" if (index - offset) % 2 else "user"
        if message.role != wanted:
            raise RowProblem(f"{field}[{index}].role", f"{message.role} where {wanted} is wanted")
    if messages[-1].role != "user":
        raise RowProblem(f"{field}[{len(messages) - 1}].role", "the prompt must end with a user message")
    return tuple(messages)


def completion_of(row: dict[str, Any], field: str, prompt: Prompt) -> str:
    """A text, or one assistant message, with or without the prompt before it."""
    value = required(row, field)
    if not isinstance(value, list):
        return checked_text(value, field).strip()
    before, completion = _parted(messages_of(value, field), field)
    # UltraFeedback repeats the prompt at the head of both conversations.
    if before and tuple(before) != prompt:
        raise RowProblem(field, "one assistant message, or the prompt and one, is wanted")
    return completion


def parse_shared(row: dict[str, Any]) -> tuple[Prompt, str, str]:
    """The prompt as what two whole conversations share: all but the last assistant turn."""
    chosen, rejected = (_whole(required(row, field), field) for field in ("chosen", "rejected"))
    (before, better), (before_rejected, worse) = _parted(chosen, "chosen"), _parted(rejected, "rejected")
    if before != before_rejected:
        pairs = zip(before, before_rejected, strict=False)
        shared = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(before), len(before_rejected)))
        what = (
            f"differs from chosen at turn {shared + 1}, before the last" if shared else "shares no prompt with chosen"
        )
        raise RowProblem("rejected", f"{what}; the two must be alike up to the last assistant turn")
    if isinstance(row["chosen"], str):
        return conversation(before, "chosen"), better, worse
    return checked(before, "chosen"), better, worse


def _whole(value: object, field: str) -> list[Message]:
    if isinstance(value, list):
        return messages_of(value, field)
    turns = turns_of(checked_text(value, field))
    if turns is None:
        raise RowProblem("prompt", f"missing, and {field} is no transcript of Human and Assistant turns")
    return turns


def _parted(messages: list[Message], field: str) -> tuple[list[Message], str]:
    if not messages or messages[-1].role != "assistant":
        raise RowProblem(field, "must end with an assistant turn" if messages else "empty")
    completion = messages[-1].content.strip()
    if not completion:
        raise RowProblem(field, "the last assistant turn is empty")
    return messages[:-1], completion

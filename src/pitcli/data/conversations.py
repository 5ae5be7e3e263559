"""Converts texts, transcripts and lists of messages to prompts and completions, and checks them."""

import json
import re
from itertools import groupby
from operator import eq
from typing import Any

from pitcli.data.rows import Message, Prompt
from pitcli.data.strict_json import RowProblem, describe

# The roles of messages, by the names that data sets give them, in lower case.
ROLES = {
    **dict.fromkeys(("system", "developer"), "system"),
    **dict.fromkeys(("user", "human", "prompter"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bard", "bing", "ai", "bot", "chatbot", "model"), "assistant"),
}
TEXT_PARTS = ("text", "input_text", "output_text")
ROLE_OF_SPEAKER = {"Human": "user", "Assistant": "assistant"}
# How a transcript begins, and what separates its turns: HH as published, the one-line form of OpenAssistant, and
# transcripts with one turn per line.
TRANSCRIPTS = (
    ("Human:", re.compile(r"\n\n(Human|Assistant):")),
    ("### Human:", re.compile(r"(?:^|(?<=\s))### (Human|Assistant):")),
    ("Human:", re.compile(r"\n(Human|Assistant):")),
)
OPENINGS = tuple(opening for opening, _ in TRANSCRIPTS)


class PublishedProblem(RowProblem):
    """A row that cannot be used, as some rows of a published format are known to be: skipped and counted by default."""


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
    """A prompt from messages, one message, text parts, a transcript, or the text of one user message."""
    if isinstance(value, dict):
        value = [value]
    if isinstance(value, list) and are_parts(value):
        value = text_of(value, field)
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
    if len(prompt) == 1 and not prompt[0].content.lstrip().startswith(OPENINGS):
        return prompt[0].content
    return [message._asdict() for message in prompt]


def turns_of(text: str) -> list[Message] | None:
    """The turns of a transcript, stripped, with adjacent turns of one speaker joined; None if it is not a transcript.

    HH as published has a few assistant turns in two parts (9 of 7,195 rows here).
    """
    bare = text.lstrip()
    if not bare.startswith(OPENINGS):
        return None
    if "\r" in text:
        text = text.replace("\r\n", "\n")
        bare = text.lstrip()
    for opening, mark in TRANSCRIPTS:
        parts = mark.split("\n\n" + bare)
        if bare.startswith(opening) and "Assistant" in parts[1::2]:
            return _joined_turns(parts)
    return _joined_turns(TRANSCRIPTS[0][1].split(text)) if text.startswith("\n\nHuman:") else None


def with_last_turn(text: str, content: str) -> str:
    """A transcript with another last turn, which may have been written in several parts."""
    text = text.replace("\r\n", "\n")
    for opening, mark in TRANSCRIPTS:
        marks = [*mark.finditer(text)]
        if text.lstrip().startswith(opening) and marks:
            last = next(n for n in range(len(marks)) if len({found[1] for found in marks[n:]}) == 1)
            return f"{text[: marks[last].end()]} {content}"
    return content


def _joined_turns(parts: list[str]) -> list[Message]:
    """The turns of a transcript that was split at its marks."""
    speakers = parts[1::2]
    turns = [
        Message(ROLE_OF_SPEAKER[speaker], words.strip()) for speaker, words in zip(speakers, parts[2::2], strict=True)
    ]
    if not any(map(eq, speakers, speakers[1:])):
        return turns
    return [
        Message(role, "\n\n".join(turn.content for turn in run if turn.content))
        for role, run in groupby(turns, key=lambda turn: turn.role)
    ]


def conversation(turns: list[Message], field: str) -> Prompt:
    """The turns of a transcript as a prompt."""
    for number, turn in enumerate(turns, start=1):
        if not turn.content:
            raise RowProblem(field, f"turn {number} of the transcript ({turn.role}) is empty")
    return checked_prompt(turns, field)


def messages_of(value: list[Any], field: str) -> list[Message]:
    """The messages of a list; each has role and content, or from and value. An empty system message is left out."""
    messages = []
    for index, item in enumerate(value):
        where = f"{field}[{index}]"
        if not isinstance(item, dict):
            raise RowProblem(where, f"expected a message with role and content, got {describe(item)}")
        sender = "role" if item.get("role") is not None or "from" not in item else "from"
        text = "content" if item.get("content") is not None or "value" not in item else "value"
        role, content = _role(item.get(sender), f"{where}.{sender}"), item.get(text)
        if role == "system" and not index and (content is None or content == ""):
            continue
        if content is None and item.get("tool_calls"):
            raise RowProblem(f"{where}.content", "a tool call; conversations with tools cannot be used")
        messages.append(Message(role, text_of(content, f"{where}.{text}")))
    return messages


def _role(name: object, field: str) -> str:
    role = ROLES.get(name) or ROLES.get(name.strip().lower()) if isinstance(name, str) else None
    if role is None:
        shown = json.dumps(name[:40]) if isinstance(name, str) else describe(name)
        raise RowProblem(field, f"expected system, user or assistant, got {shown}")
    return role


def are_parts(value: list[Any]) -> bool:
    """Whether a list contains the parts of one message, not messages."""
    return bool(value) and isinstance(value[0], dict) and "type" in value[0] and not {"role", "from"} & value[0].keys()


def text_of(content: object, field: str) -> str:
    """The content of a message: a text, or a list of text parts, which are joined."""
    if not isinstance(content, list):
        return checked_text(content, field)
    texts = []
    for index, part in enumerate(content):
        if isinstance(part, dict) and part.get("type") in TEXT_PARTS:
            part = part.get("text")  # noqa: PLW2901
        elif isinstance(part, dict):
            kind = part.get("type")
            shown = f"a part of type {json.dumps(kind[:40])}" if isinstance(kind, str) else "an object without type"
            raise RowProblem(f"{field}[{index}]", f"expected text, got {shown}")
        if not isinstance(part, str):
            raise RowProblem(f"{field}[{index}]", f"expected text, got {describe(part)}")
        texts.append(part)
    return checked_text("".join(texts), field)


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

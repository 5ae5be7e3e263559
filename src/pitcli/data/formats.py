"""What people have (HH transcripts, TRL messages, canonical rows) becomes preference pairs and drafts."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from pitcli.data.records import Draft, Message, PreferencePair, Prompt, RowError, file_label, read_rows
from pitcli.data.strict_json import RowProblem, describe
from pitcli.errors import InputError

MAX_LISTED_ERRORS = 20
ROLE_OF_SPEAKER = {"Human": "user", "Assistant": "assistant"}
# How a transcript opens, and what parts its turns: HH as published, and the one-line form of OpenAssistant.
TRANSCRIPTS = (
    ("Human:", re.compile(r"\n\n(Human|Assistant):")),
    ("### Human:", re.compile(r"(?:^|(?<=\s))### (Human|Assistant):")),
)


def parse_pair(row: dict[str, Any], file: str, line: int) -> PreferencePair:
    """A pair from a row of any format; completions are stripped, as what parts turns is not their text."""
    if "prompt" in row:
        prompt = _parse_prompt(row["prompt"], "prompt")
        chosen, rejected = (_completion(row, field, prompt) for field in ("chosen", "rejected"))
    else:
        prompt, chosen, rejected = _parse_shared(row)
    if chosen == rejected:
        raise RowProblem("rejected", "the same text as chosen")
    extra = {key: row[key] for key in row if key not in ("id", "prompt", "chosen", "rejected")}
    pair_id = _parse_id(row) or _content_id(prompt, chosen, rejected)
    return PreferencePair(pair_id, prompt, chosen, rejected, extra, line)


def parse_draft(row: dict[str, Any], file: str, line: int) -> Draft:
    """A draft; its response stays verbatim, so that a draft which is kept comes back byte for byte."""
    prompt = _parse_prompt(_required(row, "prompt"), "prompt")
    response = _text(_required(row, "response"), "response")
    return Draft(_parse_id(row), prompt, response, row, line)


def parse_question(row: dict[str, Any], file: str, line: int) -> Draft:
    """A prompt that awaits its response: any row with a prompt, or a pair, whose prompt is then added to the row."""
    if "prompt" in row:
        prompt = _parse_prompt(row["prompt"], "prompt")
        return Draft(_parse_id(row), prompt, "", row, line)
    prompt = parse_pair(row, file, line).prompt
    return Draft(_parse_id(row), prompt, "", {**row, "prompt": [message._asdict() for message in prompt]}, line)


def load_pairs(
    path: str | Path, max_rows: int | None = None, notes: Counter[str] | None = None
) -> list[PreferencePair]:
    """Every pair of a file, or one InputError that lists what is wrong with it."""
    notes = Counter() if notes is None else notes
    errors: list[RowError] = []
    lines_by_id: dict[str, int] = {}
    pairs: dict[tuple[Prompt, str, str], PreferencePair] = {}
    label = file_label(path)
    for line, row in read_rows(path, errors.append, notes):
        try:
            pair = parse_pair(row, label, line)
        except RowProblem as problem:
            errors.append(RowError(label, line, problem.field, problem.reason))
            continue
        content = (pair.prompt, pair.chosen, pair.rejected)
        if content in pairs:
            notes["duplicate rows"] += 1
            continue
        if row.get("id") is not None and lines_by_id.setdefault(pair.id, line) != line:
            errors.append(RowError(label, line, "id", f"the same as on line {lines_by_id[pair.id]}"))
            continue
        if (pair.prompt, pair.rejected, pair.chosen) in pairs:
            notes["pairs in both orders"] += 1
        pairs[content] = pair
        if len(pairs) == max_rows:
            break
    _refuse_errors(errors)
    if not pairs:
        raise InputError(f"{label}: no rows")
    return list(pairs.values())


def iter_drafts(
    path: str | Path, on_error: Callable[[RowError], None], notes: Counter[str] | None = None
) -> Iterator[tuple[int, Draft]]:
    """Drafts as their lines arrive; an unusable file is refused here, before the first is asked for."""
    notes = Counter() if notes is None else notes
    return _parsed(parse_draft, read_rows(path, on_error, notes), file_label(path), on_error, notes)


def iter_questions(
    path: str | Path, on_error: Callable[[RowError], None], notes: Counter[str] | None = None
) -> Iterator[tuple[int, Draft]]:
    """As iter_drafts, for rows that have no response yet."""
    notes = Counter() if notes is None else notes
    return _parsed(parse_question, read_rows(path, on_error, notes), file_label(path), on_error, notes)


def _parsed(
    parse: Callable[[dict[str, Any], str, int], Draft],
    rows: Iterator[tuple[int, dict[str, Any]]],
    label: str,
    on_error: Callable[[RowError], None],
    notes: Counter[str],
) -> Iterator[tuple[int, Draft]]:
    seen: set[int] = set()
    for line, row in rows:
        try:
            draft = parse(row, label, line)
            if seen_before(seen, row if draft.id is None else draft.id):
                if draft.id is not None:
                    raise RowProblem("id", "the same as on an earlier line; give each row its own, or none")
                notes["duplicate rows"] += 1
        except RowProblem as problem:
            on_error(RowError(label, line, problem.field, problem.reason))
        else:
            yield line, draft


def seen_before(seen: set[int], value: object) -> bool:
    """By 60 bits of a hash: a million values take 64 MiB, and two of them meet with a chance of 1 in 2 million."""
    key = hash(repr(value)) >> 4
    if key in seen:
        return True
    seen.add(key)
    return False


def _refuse_errors(errors: list[RowError]) -> None:
    if not errors:
        return
    listed = [str(error) for error in errors[:MAX_LISTED_ERRORS]]
    more = len(errors) - len(listed)
    raise InputError([*listed, f"and {more} more"] if more else listed)


def _parse_id(row: dict[str, Any]) -> str | None:
    value = row.get("id")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowProblem("id", f"{describe(value)} where text or a whole number is wanted")
    if not str(value).strip():
        raise RowProblem("id", "empty; leave the field out where there is no id")
    return str(value)


def _content_id(prompt: Prompt, chosen: str, rejected: str) -> str:
    canonical = json.dumps([prompt, chosen, rejected], separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]


def _required(row: dict[str, Any], field: str) -> Any:
    if field not in row:
        present = ", ".join(map(repr, row))[:120] or "no fields"
        raise RowProblem(field, f"missing; the row has {present}")
    return row[field]


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise RowProblem(field, f"{describe(value)} where text is wanted")
    if not value.strip():
        raise RowProblem(field, "empty")
    return value


def _parse_prompt(value: object, field: str) -> Prompt:
    if isinstance(value, list):
        return _checked(_messages(value, field), field)
    if not isinstance(value, str):
        raise RowProblem(field, f"{describe(value)} where text or messages are wanted")
    turns = _turns(_text(value, field), field)
    if turns is None:
        return (Message("user", value),)
    if turns[-1] == ("assistant", ""):
        turns.pop()
    return _conversation(turns, field)


def _turns(text: str, field: str) -> list[Message] | None:
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


def _conversation(turns: list[Message], field: str) -> Prompt:
    for number, turn in enumerate(turns, start=1):
        if not turn.content:
            raise RowProblem(field, f"turn {number} of the transcript ({turn.role}) is empty")
    # HH as published has a few assistant turns in two parts (9 of 7,195 rows here): one message each.
    merged = [
        Message(role, "\n\n".join(turn.content for turn in run))
        for role, run in groupby(turns, key=lambda turn: turn.role)
    ]
    return _checked(merged, field)


def _messages(value: list[Any], field: str) -> list[Message]:
    messages = []
    for index, item in enumerate(value):
        where = f"{field}[{index}]"
        if not isinstance(item, dict):
            raise RowProblem(where, f"{describe(item)} where a message with role and content is wanted")
        role, content = (item.get(key) for key in ("role", "content"))
        if role not in ("system", "user", "assistant"):
            raise RowProblem(f"{where}.role", f"{_shown(role)} is not system, user or assistant")
        messages.append(Message(role, _text(content, f"{where}.content")))
    return messages


def _shown(role: object) -> str:
    return json.dumps(role[:40]) if isinstance(role, str) else describe(role)


def _checked(messages: list[Message], field: str) -> Prompt:
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


def _completion(row: dict[str, Any], field: str, prompt: Prompt) -> str:
    value = _required(row, field)
    if not isinstance(value, list):
        return _text(value, field).strip()
    before, completion = _parted(_messages(value, field), field)
    # UltraFeedback repeats the prompt at the head of both conversations.
    if before and tuple(before) != prompt:
        raise RowProblem(field, "one assistant message, or the prompt and one, is wanted")
    return completion


def _parse_shared(row: dict[str, Any]) -> tuple[Prompt, str, str]:
    """The prompt as what two whole conversations share: all but the last assistant turn."""
    chosen, rejected = (_whole(_required(row, field), field) for field in ("chosen", "rejected"))
    (before, better), (before_rejected, worse) = _parted(chosen, "chosen"), _parted(rejected, "rejected")
    if before != before_rejected:
        pairs = zip(before, before_rejected, strict=False)
        shared = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(before), len(before_rejected)))
        what = (
            f"differs from chosen at turn {shared + 1}, before the last" if shared else "shares no prompt with chosen"
        )
        raise RowProblem("rejected", f"{what}; the two must be alike up to the last assistant turn")
    if isinstance(row["chosen"], str):
        return _conversation(before, "chosen"), better, worse
    return _checked(before, "chosen"), better, worse


def _whole(value: object, field: str) -> list[Message]:
    if isinstance(value, list):
        return _messages(value, field)
    turns = _turns(_text(value, field), field)
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

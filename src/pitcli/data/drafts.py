"""Drafts in every shape: a response next to a prompt, or a conversation whose last turn is the draft."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from pitcli.data.completions import split_completion, with_completions
from pitcli.data.context import CONTEXT, prompt_with_context, question_of, with_context
from pitcli.data.conversations import (
    ROLES,
    are_parts,
    checked_prompt,
    checked_text,
    conversation,
    messages_of,
    parse_prompt,
    turns_of,
    with_last_turn,
    written_prompt,
)
from pitcli.data.field_paths import with_fields
from pitcli.data.ids import parse_id
from pitcli.data.known_formats import UnknownFormat
from pitcli.data.pair_formats import parse_pair, recognise
from pitcli.data.published_formats import Tie, summaries
from pitcli.data.rows import Draft, Prompt, Row
from pitcli.data.strict_json import RowProblem
from pitcli.data.thoughts import THINK, Tags, checked_answer

Place = tuple[str | int, ...]  # the path to a value in a row: ("messages",), ("response", "body", "choices", 0)

RESPONSE = "response"
OTHER_RESPONSES = ("completion", "output", "answer")
CONVERSATIONS: tuple[Place, ...] = (("messages",), ("body", "messages"), ("conversations",), ("conversation",))
TRANSCRIPT: Place = ("text",)
CHAT_COMPLETIONS: tuple[Place, ...] = (("body", "choices", 0, "message"), ("choices", 0, "message"))
QUESTIONS = ("instruction", "question", "input")
WITH_PROMPT = {*CONTEXT, *QUESTIONS}  # what belongs to the prompt in some shapes
EXPECTED = "expected a draft: response next to a prompt, or messages of which the last is the assistant's"


def parse_draft(row: Row, file: str, line: int) -> Draft:
    """A draft; its response stays verbatim, so that an unchanged draft is written back byte for byte.

    Thoughts are cut from the response; they become the field thoughts of the row.
    """
    return draft_without_thoughts(_verbatim_draft(row, line))


def draft_without_thoughts(draft: Draft, tags: Sequence[Tags] = (THINK,)) -> Draft:
    """The draft with its thoughts in the field thoughts; the same draft without any.

    Raises RowProblem if the draft is nothing but thoughts.
    """
    text, thoughts = checked_answer(draft.response, RESPONSE, tags)
    if text == draft.response:
        return draft
    row = {**with_response(draft, text), **({"thoughts": thoughts} if thoughts else {})}
    return replace(draft, response=text, row=row)


def _verbatim_draft(row: Row, line: int) -> Draft:
    text, value = row.get("prompt"), row.get(RESPONSE)
    if isinstance(text, str) and isinstance(value, str) and not (row.keys() & WITH_PROMPT or "<extra_id_1>" in text):
        # as below; saves 4 s per million rows
        return Draft(parse_id(row), parse_prompt(text, "prompt"), checked_text(value, RESPONSE), row, line)
    named = _plainly_named(row)
    place = response_place(named)
    value = value_or_none(named, place)
    if value is None:
        raise _missing(row)
    prompt, response = _prompt_and_response(named, place, value)
    # responses next to a prompt were stripped
    verbatim = value if isinstance(value, str) and value.strip() == response else response
    return Draft(parse_id(named), prompt, verbatim, row, line)


def parse_question(row: Row, file: str, line: int, fields: Mapping[str, str] | None = None) -> Draft:
    """A prompt whose response, if there is one, is ignored: from a prompt, a draft or a pair.

    The prompt is added to the row as `prompt`, if it could not be found next to a new `response`.
    """
    row = with_fields(row, fields) if fields else row
    named = _plainly_named(row)
    place = response_place(named)
    value = value_or_none(named, place)
    is_pair = _is_pair(named)
    if named.get("prompt") is not None and isinstance(named.get("chosen", ""), str):
        return Draft(parse_id(named), prompt_with_context(named, "prompt"), "", row, line)
    if value is None and not is_pair:
        return Draft(parse_id(named), _prompt_next_to_response(named), "", row, line)
    prompt = _prompt_of_pair(row, file, line) if is_pair else _prompt_and_response(named, place, value)[0]
    kept = {name: value for name, value in row.items() if name not in CONTEXT}
    return Draft(parse_id(named), prompt, "", {**kept, "prompt": [message._asdict() for message in prompt]}, line)


def _prompt_of_pair(row: Row, file: str, line: int) -> Prompt:
    """The prompt of a pair, whichever response is better, if any."""
    try:
        return parse_pair(row, file, line).prompt
    except Tie as tie:
        if tie.prompt is None:
            raise
        return tie.prompt


def response_place(row: Row) -> Place:
    """The path to the draft: a text, a message, or a conversation whose last turn it is."""
    if isinstance(response := row.get(RESPONSE), dict):
        inner = next((place for place in CHAT_COMPLETIONS if value_or_none(response, place) is not None), ())
        return (RESPONSE, *inner)
    if response is not None:
        return (RESPONSE,)
    for place in CONVERSATIONS:
        if _ends_with_assistant(value_or_none(row, place)):
            return place
    for field in OTHER_RESPONSES:
        if row.get(field) is not None:
            return (field,)
    has_prompt = any(field in row for field in ("prompt", "info", *QUESTIONS))
    return TRANSCRIPT if row.get("text") is not None and not has_prompt else (RESPONSE,)


def value_or_none(row: Any, place: Place) -> Any:
    """The value at a path, None if there is none."""
    value = row
    for key in place:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def with_response(draft: Draft, response: str) -> Row:
    """The row of a draft in its own shape, with another response."""
    if response == draft.response:
        return draft.row
    named = _plainly_named(draft.row)
    first, *rest = response_place(named)
    field = first if first in draft.row else next(name for name in draft.row if name.strip().lower() == first)
    return dict(_put(draft.row, [field, *rest], draft.response, response))


def as_messages(draft: Draft, response: str) -> Row:
    """The row of a draft as messages, the last of them the response; its other fields are kept."""
    used = {"prompt", "info", *WITH_PROMPT, RESPONSE, *OTHER_RESPONSES, "text", *(place[0] for place in CONVERSATIONS)}
    kept = {field: value for field, value in draft.row.items() if field.strip().lower() not in used}
    turns = [message._asdict() for message in draft.prompt]
    return {**kept, "messages": [*turns, {"role": "assistant", "content": response}]}


def with_prompt(draft: Draft) -> Row:
    """The row of a draft with its prompt as `prompt`, so that it can be read next to another `response`."""
    is_next_to_response = "prompt" in draft.row and draft.row.get(RESPONSE) is not None
    # a response that is a whole conversation may have another one
    if is_next_to_response and _prompt_next_to_response(_plainly_named(draft.row)) == draft.prompt:
        return draft.row
    kept = {name: value for name, value in draft.row.items() if name not in CONTEXT}
    return {**kept, "prompt": written_prompt(draft.prompt)}


def _put(value: Any, place: Sequence[str | int], old: str, new: str) -> Any:
    """A copy of the value in which the response at a path is the new one."""
    if place:
        copy = list(value) if isinstance(value, list) else dict(value)
        copy[place[0]] = _put(value[place[0]], place[1:], old, new)  # type: ignore[index]
        return copy
    if isinstance(value, dict):
        field = next(field for field in ("content", "value", "text") if value.get(field) is not None)
        return {**value, field: _put(value[field], (), old, new)}
    if isinstance(value, list):  # messages of which the last is the response, or parts that are it together
        return [*([] if are_parts(value) else value[:-1]), _put(value[-1], (), old, new)]
    if value.strip() == old.strip():
        return new
    # a transcript ends with the old response, if that was not in several parts
    before, found, _ = value.rpartition(old)
    return before + new if found else with_last_turn(value, new)


def _prompt_and_response(row: Row, place: Place, value: Any) -> tuple[Prompt, str]:
    """The prompt, and the response stripped."""
    field = ".".join(map(str, place))
    if place in CONVERSATIONS or place == TRANSCRIPT or not _has_prompt(row):
        return _whole_conversation(row, field, value)
    if "info" in row and "prompt" not in row:
        summary = value if isinstance(value, dict) else {"text": checked_text(value, field)}
        prompt, response, _ = summaries({"info": row["info"], "summaries": [summary, summary], "choice": 0})
        return prompt, response
    return with_completions(_prompt_next_to_response(row), {field: value}, field, field)[:2]


def _whole_conversation(row: Row, field: str, value: Any) -> tuple[Prompt, str]:
    """The prompt and the response of messages or a transcript."""
    if isinstance(value, list) and not are_parts(value):
        before, response = split_completion(messages_of(value, field), field)
        return with_context(row, checked_prompt(before, field)), response
    turns = turns_of(value) if isinstance(value, str) else None
    if turns is None:
        if "custom_id" in row:
            raise RowProblem("body", "missing: a line of a batch's output; join it to its request by custom_id")
        if "prompt" in row:
            raise _without_prompt(row)
        raise RowProblem(
            "prompt", f"missing, and {field} is not a transcript of Human and Assistant turns; {_shown(row)}"
        )
    before, response = split_completion(turns, field)
    return with_context(row, conversation(before, field)), response


def _has_prompt(row: Row) -> bool:
    fields = any(row.get(field) is not None for field in ("prompt", "info", *QUESTIONS))
    return fields or any(isinstance(value_or_none(row, place), list) for place in CONVERSATIONS)


def _prompt_next_to_response(row: Row) -> Prompt:
    if row.get("prompt") is not None:
        return prompt_with_context(row, "prompt")
    for place in CONVERSATIONS:
        if isinstance(turns := value_or_none(row, place), list):
            field = ".".join(map(str, place))
            return prompt_with_context({**row, field: turns}, field)
    for field in QUESTIONS:
        if row.get(field) is not None:
            return question_of(row, field)
    raise _without_prompt(row)


def _ends_with_assistant(value: Any) -> bool:
    last = value_or_none(value, (-1,)) if isinstance(value, list) else None
    role = (last.get("role") or last.get("from")) if isinstance(last, dict) else None
    return isinstance(role, str) and ROLES.get(role.strip().lower()) == "assistant"


def _is_pair(row: Row) -> bool:
    try:
        recognise(row)
    except UnknownFormat:
        return False
    return not isinstance(row.get("output"), str) or "rejected" in row


def _plainly_named(row: Row) -> Row:
    """The row with the names of its fields in lower case; of "Prompt" and "prompt" the latter."""
    if all(name.islower() and name == name.strip() for name in row):
        return row
    return {**{name.strip().lower(): value for name, value in row.items()}, **row}


def _without_prompt(row: Row) -> RowProblem:
    return RowProblem("prompt", "expected text or messages, got null" if "prompt" in row else f"missing; {_shown(row)}")


def _shown(row: Row) -> str:
    return f"the row has {', '.join(map(repr, row))[:120] or 'no fields'}"


def _missing(row: Row) -> RowProblem:
    """The error of a row without a response."""
    if RESPONSE in row and row.get("error") is None:
        return RowProblem(RESPONSE, "expected text, got null")
    if row.get("error") is not None and "custom_id" in row:
        return RowProblem(RESPONSE, "null: the batch reports an error for this request")
    return RowProblem(RESPONSE, f"missing; {_shown(row)}; {EXPECTED}; pit sample writes drafts for rows with a prompt")

"""The context of a prompt in fields of its own: a system message, earlier turns (history), and an input."""

import re

from pitcli.data.conversations import checked_prompt, checked_text, conversation, messages_of, parse_prompt
from pitcli.data.rows import Message, Prompt, Row
from pitcli.data.strict_json import RowProblem, describe

# HelpSteer separates the turns of a prompt by these lines; the first turn, the user's, has none.
TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")
CONTEXT = ("system", "history", "system_prompt")


def prompt_with_context(row: Row, field: str) -> Prompt:
    """The prompt in a field, with the system message and the earlier turns in other fields of the row."""
    prompt = _prompt(row[field], field)
    context = {name: row[name] for name in CONTEXT if name in row and name != field}
    return with_context(context, prompt) if context else prompt


def with_context(row: Row, prompt: Prompt) -> Prompt:
    """The prompt after the system message and the earlier turns in fields of the row."""
    system, history = system_of(row), history_of(row)
    if prompt[0].role == "system":
        if system and system[0].content.split() != prompt[0].content.split():
            raise RowProblem("system", "differs from the system message of the prompt; remove one of them")
        system, prompt = [prompt[0]], prompt[1:]
    return checked_prompt([*system, *history, *prompt], "history") if system or history else prompt


def question_of(row: Row, field: str) -> Prompt:
    """The prompt: system, history, the text and its input, joined as in LLaMA-Factory; only the text is required."""
    question = checked_text(row[field], field)
    if field == "instruction" and not is_absent(row, "input"):
        question = f"{question}\n{checked_text(row['input'], 'input')}"
    return with_context(row, (Message("user", question),))


def system_of(row: Row) -> list[Message]:
    """The system message of a field of the row; none if the field is missing or empty."""
    name = "system_prompt" if is_absent(row, "system") else "system"
    return [] if is_absent(row, name) else [Message("system", checked_text(row[name], name))]


def history_of(row: Row) -> list[Message]:
    """The earlier turns: pairs of a question and its answer, as in LLaMA-Factory, or messages."""
    history = row.get("history") or []
    if not isinstance(history, list):
        raise RowProblem("history", f"expected an array of pairs of texts, got {describe(history)}")
    if history and isinstance(history[0], dict):
        return messages_of(history, "history")
    messages = []
    for index, turns in enumerate(history):
        where = f"history[{index}]"
        if not isinstance(turns, list) or len(turns) != 2:
            raise RowProblem(where, f"expected a question and its answer, got {description_of(turns)}")
        messages.append(Message("user", checked_text(turns[0], f"{where}[0]")))
        messages.append(Message("assistant", checked_text(turns[1], f"{where}[1]")))
    return messages


def _prompt(value: object, field: str) -> Prompt:
    if not isinstance(value, str) or "<extra_id_1>" not in value or not TURN.search(value):
        return parse_prompt(value, field)
    first, *rest = TURN.split(checked_text(value, field))
    turns = [Message("user", first.strip())] if first.strip() else []
    turns += [Message(speaker.lower(), words.strip()) for speaker, words in zip(rest[::2], rest[1::2], strict=True)]
    if turns[-1] == ("assistant", ""):
        turns.pop()
    return conversation(turns, field)


def is_absent(row: Row, field: str) -> bool:
    value = row.get(field)
    return value is None or (isinstance(value, str) and not value.strip())


def description_of(value: object) -> str:
    return f"an array of {len(value)}" if isinstance(value, list) else describe(value)

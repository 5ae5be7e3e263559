"""Parsers of published data sets whose rows are not a prompt with a chosen and a rejected response.

A row contains two responses and a label, or several responses with grades.
"""

import json
from collections.abc import Callable
from math import nan

from pitcli.data.completions import Parts, parse_implicit_prompt, split_completion, with_completions
from pitcli.data.context import description_of, is_absent, prompt_with_context, question_of, with_context
from pitcli.data.conversations import checked_prompt, checked_text, messages_of
from pitcli.data.ratings import Rated, number_of
from pitcli.data.rows import Message, Prompt, Row
from pitcli.data.strict_json import RowProblem, Unused, describe

Parse = Callable[[Row], Parts | list[Rated]]
Choose = Callable[[Row], int]

SIDES = {"model_a": 0, "model_b": 1, "response_a": 0, "response_b": 1, "a": 0, "b": 1}
BOTH_BAD = ("tie", "tie (bothbad)", "both_bad", "bothbad", "both")


class Tie(Unused):
    """A row that says that neither response is better. prompt: of the row, if it was read."""

    def __init__(self, prompt: Prompt | None = None) -> None:
        super().__init__("", "a tie, neither response is better")
        self.prompt = prompt


def labelled_pair(prompt: str, fields: tuple[str, str], choose: Choose) -> Parse:
    """A parser of rows with a prompt and two responses, of which `choose` returns the better one, 0 or 1."""

    def parse(row: Row) -> Parts:
        asked = prompt_with_context(row, prompt)
        try:
            better = choose(row)
        except Tie:
            raise Tie(asked) from None
        return with_completions(asked, row, fields[better], fields[1 - better])

    return parse


def by_sign(field: str) -> Choose:
    """The label is a number: below 0 the first response is better, above 0 the second."""

    def choose(row: Row) -> int:
        strength = number_of(row[field], field)
        if not strength:
            raise Tie
        return int(strength > 0)

    return choose


def by_index(field: str, first: int = 0) -> Choose:
    """The label is one of two numbers: `first` if the first response is better, otherwise the other of 0 and 1."""

    def choose(row: Row) -> int:
        label = number_of(row[field], field)
        if label not in (0, 1):
            raise RowProblem(field, f"expected 0 or 1, the better response, got {json.dumps(row[field])[:40]}")
        return int(label != first)

    return choose


def by_winner(field: str) -> Choose:
    """The label is model_a, model_b or a tie, as in Chatbot Arena."""

    def choose(row: Row) -> int:
        winner = row[field].lower() if isinstance(row[field], str) else row[field]
        if not isinstance(winner, str) or winner not in (*SIDES, *BOTH_BAD):
            shown = json.dumps(winner[:40]) if isinstance(winner, str) else describe(winner)
            raise RowProblem(field, f"expected model_a, model_b or tie, got {shown}")
        if winner in BOTH_BAD:
            raise Tie
        return SIDES[winner]

    return choose


def arena(row: Row) -> Parts:
    """A battle of Chatbot Arena: two conversations and the model that won."""
    fields = ("conversation_a", "conversation_b")
    better = by_winner("winner")(row)
    conversations = {field: row[field] for field in fields}
    if isinstance(turn := row.get("turn"), int):  # in MT-Bench only this turn was judged, and others may follow it
        conversations = {field: turns[: 2 * turn] for field, turns in conversations.items() if isinstance(turns, list)}
    return parse_implicit_prompt(conversations, fields[better], fields[1 - better])


def openai_preference(row: Row) -> Parts:
    """A row of OpenAI's preference fine-tuning: input.messages and the two outputs as messages."""
    asked = row["input"]
    if not isinstance(asked, dict) or not isinstance(asked.get("messages"), list):
        raise RowProblem("input", "expected an object with messages")
    prompt = prompt_with_context({"input.messages": asked["messages"]}, "input.messages")
    return with_completions(prompt, row, "preferred_output", "non_preferred_output")


def conversation_pair(field: str) -> Parse:
    """A parser of rows whose prompt is a list of messages in `field`."""

    def parse(row: Row) -> Parts:
        if not isinstance(row[field], list):
            raise RowProblem(field, f"expected messages, got {describe(row[field])}")
        return with_completions(prompt_with_context(row, field), row, "chosen", "rejected")

    return parse


def rejected_beside_messages(field: str) -> Parse:
    """A parser of rows of ms-swift: messages that end with the chosen response, and the rejected one in `field`."""

    def parse(row: Row) -> Parts:
        if not isinstance(row["messages"], list):
            raise RowProblem("messages", f"expected messages, got {describe(row['messages'])}")
        before, chosen = split_completion(messages_of(row["messages"], "messages"), "messages")
        prompt = with_context(row, checked_prompt(before, "messages"))
        return with_completions(prompt, {"chosen": chosen, field: row[field]}, "chosen", field)

    return parse


def graded_responses(prompt: str, responses: str, text: str, grades: tuple[str, ...], sign: int = 1) -> Parse:
    """A parser of rows with a list of responses, each with a text and one of the grades; sign -1: 1 is the best."""

    def parse(row: Row) -> list[Rated]:
        asked = prompt_with_context(row, prompt)
        items = row[responses]
        if not isinstance(items, list) or not items or not all(isinstance(item, dict) for item in items):
            raise RowProblem(responses, f"expected an array of objects with {text} and {grades[0]}")
        rated = []
        for index, item in enumerate(items):
            name = next((grade for grade in grades if not is_absent(item, grade)), None)
            grade = nan if name is None else sign * _grade(item[name])
            words = "" if is_absent(item, text) else checked_text(item[text], f"{responses}[{index}].{text}")
            rated.append(Rated(asked, words.strip(), grade, line=0))
        return rated

    return parse


def _grade(value: object) -> float:
    """The grade of a response; NaN if it has none: N/A."""
    try:
        return number_of(value, "")
    except RowProblem:
        return nan


def ranked_outputs(row: Row) -> Parts:
    outputs = row["output"]
    if not isinstance(outputs, list) or len(outputs) != 2:
        reason = f"expected two texts, the better one first, got {description_of(outputs)}; or use chosen and rejected"
        raise RowProblem("output", reason)
    better, worse = (checked_text(text, f"output[{index}]").strip() for index, text in enumerate(outputs))
    return question_of(row, "instruction"), better, worse


def summaries(row: Row) -> Parts:
    """A comparison of summarize-from-feedback; the prompt is worded as its authors worded it for their models."""
    info, items, choice = (row[field] for field in ("info", "summaries", "choice"))
    if not isinstance(info, dict):
        raise RowProblem("info", f"expected an object with post, got {describe(info)}")
    if not isinstance(items, list) or len(items) != 2 or not all(isinstance(item, dict) for item in items):
        raise RowProblem("summaries", "expected an array of two objects, each with text")
    if choice not in (0, 1) or not isinstance(choice, int) or isinstance(choice, bool):
        raise RowProblem("choice", f"expected 0 or 1, the index of the better summary, got {json.dumps(choice)[:40]}")
    if is_absent(info, "post") and not is_absent(info, "article"):
        question = f"Article:\n{checked_text(info['article'], 'info.article')}\n\nTL;DR:"
    else:
        post = checked_text(info.get("post"), "info.post")
        heads = (("subreddit", "SUBREDDIT: r/"), ("title", "TITLE: "))
        lines = [f"{head}{checked_text(info[key], f'info.{key}')}" for key, head in heads if not is_absent(info, key)]
        question = "\n\n".join([*lines, f"POST: {post}", "TL;DR:"])
    texts = [checked_text(item.get("text"), f"summaries[{n}].text").strip() for n, item in enumerate(items)]
    return (Message("user", question),), texts[choice], texts[1 - choice]

"""The known formats of preference pairs, each recognised by its fields.

To add one, write a function from a row to (prompt, chosen, rejected) and add it to FORMATS.
"""

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from pitcli.data.conversations import (
    checked_prompt,
    checked_text,
    completion_of,
    messages_of,
    parse_implicit_prompt,
    parse_prompt,
)
from pitcli.data.rows import Message, PreferencePair, Prompt
from pitcli.data.strict_json import RowProblem, describe

Row = dict[str, Any]
Parts = tuple[Prompt, str, str]

RATING_FIELD = "helpfulness"
ROLE_OF_SENDER = {"human": "user", "gpt": "assistant", "system": "system"}


class UnknownFormat(RowProblem):
    """A row that fits no format, or more than one."""


class Format(NamedTuple):
    """A row with all `fields` has this format; they and `optional` ones go into the pair, others are kept as extra."""

    name: str
    fields: tuple[str, ...]
    parse: Callable[[Row], Parts]
    optional: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.fields)})"


def _explicit_prompt(row: Row) -> Parts:
    prompt = parse_prompt(row["prompt"], "prompt")
    return prompt, completion_of(row, "chosen", prompt), completion_of(row, "rejected", prompt)


def _text_pair(field: str, chosen: str, rejected: str) -> Callable[[Row], Parts]:
    """A parser of rows whose prompt is a text, with optional context, and whose completions are texts."""

    def parse(row: Row) -> Parts:
        prompt = _question(row, field)
        return prompt, completion_of(row, chosen, prompt), completion_of(row, rejected, prompt)

    return parse


def _ranked_outputs(row: Row) -> Parts:
    outputs = row["output"]
    if not isinstance(outputs, list) or len(outputs) != 2:
        reason = f"expected two texts, the better one first, got {_counted(outputs)}; or use chosen and rejected"
        raise RowProblem("output", reason)
    better, worse = (checked_text(text, f"output[{index}]").strip() for index, text in enumerate(outputs))
    return _question(row, "instruction"), better, worse


def _counted(value: object) -> str:
    return f"an array of {len(value)}" if isinstance(value, list) else describe(value)


def _question(row: Row, field: str) -> Prompt:
    """The prompt: system, history, the text and its input, joined as in LLaMA-Factory; only the text is required."""
    messages = _system(row)
    history = row.get("history") or []
    if not isinstance(history, list):
        raise RowProblem("history", f"expected an array of pairs of texts, got {describe(history)}")
    for index, turns in enumerate(history):
        where = f"history[{index}]"
        if not isinstance(turns, list) or len(turns) != 2:
            raise RowProblem(where, f"expected a question and its answer, got {_counted(turns)}")
        messages.append(Message("user", checked_text(turns[0], f"{where}[0]")))
        messages.append(Message("assistant", checked_text(turns[1], f"{where}[1]")))
    question = checked_text(row[field], field)
    if field == "instruction" and not _absent(row, "input"):
        question = f"{question}\n{checked_text(row['input'], 'input')}"
    return (*messages, Message("user", question))


def _system(row: Row) -> list[Message]:
    return [] if _absent(row, "system") else [Message("system", checked_text(row["system"], "system"))]


def _absent(row: Row, field: str) -> bool:
    value = row.get(field)
    return value is None or (isinstance(value, str) and not value.strip())


def _sharegpt(row: Row) -> Parts:
    turns = row["conversations"]
    if not isinstance(turns, list):
        raise RowProblem("conversations", f"expected messages with from and value, got {describe(turns)}")
    messages = [_role_and_content(turn, f"conversations[{index}]") for index, turn in enumerate(turns)]
    system = [] if messages and messages[0]["role"] == "system" else _system(row)
    prompt = checked_prompt([*system, *messages_of(messages, "conversations")], "conversations")
    chosen, rejected = ({field: [_role_and_content(row[field], field)]} for field in ("chosen", "rejected"))
    return prompt, completion_of(chosen, "chosen", prompt), completion_of(rejected, "rejected", prompt)


def _role_and_content(value: object, field: str) -> dict[str, object]:
    """Converts a message with from and value to one with role and content."""
    if not isinstance(value, dict):
        raise RowProblem(field, f"expected a message with from and value, got {describe(value)}")
    sender = value.get("from")
    if not isinstance(sender, str) or sender not in ROLE_OF_SENDER:
        shown = json.dumps(sender[:40]) if isinstance(sender, str) else describe(sender)
        raise RowProblem(f"{field}.from", f"expected human, gpt or system, got {shown}")
    return {"role": ROLE_OF_SENDER[sender], "content": checked_text(value.get("value"), f"{field}.value")}


def _summaries(row: Row) -> Parts:
    """A comparison of summarize-from-feedback; the prompt is worded as its authors worded it for their models."""
    info, summaries, choice = (row[field] for field in ("info", "summaries", "choice"))
    if not isinstance(info, dict):
        raise RowProblem("info", f"expected an object with post, got {describe(info)}")
    if not isinstance(summaries, list) or len(summaries) != 2 or not all(isinstance(item, dict) for item in summaries):
        raise RowProblem("summaries", "expected an array of two objects, each with text")
    if choice not in (0, 1) or not isinstance(choice, int) or isinstance(choice, bool):
        raise RowProblem("choice", f"expected 0 or 1, the index of the better summary, got {json.dumps(choice)[:40]}")
    if _absent(info, "post") and not _absent(info, "article"):
        question = f"Article:\n{checked_text(info['article'], 'info.article')}\n\nTL;DR:"
    else:
        post = checked_text(info.get("post"), "info.post")
        heads = (("subreddit", "SUBREDDIT: r/"), ("title", "TITLE: "))
        lines = [f"{head}{checked_text(info[key], f'info.{key}')}" for key, head in heads if not _absent(info, key)]
        question = "\n\n".join([*lines, f"POST: {post}", "TL;DR:"])
    texts = [checked_text(item.get("text"), f"summaries[{n}].text").strip() for n, item in enumerate(summaries)]
    return (Message("user", question),), texts[choice], texts[1 - choice]


def _refuse_single_rating(row: Row) -> Parts:
    raise UnknownFormat("", "expected a pair, got one rated response; pairs from ratings need all rows of a file")


RATINGS = "HelpSteer-like ratings"
CANONICAL = ("prompt", "chosen", "rejected")
_CONTEXT = ("system", "history", "input")

FORMATS = (
    Format("HH transcripts / TRL, implicit prompt", ("chosen", "rejected"), parse_implicit_prompt),
    Format("canonical / TRL preference", CANONICAL, _explicit_prompt),
    Format("UltraFeedback, binarised", (*CANONICAL, "score_chosen", "score_rejected"), _explicit_prompt),
    Format(
        "Alpaca pairs",
        ("instruction", "chosen", "rejected"),
        _text_pair("instruction", "chosen", "rejected"),
        _CONTEXT,
    ),
    Format("Alpaca, output ranked", ("instruction", "output"), _ranked_outputs, _CONTEXT),
    Format(
        "Alpaca, output and rejected",
        ("instruction", "output", "rejected"),
        _text_pair("instruction", "output", "rejected"),
        _CONTEXT,
    ),
    Format("Orca DPO", ("question", "chosen", "rejected"), _text_pair("question", "chosen", "rejected"), _CONTEXT[:2]),
    Format("LLaMA-Factory, ShareGPT", ("conversations", "chosen", "rejected"), _sharegpt, ("system",)),
    Format("summarize-from-feedback", ("info", "summaries", "choice"), _summaries),
    Format(
        "Aligner", ("question", "answer", "correction"), _text_pair("question", "correction", "answer"), _CONTEXT[:2]
    ),
    Format(RATINGS, ("prompt", "response", RATING_FIELD), _refuse_single_rating),
)
KNOWN = f"known formats: {'; '.join(map(str, FORMATS))}"


def recognise(row: Row, rating_field: str = RATING_FIELD) -> Format:
    """The format of a row, by its fields; raises UnknownFormat if none fits, or more than one."""
    return _recognise(frozenset(row), tuple(row)[:8], rating_field)


@lru_cache(maxsize=1024)
def _recognise(present: frozenset[str], shown: tuple[str, ...], rating_field: str) -> Format:
    ratings = FORMATS[-1]._replace(fields=("prompt", "response", rating_field))
    known = (*FORMATS[:-1], ratings)
    fitting = [candidate for candidate in known if present.issuperset(candidate.fields)]
    if present.issuperset(CANONICAL):  # a row with a prompt and both responses needs no guessing
        fitting = [candidate for candidate in fitting if set(candidate.fields).issuperset(CANONICAL)]
    # prefer the format with the most fields: Orca's question, chosen and rejected include TRL's chosen and rejected
    fitting = [f for f in fitting if not any(set(f.fields) < set(other.fields) for other in fitting)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UnknownFormat(
            "", f"fits more than one format: {', or '.join(map(str, fitting))}; remove fields until one fits"
        )
    nearest = max(known, key=lambda f: len(present.intersection(f.fields)) / len(f.fields))
    missing = next(field for field in nearest.fields if field not in present)
    fields = ", ".join(map(repr, shown))[:120] or "no fields"
    raise UnknownFormat(missing, f"missing; the row has {fields}; the nearest format is {nearest}")


def parse_pair(row: Row, file: str, line: int) -> PreferencePair:
    """A pair from a row of any format; completions are stripped, as white space between turns is not their text."""
    row_format = recognise(row)
    prompt, chosen, rejected = row_format.parse(row)
    if chosen == rejected:
        raise RowProblem("rejected" if "rejected" in row else "", "the same text as chosen")
    explicit = set(CANONICAL) <= set(row_format.fields)
    used = {"id", *CANONICAL} if explicit else {"id", *CANONICAL, *row_format.fields, *row_format.optional}
    extra = {key: row[key] for key in row if key not in used}
    pair_id = parse_id(row) or content_id(prompt, chosen, rejected)
    return PreferencePair(pair_id, prompt, chosen, rejected, extra, line, file)


def parse_id(row: Row) -> str | None:
    """The id of a row as text; None if it has none."""
    value = row.get("id")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        shown = value if isinstance(value, float) else describe(value)
        raise RowProblem("id", f"expected text or a whole number, got {shown}")
    if not str(value).strip():
        raise RowProblem("id", "empty; remove the field if the row has no id")
    return str(value)


def content_id(prompt: Prompt, chosen: str, rejected: str) -> str:
    """The id of a pair whose row has none: a hash of its content."""
    canonical = json.dumps([prompt, chosen, rejected], separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]

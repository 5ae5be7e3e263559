"""The known formats of preference pairs, each recognised by its fields.

To add one: write a function from a row to (prompt, chosen, rejected), and give it a line in FORMATS.
"""

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any, NamedTuple

from pitcli.data.conversations import checked, checked_text, completion_of, messages_of, parse_prompt, parse_shared
from pitcli.data.rows import Message, PreferencePair, Prompt
from pitcli.data.strict_json import RowProblem, describe

Row = dict[str, Any]
Parts = tuple[Prompt, str, str]

RATING_FIELD = "helpfulness"
ROLE_OF_SENDER = {"human": "user", "gpt": "assistant", "system": "system"}


class UnknownFormat(RowProblem):
    """A row that no format fits, or more than one."""


class Format(NamedTuple):
    """A row that has all of `fields` is of this format; they and `optional` ones go into the pair, others are kept."""

    name: str
    fields: tuple[str, ...]
    parse: Callable[[Row], Parts]
    optional: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"{self.name} ({', '.join(self.fields)})"


def _explicit(row: Row) -> Parts:
    prompt = parse_prompt(row["prompt"], "prompt")
    return prompt, completion_of(row, "chosen", prompt), completion_of(row, "rejected", prompt)


def _asked(field: str, chosen: str, rejected: str) -> Callable[[Row], Parts]:
    """A parser of rows whose prompt is a text, with what may stand around it, and whose completions are texts."""

    def parse(row: Row) -> Parts:
        prompt = _question(row, field)
        return prompt, completion_of(row, chosen, prompt), completion_of(row, rejected, prompt)

    return parse


def _alpaca_ranked(row: Row) -> Parts:
    outputs = row["output"]
    if not isinstance(outputs, list) or len(outputs) != 2:
        found = f"{len(outputs)} texts" if isinstance(outputs, list) else describe(outputs)
        raise RowProblem("output", f"{found} where two are wanted, the better first (or give chosen and rejected)")
    better, worse = (checked_text(text, f"output[{index}]").strip() for index, text in enumerate(outputs))
    return _question(row, "instruction"), better, worse


def _question(row: Row, field: str) -> Prompt:
    """system, history, the text and its input, as LLaMA-Factory joins them; all but the text may be left out."""
    messages = _system(row)
    history = row.get("history") or []
    if not isinstance(history, list):
        raise RowProblem("history", f"{describe(history)} where pairs of texts are wanted")
    for index, turns in enumerate(history):
        where = f"history[{index}]"
        if not isinstance(turns, list) or len(turns) != 2:
            raise RowProblem(where, "a question and its answer are wanted")
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
        raise RowProblem("conversations", f"{describe(turns)} where messages with from and value are wanted")
    sent = [_sent(turn, f"conversations[{index}]") for index, turn in enumerate(turns)]
    before = [] if sent and sent[0]["role"] == "system" else _system(row)
    prompt = checked([*before, *messages_of(sent, "conversations")], "conversations")
    chosen, rejected = ({field: [_sent(row[field], field)]} for field in ("chosen", "rejected"))
    return prompt, completion_of(chosen, "chosen", prompt), completion_of(rejected, "rejected", prompt)


def _sent(value: object, field: str) -> dict[str, object]:
    """A message with from and value as one with role and content."""
    if not isinstance(value, dict):
        raise RowProblem(field, f"{describe(value)} where a message with from and value is wanted")
    sender = value.get("from")
    if not isinstance(sender, str) or sender not in ROLE_OF_SENDER:
        shown = json.dumps(sender[:40]) if isinstance(sender, str) else describe(sender)
        raise RowProblem(f"{field}.from", f"{shown} is not human, gpt or system")
    return {"role": ROLE_OF_SENDER[sender], "content": checked_text(value.get("value"), f"{field}.value")}


def _summaries(row: Row) -> Parts:
    """A comparison of summarize-from-feedback; the prompt is written as its authors wrote it for their models."""
    info, summaries, choice = (row[field] for field in ("info", "summaries", "choice"))
    if not isinstance(info, dict):
        raise RowProblem("info", f"{describe(info)} where an object with post is wanted")
    if not isinstance(summaries, list) or len(summaries) != 2 or not all(isinstance(item, dict) for item in summaries):
        raise RowProblem("summaries", "two objects with text are wanted")
    if choice not in (0, 1) or not isinstance(choice, int) or isinstance(choice, bool):
        raise RowProblem("choice", "0 or 1 is wanted: the place of the better summary")
    if _absent(info, "post") and not _absent(info, "article"):
        question = f"Article:\n{checked_text(info['article'], 'info.article')}\n\nTL;DR:"
    else:
        post = checked_text(info.get("post"), "info.post")
        heads = (("subreddit", "SUBREDDIT: r/"), ("title", "TITLE: "))
        lines = [f"{head}{checked_text(info[key], f'info.{key}')}" for key, head in heads if not _absent(info, key)]
        question = "\n\n".join([*lines, f"POST: {post}", "TL;DR:"])
    texts = [checked_text(item.get("text"), f"summaries[{n}].text").strip() for n, item in enumerate(summaries)]
    return (Message("user", question),), texts[choice], texts[1 - choice]


def _one_rating(row: Row) -> Parts:
    raise UnknownFormat("", "one rated response; pairs are made of all the rows of a file")


RATINGS = "HelpSteer-like ratings"
CANONICAL = ("prompt", "chosen", "rejected")
_AROUND = ("system", "history", "input")

FORMATS = (
    Format("HH transcripts / TRL, implicit prompt", ("chosen", "rejected"), parse_shared),
    Format("canonical / TRL preference", CANONICAL, _explicit),
    Format("UltraFeedback, binarised", (*CANONICAL, "score_chosen", "score_rejected"), _explicit),
    Format("Alpaca pairs", ("instruction", "chosen", "rejected"), _asked("instruction", "chosen", "rejected"), _AROUND),
    Format("Alpaca, output ranked", ("instruction", "output"), _alpaca_ranked, _AROUND),
    Format(
        "Alpaca, output and rejected",
        ("instruction", "output", "rejected"),
        _asked("instruction", "output", "rejected"),
        _AROUND,
    ),
    Format("Orca DPO", ("question", "chosen", "rejected"), _asked("question", "chosen", "rejected"), _AROUND[:2]),
    Format("LLaMA-Factory, ShareGPT", ("conversations", "chosen", "rejected"), _sharegpt, ("system",)),
    Format("summarize-from-feedback", ("info", "summaries", "choice"), _summaries),
    Format("Aligner", ("question", "answer", "correction"), _asked("question", "correction", "answer"), _AROUND[:2]),
    Format(RATINGS, ("prompt", "response", RATING_FIELD), _one_rating),
)
KNOWN = f"known formats: {'; '.join(map(str, FORMATS))}"


def recognise(row: Row, rating_field: str = RATING_FIELD) -> Format:
    """The format of a row, by its fields; UnknownFormat where none fits, or more than one."""
    return _recognise(frozenset(row), tuple(row)[:8], rating_field)


@lru_cache(maxsize=1024)
def _recognise(present: frozenset[str], shown: tuple[str, ...], rating_field: str) -> Format:
    ratings = FORMATS[-1]._replace(fields=("prompt", "response", rating_field))
    known = (*FORMATS[:-1], ratings)
    fitting = [candidate for candidate in known if present.issuperset(candidate.fields)]
    if present.issuperset(CANONICAL):  # what names its prompt and both responses needs no guessing
        fitting = [candidate for candidate in fitting if set(candidate.fields).issuperset(CANONICAL)]
    # the one that explains most: Orca's question, chosen and rejected hold TRL's chosen and rejected
    fitting = [f for f in fitting if not any(set(f.fields) < set(other.fields) for other in fitting)]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        raise UnknownFormat("", f"fits more than one format: {', or '.join(map(str, fitting))}; leave fields out")
    nearest = max(known, key=lambda f: len(present.intersection(f.fields)) / len(f.fields))
    missing = next(field for field in nearest.fields if field not in present)
    fields = ", ".join(map(repr, shown))[:120] or "no fields"
    raise UnknownFormat(missing, f"missing; the row has {fields}; the nearest format is {nearest}")


def parse_pair(row: Row, file: str, line: int) -> PreferencePair:
    """A pair from a row of any format; completions are stripped, as what parts turns is not their text."""
    found = recognise(row)
    prompt, chosen, rejected = found.parse(row)
    if chosen == rejected:
        raise RowProblem("rejected" if "rejected" in row else "", "the same text as chosen")
    explicit = set(CANONICAL) <= set(found.fields)
    taken = {"id", *CANONICAL} if explicit else {"id", *CANONICAL, *found.fields, *found.optional}
    extra = {key: row[key] for key in row if key not in taken}
    return PreferencePair(parse_id(row) or content_id(prompt, chosen, rejected), prompt, chosen, rejected, extra, line)


def parse_id(row: Row) -> str | None:
    """The id of a row as text; None where it has none."""
    value = row.get("id")
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise RowProblem("id", f"{describe(value)} where text or a whole number is wanted")
    if not str(value).strip():
        raise RowProblem("id", "empty; leave the field out where there is no id")
    return str(value)


def content_id(prompt: Prompt, chosen: str, rejected: str) -> str:
    """The id of a pair that was given none."""
    canonical = json.dumps([prompt, chosen, rejected], separators=(",", ":"))
    return hashlib.sha256(canonical.encode("ascii")).hexdigest()[:16]

"""Thoughts: the reasoning that a model writes before its answer; they are cut from a response and kept beside it."""

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from pitcli.data.rows import PreferencePair
from pitcli.data.strict_json import RowProblem


class Tags(NamedTuple):
    """The texts that begin and end a thought."""

    begin: str
    end: str


THINK = Tags("<think>", "</think>")
CUT = "rows with thoughts, which were cut from the responses"
_NAMES = re.compile("think|thought|reason", re.IGNORECASE)
_FIELDS = ("reasoning_content", "thinking", "reasoning")  # of a response template, as transformers names them


class Answer(NamedTuple):
    """A response without its thoughts, and the thoughts; empty if there are none."""

    text: str
    thoughts: str


def answer_of(text: str, tags: Iterable[Tags] = (THINK,)) -> Answer:
    """The text after the last end of a thought, as chat templates cut it; the text as it is if it has no thoughts.

    A thought that the text begins with and never ends leaves an empty answer. The begin may be missing: some chat
    templates have it in the prompt.
    """
    tags = [pair for pair in tags if pair.begin in text or pair.end in text]
    if not tags:
        return Answer(text, "")
    ended = max((text.rfind(end) + len(end) for _, end in tags if end in text), default=0)
    before, rest = text[:ended], text[ended:]
    if any(rest.lstrip().startswith(begin) for begin, _ in tags):
        before, rest = text, ""
    if not before:
        return Answer(text, "")
    return Answer(rest.strip(), re.sub("|".join(re.escape(mark) for pair in tags for mark in pair), "", before).strip())


def pair_without_thoughts(pair: PreferencePair, tags: Sequence[Tags] = (THINK,)) -> PreferencePair:
    """The pair with its thoughts in the extra fields chosen_thoughts and rejected_thoughts; the same pair without any.

    Raises RowProblem if a response is nothing but thoughts, or if the responses differ only in their thoughts.
    """
    chosen, rejected = checked_answer(pair.chosen, "chosen", tags), checked_answer(pair.rejected, "rejected", tags)
    if (chosen.text, rejected.text) == (pair.chosen, pair.rejected):
        return pair
    if chosen.text == rejected.text:
        raise RowProblem("rejected", "the same text as chosen, apart from their thoughts")
    fields = {"chosen_thoughts": chosen.thoughts, "rejected_thoughts": rejected.thoughts}
    extra = {**pair.extra, **{name: thoughts for name, thoughts in fields.items() if thoughts}}
    return replace(pair, chosen=chosen.text, rejected=rejected.text, extra=extra)


def checked_answer(text: str, field: str, tags: Sequence[Tags]) -> Answer:
    """The text without its thoughts; raises RowProblem if nothing is left of it."""
    answer = answer_of(text, tags)
    if text and not answer.text:
        raise RowProblem(field, "empty: the text is nothing but thoughts")
    return answer


def open_thought(text: str, tags: Iterable[Tags]) -> Tags | None:
    """The tags of the thought that the text begins and does not end; None if there is none."""
    begun = [pair for pair in tags if text.rfind(pair.begin) > text.rfind(pair.end)]
    return max(begun, key=lambda pair: text.rfind(pair.begin), default=None)


def declared_tags(tokenizer: Any) -> tuple[Tags, ...]:
    """<think>, and what the tokenizer declares: in its response template, or by tokens named [THINK] and [/THINK]."""
    tokens = [str(token) for token in tokenizer.added_tokens_decoder.values()]
    return tuple(dict.fromkeys([THINK, *_of_response_template(tokenizer), *_named(tokens)]))


def _of_response_template(tokenizer: Any) -> Iterator[Tags]:
    declared = getattr(tokenizer, "response_template", None)
    fields = declared.get("fields") if isinstance(declared, dict) else None
    for name in _FIELDS if isinstance(fields, dict) else ():
        field = fields.get(name) if isinstance(fields, dict) else None
        begin, end = (field.get("open"), field.get("close")) if isinstance(field, dict) else (None, None)
        if isinstance(begin, str) and isinstance(end, str) and begin and end:
            yield Tags(begin, end)


def _named(tokens: Iterable[str]) -> Iterator[Tags]:
    known = set(tokens)
    for token in sorted(known):
        ends = (f"{token[:1]}/{token[1:]}", token.replace("begin", "end"), token.replace("start", "end"))
        if _NAMES.search(token):
            yield from (Tags(token, end) for end in ends if end != token and end in known)

"""Pairs from rated responses (HelpSteer and similar): the best response to a prompt against each worse one."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pitcli.data.conversations import checked_text, completion_of, conversation, parse_prompt
from pitcli.data.pair_formats import content_id
from pitcli.data.rows import Message, PreferencePair, Prompt
from pitcli.data.strict_json import RowProblem, describe

# HelpSteer separates the turns of a prompt by these lines; the first turn, the user's, has none.
TURN = re.compile(r"\n?<extra_id_1>(User|Assistant)\n")


class Rated(NamedTuple):
    """A response with its rating."""

    prompt: Prompt
    response: str
    rating: float
    line: int


def parse_rated(row: dict[str, Any], rating_field: str, line: int) -> Rated:
    """A rated response from a row with prompt, response and a number in the field `rating_field`."""
    prompt = _prompt(row["prompt"])
    return Rated(prompt, completion_of(row, "response", prompt), _rating(row[rating_field], rating_field), line)


def pairs_of_ratings(rated: Sequence[Rated], margin: float, notes: Counter[str]) -> Iterator[PreferencePair]:
    """Yields per prompt, in order of appearance, its best response against each one rated at least `margin` lower."""
    by_prompt: dict[Prompt, list[Rated]] = {}
    for response in rated:
        by_prompt.setdefault(response.prompt, []).append(response)
    for prompt, responses in by_prompt.items():
        best = max(responses, key=lambda response: response.rating)
        if len(responses) == 1:
            notes["rated responses skipped: the only one to their prompt"] += 1
        for worse in responses:
            if worse is best:
                continue
            if worse.rating == best.rating or best.rating - worse.rating < margin:
                notes["rated responses skipped: rated too close to the best"] += 1
            elif worse.response == best.response:
                notes["rated responses skipped: the same text as the best"] += 1
            else:
                scores = {"score_chosen": best.rating, "score_rejected": worse.rating}
                pair_id = content_id(prompt, best.response, worse.response)
                yield PreferencePair(
                    pair_id, prompt, chosen=best.response, rejected=worse.response, extra=scores, line=best.line
                )


def _prompt(value: object) -> Prompt:
    if not isinstance(value, str) or not TURN.search(value):
        return parse_prompt(value, "prompt")
    first, *rest = TURN.split(checked_text(value, "prompt"))
    turns = [Message("user", first.strip())] if first.strip() else []
    turns += [Message(speaker.lower(), words.strip()) for speaker, words in zip(rest[::2], rest[1::2], strict=True)]
    if turns[-1] == ("assistant", ""):
        turns.pop()
    return conversation(turns, "prompt")


def _rating(value: object, field: str) -> float:
    """The rating as a number; text that is a number is accepted, because cells of a CSV file are text."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)\s*", value):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowProblem(field, f"expected a number, got {describe(value)}")
    return float(value)

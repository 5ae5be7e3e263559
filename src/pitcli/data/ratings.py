"""Pairs from rated responses (HelpSteer and similar): the best response to a prompt against each worse one."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from math import isfinite
from typing import Any, NamedTuple

from pitcli.data.completions import completion_of
from pitcli.data.context import prompt_with_context
from pitcli.data.ids import content_id
from pitcli.data.rows import PreferencePair, Prompt
from pitcli.data.strict_json import RowProblem, describe


class Rated(NamedTuple):
    """A response with its rating."""

    prompt: Prompt
    response: str
    rating: float
    line: int


def parse_rated(row: dict[str, Any], rating_field: str, line: int) -> Rated:
    """A rated response from a row with prompt, response and a number in the field `rating_field`."""
    prompt = prompt_with_context(row, "prompt")
    return Rated(prompt, completion_of(row, "response", prompt), number_of(row[rating_field], rating_field), line)


def pairs_of_ratings(rated: Sequence[Rated], margin: float, notes: Counter[str]) -> Iterator[PreferencePair]:
    """Yields per prompt, in order of appearance, its best response against each one rated at least `margin` lower."""
    by_prompt: dict[Prompt, list[Rated]] = {}
    for response in rated:
        by_prompt.setdefault(response.prompt, []).append(response)
    for prompt, given in by_prompt.items():
        responses = [one for one in given if one.response and isfinite(one.rating)]
        if unusable := len(given) - len(responses):
            notes["rated responses skipped: empty or without a rating"] += unusable
        if not responses:
            continue
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


def number_of(value: object, field: str) -> float:
    """The value as a number; text that is a number is accepted, because cells of a CSV file are text."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?(\d+\.?\d*|\.\d+)\s*", value):
        return float(value)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise RowProblem(field, f"expected a number, got {describe(value)}")
    return float(value)

"""The judge interface: for each comparison, the probability that the response is better than the reference response."""

import math
from collections.abc import Callable, Sequence
from operator import sub
from typing import NamedTuple

from pitcli.data.rows import Comparison, Prompt

ORACLE = "oracle"
PER_CALL = 64

Grade = Callable[[Sequence[tuple[Prompt, str]]], list[float]]


class Verdict(NamedTuple):
    """A judge's answer to one comparison.

    p_better: P(response is better than reference_response); 0.5 is a tie, None means no verdict.
    consistent: whether the judge named the same winner in both orders of the responses; None if it has no orders.
    """

    p_better: float | None
    consistent: bool | None = None


class Judge(NamedTuple):
    """A judge: its name as on the command line, and a function from comparisons to verdicts.

    grades: a function from (prompt, response) pairs to grades; None if the judge only compares. per_call: the number of
    comparisons that `verdicts` should be given at a time.
    """

    name: str
    verdicts: Callable[[Sequence[Comparison]], list[Verdict]]
    grades: Grade | None = None
    per_call: int = PER_CALL


def judge_by_grades(name: str, grade: Grade, scale: float, per_call: int = PER_CALL) -> Judge:
    """Make a judge that grades each response once: P(better) = sigmoid(difference * scale); equal grades tie."""

    known: dict[int, float] = {}  # by a hash of the response: pit label streams texts that may not fit into memory

    def grades(responses: Sequence[tuple[Prompt, str]]) -> list[float]:
        keys = [hash(response) for response in responses]
        new = {key: response for key, response in zip(keys, responses, strict=True) if key not in known}
        known.update(zip(new, grade(list(new.values())) if new else [], strict=True))
        return [known[key] for key in keys]

    def verdicts(comparisons: Sequence[Comparison]) -> list[Verdict]:
        ours = [(c.prompt, c.response) for c in comparisons]
        found = grades([*ours, *((c.prompt, c.reference_response) for c in comparisons)])
        return [
            Verdict(1 / (1 + math.exp(max(-500.0, min(500.0, -better * scale)))) if math.isfinite(better) else None)
            for better in map(sub, found[: len(ours)], found[len(ours) :])
        ]

    return Judge(name, verdicts, grades, per_call)

"""The judge interface: for each comparison, the probability that the response is better than the reference response."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pitcli.data.rows import Comparison, Prompt

ORACLE = "oracle"


class Verdict(NamedTuple):
    """A judge's answer to one comparison.

    p_better: P(response is better than reference_response); 0.5 is a tie, None means no verdict.
    consistent: whether the judge named the same winner in both orders of the responses; None if it has no orders.
    """

    p_better: float | None
    consistent: bool | None = None


class Judge(NamedTuple):
    """A judge: its name as on the command line, and a function from comparisons to verdicts.

    grades: a function from (prompt, response) pairs to grades; None if the judge only compares.
    """

    name: str
    verdicts: Callable[[Sequence[Comparison]], list[Verdict]]
    grades: Callable[[Sequence[tuple[Prompt, str]]], list[float]] | None = None

"""What a judge is: it says of comparisons how likely the response is the better one."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pitcli.data.records import Comparison, Prompt

ORACLE = "oracle"


class Verdict(NamedTuple):
    """What a judge says of a comparison.

    p_better: P(response is better than reference_response); 0.5 is a tie, None where no verdict could be had.
    consistent: whether both orders of the two named the same winner; None where the judge has no order.
    """

    p_better: float | None
    consistent: bool | None = None


class Judge(NamedTuple):
    """One judge: its name as on the command line, and what it says of comparisons.

    grades: the quality of each (prompt, response) by itself, where the judge has such a thing.
    """

    name: str
    verdicts: Callable[[Sequence[Comparison]], list[Verdict]]
    grades: Callable[[Sequence[tuple[Prompt, str]]], list[float]] | None = None

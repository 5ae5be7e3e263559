"""What a judge is: for each comparison it says how likely the response is the better one."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from pitcli.data.rows import Comparison, Prompt

ORACLE = "oracle"


class Verdict(NamedTuple):
    """A judge's answer to one comparison.

    p_better: P(response is better than reference_response); 0.5 is a tie, None if there is no verdict.
    consistent: whether both orders of the two named the same winner; None if the judge has no order.
    """

    p_better: float | None
    consistent: bool | None = None


class Judge(NamedTuple):
    """One judge: its name as on the command line, and a function from comparisons to its verdicts.

    grades: the quality of each (prompt, response) by itself, if the judge grades single responses.
    """

    name: str
    verdicts: Callable[[Sequence[Comparison]], list[Verdict]]
    grades: Callable[[Sequence[tuple[Prompt, str]]], list[float]] | None = None

"""Ask a judge about each comparison once, and look up its verdicts in either order."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from pitcli.console import counted, note, progress, warn
from pitcli.data.rows import Comparison, Prompt
from pitcli.evaluation.judge import Judge, Verdict


class JudgeVerdicts(NamedTuple):
    """All verdicts of one judge, by its name, and its grades of single responses if the judge grades them."""

    judge: str
    verdicts: dict[Comparison, Verdict]
    grades: dict[tuple[Prompt, str], float]

    def p_better(self, comparison: Comparison) -> float | None:
        """P(response is better): 0.5 for a copy; 1 minus the verdict if the judge was asked the reverse comparison."""
        if comparison.response == comparison.reference_response:
            return 0.5
        if verdict := self.verdicts.get(comparison):
            return verdict.p_better
        reversed_p_better = self.verdicts[_reversed(comparison)].p_better
        return None if reversed_p_better is None else 1 - reversed_p_better

    def sign(self, comparison: Comparison) -> float:
        """1 for a win, 0 for a tie, -1 for a loss, NaN if there is no verdict."""
        p_better = self.p_better(comparison)
        return float("nan") if p_better is None else float(np.sign(p_better - 0.5))

    def consistency(self) -> float | None:
        """The share of comparisons in which both orders name the same winner; None if the judge has no orders."""
        known = [verdict.consistent for verdict in self.verdicts.values() if verdict.consistent is not None]
        return sum(known) / len(known) if known else None

    def failed(self) -> int:
        return sum(verdict.p_better is None for verdict in self.verdicts.values())


def _reversed(comparison: Comparison) -> Comparison:
    return Comparison(comparison.prompt, comparison.reference_response, comparison.response)


def ask(judge: Judge, comparisons: Iterable[Comparison]) -> JudgeVerdicts:
    """Get the verdict on every comparison, asking once for each; copies and reversed duplicates are not asked."""
    distinct: dict[Comparison, None] = {}
    for comparison in comparisons:
        if comparison.response != comparison.reference_response and _reversed(comparison) not in distinct:
            distinct[comparison] = None
    verdicts: dict[Comparison, Verdict] = {}
    # similar lengths together: less padding per batch
    ordered = sorted(distinct, key=lambda c: -len(c.response) - len(c.reference_response))
    note(f"judge {judge.name}: {counted(len(ordered), 'comparisons')}")
    with progress(f"asking {judge.name}", len(ordered)) as advance:
        for start in range(0, len(ordered), judge.per_call):
            chunk = ordered[start : start + judge.per_call]
            verdicts |= zip(chunk, judge.verdicts(chunk), strict=True)
            advance(len(chunk))
    return JudgeVerdicts(judge.name, verdicts, {})


def with_grades(judge: Judge, judged: JudgeVerdicts, responses: Iterable[tuple[Prompt, str]]) -> JudgeVerdicts:
    """Add the judge's grades of these responses to its verdicts, if the judge grades single responses."""
    if judge.grades is None:
        return judged
    distinct = list(dict.fromkeys(responses))
    grades = dict(zip(distinct, judge.grades(distinct), strict=True))
    if wrong := sum(not np.isfinite(grade) for grade in grades.values()):
        warn(f"judge {judge.name}: {counted(wrong, 'grades')} not finite, so no mean grades are shown")
        return judged
    return judged._replace(grades=grades)

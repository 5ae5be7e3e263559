"""The learned stop rule compared with fixed numbers of iterations and with a stop by the oracle.

The rows of five iterations without a stop rule contain what every stop rule would have seen, so thresholds are replayed
on them; the row `learned` comes from the command itself. Regret is the difference in quality from the best iteration,
chosen by the oracle.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from graded import Graded, mean_with_interval, write_figures, written
from project import Study, run_study
from scales import StudyScale
from scipy.special import logit

from pitcli.console import note, table
from pitcli.data.rows import Prompt
from pitcli.equations import p_better
from pitcli.evaluation.systems import ImprovedRow, Key, Step

ITERATIONS = 5
THRESHOLDS = (0.5, 0.52, 0.55, 0.6, 0.7, 0.8, 0.9)
Grade = Callable[[Prompt, str], float]


class Stopped(NamedTuple):
    """The outcome of one stop rule: the final response of each row, and how many improvements it needed."""

    name: str
    responses: list[str]
    calls: list[int]


def fixed(rows: list[ImprovedRow], count: int) -> Stopped:
    return Stopped(f"fixed {count}", [row.response_after(count) for row in rows], [count] * len(rows))


def replayed(
    rows: list[ImprovedRow], name: str, refuses: Callable[[ImprovedRow, int], bool], over_draft: float = 0.0
) -> Stopped:
    """Stop before the first iteration that is refused; the cost of the refused one counts.

    over_draft: P(better than the draft) that the last response must exceed, otherwise the draft is kept.
    """
    responses, calls = [], []
    for row in rows:
        count = 0
        while count < len(row.steps) and not refuses(row, count):
            count += 1
        enough = p_over_draft(row.steps[:count]) > over_draft
        responses.append(row.response_after(count if enough else 0))
        calls.append(min(count + 1, len(row.steps)))
    return Stopped(name, responses, calls)


def p_over_draft(steps: Sequence[Step]) -> float:
    """P(better than the draft): the odds over the response before, multiplied."""
    return p_better(sum(logit(step.p_better or 0) for step in steps), 1.0)


def by_gap(threshold: float) -> Callable[[ImprovedRow, int], bool]:
    """Refuse a cut text, a copy, a cycle, or P(better) over the response before that is not above the threshold."""

    def refuses(row: ImprovedRow, count: int) -> bool:
        step = row.steps[count]
        seen = {row.original.strip(), *(earlier.written.strip() for earlier in row.steps[:count])}
        return step.kept != step.written or step.written in seen or not (step.p_better or 0) > threshold

    return refuses


def by_oracle(grade: Grade) -> Callable[[ImprovedRow, int], bool]:
    """Refuse a cut text, or one that the oracle does not grade higher than the one before."""

    def refuses(row: ImprovedRow, count: int) -> bool:
        step = row.steps[count]
        return step.kept != step.written or not grade(row.prompt, step.written) > grade(row.prompt, step.before)

    return refuses


def best(rows: list[ImprovedRow], grade: Grade) -> Stopped:
    """The upper bound for every rule: the best iteration of each row."""
    chosen = [
        max(range(len(row.steps) + 1), key=lambda k, row=row: grade(row.prompt, row.response_after(k))) for row in rows
    ]
    responses = [row.response_after(k) for row, k in zip(rows, chosen, strict=True)]
    return Stopped("best iteration", responses, [len(row.steps) for row in rows])


def report(out: Path, seeds: list[int], _: StudyScale) -> None:
    graded = Graded(out, seeds)
    plain, learned = (graded.rows(name) for name in ("pit-5", "pit-stop"))
    keys: list[Key] = [key for key in plain if key in learned]
    rows, stopped = ([system[key] for key in keys] for system in (plain, learned))
    command = Stopped("learned", [row.response for row in stopped], [len(row.steps) for row in stopped])
    outcomes = [
        *(fixed(rows, count) for count in range(ITERATIONS + 1)),
        *(replayed(rows, f"P(better) > {t} over the one before", by_gap(t)) for t in THRESHOLDS),
        *(replayed(rows, f"P(better) > {t} over the draft", by_gap(0.5), over_draft=t) for t in THRESHOLDS[1:]),
        command,
        replayed(rows, "oracle stop", by_oracle(graded.grade)),
        best(rows, graded.grade),
    ]
    same = np.mean([a == b for a, b in zip(outcomes[ITERATIONS + 1].responses, command.responses, strict=True)])
    note(f"the replay at threshold 0.5 gives the same response as the command in {same:.1%} of {len(rows)} rows")
    original_N = graded.grades(rows, 0)
    grades = {
        name: np.array([graded.grade(row.prompt, text) for row, text in zip(rows, responses, strict=True)])
        for name, responses, _ in outcomes
    }
    lines, figures = [], {}
    for outcome in outcomes:
        mine = grades[outcome.name]
        learned_less = mean_with_interval(rows, grades["learned"] - mine)
        figures[outcome.name] = {
            "quality": float(mine.mean()),
            "learned_less_this": learned_less,
            "regret": float((grades["best iteration"] - mine).mean()),
            "harm_rate": float((mine < original_N).mean()),
            "calls": float(np.mean(outcome.calls)),
        }
        found = figures[outcome.name]
        cells = [found["quality"], written(learned_less, 4), found["regret"], f"{found['harm_rate']:.1%}"]
        lines.append([outcome.name, *cells, found["calls"]])
    columns = ["stop rule", "quality", "learned minus this [95%]", "regret", "harm rate", "improvements per draft"]
    table(f"Stop rules, {len(rows)} rows, judged by the oracle", columns, lines)
    write_figures(out / "stop-rule.json", figures)


STUDY = Study(["pit-5", "pit-stop"], ["--input=pit-stop,pit-5 --out=stop-rule"], report=report)

if __name__ == "__main__":
    run_study(__doc__, lambda _: STUDY)

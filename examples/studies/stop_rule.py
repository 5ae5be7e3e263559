"""The learned stop rule compared with fixed numbers of iterations and with a stop by the oracle, on the synthetic task.

The rows of five iterations without a stop rule contain what every stop rule would have seen, so thresholds are replayed
on them; the row `learned` comes from the command itself. Regret is the difference in quality from the best iteration,
chosen by the oracle.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from project import run_study

from pitcli.console import note, table
from pitcli.data.synthetic import quality
from pitcli.evaluation.statistics import Bootstrap, mean_of
from pitcli.evaluation.systems import Key, Row, load_systems

ITERATIONS = 5
THRESHOLDS = (0.5, 0.52, 0.55, 0.6)


class Stopped(NamedTuple):
    """The outcome of one stop rule: the final response of each row, and how many improvements it needed."""

    name: str
    responses: list[str]
    calls: list[int]


def fixed(rows: list[Row], count: int) -> Stopped:
    return Stopped(f"fixed {count}", [row.response_after(count) for row in rows], [count] * len(rows))


def replayed(rows: list[Row], name: str, refuses: Callable[[Row, int], bool]) -> Stopped:
    """Stop before the first iteration that is refused; the cost of the refused one counts."""
    responses, calls = [], []
    for row in rows:
        count = 0
        while count < len(row.steps) and not refuses(row, count):
            count += 1
        responses.append(row.response_after(count))
        calls.append(min(count + 1, len(row.steps)))
    return Stopped(name, responses, calls)


def by_gap(threshold: float) -> Callable[[Row, int], bool]:
    """The rule of `pit improve`: refuse a copy, a cycle, or P(better) not above the threshold."""

    def refuses(row: Row, count: int) -> bool:
        step = row.steps[count]
        seen = {row.original.strip(), *(earlier.written.strip() for earlier in row.steps[:count])}
        return step.written in seen or not (step.p_better or 0) > threshold

    return refuses


def by_oracle(row: Row, count: int) -> bool:
    """Refuse an iteration that the oracle does not grade higher than the one before."""
    step = row.steps[count]
    return not grade(row, step.written) > grade(row, step.before)


def grade(row: Row, response: str) -> float:
    return quality(row.prompt[-1].content, response)


def best(rows: list[Row]) -> Stopped:
    """The upper bound for every rule: the best iteration of each row."""
    chosen = [max(range(len(row.steps) + 1), key=lambda k, row=row: grade(row, row.response_after(k))) for row in rows]
    return Stopped("best iteration", [row.response_after(k) for row, k in zip(rows, chosen, strict=True)], chosen)


def report(out: Path, seeds: list[int]) -> None:
    plain, learned = (
        load_systems([f"{name}={out}/seed-{seed}/{name}.jsonl" for seed in seeds], "--input", None, None)[0]
        for name in ("pit-5", "pit-stop")
    )
    keys: list[Key] = [key for key in plain.rows if key in learned.rows]
    rows, stopped = plain.at(keys), learned.at(keys)
    command = Stopped("learned", [row.response for row in stopped], [len(row.steps) for row in stopped])
    outcomes = [
        *(fixed(rows, count) for count in range(ITERATIONS + 1)),
        *(replayed(rows, f"P(better) > {threshold}", by_gap(threshold)) for threshold in THRESHOLDS),
        command,
        replayed(rows, "oracle stop", by_oracle),
        best(rows),
    ]
    same = np.mean([a == b for a, b in zip(outcomes[ITERATIONS + 1].responses, command.responses, strict=True)])
    note(f"the replay at threshold 0.5 gives the same response as the command in {same:.1%} of {len(rows)} rows")
    original_N = np.array([grade(row, row.original) for row in rows])
    graded = {
        outcome.name: np.array([grade(row, text) for row, text in zip(rows, outcome.responses, strict=True)])
        for outcome in outcomes
    }
    bootstrap = Bootstrap([repr(row.prompt) for row in rows], [row.seed for row in rows] if len(seeds) > 1 else None)
    lines, figures = [], {}
    for outcome in outcomes:
        mine = graded[outcome.name]
        low, high = bootstrap.interval(mean_of(graded["learned"] - mine))
        figures[outcome.name] = {
            "quality": float(mine.mean()),
            "learned_less_this": [float((graded["learned"] - mine).mean()), low, high],
            "regret": float((graded["best iteration"] - mine).mean()),
            "harm_rate": float((mine < original_N).mean()),
            "calls": float(np.mean(outcome.calls)),
        }
        difference = f"{(graded['learned'] - mine).mean():+.4f} [{low:+.4f}, {high:+.4f}]"
        found = figures[outcome.name]
        cells = [found["quality"], difference, found["regret"], f"{found['harm_rate']:.1%}", found["calls"]]
        lines.append([outcome.name, *cells])
    columns = ["stop rule", "quality", "learned minus this [95%]", "regret", "harm rate", "improvements per draft"]
    table(f"Stop rules, {len(rows)} rows, judged by the oracle", columns, lines)
    (out / "stop-rule.json").write_text(json.dumps(figures, indent=1) + "\n")


if __name__ == "__main__":
    run_study(__doc__, ["pit-5", "pit-stop"], ["--input=pit-stop,pit-5 --out=stop-rule"], report)

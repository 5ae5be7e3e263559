"""Ablation: the shipped settings against the same with one of them changed (changes.py), on the synthetic task.

Prints one table: how well the gap model orders held-out pairs and successive improvements of one draft, the quality
after each of three iterations without a stop rule, and the quality and the harm with the learned stop rule.
"""

import json
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from changes import CHANGES
from project import run_study

from pitcli.console import table
from pitcli.data.pair_reading import load_pairs
from pitcli.data.rows import Comparison
from pitcli.data.synthetic import quality
from pitcli.evaluation.judge import Judge
from pitcli.evaluation.load_judge import gap_judge
from pitcli.evaluation.statistics import Bootstrap, mean_of
from pitcli.evaluation.systems import Key, Row, load_systems
from pitcli.settings.judging import JudgeSettings

ITERATIONS = 3
COLUMNS = (
    *("change", "order of pairs", "of two improvements", "drafts", "1", "2", "3"),
    *("3, less shipped [95%]", "learned stop", "harm"),
)


class Found(NamedTuple):
    """Figures of one change. quality: of the drafts, and after each iteration. less_shipped: mean, low, high."""

    order_of_pairs: float
    order_of_improvements: float
    quality: list[float]
    less_shipped: list[float]
    learned_stop: float
    harm: float


def report(out: Path, seeds: list[int]) -> None:
    shipped = rows_of(out, seeds, "change@shipped")
    keys = list(shipped)
    shipped_N = grades(shipped.values(), ITERATIONS)
    bootstrap = Bootstrap([repr(row.prompt) for row in shipped.values()], [row.seed for row in shipped.values()])
    figures = {}
    for name, change in CHANGES.items():
        rows, stopped = (rows_of(out, seeds, f"change@{name}{end}") for end in ("", "-stop"))
        runs = [out / f"seed-{seed}" / "runs" / change.reward_run() for seed in seeds]
        orders_S2 = np.array([orders(run, shipped, at) for at, run in enumerate(runs)])
        quality_IN = [grades((rows[key] for key in keys), count) for count in range(ITERATIONS + 1)]
        stopped_N = grades(stopped[key] for key in keys)
        less_N = quality_IN[-1] - shipped_N
        figures[name] = Found(
            *orders_S2.mean(0).tolist(),
            [float(quality_N.mean()) for quality_N in quality_IN],
            [float(less_N.mean()), *bootstrap.interval(mean_of(less_N))],
            float(stopped_N.mean()),
            float((stopped_N < quality_IN[0]).mean()),
        )
    lines = [
        [
            *(name, found.order_of_pairs, found.order_of_improvements, *found.quality),
            "{:+.3f} [{:+.3f}, {:+.3f}]".format(*found.less_shipped),
            *(found.learned_stop, f"{found.harm:.1%}"),
        ]
        for name, found in figures.items()
    ]
    table(f"One setting changed, {len(keys)} rows, judged by the oracle", list(COLUMNS), lines)
    (out / "mends.json").write_text(json.dumps({name: found._asdict() for name, found in figures.items()}, indent=1))


def rows_of(out: Path, seeds: list[int], name: str) -> dict[Key, Row]:
    return load_systems([f"{name}={out}/seed-{seed}/{name}.jsonl" for seed in seeds], "--input", None, None)[0].rows


def grades(rows: Iterable[Row], iterations: int | None = None) -> np.ndarray:
    """Quality of each row after this many iterations; None: of its final response."""
    return np.array(
        [grade(row, row.response if iterations is None else row.response_after(iterations)) for row in rows]
    )


def grade(row: Row | Comparison, response: str) -> float:
    return quality(row.prompt[-1].content, response)


def orders(run: Path, shipped: dict[Key, Row], at: int) -> tuple[float, float]:
    """How often a gap model orders held-out pairs, and successive improvements of one draft, as the oracle does.

    at: the index of the run's seed in the rows of the shipped settings, whose improvements are compared.
    """
    test = run.parent.parent / "data" / "test.jsonl"
    judge = gap_judge(f"gap:{run}", run, JudgeSettings(micro_batch_size=128)).judge
    pairs = [Comparison(pair.prompt, pair.chosen, pair.rejected) for pair in load_pairs(test)]
    improvements = [
        Comparison(row.prompt, later, earlier)
        for row in shipped.values()
        if row.seed == at
        for earlier, later in pairwise(step.written for step in row.steps)
    ]
    return right_share(judge, pairs), right_share(judge, improvements)


def right_share(judge: Judge, comparisons: list[Comparison]) -> float:
    """Share of the comparisons that the judge orders as the oracle does; those with equal grades are left out."""
    differences_N = np.array([grade(c, c.response) - grade(c, c.reference_response) for c in comparisons])
    p_N = np.array([verdict.p_better for verdict in judge.verdicts(comparisons)], float)
    return float(((p_N > 0.5) == (differences_N > 0))[differences_N != 0].mean())


if __name__ == "__main__":
    run_study(__doc__, [f"change@{name}" for name in CHANGES], [], report)

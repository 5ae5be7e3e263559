"""Ablation: the shipped settings against the same with one of them changed (changes.py).

Prints one table: how well the gap model orders held-out pairs and successive improvements of one draft, the quality
after each of three iterations without a stop rule, and the quality and the harm with the learned stop rule.
"""

from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
from changes import Change, changes
from graded import Graded, Iterated, Rows, write_figures, written_family
from project import Study, run_study
from scales import StudyScale

from pitcli.console import table
from pitcli.data.pair_reading import load_pairs
from pitcli.data.rows import Comparison
from pitcli.evaluation.judge import Judge
from pitcli.evaluation.load_judge import gap_judge
from pitcli.settings.judging import JudgeSettings

ITERATIONS = 3
COLUMNS = (
    *("change", "order of pairs", "of two improvements", "drafts", "1", "2", "3"),
    *("3, less shipped [95%]", "learned stop", "harm"),
)


class Found(NamedTuple):
    """Figures of one change, the last two with the learned stop rule."""

    order_of_pairs: float
    order_of_improvements: float
    iterated: Iterated
    learned_stop: float
    harm: float


def report(compared: dict[str, Change], name: str, out: Path, seeds: list[int], _: StudyScale) -> None:
    """Print the table of these changes, and write it to NAME.json; a star: not zero at 5% after Holm's correction."""
    graded = Graded(out, seeds)
    shipped = graded.rows("change@shipped")
    figures = {}
    for kind, change in compared.items():
        stopped = graded.rows(f"change@{kind}-stop")
        runs = [out / f"seed-{seed}" / "runs" / change.reward_run() for seed in seeds]
        orders_S2 = np.array([orders(run, graded, shipped, at) for at, run in enumerate(runs)])
        stopped_N, drafts_N = (graded.grades((stopped[key] for key in shipped), count) for count in (None, 0))
        figures[kind] = Found(
            *orders_S2.mean(0).tolist(),
            graded.iterated(f"change@{kind}", shipped, ITERATIONS),
            float(stopped_N.mean()),
            float((stopped_N < drafts_N).mean()),
        )
    less = written_family({kind: found.iterated.less for kind, found in figures.items()})
    lines = [
        [
            *(kind, found.order_of_pairs, found.order_of_improvements, *found.iterated.quality),
            *(less[kind], found.learned_stop, f"{found.harm:.1%}"),
        ]
        for kind, found in figures.items()
    ]
    table(f"One setting changed, {len(shipped)} rows, judged by the oracle", list(COLUMNS), lines)
    written_figures = {
        kind: {**found._asdict(), "iterated": found.iterated._asdict()} for kind, found in figures.items()
    }
    write_figures(out / f"{name}.json", written_figures)


def orders(run: Path, graded: Graded, shipped: Rows, at: int) -> tuple[float, float]:
    """How often a gap model orders held-out pairs, and successive improvements of one draft, as the oracle does.

    at: the index of the run's seed in the rows of the shipped settings, whose improvements are compared.
    """
    test = run.parent.parent / "data" / "test.jsonl"
    judge = gap_judge(f"gap:{run}", JudgeSettings(micro_batch_size=128)).judge
    held_out = load_pairs(test) if test.exists() else []  # English pairs have no fold of their own for this
    pairs = [Comparison(pair.prompt, pair.chosen, pair.rejected) for pair in held_out]
    improvements = [
        Comparison(row.prompt, later, earlier)
        for row in shipped.values()
        if row.seed == at
        for earlier, later in pairwise(step.written for step in row.steps)
    ]
    return right_share(judge, graded, pairs), right_share(judge, graded, improvements)


def right_share(judge: Judge, graded: Graded, comparisons: list[Comparison]) -> float:
    """Share of the comparisons, without equal grades, that the judge orders as the oracle does; NaN without any."""
    if not comparisons:
        return float("nan")
    grade = graded.grade
    differences_N = np.array([grade(c.prompt, c.response) - grade(c.prompt, c.reference_response) for c in comparisons])
    p_N = np.array([verdict.p_better for verdict in judge.verdicts(comparisons)], float)
    return float(((p_N > 0.5) == (differences_N > 0))[differences_N != 0].mean())


def study(scale: StudyScale) -> Study:
    found = changes(scale.gap_loss, drafted=bool(scale.rl_questions))
    return Study([f"change@{name}" for name in found], report=partial(report, found, "mends"))


if __name__ == "__main__":
    run_study(__doc__, study)

"""Compare the iterations of a system: quality after each, their ranks, and the calibration of the gap model."""

from collections.abc import Sequence
from itertools import combinations
from typing import NamedTuple

import numpy as np

from pitcli.data.rows import Comparison
from pitcli.evaluation.ask_judge import JudgeVerdicts
from pitcli.evaluation.compare_systems import bootstrap_of, edit_size
from pitcli.evaluation.results import CalibrationBin, Interval, Iteration, SystemIterations
from pitcli.evaluation.statistics import BootstrapSettings, bradley_terry, elo, mean_of, percentile_interval
from pitcli.evaluation.systems import ImprovedRow, Step, System

BINS = 10


class Rank(NamedTuple):
    """The rank of one iteration among all: its Bradley-Terry strength with an interval, and its Elo rating."""

    strength: float
    strength_ci: Interval
    elo: float


def iteration_comparisons(rows: Sequence[ImprovedRow], every_pair: bool) -> list[Comparison]:
    """Every comparison that compare_iterations needs a verdict on.

    These are each iteration against the originals and against the one before, or every pair of iterations; and the text
    that each step wrote against the response that the step started from.
    """
    last = most_steps(rows)
    neighbours = {(earlier, k) for k in range(1, last + 1) for earlier in (0, k - 1)}
    pairs = combinations(range(last + 1), 2) if every_pair else sorted(neighbours)
    kept = [Comparison(row.prompt, row.response_after(j), row.response_after(i)) for i, j in pairs for row in rows]
    written = [Comparison(row.prompt, step.written, step.before) for row in rows for step in scored_steps(row)]
    return kept + written


def most_steps(rows: Sequence[ImprovedRow]) -> int:
    return max((len(row.steps) for row in rows), default=0)


def scored_steps(row: ImprovedRow) -> list[Step]:
    """The steps that wrote something and have a known gap."""
    return [step for step in row.steps if step.p_better is not None and step.written]


def compare_iterations(
    system: System, rows: Sequence[ImprovedRow], judged: JudgeVerdicts, every_pair: bool, settings: BootstrapSettings
) -> SystemIterations:
    """Compare a system's iterations: quality, Bradley-Terry and Elo ranks, and the gap model's calibration.

    every_pair: whether every pair of iterations was judged, as ranks require.
    """
    ranks = rank_iterations(rows, judged, settings) if every_pair else [None] * (most_steps(rows) + 1)
    return SystemIterations(
        system=system.name,
        judge=judged.judge,
        by_iteration=[
            compared
            for iteration, rank in enumerate(ranks)
            if (compared := _iteration(iteration, rows=rows, judged=judged, rank=rank, settings=settings))
        ],
        calibration=calibration(rows, judged, settings),
    )


def _iteration(
    iteration: int, rows: Sequence[ImprovedRow], judged: JudgeVerdicts, rank: Rank | None, settings: BootstrapSettings
) -> Iteration | None:
    """Compare an iteration with the originals and the one before; None if the judge gave no verdict on one of them."""
    all_signs_N = np.array(
        [judged.sign(Comparison(row.prompt, row.response_after(iteration), row.original)) for row in rows]
    )
    has_verdict = np.isfinite(all_signs_N)
    signs_N = all_signs_N[has_verdict]
    before = max(0, iteration - 1)
    changes = [Comparison(row.prompt, row.response_after(iteration), row.response_after(before)) for row in rows]
    change_signs = [sign for change in changes if np.isfinite(sign := judged.sign(change))]
    if not len(signs_N) or not change_signs:
        return None
    bootstrap = bootstrap_of([row for row, keep in zip(rows, has_verdict, strict=True) if keep], settings)
    grade = None
    if judged.grades:
        grade = float(np.mean([judged.grades[row.prompt, row.response_after(iteration)] for row in rows]))
    return Iteration(
        iteration=iteration,
        reached=float(np.mean([len(row.steps) >= iteration for row in rows])),
        delta=float(100 * signs_N.mean()),
        delta_ci=bootstrap.interval(mean_of(100 * signs_N)),
        grade=grade,
        harm_rate=float((signs_N < 0).mean()),
        worse_than_before=float(np.mean([sign < 0 for sign in change_signs])),
        copy_rate=float(np.mean([change.response == change.reference_response for change in changes])),
        edit_size=float(np.mean([edit_size(change) for change in changes])),
        generated_tokens=float(np.mean([row.tokens_until(iteration) for row in rows])),
        strength=rank.strength if rank else None,
        strength_ci=rank.strength_ci if rank else None,
        elo=rank.elo if rank else None,
    )


def rank_iterations(rows: Sequence[ImprovedRow], judged: JudgeVerdicts, settings: BootstrapSettings) -> list[Rank]:
    """Rank the iterations by the verdicts on every pair of iterations of every row."""
    bootstrap = bootstrap_of(rows, settings)
    items = most_steps(rows) + 1
    wins_NKK = np.zeros((len(rows), items, items))
    games = []
    for i, j in combinations(range(items), 2):
        for index, row in enumerate(rows):
            score = (judged.sign(Comparison(row.prompt, row.response_after(j), row.response_after(i))) + 1) / 2
            if np.isfinite(score):
                wins_NKK[index, j, i], wins_NKK[index, i, j] = score, 1 - score
                games.append((j, i, float(score)))
    flat_NX = wins_NKK.reshape(len(rows), -1)
    strengths = bradley_terry(wins_NKK.sum(0)[None])[0].tolist()
    drawn_DK = bootstrap.sample(lambda weights_BN: bradley_terry((weights_BN @ flat_NX).reshape(-1, items, items)))
    intervals = [percentile_interval(drawn_DK[:, k]) for k in range(items)]
    ratings = elo(games, items, seed=settings.seed)
    return [Rank(*values) for values in zip(strengths, intervals, ratings, strict=True)]


def calibration(
    rows: Sequence[ImprovedRow], judged: JudgeVerdicts, settings: BootstrapSettings
) -> list[CalibrationBin]:
    """Bins with equal numbers of improvements, by the gap model's p_better."""
    steps = [(row, step) for row in rows for step in scored_steps(row)]
    score_N = np.array(
        [(judged.sign(Comparison(row.prompt, step.written, step.before)) + 1) / 2 for row, step in steps]
    )
    p_better_N = np.array([step.p_better for _, step in steps])
    with_verdict = np.flatnonzero(np.isfinite(score_N))
    bins = []
    parts = np.array_split(with_verdict[np.argsort(p_better_N[with_verdict], kind="stable")], BINS)
    for part in parts if len(with_verdict) else []:
        if len(part):
            bootstrap = bootstrap_of([steps[index][0] for index in part], settings)
            bins.append(
                CalibrationBin(
                    p_better=float(p_better_N[part].mean()),
                    judged_better=float(score_N[part].mean()),
                    judged_better_ci=bootstrap.interval(mean_of(score_N[part])),
                    rows=len(part),
                )
            )
    return bins

"""Iterations of one system: quality after each, which of them is best, and whether the gap's P(better) is true."""

from collections.abc import Sequence
from itertools import combinations

import numpy as np

from pitcli.data.records import Comparison
from pitcli.evaluation import results
from pitcli.evaluation.comparing import Draws, bootstrap_of, edit_size
from pitcli.evaluation.judging import Judged
from pitcli.evaluation.statistics import Bootstrap, bradley_terry, elo, mean_of, percentile_interval
from pitcli.evaluation.systems import Row, Step, System

BINS = 10


def iteration_comparisons(rows: Sequence[Row], every_pair: bool) -> list[Comparison]:
    """What iterations_result needs to have asked: each iteration against the originals, or every pair of them."""
    last = most_steps(rows)
    steps = {(j, k) for k in range(1, last + 1) for j in (0, k - 1)}
    pairs = combinations(range(last + 1), 2) if every_pair else sorted(steps)
    standing = [Comparison(row.prompt, row.standing(j), row.standing(i)) for i, j in pairs for row in rows]
    written = [Comparison(row.prompt, step.written, step.before) for row in rows for step in said(row)]
    return standing + written


def most_steps(rows: Sequence[Row]) -> int:
    return max((len(row.steps) for row in rows), default=0)


def said(row: Row) -> list[Step]:
    """The steps whose gap is over the response that stood before them, with something written."""
    return [step for step in row.steps if step.p_better is not None and step.written]


def iterations_result(
    system: System, rows: Sequence[Row], judged: Judged, every_pair: bool, how: Draws
) -> results.Iterations:
    """Quality by iteration, the iterations ranked by Bradley-Terry and ELO, and the gap's calibration."""
    last = most_steps(rows)
    bootstrap = bootstrap_of(rows, how)
    strengths, intervals, ratings = ranked(rows, judged, last, bootstrap) if every_pair else ([], [], [])
    by_iteration = []
    for k in range(last + 1):
        all_N = np.array([judged.sign(Comparison(row.prompt, row.standing(k), row.original)) for row in rows])
        kept = np.isfinite(all_N)
        signs_N, of_kept = all_N[kept], bootstrap_of([row for row, keep in zip(rows, kept, strict=True) if keep], how)
        changes = [Comparison(row.prompt, row.standing(k), row.standing(max(0, k - 1))) for row in rows]
        before_N = [judged.sign(change) for change in changes]
        by_iteration.append(
            results.Iteration(
                iteration=k,
                reached=float(np.mean([len(row.steps) >= k for row in rows])),
                delta=float(100 * signs_N.mean()),
                delta_ci=of_kept.interval(mean_of(100 * signs_N)),
                grade=float(np.mean([judged.grades[row.prompt, row.standing(k)] for row in rows]))
                if judged.grades
                else None,
                harm_rate=float((signs_N < 0).mean()),
                worse_than_before=float(np.mean([sign < 0 for sign in before_N if np.isfinite(sign)])),
                copy_rate=float(np.mean([change.response == change.reference_response for change in changes])),
                edit_size=float(np.mean([edit_size(change) for change in changes])),
                generated_tokens=float(np.mean([row.tokens_until(k) for row in rows])),
                strength=strengths[k] if strengths else None,
                strength_ci=intervals[k] if intervals else None,
                elo=ratings[k] if ratings else None,
            )
        )
    return results.Iterations(
        system=system.name,
        judge=judged.judge.name,
        by_iteration=by_iteration,
        calibration=calibration(rows, judged, how),
    )


def ranked(
    rows: Sequence[Row], judged: Judged, last: int, bootstrap: Bootstrap
) -> tuple[list[float], list[results.Interval], list[float]]:
    """Bradley-Terry strengths of the iterations with intervals, and their ELO, from every pair judged on every row."""
    items = last + 1
    wins_NKK = np.zeros((len(rows), items, items))
    games = []
    for i, j in combinations(range(items), 2):
        for place, row in enumerate(rows):
            score = (judged.sign(Comparison(row.prompt, row.standing(j), row.standing(i))) + 1) / 2
            if np.isfinite(score):
                wins_NKK[place, j, i], wins_NKK[place, i, j] = score, 1 - score
                games.append((j, i, float(score)))
    flat_NX = wins_NKK.reshape(len(rows), -1)
    strengths = bradley_terry(wins_NKK.sum(0)[None])[0]
    drawn_DK = bootstrap.sample(lambda weights_BN: bradley_terry((weights_BN @ flat_NX).reshape(-1, items, items)))
    intervals = [percentile_interval(drawn_DK[:, k]) for k in range(items)]
    return strengths.tolist(), intervals, elo(games, items, seed=bootstrap.seed)


def calibration(rows: Sequence[Row], judged: Judged, how: Draws) -> list[results.Bin]:
    """Bins of equally many improvements, by what the gap model said of them."""
    asked = [(row, step) for row in rows for step in said(row)]
    score_N = np.array(
        [(judged.sign(Comparison(row.prompt, step.written, step.before)) + 1) / 2 for row, step in asked]
    )
    said_N = np.array([step.p_better for _, step in asked])
    kept = np.flatnonzero(np.isfinite(score_N))
    bins = []
    for part in np.array_split(kept[np.argsort(said_N[kept], kind="stable")], BINS) if len(kept) else []:
        if len(part):
            bootstrap = bootstrap_of([asked[place][0] for place in part], how)
            bins.append(
                results.Bin(
                    p_better=float(said_N[part].mean()),
                    judged_better=float(score_N[part].mean()),
                    judged_better_ci=bootstrap.interval(mean_of(score_N[part])),
                    rows=len(part),
                )
            )
    return bins

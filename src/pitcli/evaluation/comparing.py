"""From what a judge said to one line of the table: a system against a baseline."""

from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from pitcli.data.records import Comparison
from pitcli.evaluation import results
from pitcli.evaluation.judging import Judged
from pitcli.evaluation.statistics import (
    SIMILAR_LENGTH,
    Bootstrap,
    counts,
    length_controlled,
    length_is_identified,
    length_terms,
    mean_of,
    p_value,
    percentile_interval,
    rows_needed,
)
from pitcli.evaluation.systems import ORIGINAL, Row

DECILES = 10
FEWEST_PROMPTS = 20


class Draws(NamedTuple):
    """How to bootstrap."""

    draws: int
    seed: int


class Versus(NamedTuple):
    """The rows of a system beside the responses that they are compared with, and what those cost."""

    system: str
    baseline: str
    rows: Sequence[Row]
    responses: Sequence[str]
    tokens: Sequence[int | None]

    def comparisons(self) -> list[Comparison]:
        return [
            Comparison(row.prompt, row.response, other) for row, other in zip(self.rows, self.responses, strict=True)
        ]

    def where(self, keep: Callable[[Row], bool]) -> "Versus":
        kept = [place for place, row in enumerate(self.rows) if keep(row)]
        return self._replace(
            rows=[self.rows[place] for place in kept],
            responses=[self.responses[place] for place in kept],
            tokens=[self.tokens[place] for place in kept],
        )


def against_originals(name: str, rows: Sequence[Row]) -> Versus:
    return Versus(name, ORIGINAL, rows, [row.original for row in rows], [0] * len(rows))


def against(name: str, rows: Sequence[Row], other: str, baseline: Sequence[Row]) -> Versus:
    return Versus(name, other, rows, [row.response for row in baseline], [row.generated_tokens for row in baseline])


def parts(versus: Versus) -> Iterator[tuple[Versus, str, int | None]]:
    """(rows, data set, seed): all of them, each data set, each training seed."""
    yield versus, "all", None
    for dataset in sorted({row.dataset for row in versus.rows} - {"all"}):
        yield versus.where(lambda row, name=dataset: row.dataset == name), dataset, None  # type: ignore[misc]
    seeds = sorted({row.seed for row in versus.rows})
    if len(seeds) > 1:
        for seed in seeds:
            yield versus.where(lambda row, place=seed: row.seed == place), "all", seed  # type: ignore[misc]


def comparison_result(
    versus: Versus, judged: Judged, dataset: str, seed: int | None, how: Draws
) -> results.Comparison | None:
    """One line of the table, before Holm; None where the judge gave no verdict at all."""
    asked = versus.comparisons()
    all_signs = np.array([judged.sign(comparison) for comparison in asked])
    kept = np.flatnonzero(np.isfinite(all_signs)).tolist()
    if not len(kept):
        return None
    signs_N, rows, asked = all_signs[kept], [versus.rows[place] for place in kept], [asked[place] for place in kept]
    bootstrap = bootstrap_of(rows, how)
    delta_D = bootstrap.sample(mean_of(100 * signs_N))
    delta_ci = percentile_interval(delta_D)
    # so few prompts may all agree by chance, and a bootstrap of them knows no doubt
    p = p_value(delta_D) if len({row.prompt for row in rows}) >= FEWEST_PROMPTS else 1.0
    copied_N = np.array([c.response.strip() == c.reference_response.strip() for c in asked])
    edits_N = np.array([edit_size(c) for c in asked])
    grades, difference_ci, by_grade = _graded(asked, judged, bootstrap)
    wins, ties, losses = counts(signs_N)
    return results.Comparison(
        system=versus.system,
        baseline=versus.baseline,
        judge=judged.judge.name,
        dataset=dataset,
        seed=seed,
        rows=len(rows),
        wins=wins,
        ties=ties,
        losses=losses,
        delta=float(100 * signs_N.mean()),
        delta_ci=delta_ci,
        p_value=p,
        p_holm=p,
        **length_figures(signs_N, asked, bootstrap),
        copy_rate=float(copied_N.mean()),
        edit_size=float(edits_N.mean()),
        harm_rate=float((signs_N < 0).mean()),
        harm_rate_ci=bootstrap.interval(mean_of(signs_N < 0)),
        generated_tokens=_mean([row.generated_tokens for row in rows]),
        baseline_generated_tokens=_mean([versus.tokens[place] for place in kept]),
        grades=grades,
        grade_difference_ci=difference_ci,
        deciles=[
            results.Decile(
                harm_rate=float((signs_N[part] < 0).mean()),
                copy_rate=float(copied_N[part].mean()),
                edit_size=float(edits_N[part].mean()),
            )
            for part in np.array_split(by_grade, DECILES)
            if len(part)
        ],
        rows_needed=rows_needed(delta_D, len(rows)) if delta_ci[0] <= 0 <= delta_ci[1] else None,
        verdict=verdict(delta_ci, p),
    )


def bootstrap_of(rows: Sequence[Row], how: Draws) -> Bootstrap:
    """Clusters are prompts; where there are several training seeds, these are drawn too."""
    prompts, seeds = tuple(repr(row.prompt) for row in rows), tuple(row.seed for row in rows)
    return _bootstrap(prompts, seeds if len(set(seeds)) > 1 else None, how)


@lru_cache(maxsize=4)  # most comparisons are of the same rows
def _bootstrap(prompts: tuple[str, ...], seeds: tuple[int, ...] | None, how: Draws) -> Bootstrap:
    return Bootstrap(prompts, seeds, how.draws, how.seed)


def verdict(delta_ci: results.Interval, p: float) -> str:
    """better, worse, or no difference shown: by the interval and, where there are several comparisons, by Holm's p."""
    if p >= 0.05 or delta_ci[0] <= 0 <= delta_ci[1]:
        return "no difference shown"
    return "better" if delta_ci[0] > 0 else "worse"


def length_figures(signs_N: np.ndarray, asked: Sequence[Comparison], bootstrap: Bootstrap) -> dict[str, Any]:
    """Lengths in characters (not every script parts words); delta at equal ones, within 10%, and where shorter."""
    ours_N, theirs_N = np.array([(len(c.response), len(c.reference_response)) for c in asked]).T
    similar_N, shorter_N = np.abs(ours_N - theirs_N) <= SIMILAR_LENGTH * theirs_N, ours_N < theirs_N
    controlled, interval = None, None
    if length_is_identified(ours_N, theirs_N):
        statistic = length_controlled(signs_N, length_terms(ours_N, theirs_N))
        controlled, interval = float(statistic(np.ones((1, len(signs_N))))[0]), bootstrap.interval(statistic)
    return {
        "length_controlled_delta": controlled,
        "length_controlled_ci": interval,
        "delta_similar_length": float(100 * signs_N[similar_N].mean()) if similar_N.any() else None,
        "rows_similar_length": int(similar_N.sum()),
        "delta_shorter": float(100 * signs_N[shorter_N].mean()) if shorter_N.any() else None,
        "rows_shorter": int(shorter_N.sum()),
        "mean_length": float(ours_N.mean()),
        "baseline_mean_length": float(theirs_N.mean()),
    }


def _graded(
    asked: Sequence[Comparison], judged: Judged, bootstrap: Bootstrap
) -> tuple[tuple[float, float] | None, results.Interval | None, np.ndarray]:
    """Mean grades, the interval of their difference, and the rows from the lowest baseline's grade to the highest."""
    if not judged.grades:
        return None, None, np.array([], int)
    ours_N = np.array([judged.grades[c.prompt, c.response] for c in asked])
    theirs_N = np.array([judged.grades[c.prompt, c.reference_response] for c in asked])
    interval = bootstrap.interval(mean_of(ours_N - theirs_N))
    return (float(ours_N.mean()), float(theirs_N.mean())), interval, np.argsort(theirs_N, kind="stable")


def edit_size(comparison: Comparison) -> float:
    """Share of the words that differ, 0 for a copy and 1 where nothing is left."""
    before, after = comparison.reference_response.split(), comparison.response.split()
    return 1 - SequenceMatcher(None, before, after, autojunk=False).ratio()


def _mean(values: Sequence[int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None

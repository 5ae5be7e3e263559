"""Compare a system with a baseline: turn a judge's verdicts on their rows into one line of the comparison table."""

from collections.abc import Callable, Iterator, Sequence
from difflib import SequenceMatcher
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from pitcli.data.rows import Comparison
from pitcli.data.text_units import units
from pitcli.evaluation.ask_judge import JudgeVerdicts
from pitcli.evaluation.results import Decile, Interval, SystemComparison
from pitcli.evaluation.statistics import (
    SIMILAR_LENGTH,
    Bootstrap,
    BootstrapSettings,
    length_controlled,
    length_is_identified,
    length_terms,
    mean_of,
    p_value,
    percentile_interval,
    rows_needed,
    win_tie_loss_counts,
)
from pitcli.evaluation.systems import ORIGINAL, ImprovedRow

DECILES = 10
FEWEST_PROMPTS = 20
NO_DIFFERENCE = "no difference shown"


class RowsAgainstBaseline(NamedTuple):
    """A system's rows, and the baseline's response and generated tokens for each of them.

    dataset, seed: which part of the rows this is, as in SystemComparison.
    """

    system: str
    baseline: str
    rows: Sequence[ImprovedRow]
    baseline_responses: Sequence[str]
    baseline_tokens: Sequence[int | None]
    dataset: str = "all"
    seed: int | None = None

    def comparisons(self) -> list[Comparison]:
        return [
            Comparison(row.prompt, row.response, baseline)
            for row, baseline in zip(self.rows, self.baseline_responses, strict=True)
        ]

    def only(self, keep: Callable[[ImprovedRow], bool]) -> "RowsAgainstBaseline":
        """The rows that `keep` accepts."""
        return self.at([index for index, row in enumerate(self.rows) if keep(row)])

    def at(self, indices: Sequence[int]) -> "RowsAgainstBaseline":
        return self._replace(
            rows=[self.rows[index] for index in indices],
            baseline_responses=[self.baseline_responses[index] for index in indices],
            baseline_tokens=[self.baseline_tokens[index] for index in indices],
        )


def against_originals(name: str, rows: Sequence[ImprovedRow]) -> RowsAgainstBaseline:
    return RowsAgainstBaseline(
        system=name,
        baseline=ORIGINAL,
        rows=rows,
        baseline_responses=[row.original for row in rows],
        baseline_tokens=[0] * len(rows),
    )


def against_system(
    name: str, rows: Sequence[ImprovedRow], baseline: str, baseline_rows: Sequence[ImprovedRow]
) -> RowsAgainstBaseline:
    return RowsAgainstBaseline(
        system=name,
        baseline=baseline,
        rows=rows,
        baseline_responses=[row.response for row in baseline_rows],
        baseline_tokens=[row.generated_tokens for row in baseline_rows],
    )


def parts(whole: RowsAgainstBaseline) -> Iterator[RowsAgainstBaseline]:
    """All rows, then those of each data set, then, if there are several, those of each training seed."""
    yield whole
    for dataset in sorted({row.dataset for row in whole.rows} - {"all"}):
        part = whole.only(lambda row, dataset=dataset: row.dataset == dataset)  # type: ignore[misc]
        yield part._replace(dataset=dataset)
    seeds = sorted({row.seed for row in whole.rows})
    if len(seeds) > 1:
        for seed in seeds:
            part = whole.only(lambda row, seed=seed: row.seed == seed)  # type: ignore[misc]
            yield part._replace(seed=seed)


def compare_rows(
    part: RowsAgainstBaseline, judged: JudgeVerdicts, settings: BootstrapSettings
) -> SystemComparison | None:
    """One line of the table, before Holm's correction; None if the judge gave no verdict on any row."""
    all_signs_N = np.array([judged.sign(comparison) for comparison in part.comparisons()])
    with_verdict = np.flatnonzero(np.isfinite(all_signs_N)).tolist()
    if not with_verdict:
        return None
    part, signs_N = part.at(with_verdict), all_signs_N[with_verdict]
    comparisons = part.comparisons()
    bootstrap = bootstrap_of(part.rows, settings)
    delta_D = bootstrap.sample(mean_of(100 * signs_N))
    delta_ci = percentile_interval(delta_D)
    # a few prompts may all agree by chance, and their bootstrap interval would then have no width
    p = p_value(delta_D) if len({row.prompt for row in part.rows}) >= FEWEST_PROMPTS else 1.0
    wins, ties, losses = win_tie_loss_counts(signs_N)
    return SystemComparison(
        system=part.system,
        baseline=part.baseline,
        judge=judged.judge,
        dataset=part.dataset,
        seed=part.seed,
        rows=len(part.rows),
        wins=wins,
        ties=ties,
        losses=losses,
        delta=float(100 * signs_N.mean()),
        delta_ci=delta_ci,
        p_value=p,
        p_holm=p,
        harm_rate=float((signs_N < 0).mean()),
        harm_rate_ci=bootstrap.interval(mean_of(signs_N < 0)),
        generated_tokens=_mean([row.generated_tokens for row in part.rows]),
        baseline_generated_tokens=_mean(part.baseline_tokens),
        rows_needed=rows_needed(delta_D, len(part.rows)) if delta_ci[0] <= 0 <= delta_ci[1] else None,
        verdict=verdict_text(delta_ci, p),
        **_length_figures(signs_N, comparisons, bootstrap),
        **_edit_and_grade_figures(signs_N, comparisons, judged=judged, bootstrap=bootstrap),
    )


def bootstrap_of(rows: Sequence[ImprovedRow], settings: BootstrapSettings) -> Bootstrap:
    """Resamples prompts and, if there are several, training seeds."""
    prompts, seeds = tuple(repr(row.prompt) for row in rows), tuple(row.seed for row in rows)
    return _bootstrap(prompts, seeds if len(set(seeds)) > 1 else None, settings)


@lru_cache(maxsize=4)  # most comparisons are of the same rows
def _bootstrap(prompts: tuple[str, ...], seeds: tuple[int, ...] | None, settings: BootstrapSettings) -> Bootstrap:
    return Bootstrap(prompts, seeds, draws=settings.draws, seed=settings.seed)


def verdict_text(delta_ci: Interval, p: float) -> str:
    """better, worse or no difference shown, by the interval and the p-value; corrected() repeats it with Holm's p."""
    if p >= 0.05 or delta_ci[0] <= 0 <= delta_ci[1]:
        return NO_DIFFERENCE
    return "better" if delta_ci[0] > 0 else "worse"


def _length_figures(signs_N: np.ndarray, comparisons: Sequence[Comparison], bootstrap: Bootstrap) -> dict[str, Any]:
    """Lengths in characters (not every script separates words), and delta at equal, similar and shorter lengths."""
    ours_N, theirs_N = np.array([(len(c.response), len(c.reference_response)) for c in comparisons]).T
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


def _edit_and_grade_figures(
    signs_N: np.ndarray, comparisons: Sequence[Comparison], judged: JudgeVerdicts, bootstrap: Bootstrap
) -> dict[str, Any]:
    """Copies and edits; if the judge grades single responses, also mean grades, and the figures by baseline grade."""
    copied_N = np.array([c.response.strip() == c.reference_response.strip() for c in comparisons])
    edits_N = np.array([edit_size(c) for c in comparisons])
    figures = {"copy_rate": float(copied_N.mean()), "edit_size": float(edits_N.mean())}
    if not judged.grades:
        return {**figures, "grades": None, "grade_difference_ci": None, "deciles": []}
    ours_N = np.array([judged.grades[c.prompt, c.response] for c in comparisons])
    theirs_N = np.array([judged.grades[c.prompt, c.reference_response] for c in comparisons])
    deciles = [
        Decile(
            harm_rate=float((signs_N[tenth] < 0).mean()),
            copy_rate=float(copied_N[tenth].mean()),
            edit_size=float(edits_N[tenth].mean()),
        )
        for tenth in np.array_split(np.argsort(theirs_N, kind="stable"), DECILES)
        if len(tenth)
    ]
    return {
        **figures,
        "grades": (float(ours_N.mean()), float(theirs_N.mean())),
        "grade_difference_ci": bootstrap.interval(mean_of(ours_N - theirs_N)),
        "deciles": deciles,
    }


def edit_size(comparison: Comparison) -> float:
    """The share of units (words, or characters in scripts without spaces) that differ: 0 for a copy."""
    before, after = units(comparison.reference_response), units(comparison.response)
    return 1 - SequenceMatcher(None, before, after, autojunk=False).ratio()


def _mean(values: Sequence[int | None]) -> float | None:
    """The mean; None if any value is unknown."""
    known = [value for value in values if value is not None]
    return float(np.mean(known)) if len(known) == len(values) else None

"""Paired comparisons with bootstrap intervals."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class PairedComparison(NamedTuple):
    """Wins, ties and losses of a system against a baseline, and delta = win% - lose% with its interval."""

    wins: int
    ties: int
    losses: int
    delta: float
    delta_ci: tuple[float, float]


def compare(
    system: Sequence[float],
    baseline: Sequence[float],
    clusters: Sequence[str],
    draws: int = 10_000,
    seed: int = 0,
) -> PairedComparison:
    """Compare grades of the same rows; the 95% percentile interval resamples clusters (prompts), not rows.

    system, baseline: one grade a row; clusters: what each row belongs to, e.g. its prompt. Delta is in
    percentage points.
    """
    signs_N = np.sign(np.asarray(system) - np.asarray(baseline))
    _, cluster_N = np.unique(np.asarray(clusters), return_inverse=True)
    sums_C = np.bincount(cluster_N, weights=signs_N)
    sizes_C = np.bincount(cluster_N)
    low, high = _interval(sums_C, sizes_C, draws, seed)
    return PairedComparison(
        int((signs_N > 0).sum()),
        int((signs_N == 0).sum()),
        int((signs_N < 0).sum()),
        float(100 * signs_N.mean()),
        (float(100 * low), float(100 * high)),
    )


def mean_interval(values: Sequence[float], draws: int = 10_000, seed: int = 0) -> tuple[float, float]:
    """95% percentile bootstrap interval of the mean of independent values, e.g. differences of paired grades."""
    return _interval(np.asarray(values, dtype=float), np.ones(len(values)), draws, seed)


def _interval(sums_C: np.ndarray, sizes_C: np.ndarray, draws: int, seed: int) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    picked_DC = rng.multinomial(len(sums_C), np.full(len(sums_C), 1 / len(sums_C)), size=draws)
    means_D = (picked_DC @ sums_C) / (picked_DC @ sizes_C)
    low, high = np.quantile(means_D, [0.025, 0.975])
    return float(low), float(high)

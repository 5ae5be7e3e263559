"""Paired comparisons on constructed cases whose answer is known."""

import math
import random

import pytest

from pitcli.evaluation.statistics import compare, mean_interval


def test_counts_and_delta() -> None:
    result = compare([3, 2, 1, 5], [1, 2, 2, 1], clusters=["a", "b", "c", "d"])
    assert (result.wins, result.ties, result.losses) == (2, 1, 1)
    assert result.delta == pytest.approx(25)


def test_all_wins_leave_no_uncertainty() -> None:
    result = compare([1] * 50, [0] * 50, clusters=[str(row) for row in range(50)])
    assert result.delta_ci == (100, 100)


def test_interval_has_the_width_of_the_normal_approximation() -> None:
    """600 wins, 400 losses: sd of a sign is sqrt(1 - 0.2^2), so the half width is 1.96 sd / sqrt(1000) = 6.07."""
    signs = [1] * 600 + [-1] * 400
    result = compare(signs, [0] * 1000, clusters=[str(row) for row in range(1000)])
    half_width = 100 * 1.96 * math.sqrt(1 - 0.2**2) / math.sqrt(1000)
    assert result.delta == pytest.approx(20)
    assert result.delta_ci[0] == pytest.approx(20 - half_width, abs=0.5)
    assert result.delta_ci[1] == pytest.approx(20 + half_width, abs=0.5)


def test_rows_of_one_prompt_count_as_one() -> None:
    """The same prompt ten times over is no more evidence than once: the interval is sqrt(10) times wider."""
    rng = random.Random(0)
    outcomes = [rng.choice([1, -1]) for _ in range(100)]
    rows = [outcome for outcome in outcomes for _ in range(10)]
    zeros = [0] * 1000
    apart = compare(rows, zeros, clusters=[str(row) for row in range(1000)]).delta_ci
    together = compare(rows, zeros, clusters=[str(row // 10) for row in range(1000)]).delta_ci
    ratio = (together[1] - together[0]) / (apart[1] - apart[0])
    assert ratio == pytest.approx(math.sqrt(10), rel=0.1)


def test_mean_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = random.Random(1)
    covered = 0
    for trial in range(200):
        low, high = mean_interval([rng.gauss(0.5, 1) for _ in range(60)], draws=500, seed=trial)
        covered += low <= 0.5 <= high
    assert 0.89 <= covered / 200 <= 0.99

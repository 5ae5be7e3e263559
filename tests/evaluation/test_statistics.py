"""Every statistic on constructed cases with a known answer."""

import math
import random

import numpy as np
import pytest
from scipy.optimize import minimize

from pitcli.evaluation.statistics import (
    Bootstrap,
    bradley_terry,
    compare,
    elo,
    holm,
    length_controlled,
    length_is_identified,
    length_terms,
    mean_interval,
    mean_of,
    p_value,
    rows_needed,
)


def test_counts_and_delta() -> None:
    result = compare([3, 2, 1, 5], [1, 2, 2, 1], clusters=["a", "b", "c", "d"])
    assert (result.wins, result.ties, result.losses) == (2, 1, 1)
    assert result.delta == pytest.approx(25)


def test_all_wins_leave_no_uncertainty() -> None:
    result = compare([1] * 50, [0] * 50, clusters=[str(row) for row in range(50)])
    assert result.delta_ci == (100, 100)


def test_interval_has_the_width_of_the_normal_approximation() -> None:
    """600 wins, 400 losses: the sd of a sign is sqrt(1 - 0.2^2), so the half width is 1.96 sd / sqrt(1000) = 6.07."""
    signs = [1] * 600 + [-1] * 400
    result = compare(signs, [0] * 1000, clusters=[str(row) for row in range(1000)])
    half_width = 100 * 1.96 * math.sqrt(1 - 0.2**2) / math.sqrt(1000)
    assert result.delta == pytest.approx(20)
    assert result.delta_ci[0] == pytest.approx(20 - half_width, abs=0.5)
    assert result.delta_ci[1] == pytest.approx(20 + half_width, abs=0.5)


def test_rows_of_one_prompt_count_as_one() -> None:
    """Ten copies of a prompt are no more evidence than one: the interval is sqrt(10) times wider."""
    rng = random.Random(0)
    outcomes = [rng.choice([1, -1]) for _ in range(100)]
    rows = [outcome for outcome in outcomes for _ in range(10)]
    zeros = [0] * 1000
    apart = compare(rows, zeros, clusters=[str(row) for row in range(1000)]).delta_ci
    together = compare(rows, zeros, clusters=[str(row // 10) for row in range(1000)]).delta_ci
    ratio = (together[1] - together[0]) / (apart[1] - apart[0])
    assert ratio == pytest.approx(math.sqrt(10), rel=0.1)


def test_mean_interval_covers_the_truth_in_about_95_of_100_cases() -> None:
    rng = random.Random(1)
    covered = 0
    for trial in range(200):
        low, high = mean_interval([rng.gauss(0.5, 1) for _ in range(60)], draws=500, seed=trial)
        covered += low <= 0.5 <= high
    assert 0.89 <= covered / 200 <= 0.99


def test_copies_of_rows_with_the_same_prompt_add_no_evidence() -> None:
    values = np.random.default_rng(1).normal(size=200)
    once = Bootstrap(range(200)).interval(mean_of(values))
    twice = Bootstrap([*range(200), *range(200)]).interval(mean_of([*values, *values]))
    as_others = Bootstrap(range(400)).interval(mean_of([*values, *values]))
    assert twice == pytest.approx(once)
    assert as_others[1] - as_others[0] == pytest.approx((once[1] - once[0]) / math.sqrt(2), rel=0.05)


def test_the_interval_of_a_mean_is_that_of_the_normal_distribution() -> None:
    values = np.random.default_rng(2).normal(0.3, 2.0, size=1000)
    low, high = Bootstrap(range(1000)).interval(mean_of(values))
    reach = 1.96 * values.std() / math.sqrt(1000)
    assert (low, high) == pytest.approx((values.mean() - reach, values.mean() + reach), abs=0.01)


def test_the_clustered_interval_covers_the_truth_in_95_of_100_cases() -> None:
    rng = np.random.default_rng(3)
    covered = 0
    for _ in range(400):
        prompts = rng.normal(size=80)
        values = np.concatenate([prompts + 0.5, prompts * 0.8 + 0.5])  # two similar rows per prompt
        low, high = Bootstrap([*range(80), *range(80)], draws=1000).interval(mean_of(values))
        covered += low <= 0.5 <= high
    assert 0.92 <= covered / 400 <= 0.975


def test_seeds_that_differ_widen_the_interval() -> None:
    rng = np.random.default_rng(4)
    effects = np.repeat([-0.5, 0.0, 0.5], 200)
    values = effects + rng.normal(size=600)
    prompts, seeds = [*range(200)] * 3, np.repeat([0, 1, 2], 200)
    alone = Bootstrap(prompts).interval(mean_of(values))
    with_seeds = Bootstrap(prompts, seeds).interval(mean_of(values))
    # the mean of the three effects has a standard error of 0.5 / sqrt(3) = 0.29, and 4.3 of it are 95% with three seeds
    assert alone[1] - alone[0] < 0.25
    assert 2.2 < with_seeds[1] - with_seeds[0] < 2.8


def test_what_a_shared_prompt_does_to_all_seeds_explains_no_difference_between_them() -> None:
    prompts = np.repeat([-1.0, 1.0], 50)
    values = np.concatenate([prompts + offset for offset in (-0.1, 0.0, 0.1)])
    bootstrap = Bootstrap([*range(100)] * 3, np.repeat([0, 1, 2], 100), draws=400)
    assert bootstrap.error_of_seeds(mean_of(values)) == pytest.approx(0.1 / 3**0.5)


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("count", [2, 3, 6])
@pytest.mark.parametrize("spread", [0.0, 0.1, 0.5])
def test_the_interval_over_seeds_covers_the_truth(spread: float, count: int, shared: bool) -> None:
    """On 40 prompts of each seed, or the same for all seeds, with effects half as large as the noise of a row."""
    rng = np.random.default_rng(15)
    covered, seeds = 0, np.repeat(np.arange(count), 40)
    for _ in range(200):
        prompts = np.tile(rng.normal(0, 0.5, 40), count) if shared else rng.normal(0, 0.5, 40 * count)
        values = np.repeat(rng.normal(0.3, spread, count), 40) + prompts + rng.normal(size=40 * count)
        clusters = [*range(40)] * count if shared else range(40 * count)
        low, high = Bootstrap(clusters, seeds, draws=400).interval(mean_of(values))
        covered += low <= 0.3 <= high
    assert (0.8 if count == 2 else 0.89) <= covered / 200 <= 1.0  # two seeds may look alike by chance


def test_the_p_value_is_that_of_a_z_test() -> None:
    noise = np.random.default_rng(5).normal(size=400)
    values = (noise - noise.mean()) / noise.std() + 0.1  # a standard error of 0.05, so z = 2
    draws = Bootstrap(range(400)).sample(mean_of(values))
    assert p_value(draws) == pytest.approx(0.0455, rel=0.15)
    assert p_value(-draws) == p_value(draws)
    assert p_value(np.zeros(100)) == 1.0
    assert p_value(np.random.default_rng(6).normal(size=10_000)) > 0.9


def padded(rows: int = 4000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(signs, lengths, baseline lengths) of an improver that only pads, by a judge that prefers length.

    P(win) = sigmoid(2.5 * tanh(difference / spread) - 0.4): at equal lengths, the improver is worse.
    """
    rng = np.random.default_rng(6)
    baseline = rng.integers(20, 60, rows)
    lengths = baseline + rng.integers(0, 60, rows)
    terms = length_terms(lengths, baseline)
    return np.where(rng.random(rows) < 1 / (1 + np.exp(0.4 - 2.5 * terms)), 1, -1), lengths, baseline


def test_padding_wins_with_a_judge_that_prefers_length_and_loses_under_length_control() -> None:
    signs, lengths, baseline = padded()
    assert length_is_identified(lengths, baseline)
    bootstrap = Bootstrap(range(len(signs)), draws=2000)
    raw = bootstrap.interval(mean_of(100 * signs))
    statistic = length_controlled(signs, length_terms(lengths, baseline))
    controlled = bootstrap.interval(statistic)
    assert raw[0] > 50
    assert controlled[1] < 0
    truth = 200 / (1 + math.exp(0.4)) - 100
    assert controlled[0] < truth < controlled[1]


def test_the_length_controlled_fit_maximises_the_likelihood() -> None:
    """A general optimiser finds the same intercept of the weighted logistic regression."""
    signs, lengths, baseline = padded(500)
    terms = length_terms(lengths, baseline)
    weights = np.random.default_rng(7).integers(0, 4, 500).astype(float)

    def negative_log_likelihood(parameters: np.ndarray) -> float:
        return float(weights @ np.logaddexp(0, -signs * (parameters[0] + parameters[1] * terms)))

    intercept = minimize(negative_log_likelihood, x0=[0.0, 0.0], method="Nelder-Mead", options={"xatol": 1e-9}).x[0]
    found = length_controlled(signs, terms)(weights[None])
    assert found[0] == pytest.approx(200 / (1 + math.exp(-intercept)) - 100, abs=0.01)


def test_length_control_changes_nothing_if_length_has_no_effect() -> None:
    rng = np.random.default_rng(8)
    signs = np.where(rng.random(3000) < 0.6, 1, -1)
    lengths = rng.integers(10, 50, (2, 3000))
    found = length_controlled(signs, length_terms(*lengths))(np.ones((1, 3000)))
    assert found[0] == pytest.approx(100 * signs.mean(), abs=1.0)


def test_the_length_controlled_fit_stays_finite_if_all_rows_win() -> None:
    terms = length_terms(range(10, 60), [10] * 50)
    found = length_controlled(np.ones(50), terms)(np.ones((3, 50)))
    assert np.isfinite(found).all()


def test_length_is_identified_only_if_the_rows_cover_equal_lengths() -> None:
    assert not length_is_identified([40] * 100, [20] * 100)
    assert length_is_identified([40] * 95 + [21] * 5, [20] * 100)
    assert length_is_identified([40] * 50 + [10] * 50, [20] * 100)


def test_holm_of_four_p_values() -> None:
    """In order: 4 * 0.005 = 0.02, 3 * 0.01 = 0.03, 2 * 0.03 = 0.06, and 1 * 0.04, raised to 0.06."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


def test_holm_of_equal_p_values_is_equal() -> None:
    """3 * 0.02 = 0.06 for the first; 2 * 0.02 = 0.04 of the second is raised to 0.06, and so is 0.05."""
    assert holm([0.02, 0.05, 0.02]) == pytest.approx([0.06, 0.06, 0.06])


def test_holm_keeps_the_order_of_the_p_values() -> None:
    p_values = np.random.default_rng(16).random(50) ** 3
    adjusted = holm(p_values.tolist())
    assert np.all(np.diff(np.array(adjusted)[np.argsort(p_values)]) >= 0)
    assert np.all(np.array(adjusted) >= p_values)


def test_holm_is_never_above_one() -> None:
    """2 * 0.6 = 1.2 is capped at 1, and 0.9 is raised to 1."""
    assert holm([0.6, 0.9]) == [1.0, 1.0]


def test_holm_of_one_p_value_and_of_none() -> None:
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_the_rows_needed_give_that_power() -> None:
    rng = np.random.default_rng(9)
    draws = np.full(10_000, 0.1) + rng.normal(0, 1 / math.sqrt(100), 10_000)  # a mean of 0.1, sd 1, 100 rows
    needed = rows_needed(draws, 100)
    assert needed == pytest.approx((2.8016 / 0.1) ** 2, rel=0.1)
    significant = np.abs(rng.normal(0.1, 1 / math.sqrt(785), 20_000)) > 1.96 / math.sqrt(785)
    assert significant.mean() == pytest.approx(0.8, abs=0.02)
    assert rows_needed(np.zeros(10), 100) is None


def test_bradley_terry_finds_the_strengths_that_made_the_games() -> None:
    strengths = np.array([0.0, 0.7, 1.1, 0.2])
    expected = 1 / (1 + np.exp(strengths[None, :] - strengths[:, None])) * 1000
    np.fill_diagonal(expected, 0)
    found = bradley_terry(np.stack([expected, expected * 2]))
    assert found[0] == pytest.approx(strengths, abs=1e-3)
    assert found[1] == pytest.approx(strengths, abs=1e-3)


def test_bradley_terry_of_two_items_is_the_log_odds() -> None:
    assert bradley_terry(np.array([[[0.0, 20.0], [60.0, 0.0]]]))[0, 1] == pytest.approx(math.log(3), abs=1e-3)


def test_an_item_that_never_lost_has_a_finite_strength() -> None:
    found = bradley_terry(np.array([[[0.0, 0.0], [50.0, 0.0]]]))
    assert 5 < found[0, 1] < 12


def test_elo_ranks_as_the_games_do_and_keeps_its_mean() -> None:
    games = [(0, 1, 0.0), (1, 2, 0.0), (0, 2, 0.0)] * 100
    ratings = elo(games, 3)
    assert ratings[0] < ratings[1] < ratings[2]
    assert sum(ratings) == pytest.approx(3000)
    assert elo(games, 3, seed=1) != ratings

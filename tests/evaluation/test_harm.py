"""Certified harm: the bound, fixed-sequence testing, and the replay of thresholds."""

import math

import numpy as np
import pytest

from pitcli.data.rows import Draft, Message
from pitcli.engine.generation.methods import Proposal
from pitcli.evaluation.harm import THRESHOLDS, Chain, certify, clopper_pearson_upper, rows_for_certificate
from pitcli.settings.generating import ImproveConfig

DRAWS = 1000
PROMPT = (Message("user", "Name a pet."),)


def chain(*steps: tuple[str, float]) -> Chain:
    """A chain of responses with their P(better)."""
    proposals = tuple((Proposal(text, 1, True, {}), math.log(p / (1 - p))) for text, p in steps)
    return Chain(Draft("1", PROMPT, "draft", {}), proposals)


def test_the_bound_of_clopper_and_pearson() -> None:
    """No failure in n: 1 - (1 - c)^(1/n); n failures: 1. 5 of 100: 0.1023, from tables of the binomial."""
    assert clopper_pearson_upper(0, 59, 0.95) == pytest.approx(1 - 0.05 ** (1 / 59))
    assert clopper_pearson_upper(7, 7, 0.95) == 1.0
    assert clopper_pearson_upper(5, 100, 0.95) == pytest.approx(0.1023, abs=1e-4)


@pytest.mark.parametrize("harm", [0.02, 0.05, 0.2])
def test_the_bound_covers_the_true_harm_in_95_of_100_draws(harm: float) -> None:
    counts = np.random.default_rng(0).binomial(150, harm, DRAWS)
    assert np.mean([clopper_pearson_upper(int(count), 150, 0.95) >= harm for count in counts]) >= 0.95


@pytest.mark.parametrize("rows", [80, 300])
@pytest.mark.parametrize("cap", [0.05, 0.1])
def test_the_certified_threshold_keeps_the_cap_in_95_of_100_draws(rows: int, cap: float) -> None:
    """P(better) is uniform in [0, 1], and a change with P is worse with probability s (1 - P)^2 / 2.

    So the true harm rate of threshold t is s (1 - t)^3 / 6; s makes it exceed the cap below t = 0.7. What is
    certified is the cap: the bound at the threshold that the rows themselves chose covers the truth in only 94 of 100
    draws.
    """
    rng = np.random.default_rng(1)
    scale = cap / (0.3**3 / 6)
    kept_the_cap, certified = 0, 0
    for _ in range(DRAWS):
        p_N = rng.random(rows)
        worse_N = rng.random(rows) < np.minimum(1.0, scale * (1 - p_N) ** 2 / 2)
        index = certify([int((worse_N & (p_N > t)).sum()) for t in THRESHOLDS], rows, cap, 0.95)
        certified += index is not None
        true = 0.0 if index is None else scale * (1 - THRESHOLDS[index]) ** 3 / 6
        kept_the_cap += true <= cap + 1e-12
    assert kept_the_cap / DRAWS >= 0.95
    assert certified > DRAWS * 0.8, "otherwise the test shows nothing"


def test_testing_stops_at_the_first_threshold_that_fails() -> None:
    """100 rows and a cap of 5%: at most 1 harmed row is certified (bound 4.7%), 2 are not (6.2%)."""
    assert certify([0, 1, 1, 2, 0], 100, 0.05, 0.95) == 2
    assert certify([2, 0, 0], 100, 0.05, 0.95) is None


def test_rows_for_a_certificate() -> None:
    assert rows_for_certificate(0.0, 0.05, 0.95) == 59
    needed = rows_for_certificate(0.02, 0.05, 0.95)
    assert needed is not None
    assert clopper_pearson_upper(math.ceil(0.02 * needed), needed, 0.95) <= 0.05
    assert 100 < needed < 300
    assert rows_for_certificate(0.05, 0.05, 0.95) is None


def test_each_threshold_is_replayed() -> None:
    """The chain ends at its first rejected response, whatever comes after; copies and cycles are rejected too.

    Odds of 9, 3/2 and 4 are those of 54 : 1 over the draft, P(better) = 54/55 = 0.98.
    """
    config = ImproveConfig(max_iters=3, stop="none")
    steps = chain(("one", 0.9), ("two", 0.6), ("three", 0.8))
    assert [steps.kept(config, t) for t in (0.99, 0.97, 0.9, 0.5)] == ["draft", "three", "three", "three"]
    rejected = chain(("one", 0.9), ("two", 0.4), ("three", 0.8))
    assert [rejected.kept(config, t) for t in (0.91, 0.89, 0.5)] == ["draft", "one", "one"]
    assert chain(("one", 0.9), ("one", 0.9), ("two", 0.9)).kept(config, 0.5) == "one"
    assert chain(("one", 0.9), ("draft", 0.9), ("two", 0.9)).kept(config, 0.5) == "one"
    broken = Chain(steps.draft, ((Proposal("one", 1, True, {}), math.nan), *steps.proposals))
    assert broken.kept(config, 0.5) == "draft"
    assert min(THRESHOLDS) == 0.5
    assert list(THRESHOLDS) == sorted(THRESHOLDS, reverse=True)

"""Divergence from logged metrics: exploded trainings are found, noisy, short and slow ones are not."""

import math
import random
from typing import Any

import pytest
from torch import zeros

from pitcli.equations import gap_loss, unchanged_preference_loss
from pitcli.runs.divergence import divergence, loss_of_equal_gaps
from pitcli.settings.base import GapLoss, PreferenceLoss
from pitcli.settings.default_runs import Kind

RL = {"max_kl": 30.0, "max_truncated_share": 0.95}
CALM = {"kl": 2.0, "reward": 0.5, "truncated_share": 0.1, "length_ratio": 1.0}


def of(kind: Kind, losses: list[float], batch: int = 16, **config: Any) -> str | None:
    return divergence(kind, {"batch_size": batch, **config}, [{"loss": loss} for loss in losses])


@pytest.mark.parametrize(
    "losses",
    [
        [1.9, 2.5, 8.0, 6.0, 4.0, 3.5, 3.3, *[3.1] * 40],  # exploded within the first ten steps, and stays there
        [1.4, 1.3, 1.2, *[1.1] * 20, 5.0, 4.5, *[3.0] * 10],  # later
        [1.4, 1.9, 7.8],  # a short run
        [2.0, *[1.0] * 30, *[1.9] * 10],  # not above the start, but what was learned is lost
    ],
)
def test_an_exploded_loss_is_found(losses: list[float]) -> None:
    problem = of("sft", losses)
    assert problem is not None
    assert f"the loss per token was {losses[0]:.2f} in the first step" in problem


@pytest.mark.parametrize(
    "losses",
    [
        [2.0],
        [2.0, 2.6],  # two batches that differ
        [1.4, 1.3, 0.9, 1.5, 1.6, 1.1, 1.2, 1.4, 1.3, 1.3, 1.6],
        [2.0, *[1.0] * 20, *[1.3] * 20],  # harder rows at the end
        [1e-3, 2e-3, 5e-3, 4e-3],  # learned by heart before
    ],
)
def test_a_healthy_loss_is_not(losses: list[float]) -> None:
    assert of("sft", losses) is None


@pytest.mark.parametrize("batch", [1, 2, 4, 16, 64])
def test_noise_of_small_batches_is_not_divergence(batch: int) -> None:
    """Losses of rows vary by 40% of their mean; each batch has the mean of its rows, and nothing is learned."""
    found = 0
    for seed in range(300):
        rng = random.Random(seed)
        steps = rng.choice([2, 5, 20, 60])
        rows = [[rng.gammavariate(6.25, 2.0 / 6.25) for _ in range(batch)] for _ in range(steps)]
        found += of("sft", [sum(row) / batch for row in rows], batch) is not None
    assert found <= 3  # of 300


def test_noise_of_long_runs_is_not_divergence() -> None:
    """The lowest of many means over a few steps is far below the loss."""
    found = 0
    for seed in range(100):
        rng = random.Random(seed)
        steps = [0.35 + 0.35 * math.exp(-step / 80) for step in range(300)]
        found += of("sft", [loss * rng.gammavariate(8, 1 / 8) for loss in steps]) is not None
    assert found <= 3  # of 100


@pytest.mark.parametrize("kind", GapLoss)
def test_the_loss_of_equal_gaps(kind: GapLoss) -> None:
    orderings = 4 if kind is GapLoss.five_term else 2
    assert loss_of_equal_gaps(kind) == pytest.approx(float(gap_loss(kind, zeros(1, orderings))))


@pytest.mark.parametrize("kind", GapLoss)
def test_a_gap_model_is_compared_with_equal_gaps(kind: GapLoss) -> None:
    equal = loss_of_equal_gaps(kind)
    exploded = [equal, *[9 * equal] * 8, *[equal] * 20]
    learned = [equal, *[9 * equal] * 8, *[0.8 * equal] * 20]  # a bad start, made up for
    overshot = [equal, 2.3 * equal, 3.6 * equal, 4.2 * equal]  # a short run at a high rate, which more steps would mend
    nothing_learned = [equal * factor for factor in (1, 1.2, 0.9, 1.6, 1.0, 0.8, 1.3) for _ in range(4)]
    problem = of("reward", exploded, gap_loss=kind.value)
    assert problem is not None
    assert f"a model that says nothing has {equal:.2f}" in problem
    assert of("reward", learned, gap_loss=kind.value) is None
    assert of("reward", overshot, batch=8, gap_loss=kind.value) is None
    assert of("reward", nothing_learned, gap_loss=kind.value) is None


def test_noisy_pairs_are_not_divergence() -> None:
    """A confident gap model: most pairs cost little, the mislabelled ones much; batches of one pair."""
    for seed in range(200):
        rng = random.Random(seed)
        pairs = [rng.choice([0.1, 0.2, 0.4, 1.8]) for _ in range(rng.choice([2, 8, 100]))]
        assert of("reward", [math.log(2), *pairs], batch=1, gap_loss="pointwise") is None


def test_each_member_of_an_ensemble_is_judged_by_itself() -> None:
    equal = math.log(2)
    bad = [{"loss": loss, "member": 2.0} for loss in [equal, *[9 * equal] * 8, *[equal] * 20]]
    good = [{"loss": 0.6, "member": member} for member in (1.0, 3.0) for _ in range(29)]
    settings = {"batch_size": 16, "gap_loss": "bradley-terry"}
    assert divergence("reward", settings, [*good[:29], *bad, *good[29:]])
    assert divergence("reward", settings, good) is None


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ({"kl": 31.0}, "KL 31.0 exceeds --max-kl"),
        ({"kl": 16.0, "reward": 0.1}, "the reward fell from 0.50 to 0.10, at KL 16.0"),
        ({"truncated_share": 0.97}, "truncated share 97% exceeds --max-truncated-share"),
        ({"length_ratio": 0.01}, "the responses became 1.0% as long as their references"),
    ],
)
def test_rl_that_ran_away(last: dict[str, float], expected: str) -> None:
    problem = divergence("rl", RL, [CALM] * 30 + [{**CALM, **last}] * 10)
    assert problem is not None
    assert expected in problem


@pytest.mark.parametrize(
    "rows",
    [
        [CALM] * 2,
        [CALM] * 30 + [{**CALM, "reward": 0.1}] * 10,  # harder references, at a small KL
        [CALM] * 30 + [{**CALM, "kl": 16.0, "reward": 1.5}] * 10,  # far away, but better
        [{**CALM, "truncated_share": 0.6}, {**CALM, "truncated_share": 0.97}],  # a short --rollout-max-new-tokens
        [CALM, {**CALM, "kl": 0.0, "truncated_share": 0.97}],  # by chance: the role has not changed
        [{**CALM, "truncated_share": 1.0}] * 4,  # a setting: it was so before training
        [{**CALM, "length_ratio": 0.02}] * 4,
        [{"gap": 0.1}] * 4,  # a run of an earlier version
        [],
    ],
)
def test_healthy_rl(rows: list[dict[str, float]]) -> None:
    assert divergence("rl", RL, rows) is None


@pytest.mark.parametrize("loss", PreferenceLoss)
def test_a_preference_loss_far_above_that_of_the_start_is_found(loss: PreferenceLoss) -> None:
    start = unchanged_preference_loss(loss, 0.1)
    problem = of("dpo", [start, *[start * 1.9] * 20], loss=loss)
    end = f"is {start * 1.9:.2f} at the end (mean of the last 4 steps)"
    assert problem == f"the loss per pair was {start:.2f} in the first step and {end}"
    assert of("dpo", [start, *[start * 1.9] * 3, *[start * 0.8] * 20]) is None, "it came back"
    assert of("dpo", [start, start * 1.3, start * 1.2]) is None
    assert of("dpo", [start, start * 2], batch=4) is None, "two small batches"
    assert of("dpo", [start, start * 7], batch=4) is not None


DISTILLED = {"method": "on-policy", "max_truncated_share": 0.9}
TAUGHT = {"kl": 4.0, "truncated_share": 0.1, "length_ratio": 1.0}


def test_on_policy_distillation_diverged_if_it_left_the_improver() -> None:
    problem = divergence("distill", DISTILLED, [TAUGHT] * 10 + [{**TAUGHT, "kl": 8.0}] * 10)
    assert (
        problem
        == "the KL to the improver was 4.0 at the start and is 8.0 at the end (means of the first and last 10 steps)"
    )
    assert divergence("distill", DISTILLED, [TAUGHT] * 10 + [{**TAUGHT, "kl": 6.9}] * 10) is None
    assert divergence("distill", DISTILLED, [TAUGHT] * 3 + [{**TAUGHT, "kl": 8.0}] * 10) is None, "few steps"
    problem = divergence("distill", DISTILLED, [TAUGHT] * 10 + [{**TAUGHT, "truncated_share": 1.0}] * 10)
    assert problem == "truncated share 100% exceeds --max-truncated-share (mean of the last 5 steps)"
    assert divergence("distill", DISTILLED, [TAUGHT] * 10 + [{**TAUGHT, "length_ratio": 0.0}] * 10) is not None


@pytest.mark.parametrize(("method", "same"), [("sft", "sft"), ("dpo", "dpo")])
def test_other_distillation_is_judged_as_its_method(method: str, same: str) -> None:
    rows = [{"loss": 0.7}, *[{"loss": 9.0}] * 20]
    problem = divergence("distill", {"method": method, "batch_size": 16}, rows)
    assert problem is not None
    assert problem == divergence(same, {"batch_size": 16}, rows)  # type: ignore[arg-type]

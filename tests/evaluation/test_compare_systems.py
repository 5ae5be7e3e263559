"""Constructed systems and judges with a known comparison."""

import math
import random

import numpy as np
import pytest

from pitcli.data.rows import Comparison
from pitcli.evaluation.compare_systems import edit_size
from pitcli.evaluation.systems import pad
from tests.evaluation.constructed import compared, judge_of, row


def test_padding_wins_with_a_judge_that_prefers_length_and_loses_under_length_control() -> None:
    draw = random.Random(0)
    originals = [" ".join(["word"] * draw.randint(10, 40)) for _ in range(1500)]
    rows = [row(number, text, pad(text, draw.random())) for number, text in enumerate(originals)]

    def prefers_length(comparison: Comparison) -> float:
        longer = (len(comparison.response) - len(comparison.reference_response)) / 5
        # padding alone is worse; each extra word makes it look better
        return float(draw.random() < 1 / (1 + math.exp(0.5 - 0.25 * longer)))

    found = compared(rows, judge_of(prefers_length))
    assert found.delta_ci[0] > 30
    assert found.length_controlled_ci is not None
    assert found.length_controlled_ci[1] < 0
    assert found.mean_length > found.baseline_mean_length * 1.3


def test_wins_ties_losses_harm_copies_and_edits_are_counted() -> None:
    rows = [row(0, "a b", "a c"), row(1, "a b", "a b"), row(2, "a b", "x y"), row(3, "a b", "a d")]
    found = compared(rows, judge_of(lambda c: {"a c": 0.9, "a d": 0.5, "x y": 0.2}[c.response]))
    assert (found.wins, found.ties, found.losses) == (1, 2, 1)
    assert (found.delta, found.harm_rate, found.copy_rate) == (0, 0.25, 0.25)
    assert found.edit_size == pytest.approx((0.5 + 0 + 1 + 0.5) / 4)
    assert found.generated_tokens == 10
    assert found.verdict == "no difference shown"


def test_rows_without_a_verdict_are_skipped() -> None:
    rows = [row(0, "a", "b"), row(1, "a", "c")]
    found = compared(rows, judge_of(lambda c: None if c.response == "c" else 1.0))
    assert (found.rows, found.wins) == (1, 1)


def test_fewer_than_20_prompts_show_no_difference() -> None:
    few = compared([row(number, "a", f"b{number}") for number in range(19)], judge_of(lambda c: 1.0))
    assert (few.delta_ci, few.p_value, few.verdict) == ((100, 100), 1.0, "no difference shown")
    enough = compared([row(number, "a", f"b{number}") for number in range(20)], judge_of(lambda c: 1.0))
    assert enough.verdict == "better"


def test_text_without_spaces_has_a_length() -> None:
    draw = random.Random(3)
    originals = ["字" * draw.randint(10, 40) for _ in range(300)]
    rows = [row(number, text, pad(text, draw.random())) for number, text in enumerate(originals)]
    found = compared(rows, judge_of(lambda c: 0.5 + 0.5 * np.sign(len(c.response) - len(c.reference_response))))
    assert found.delta > 90
    assert found.length_controlled_delta is not None
    assert found.length_controlled_delta < found.delta
    assert found.mean_length > found.baseline_mean_length


def test_edit_size_is_the_share_of_words_that_changed() -> None:
    assert edit_size(Comparison((), "a b c d", "a b c x")) == pytest.approx(0.25)
    assert edit_size(Comparison((), "猫在家里。", "猫在院里。")) == pytest.approx(1 / 5)
    assert edit_size(Comparison((), "แมวดำ", "แมวดำ")) == 0

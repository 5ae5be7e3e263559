"""Figures of texts in scripts without spaces, and of texts that are too short for a triple."""

import pytest
import torch

from pitcli.data.rows import Comparison, Message, PreferencePair
from pitcli.engine.generation.sampling import Sample
from pitcli.engine.training.reward_report import gap_report
from pitcli.engine.training.rollouts import text_metrics

X = (Message("user", "x"),)


def metrics_of(*texts: tuple[str, str]) -> dict[str, float]:
    """Of (response, y_ref)."""
    return text_metrics([Sample([1], [-1.0], True) for _ in texts], [Comparison(X, *pair) for pair in texts])


@pytest.mark.parametrize(
    ("response", "repetition"),
    [
        ("", 0),
        ("yes", 0),
        ("very well", 0),
        ("not so bad", 0),
        ("a b c a b c a b c", 1 - 3 / 7),
        ("猫在家里睡觉。", 0),
        ("很好很好很好很好", 1 - 2 / 6),
        ("แมว", 0),
    ],
)
def test_repetition(response: str, repetition: float) -> None:
    assert metrics_of((response, "z"))["repetition"] == pytest.approx(repetition)


def test_a_text_without_a_triple_counts_for_nothing_among_others() -> None:
    assert metrics_of(("yes", "z"), ("a a a a", "z"))["repetition"] == pytest.approx(0.5)


def test_length_ratio_counts_characters_in_scripts_without_spaces() -> None:
    assert metrics_of(("猫在家里。", "猫。"))["length_ratio"] == pytest.approx(5 / 2)
    assert metrics_of(("one two three", "one two"))["length_ratio"] == pytest.approx(3 / 2)


def test_lengths_in_the_report_on_a_gap_model() -> None:
    """Longer wins twice, shorter once; the gaps 3, 1 and -1 go with differences of 3, 2 and -1 characters."""
    texts = [("大きな海です。", "海です。"), ("青く見えます。", "赤いです。"), ("桜。", "花だ。")]
    pairs = [PreferencePair(str(n), X, *pair, {}) for n, pair in enumerate(texts)]
    scores_N2 = torch.tensor([[3.0, -3.0], [1.0, -1.0], [-1.0, 1.0]])
    report = gap_report(scores_N2, pairs, 0.7, 1.0)
    assert report["longer_wins_accuracy"] == pytest.approx(2 / 3)
    assert report["shorter_wins_accuracy"] == pytest.approx(1 / 3)
    assert report["length_correlation"] == pytest.approx(12 / ((9 + 1 + 1) * (9 + 4 + 1)) ** 0.5)

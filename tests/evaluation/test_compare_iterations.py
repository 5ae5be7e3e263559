"""Constructed iterations with known ranks and calibration."""

import math
import random

import pytest

from pitcli.data.rows import Comparison
from pitcli.evaluation.ask_judge import ask
from pitcli.evaluation.compare_iterations import compare_iterations, iteration_comparisons
from tests.evaluation.constructed import SETTINGS, judge_of, row, step, steps, system


def test_iterations_without_gaps_and_without_ranks_are_judged_against_the_one_before() -> None:
    without_gaps = [step("o", "i1", p_better=None), step("i1", "i2", p_better=None)]
    rows = [row(number, "o", "i2", steps=without_gaps) for number in range(3)]
    judged = ask(
        judge_of(lambda c: None if c.prompt[0].content == "prompt 0" else 1.0), iteration_comparisons(rows, False)
    )
    found = compare_iterations(system("s"), rows, judged, every_pair=False, settings=SETTINGS)
    assert [step.delta for step in found.by_iteration] == [0, 100, 100]  # the row without verdicts is skipped
    assert found.by_iteration[2].strength is None


def test_iterations_are_ranked_as_the_judge_ranks_them() -> None:
    """The second iteration is the best, the third as bad as the original."""
    worth = {"o": 0.0, "i1": 1.0, "i2": 2.0, "i3": 0.0}
    draw = random.Random(1)

    def noisy(comparison: Comparison) -> float:
        difference = worth[comparison.response] - worth[comparison.reference_response]
        return float(draw.random() < 1 / (1 + math.exp(-difference)))

    written = steps("o", "i1", "i2", "i3")
    rows = [row(number, "o", "i3", steps=written) for number in range(600)]
    judged = ask(judge_of(noisy), iteration_comparisons(rows, True))
    found = compare_iterations(system("s"), rows, judged, every_pair=True, settings=SETTINGS)
    strengths = [step.strength for step in found.by_iteration]
    assert strengths == pytest.approx([0, 1, 2, 0], abs=0.25)
    best = found.by_iteration[2]
    assert best.strength_ci is not None
    assert best.strength_ci[0] > 1.5
    elos = [step.elo for step in found.by_iteration]
    assert max(range(4), key=lambda k: elos[k] or 0) == 2
    assert found.by_iteration[3].worse_than_before == pytest.approx(1 / (1 + math.exp(-2)), abs=0.05)
    assert [step.generated_tokens for step in found.by_iteration] == [0, 3, 6, 9]


def test_calibration_shows_an_overconfident_gap_model() -> None:
    draw = random.Random(2)
    rows = []
    for number in range(2000):
        text, p_better = f"i{number}", draw.random()
        rows.append(row(number, "o", text, steps=[step("o", text, p_better)]))
    p_better_of = {row.response: row.steps[0].p_better or 0 for row in rows}
    half_as_sure = judge_of(lambda c: float(draw.random() < 0.5 + (p_better_of[c.response] - 0.5) / 2))
    judged = ask(half_as_sure, iteration_comparisons(rows, False))
    bins = compare_iterations(system("s"), rows, judged, every_pair=False, settings=SETTINGS).calibration
    assert len(bins) == 10
    assert bins[0].p_better == pytest.approx(0.05, abs=0.01)
    assert bins[0].judged_better == pytest.approx(0.275, abs=0.08)
    assert bins[-1].judged_better == pytest.approx(0.725, abs=0.08)


def test_an_iteration_without_any_verdict_is_left_out() -> None:
    rows = [row(number, "o", "i2", steps=steps("o", "i1", "i2")) for number in range(3)]
    first_only = judge_of(lambda c: 1.0 if c.response == "i1" else None)
    judged = ask(first_only, iteration_comparisons(rows, False))
    found = compare_iterations(system("s"), rows, judged, every_pair=False, settings=SETTINGS)
    assert [step.iteration for step in found.by_iteration] == [0, 1]

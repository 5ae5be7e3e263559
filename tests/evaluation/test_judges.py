"""Asking judges, and validating them on labelled pairs."""

from pathlib import Path

import numpy as np
import pytest

from pitcli.data.pair_reading import load_pairs
from pitcli.data.rows import Comparison, Message
from pitcli.errors import RunError
from pitcli.evaluation.ask_judge import ask, with_grades
from pitcli.evaluation.judge import judge_by_grades
from pitcli.evaluation.judge_checks import LabelledPairs, validate
from tests.evaluation.constructed import SETTINGS, judge_of, pairs_file


def test_copies_and_reversed_comparisons_are_not_asked() -> None:
    asked: list[Comparison] = []
    prompt = (Message("user", "p"),)
    judged = ask(
        judge_of(lambda c: 0.8, asked),
        [
            Comparison(prompt, "a", "b"),
            Comparison(prompt, "b", "a"),
            Comparison(prompt, "a", "a"),
            Comparison(prompt, "a", "b"),
        ],
    )
    assert asked == [Comparison(prompt, "a", "b")]
    assert judged.p_better(Comparison(prompt, "b", "a")) == pytest.approx(0.2)
    assert judged.p_better(Comparison(prompt, "a", "a")) == 0.5


def test_a_judge_without_a_verdict_on_any_labelled_pair_is_an_error(tmp_path: Path) -> None:
    file = pairs_file(tmp_path / "pairs.jsonl", [{"prompt": "p", "chosen": "a", "rejected": "b"}])
    with pytest.raises(RunError, match="constructed: no verdict on any pair of"):
        validate(judge_of(lambda c: None), LabelledPairs(file, load_pairs(file)), by=None, settings=SETTINGS)


def test_a_judge_that_only_measures_length_does_not_beat_length(tmp_path: Path) -> None:
    rows = [
        {"prompt": f"p{n}", "chosen": "a " * (2 + n % 3), "rejected": "b " * 3, "subset": ("x", "all")[n % 2]}
        for n in range(300)
    ]
    rows = [row for row in rows if row["chosen"].strip() != row["rejected"].strip()]
    file = pairs_file(tmp_path / "pairs.jsonl", rows)
    longer = judge_of(lambda c: 0.5 + 0.5 * np.sign(len(c.response) - len(c.reference_response)))
    labelled = LabelledPairs(file, load_pairs(file))
    found = validate(longer, labelled, by="subset", settings=SETTINGS)
    assert [validation.dataset for validation in found] == ["all", "x"]
    assert found[0].agreement == found[0].longest
    assert not found[0].beats_length
    knows = validate(judge_of(lambda c: float(c.response.startswith("a"))), labelled, by=None, settings=SETTINGS)
    assert knows[0].agreement == 1
    assert knows[0].beats_length


def test_a_grade_that_is_no_number_is_no_verdict(capsys: pytest.CaptureFixture[str]) -> None:
    prompt = (Message("user", "p"),)
    grades = {"good": 2.0, "bad": 1.0, "broken": float("nan")}
    judge = judge_by_grades("graded", lambda responses: [grades[text] for _, text in responses], scale=1e6)
    broken, known = Comparison(prompt, "broken", "bad"), Comparison(prompt, "good", "bad")
    judged = ask(judge, [broken, known])
    assert (judged.p_better(broken), judged.p_better(known)) == (None, 1.0)
    assert with_grades(judge, judged, [(prompt, "good"), (prompt, "broken")]).grades == {}
    assert "judge graded: 1 grade not finite, so no mean grades are shown" in capsys.readouterr().err

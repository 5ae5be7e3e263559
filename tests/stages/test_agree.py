"""pit agree on cases whose agreement is known."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pytest

from pitcli import cli
from pitcli.data.rows import Message
from pitcli.evaluation.agreement import (
    ORIGINAL_RESPONSE,
    RESPONSE,
    TIE,
    Item,
    alpha,
    judge_agreement,
    majority,
    pairwise_agreement,
    resampled_alphas,
    wins,
)

Row = dict[str, Any]
# Krippendorff 2011, "Computing Krippendorff's Alpha-Reliability": 4 observers, 12 units, a dot is a missing value
OBSERVERS = ("123321412...", "1233224125.3", ".3332342251.", "12332441251.")


def item(number: int) -> Item:
    return Item((Message("user", f"p{number}"),), f"old{number}", f"new{number}")


def label(annotator: str, number: int, preferred: str, shown_first: str = RESPONSE) -> Row:
    texts = {"prompt": f"p{number}", "original_response": f"old{number}", "response": f"new{number}"}
    return {"annotator": annotator, "shown_first": shown_first, "preferred": preferred, **texts}


def verdict(judge: str, number: int, p_better: float | None) -> Row:
    texts = {"prompt": f"p{number}", "original_response": f"old{number}", "response": f"new{number}"}
    return {"judge": judge, "p_better": p_better, **texts}


def write(path: Path, rows: list[Row]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def agree(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[Row, str]]:
    def run(*files: list[Row], verdicts: list[Row] | None = None) -> tuple[Row, str]:
        paths = [write(tmp_path / f"labels{number}.jsonl", rows) for number, rows in enumerate(files)]
        flags = ["--judge-verdicts", write(tmp_path / "verdicts.jsonl", verdicts)] if verdicts is not None else []
        assert cli.main(["agree", "--labels", ",".join(paths), *flags]) == 0
        out, err = capsys.readouterr()
        assert out.count("\n") == 1
        return json.loads(out), err

    return run


def test_alpha_of_krippendorffs_published_example() -> None:
    units = [[value for value in unit if value != "."] for unit in zip(*OBSERVERS, strict=True)]
    found = alpha(units)
    assert found is not None
    assert found.value == pytest.approx(0.743, abs=5e-4)
    assert found.ci[0] < found.value < found.ci[1]


def test_perfect_agreement_is_one_and_chance_is_about_zero() -> None:
    perfect = alpha([[RESPONSE] * 2] * 20 + [[ORIGINAL_RESPONSE] * 2] * 20)
    assert perfect == (1.0, (1.0, 1.0))
    rng = random.Random(0)
    chance = alpha([[rng.choice([RESPONSE, ORIGINAL_RESPONSE, TIE]) for _ in range(3)] for _ in range(600)])
    assert chance is not None
    assert chance.ci[0] < 0 < chance.ci[1]
    assert chance.ci[1] - chance.ci[0] < 0.15


def test_two_annotators_who_always_differ_are_below_chance() -> None:
    found = alpha([[RESPONSE, ORIGINAL_RESPONSE]] * 10)
    assert found is not None
    # 10 items: observed disagreement 1, expected 2 * 10 * 10 / (20 * 19)
    assert found.value == pytest.approx(1 - 1 / (200 / 380))


@pytest.mark.parametrize("units", [[], [[RESPONSE], [ORIGINAL_RESPONSE]], [[TIE, TIE]] * 5])
def test_no_alpha_if_agreement_cannot_be_distinguished_from_chance(units: list[list[str]]) -> None:
    assert alpha(units) is None


def test_the_interval_covers_the_alpha_of_the_population() -> None:
    rng = random.Random(1)

    def units(count: int) -> list[list[str]]:
        truths = [rng.choice([RESPONSE, ORIGINAL_RESPONSE]) for _ in range(count)]
        return [
            [t if rng.random() < 0.8 else rng.choice([RESPONSE, ORIGINAL_RESPONSE]) for _ in range(2)] for t in truths
        ]

    # each keeps the truth with probability 0.8, so their correlation is 0.64
    intervals = [found.ci for _ in range(100) if (found := alpha(units(100), draws=500)) is not None]
    assert 88 <= sum(low <= 0.64 <= high for low, high in intervals) <= 100


def test_resampled_alphas_equal_those_of_the_krippendorff_package() -> None:
    rng = np.random.default_rng(0)
    counts = rng.multinomial(4, [0.5, 0.3, 0.2], size=12) + np.array([1, 0, 1])
    picked = rng.multinomial(12, np.full(12, 1 / 12), size=20)
    found = resampled_alphas(counts, picked)
    for row, value in zip(picked, found, strict=True):
        resample = np.repeat(counts, row, axis=0)
        assert value == pytest.approx(krippendorff.alpha(value_counts=resample, level_of_measurement="nominal"))


@pytest.mark.parametrize(
    ("preferences", "expected"),
    [
        ([RESPONSE], RESPONSE),
        ([RESPONSE, ORIGINAL_RESPONSE], TIE),
        ([RESPONSE, TIE], TIE),
        ([ORIGINAL_RESPONSE, TIE, ORIGINAL_RESPONSE], ORIGINAL_RESPONSE),
        ([RESPONSE, RESPONSE, ORIGINAL_RESPONSE, ORIGINAL_RESPONSE, TIE], TIE),
        ([TIE, RESPONSE, TIE], TIE),
    ],
)
def test_majority(preferences: list[str], expected: str) -> None:
    assert majority(preferences) == expected


def test_pairwise_agreement_counts_items_with_at_least_two_labels() -> None:
    found = pairwise_agreement([[TIE], [TIE, TIE], [RESPONSE, RESPONSE, ORIGINAL_RESPONSE]])
    assert found.n == 2
    assert found.share == pytest.approx((1 + 1 / 3) / 2)
    assert pairwise_agreement([[TIE]]) == (0, None, None)


def test_wins_count_wins_ties_and_losses_of_the_response() -> None:
    majorities = {item(n): RESPONSE if n < 60 else TIE if n < 70 else ORIGINAL_RESPONSE for n in range(100)}
    found = wins(majorities)
    assert found[:4] == (60, 10, 30, 30.0)
    # the signs have a standard deviation of 0.9, so the interval is about 30 +- 1.96 * 9
    assert found.delta_ci == pytest.approx((30 - 17.6, 30 + 17.6), abs=1.5)


def test_a_judge_is_compared_with_the_majority() -> None:
    majorities = {item(n): RESPONSE if n < 4 else ORIGINAL_RESPONSE if n < 8 else TIE for n in range(10)}
    choices: dict[Item, str | None] = {item(n): RESPONSE for n in range(6)}  # 4 right, 2 wrong
    choices |= {item(6): TIE, item(7): None, item(8): TIE, item(9): RESPONSE, item(99): RESPONSE}
    found = judge_agreement("j", choices, majorities)
    assert found.failed == 1
    assert found.agreement[:2] == (9, pytest.approx(5 / 9))
    assert found.without_ties[:2] == (6, pytest.approx(4 / 6))
    assert found.alpha is not None
    people = [0, 0, 0, 0, 1, 1, 1, 2, 2]
    judge = [0, 0, 0, 0, 0, 0, 2, 2, 0]
    expected = krippendorff.alpha([people, judge], level_of_measurement="nominal")
    assert found.alpha.value == pytest.approx(expected)


def test_the_command_on_two_files_and_judges(agree: Callable[..., tuple[Row, str]]) -> None:
    ada = [label("ada", n, RESPONSE if n < 6 else ORIGINAL_RESPONSE, shown_first=ORIGINAL_RESPONSE) for n in range(8)]
    ben = [label("ben", n, RESPONSE if n < 5 else ORIGINAL_RESPONSE) for n in range(8)]
    verdicts = [verdict("good", n, 0.9 if n < 5 else 0.1) for n in range(8)]
    verdicts += [verdict("lost", 0, None), verdict("elsewhere", 50, 0.9), verdict("halves", 0, 0.5)]
    found, err = agree(ada, ben, verdicts=verdicts)
    assert (found["labels"], found["items"]) == (16, 8)
    assert [person["chose_first"]["share"] for person in found["annotators"]] == [0.25, 0.625]
    assert found["agreement"]["share"] == 7 / 8
    assert found["pairs"] == [["ada", "ben", found["agreement"]]]
    # observed disagreement 1/8; 11 labels of one kind and 5 of the other: expected 2 * 11 * 5 / (16 * 15)
    assert found["alpha"]["value"] == pytest.approx(1 - (1 / 8) / (110 / 240))
    assert [found["majority"][name] for name in ("wins", "ties", "losses", "delta")] == [5, 1, 2, 37.5]
    good, lost, elsewhere, halves = found["judges"]
    assert (good["judge"], good["agreement"]["share"], good["without_ties"]["n"]) == ("good", 7 / 8, 7)
    assert good["without_ties"]["share"] == 1
    assert (lost["failed"], lost["agreement"]["n"], lost["alpha"]) == (1, 0, None)
    assert elsewhere["agreement"] == {"n": 0, "share": None, "ci": None}
    assert (halves["agreement"]["share"], halves["without_ties"]["n"]) == (0, 0)
    assert found["notes"] == [
        "elsewhere: none of its verdicts is on a labelled pair",
        "lost: gave no verdict on 1 labelled pairs",
    ]
    assert "judges against the majority" in err
    assert "87.5%" in err
    assert "elsewhere: none of its verdicts is on a labelled pair\n" in err


def test_one_annotator_gives_no_alpha_and_the_last_label_counts(agree: Callable[..., tuple[Row, str]]) -> None:
    found, err = agree([label("ada", 0, ORIGINAL_RESPONSE), label("ada", 1, RESPONSE), label("ada", 0, RESPONSE)])
    assert found["alpha"] is None
    assert found["agreement"]["n"] == 0
    assert (found["labels"], found["majority"]["wins"]) == (2, 2)
    assert found["notes"] == [
        "no alpha: it needs two annotators",
        "1 repeated label (same annotator, same pair); the last one counts",
    ]
    assert "no alpha: it needs two annotators\n" in err


def test_annotators_who_share_no_pair_give_no_alpha(agree: Callable[..., tuple[Row, str]]) -> None:
    found, _ = agree([label("ada", 0, TIE), label("ben", 1, RESPONSE)])
    assert found["alpha"] is None
    assert found["notes"] == ["no alpha: no pair was labelled by two annotators"]


def test_a_prompt_as_text_and_as_messages_is_the_same_item(agree: Callable[..., tuple[Row, str]]) -> None:
    messages = {**label("ben", 0, TIE), "prompt": [{"role": "user", "content": "p0"}]}
    found, _ = agree([label("ada", 0, TIE), messages])
    assert found["items"] == 1
    assert found["notes"] == ["no alpha: all labels are the same, so agreement cannot be distinguished from chance"]


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"preferred": "1"}, "preferred: expected one of response, original_response, tie, got '1'"),
        ({"shown_first": None}, "shown_first: expected text, got null"),
        ({"annotator": " "}, "annotator: empty"),
        ({"original_response": 3}, "original_response: expected text, got a number"),
    ],
)
def test_a_bad_label_is_named(change: Row, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "labels.jsonl", [label("ada", 0, TIE), {**label("ada", 1, TIE), **change}])
    assert cli.main(["agree", "--labels", path]) == 2
    assert capsys.readouterr() == ("", f"error: {path}:2:{problem}\n")


@pytest.mark.parametrize(
    ("p_better", "problem"),
    [(1.5, "expected a number from 0 to 1, got 1.5"), (True, "expected a number, got true or false")],
)
def test_a_bad_verdict_is_named(
    p_better: Any, problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    labels = write(tmp_path / "labels.jsonl", [label("ada", 0, TIE)])
    verdicts = write(tmp_path / "verdicts.jsonl", [verdict("j", 0, p_better)])
    assert cli.main(["agree", "--labels", labels, "--judge-verdicts", verdicts]) == 2
    assert capsys.readouterr() == ("", f"error: {verdicts}:1:p_better: {problem}\n")


def test_no_labels_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "labels.jsonl", [])
    assert cli.main(["agree", "--labels", path]) == 2
    assert capsys.readouterr() == ("", f"error: {path}: no labels; pit annotate writes them\n")

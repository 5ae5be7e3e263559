"""The three answers: better than the originals, better than the baselines, and what is missing."""

from typing import Any

import pytest

from pitcli.evaluation.answers import answer_lines, answers
from pitcli.evaluation.results import Answers, Claim, JudgeResult, SystemComparison, Validation
from pitcli.evaluation.systems import System
from tests.evaluation.constructed import compared, judge_of, row, system

REASONS = ["no control with a gap model trained on shuffled labels (--control)"]
BEST_OF_N = system("bon", method="best-of-n", equal_tokens="a/pit.jsonl")
FRESH_DRAW = system("fresh", method="resample")
JUDGED = {"better": (20.0, (12.0, 28.0)), "worse": (-20.0, (-28.0, -12.0)), "no difference shown": (2.0, (-6.0, 9.0))}


def improver(name: str, adapter: str, trained: bool = True) -> System:
    record = {
        "settings": {"method": "pit"},
        "adapters": {"improver": adapter},
        "origin": {"training": {"kl": 1.0} if trained else {}},
    }
    return System(name, files=(f"{name}.jsonl",), rows={}, records=(record,))


PIT = improver("pit", "of RL")


def judged(verdict: str, baseline: str = "original", judge: str = "oracle", **fields: Any) -> SystemComparison:
    """A comparison of 500 rows with this verdict, and a delta to match."""
    found = compared([row(0, "a", "b"), row(1, "a", "c")], judge_of(lambda c: 1.0))
    delta, delta_ci = JUDGED[verdict]
    usual = {"rows": 500, "delta": delta, "delta_ci": delta_ci, "p_value": 0.001, "p_holm": 0.001, "rows_needed": None}
    names = {"system": "pit", "baseline": baseline, "judge": judge, "verdict": verdict}
    return found.model_copy(update={**usual, **names, **fields})


def judge(name: str = "oracle", beats_length: bool | None = None) -> JudgeResult:
    """A judge that was checked against human labels, unless beats_length is None."""
    usual = {"agreement_ci": (0.5, 0.7), "over_longest_ci": (0.0, 0.1), "over_shortest_ci": (0.0, 0.1)}
    shares = {"agreement": 0.6, "longest": 0.5, "shortest": 0.5}
    checked = [Validation(file="f", dataset="all", rows=9, beats_length=bool(beats_length), **usual, **shares)]
    return JudgeResult(
        name=name,
        identity={},
        independence="",
        independent=True,
        validation=[] if beats_length is None else checked,
        consistency=None,
        failed=0,
    )


def answered(
    *comparisons: SystemComparison,
    systems: tuple[System, ...] = (),
    judges: tuple[JudgeResult, ...] = (judge(),),
    reasons: list[str] = REASONS,
) -> Answers:
    claim = Claim(system="pit", improves=not reasons, reasons=reasons)
    return answers(claim, [PIT, *systems], judges, comparisons)


def lines(*comparisons: SystemComparison, **fields: Any) -> list[str]:
    return list(answer_lines(answered(*comparisons, **fields)))


def test_a_gain_with_missing_checks_is_a_gain_first() -> None:
    assert lines(judged("better", grades=(0.928, 0.772))) == [
        "1. Is pit better than the originals? yes (judge oracle, 500 rows)",
        "   delta +20.0 [+12.0, +28.0], mean quality 0.772 -> 0.928",
        "2. Is pit better than the baselines? no baseline was given",
        "3. What is missing before one may claim that it improves? 1 check",
        "   no control with a gap model trained on shuffled labels (--control)",
    ]


@pytest.mark.parametrize(
    ("comparison", "first", "second"),
    [
        (judged("worse"), "worse (judge", "   delta -20.0 [-28.0, -12.0]"),
        (judged("no difference shown"), "no difference shown (judge", "   delta +2.0 [-6.0, +9.0]"),
        (
            judged("no difference shown", rows_needed=6400),
            "no difference shown (judge",
            "   delta +2.0 [-6.0, +9.0], about 6,400 rows would show this delta",
        ),
        (
            judged("no difference shown", rows_needed=400),  # fewer than there are: the verdict is by luck of the draw
            "no difference shown (judge",
            "   delta +2.0 [-6.0, +9.0]",
        ),
        (
            judged("no difference shown", delta_ci=(1.0, 3.0), p_value=1.0),
            "no difference shown (judge",
            "   delta +2.0 [+1.0, +3.0], fewer than 20 prompts show nothing",
        ),
        (
            judged("no difference shown", delta_ci=(0.1, 3.9), p_value=0.03, p_holm=0.06),
            "no difference shown (judge",
            "   delta +2.0 [+0.1, +3.9], p = 0.06 after Holm's correction",
        ),
    ],
)
def test_the_first_answer_gives_the_verdict_and_its_figures(
    comparison: SystemComparison, first: str, second: str
) -> None:
    found = lines(comparison)
    assert found[0].startswith(f"1. Is pit better than the originals? {first}")
    assert found[1] == second


def test_each_baseline_gets_a_line_with_its_kind() -> None:
    baselines = (
        BEST_OF_N._replace(records=({"settings": {"method": "best-of-n", "equal_tokens": "a/pit.jsonl"}},)),
        FRESH_DRAW,
        improver("sft-only", "of SFT", trained=False),
        improver("start", "of SFT", trained=False),
        improver("learned-stop", "of RL"),
        improver("other", "of another RL"),
        system("unknown"),
    )
    over = [
        judged("better", "bon", baseline_generated_tokens=10.0),
        judged("no difference shown", "fresh"),
        judged("better", "sft-only"),
        judged("better", "start"),
        judged("worse", "learned-stop"),
        judged("better", "other"),
        judged("better", "unknown"),
    ]
    found = lines(judged("better"), *over, systems=baselines)
    assert found[2] == "2. Is pit better than the baselines?"
    assert found[3:10] == [
        "   bon (best-of-n at equal tokens): yes, delta +20.0 [+12.0, +28.0]",
        "   fresh (a fresh draw): no difference shown, delta +2.0 [-6.0, +9.0]",
        "   sft-only: yes, delta +20.0 [+12.0, +28.0]",
        "   start (SFT only): yes, delta +20.0 [+12.0, +28.0]",
        "   learned-stop (same improver): worse, delta -20.0 [-28.0, -12.0]",
        "   other (another improver): yes, delta +20.0 [+12.0, +28.0]",
        "   unknown: yes, delta +20.0 [+12.0, +28.0]",
    ]


def test_best_of_n_with_fewer_tokens_is_marked() -> None:
    found = lines(judged("better"), judged("better", "bon", baseline_generated_tokens=3.0), systems=(BEST_OF_N,))
    assert found[3].startswith("   bon (best-of-n, but not at equal tokens): yes")


def test_the_same_improver_with_other_settings_is_not_a_baseline() -> None:
    found = lines(judged("better"), judged("no difference shown", "stop"), systems=(improver("stop", "of RL"),))
    assert found[2] == "2. Is pit better than the baselines? no baseline was given"
    assert found[3].startswith("   stop (same improver): no difference shown")


def test_a_baseline_without_verdicts_is_named() -> None:
    found = lines(judged("better"), systems=(FRESH_DRAW,))
    assert found[2:4] == ["2. Is pit better than the baselines?", "   fresh: no verdict"]


def test_each_judge_gives_its_answer() -> None:
    judges = (judge(), judge("hf:rm", beats_length=True))
    over = [
        judged("better"),
        judged("no difference shown", judge="hf:rm", grades=(1.5, 1.25)),
        judged("better", "fresh"),
        judged("worse", "fresh", judge="hf:rm"),
    ]
    assert lines(*over, systems=(FRESH_DRAW,), judges=judges)[:6] == [
        "1. Is pit better than the originals? the judges disagree",
        "   judge oracle, 500 rows: yes, delta +20.0 [+12.0, +28.0]",
        "   judge hf:rm, 500 rows: no difference shown, delta +2.0 [-6.0, +9.0], mean grade 1.250 -> 1.500",
        "2. Is pit better than the baselines?",
        "   fresh (a fresh draw), judge oracle: yes, delta +20.0 [+12.0, +28.0]",
        "   fresh (a fresh draw), judge hf:rm: worse, delta -20.0 [-28.0, -12.0]",
    ]
    assert lines(judged("worse"), judged("worse", judge="hf:rm"), judges=judges)[0].endswith("originals? worse")


def test_a_judge_that_does_not_beat_length_answers_nothing() -> None:
    unusable = (judge("ruler", beats_length=False),)
    over = [judged("better", judge="ruler"), judged("better", "fresh", judge="ruler")]
    unknown = "unknown: no judge whose win rates may be shown gave a verdict"
    assert lines(*over, systems=(FRESH_DRAW,), judges=unusable)[:3] == [
        f"1. Is pit better than the originals? {unknown}",
        f"2. Is pit better than the baselines? {unknown}",
        "3. What is missing before one may claim that it improves? 1 check",
    ]


def test_single_data_sets_and_seeds_are_ignored() -> None:
    parts = [judged("worse", dataset="code"), judged("worse", seed=1)]
    assert answered(judged("better"), *parts).originals == answered(judged("better")).originals


def test_nothing_is_missing_if_every_check_passed() -> None:
    assert lines(judged("better"), reasons=[])[-1] == (
        "3. What is missing before one may claim that it improves? nothing, every check passed"
    )
    assert lines(judged("better"), reasons=["a", "b"])[-3:] == [
        "3. What is missing before one may claim that it improves? 2 checks",
        "   a",
        "   b",
    ]

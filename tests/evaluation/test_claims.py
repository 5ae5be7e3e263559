"""Whether one may claim that a system improves: each check separately."""

from typing import Any

import pytest

from pitcli.data.splits import HASH, conversation_key
from pitcli.evaluation.claims import claim, corrected, is_best_of_n_at_equal_tokens
from pitcli.evaluation.results import Control, JudgeResult, SystemComparison
from tests.evaluation.constructed import compared, judge_of, row, system


def line(p_value: float, **fields: Any) -> SystemComparison:
    found = compared([row(0, "a", "b"), row(1, "a", "c")], judge_of(lambda c: 1.0))
    return found.model_copy(update={"p_value": p_value, "p_holm": p_value, **fields})


def test_holm_corrects_over_judges_and_baselines_and_apart_from_that_over_data_sets() -> None:
    lines = [line(0.02), line(0.03, judge="other"), line(0.01, baseline="another"), line(0.01, seed=1)]
    parts = [line(0.02, dataset="x"), line(0.01, dataset="y")]
    found = corrected([*lines, *parts])
    assert [comparison.p_holm for comparison in found] == pytest.approx([0.04, 0.04, 0.03, 0.01, 0.02, 0.02])
    worse = corrected([line(0.03), line(0.04, judge="other")])
    assert [comparison.verdict for comparison in worse] == ["no difference shown"] * 2


def judge_result(name: str = "oracle", **fields: Any) -> JudgeResult:
    usual: dict[str, Any] = {
        "validation": [],
        "consistency": None,
        "failed": 0,
        "independence": "",
        "independent": True,
    }
    return JudgeResult(name=name, identity={}, **{**usual, **fields})


def good(**fields: Any) -> SystemComparison:
    return line(
        0.001,
        **{
            "judge": "oracle",
            "length_controlled_ci": (5.0, 20.0),
            "delta_ci": (5.0, 20.0),
            "harm_rate": 0.01,
            **{"rows": 500, "losses": 5},
            "verdict": "better",
            **fields,
        },
    )


SHUFFLED = Control(name="shuffled", judge="oracle", expected="no gain", seen="", passed=True)


def reasons_of(*comparisons: SystemComparison, **fields: Any) -> list[str]:
    rival, improver = system("rival", method="best-of-n"), system("system")
    over = good(baseline="rival", baseline_generated_tokens=10.0)
    settings = {"judges": [judge_result()], "comparisons": [*comparisons, over], "controls": [SHUFFLED], **fields}
    found = claim(improver, [improver, rival], harm_cap=0.05, **settings)
    assert found.improves == (not found.reasons)
    return found.reasons


def test_a_system_that_passes_every_check_improves() -> None:
    assert reasons_of(good()) == []


@pytest.mark.parametrize(
    ("comparisons", "fields", "reason"),
    [
        ([good(length_controlled_ci=(-1.0, 20.0))], {}, "length-controlled delta not shown above zero"),
        ([good(length_controlled_delta=None, length_controlled_ci=None)], {}, "not identified"),
        (
            [good(), good(seed=0), good(seed=1, length_controlled_ci=(-1.0, 9.0))],
            {},
            "judge oracle, seed 1: length-controlled",
        ),
        (
            [good(losses=30, harm_rate=0.06)],
            {},
            "not shown to be at most 5%: 6.0% of 500 rows, so up to 8.1%",
        ),
        (
            [good(rows=40, losses=0, harm_rate=0.0)],
            {},
            "at most 5%: 0.0% of 40 rows, so up to 7.2% with 95%",
        ),
        (
            # the interval is that before Holm's correction
            [good(), good(baseline="rival", verdict="no difference shown", baseline_generated_tokens=10.0)],
            {},
            "not shown better than best-of-n at equal tokens (rival)",
        ),
        (
            [good()],
            {"judges": [judge_result(), judge_result("gap:j")]},
            "judge gap:j: not checked against human labels",
        ),
        (
            [good()],
            {"controls": [SHUFFLED, SHUFFLED.model_copy(update={"name": "padded", "passed": False})]},
            "control padded failed (judge oracle): expected no gain, got",
        ),
        ([good()], {"controls": []}, "no control with a gap model trained on shuffled labels"),
        ([good()], {"judges": [judge_result(independent=False, independence="not known: x")]}, "not known: x"),
        (
            [good(verdict="no difference shown")],
            {},
            "judge oracle: not shown better than the originals: no difference shown, 500 rows",
        ),
    ],
)
def test_each_failed_check_is_a_reason(
    comparisons: list[SystemComparison], fields: dict[str, Any], reason: str
) -> None:
    (found,) = reasons_of(*comparisons, **fields)
    assert reason in found


@pytest.mark.parametrize(
    ("tokens", "named", "counts"),
    [(5.0, "", False), (5.0, "s.jsonl", False), (10.0, "", True), (30.0, "", False), (30.0, "a/s.jsonl", True)],
)
def test_best_of_n_counts_if_it_used_as_many_tokens(tokens: float, named: str, counts: bool) -> None:
    """The system used 10 tokens per row. A best-of-n made with --equal-tokens may have used more."""
    rival = system("rival", method="best-of-n", equal_tokens=named)
    over = good(baseline="rival", baseline_generated_tokens=tokens)
    found = claim(
        system("system", files=("b/s.jsonl",)),
        systems=[rival],
        judges=[judge_result()],
        comparisons=[good(), over],
        controls=[SHUFFLED],
        harm_cap=0.05,
    )
    assert found.reasons == (
        [] if counts else ["best-of-n at equal tokens, temperature and gap model was not compared"]
    )


@pytest.mark.parametrize(
    ("theirs", "counts"),
    [
        ({}, True),
        ({"settings": {"method": "best-of-n", "temperature": 0.0}}, False),
        ({"adapters": {"gap": "another"}}, False),
        ({"adapters": {"gap": "this", "policy": "x"}}, True),
    ],
)
def test_best_of_n_counts_if_it_was_made_alike(theirs: dict[str, Any], counts: bool) -> None:
    ours = {"settings": {"method": "pit", "temperature": 0.5}, "adapters": {"gap": "this", "improver": "i"}}
    record = {"settings": {"method": "best-of-n", "temperature": 0.5}, "adapters": {"gap": "this"}, **theirs}
    pit = system("pit")._replace(records=(ours,))
    over = good(baseline="rival", baseline_generated_tokens=10.0)
    assert is_best_of_n_at_equal_tokens(system("rival")._replace(records=(record,)), pit, over) == counts


def test_rows_of_training_prompts_are_no_evidence() -> None:
    seen = row(0, "a", "b")
    origin = {"trained_on": [conversation_key(seen.prompt)[:HASH]]}
    rows = {(0, one.prompt, one.original, 0): one for one in (seen, row(1, "a", "b"))}
    trained = system("pit")._replace(rows=rows, records=({"origin": origin},))
    found = claim(trained, [trained], [judge_result()], [good(system="pit")], [SHUFFLED], harm_cap=0.05)
    assert "1 of 2 rows have prompts that its models were trained on" in found.reasons

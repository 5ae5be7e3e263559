"""Each stop reason by itself, derived by hand: sigmoid(0) = 0.5, sigmoid(ln 3) = 0.75, sigmoid(-ln 3) = 0.25."""

import math
from typing import Any

import pytest

from pitcli.data.rows import Draft, Message
from pitcli.engine.generation.methods import Proposal
from pitcli.engine.improving.stop_rule import (
    FAILURES,
    Attempt,
    ScoredProposal,
    StopReason,
    after_proposal,
    at_end,
    best_of_n,
    best_of_width,
    finished_row,
    settled,
)
from pitcli.settings.generating import ImproveConfig

LN3 = math.log(3)
CONFIG = ImproveConfig()
ACCEPTING = ImproveConfig(accept_truncated=True)
DRAFT = Draft(
    "7", (Message("user", "Name a pet."),), " cat ", {"id": "7", "prompt": "Name a pet.", "response": " cat "}
)


def attempt_at(*steps: tuple[str, float | None], **settings: Any) -> Attempt:
    """The attempt after proposals (response, gap) of 5 tokens each."""
    attempt = Attempt(DRAFT, DRAFT.response, [])
    for response, gap in steps:
        assert attempt.stop_reason is None, "a draft that has stopped gets no more proposals"
        attempt = after_proposal(attempt, Proposal(response, 5, True, {}), gap, ImproveConfig(**settings))
    return attempt


def test_a_better_response_is_accepted_and_the_draft_continues() -> None:
    attempt = attempt_at(("dog", LN3))
    assert (attempt.best, attempt.stop_reason) == ("dog", None)
    (iteration,) = attempt.iterations
    assert (iteration["accepted"], iteration["gap"]) == (True, LN3)
    assert iteration["p_better"] == pytest.approx(0.75)


@pytest.mark.parametrize(("gap", "threshold"), [(-LN3, 0.5), (0.0, 0.5), (-LN3, 0.25 + 1e-9)])
def test_not_better(gap: float, threshold: float) -> None:
    """P(better) must exceed 0.5, or a threshold below it: the 0.5 of a tie does not exceed 0.5."""
    attempt = attempt_at(("dog", gap), threshold=threshold)
    assert (attempt.best, attempt.stop_reason) == (" cat ", "not_better")
    assert attempt.iterations[0]["accepted"] is False


@pytest.mark.parametrize(("gap", "threshold"), [(LN3, 0.5), (LN3, 0.9), (-LN3, 0.25 - 1e-9)])
def test_just_better_is_accepted(gap: float, threshold: float) -> None:
    """A threshold above 0.5 decides at the end only."""
    assert attempt_at(("dog", gap), threshold=threshold).best == "dog"


@pytest.mark.parametrize(
    ("threshold", "kept"), [(0.5, "cow"), (0.9 - 1e-9, "cow"), (0.9 + 1e-9, " cat "), (1.0, " cat ")]
)
def test_the_threshold_is_over_the_draft(threshold: float, kept: str) -> None:
    """Two accepted iterations with odds of 3 have odds of 9 over the draft: P(better) = 0.9."""
    attempt = at_end(attempt_at(("dog", LN3), ("cow", LN3)), ImproveConfig(threshold=threshold))
    assert attempt.best == kept
    assert attempt.stop_reason == ("max_iters" if kept == "cow" else "not_better")
    assert [iteration["accepted"] for iteration in attempt.iterations] == [kept == "cow"] * 2
    assert [iteration["gap"] for iteration in attempt.iterations] == [LN3] * 2  # what pit calibrate replays


def test_a_later_rejection_changes_nothing_over_the_draft() -> None:
    attempt = attempt_at(("dog", LN3), ("cow", -LN3))
    assert at_end(attempt, ImproveConfig(threshold=0.75 - 1e-9)).best == "dog"
    assert at_end(attempt, ImproveConfig(threshold=0.75 + 1e-9)).best == " cat "


def test_a_failure_stays_one_if_the_draft_is_kept() -> None:
    attempt = attempt_at(("dog", LN3), ("cow", math.nan))
    kept = at_end(attempt, ImproveConfig(threshold=0.9))
    assert (kept.best, kept.stop_reason) == (" cat ", "non_finite_gap")


def test_without_a_stop_rule_nothing_is_taken_back() -> None:
    attempt = attempt_at(("dog", -LN3), stop="none")
    assert at_end(attempt, ImproveConfig(stop="none", threshold=0.9)).best == "dog"


def test_best_of_n_keeps_the_draft_unless_the_best_is_enough_better() -> None:
    attempt = best_of_n(Attempt(DRAFT, DRAFT.response, []), Proposal("dog", 5, True, {}), LN3, CONFIG)
    assert at_end(attempt, ImproveConfig(threshold=0.75 - 1e-9)).best == "dog"
    assert at_end(attempt, ImproveConfig(threshold=0.75 + 1e-9)).best == " cat "


def test_what_a_live_improvement_shows_is_settled_but_goes_on() -> None:
    attempt = attempt_at(("dog", LN3))
    shown = settled(attempt, ImproveConfig(threshold=0.9))
    assert (shown.best, shown.stop_reason, attempt.best) == (" cat ", None, "dog")


def test_copy() -> None:
    """The best so far again, whatever the whitespace around it and whatever the gap."""
    assert attempt_at(("cat", LN3)).stop_reason == "copy"
    attempt = attempt_at(("dog", LN3), ("dog", LN3))
    assert (attempt.best, attempt.stop_reason) == ("dog", "copy")


def test_cycle() -> None:
    """The draft, or an earlier response that is not the best so far."""
    assert attempt_at(("dog", LN3), ("cat", LN3)).stop_reason == "cycle"
    attempt = attempt_at(("dog", LN3), ("cow", LN3), ("dog", LN3))
    assert (attempt.best, attempt.stop_reason) == ("cow", "cycle")


@pytest.mark.parametrize("settings", [{}, {"stop": "none"}])
def test_empty(settings: dict[str, str]) -> None:
    """With --stop none too: the next iteration would have no response to improve."""
    attempt = attempt_at(("", 0.0), **settings)
    assert (attempt.best, attempt.stop_reason) == (" cat ", "empty")


@pytest.mark.parametrize("gap", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("settings", [{}, {"stop": "none"}])
def test_non_finite_gap(gap: float, settings: dict[str, Any]) -> None:
    """A failed row; the draft is kept and no NaN is written to JSON."""
    attempt = attempt_at(("dog", gap), **settings)
    assert (attempt.best, attempt.stop_reason) == (" cat ", "non_finite_gap")
    assert attempt.stop_reason in FAILURES
    assert (attempt.iterations[0]["gap"], attempt.iterations[0]["p_better"]) == (None, None)


def cut(response: str) -> Proposal:
    """A proposal that the token limit cut."""
    return Proposal(response, 5, False, {})


@pytest.mark.parametrize("gap", [LN3, 9.0, None])
def test_truncated(gap: float | None) -> None:
    """However much better it seems; --accept-truncated judges it like any other."""
    start = Attempt(DRAFT, DRAFT.response, [])
    attempt = after_proposal(start, cut("dog and"), gap, CONFIG)
    assert (attempt.best, attempt.stop_reason, attempt.finished()) == (" cat ", "truncated", None)
    assert attempt.iterations[0]["finished"] is attempt.iterations[0]["accepted"] is False
    attempt = after_proposal(start, cut("dog and"), gap, ACCEPTING)
    assert (attempt.best, attempt.stop_reason, attempt.finished()) == ("dog and", None, False)
    assert after_proposal(start, cut("dog and"), -LN3, ACCEPTING).stop_reason == "not_better"


def test_without_a_stop_rule_a_truncated_response_is_passed_over() -> None:
    """--stop none always makes --max-iters improvements: the next one starts from the best so far."""
    plain = ImproveConfig(stop="none")
    attempt = after_proposal(Attempt(DRAFT, DRAFT.response, []), cut("dog and"), None, plain)
    assert (attempt.best, attempt.stop_reason) == (" cat ", None)
    attempt = after_proposal(attempt, Proposal("dog", 5, True, {}), None, plain)
    assert (attempt.best, attempt.finished()) == ("dog", True)


def test_best_of_n_and_width_choose_no_truncated_response() -> None:
    start = Attempt(DRAFT, DRAFT.response, [])
    attempt = best_of_n(start, cut("dog and"), 3.0, CONFIG)
    assert (attempt.best, attempt.best_gap, attempt.stop_reason) == (" cat ", 0.0, None)
    assert best_of_n(attempt, Proposal("cow", 5, True, {}), 0.5, CONFIG).best == "cow"
    assert best_of_n(start, cut("dog and"), 3.0, ACCEPTING).best == "dog and"
    scored = [ScoredProposal(cut("dog and"), 3.0), ScoredProposal(Proposal("cow", 5, True, {}), 0.5)]
    assert best_of_width(start, scored, ImproveConfig(width=2)).proposal.response == "cow"
    assert best_of_width(start, scored, ImproveConfig(width=2, accept_truncated=True)).proposal.response == "dog and"


def test_the_row_says_whether_its_response_is_whole() -> None:
    """That of the best response; of an unchanged draft, what its row says."""
    drafted = DRAFT.row | {"finished": False}
    sampled = Draft(DRAFT.id, DRAFT.prompt, DRAFT.response, drafted)
    start = Attempt(sampled, sampled.response, [])
    assert finished_row(start)["finished"] is False
    assert finished_row(after_proposal(start, cut("dog and"), LN3, CONFIG))["finished"] is False
    assert finished_row(after_proposal(start, Proposal("dog", 5, True, {}), LN3, CONFIG))["finished"] is True
    assert finished_row(Attempt(DRAFT, DRAFT.response, []))["finished"] is None


def test_without_a_stop_rule_every_response_is_accepted() -> None:
    attempt = attempt_at(("dog", -LN3), ("cat", -LN3), ("cat", None), stop="none")
    assert (attempt.best, attempt.stop_reason) == ("cat", None)


def test_copies_and_cycles_stop_without_gaps_too() -> None:
    assert attempt_at(("dog", None)).best == "dog"
    assert attempt_at(("dog", None), ("cat", None)).stop_reason == "cycle"


def test_best_of_n_keeps_the_response_with_the_largest_gap_over_the_draft() -> None:
    attempt = Attempt(DRAFT, DRAFT.response, [])
    for response, gap in (("dog", -1.0), ("cow", 0.5), ("pig", 0.25), ("", 3.0), ("hen", 0.75)):
        attempt = best_of_n(attempt, Proposal(response, 5, True, {}), gap, CONFIG)
    assert (attempt.best, attempt.best_gap, attempt.stop_reason) == ("hen", 0.75, None)
    assert [iteration["accepted"] for iteration in attempt.iterations] == [False, True, False, False, True]
    assert best_of_n(attempt, Proposal("owl", 5, True, {}), math.nan, CONFIG).stop_reason == "non_finite_gap"


def test_the_best_of_a_width_is_the_best_that_is_not_rejected() -> None:
    """A cycle with a larger gap, an empty response and a NaN are chosen only if there is nothing else."""
    attempt = attempt_at(("dog", LN3))
    config = ImproveConfig(width=4)

    def best(*scored: tuple[str, float]) -> ScoredProposal:
        return best_of_width(attempt, [ScoredProposal(Proposal(r, 5, True, {}), gap) for r, gap in scored], config)

    chosen = best(("cat", 9.0), ("", 0.0), ("owl", 1.0), ("hen", math.nan))
    assert (chosen.proposal.response, chosen.gap, chosen.proposal.generated_tokens) == ("owl", 1.0, 20)
    assert best(("owl", -2.0), ("hen", -1.0)).proposal.response == "hen"
    assert best(("owl", -2.0), ("", math.nan)).proposal.response == "owl"


def test_the_output_row_records_its_iterations() -> None:
    attempt = attempt_at(("dog", LN3), ("dog", 0.0))
    row = finished_row(attempt)
    assert {name: row[name] for name in ("id", "prompt", "response", "original_response", "stop_reason")} == {
        **{"id": "7", "prompt": "Name a pet.", "response": "dog", "original_response": " cat "},
        "stop_reason": StopReason.copy,
    }
    assert (row["generated_tokens"], [i["iteration"] for i in row["iterations"]]) == (10, [1, 2])

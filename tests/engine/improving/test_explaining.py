"""The shares of edits, and what --prune-edits drops, by gap models that count words."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from pitcli.data.rows import Comparison, Draft, Message
from pitcli.engine.improving.explaining import Explanation, explain
from pitcli.engine.improving.pruning import prune
from pitcli.engine.improving.stop_rule import Attempt

PROMPT = (Message("user", "p"),)
Grade = Callable[[str], float]


class Counting:
    """Each member's gap is the difference of its grades of both texts."""

    def __init__(self, *grades: Grade) -> None:
        self.grades = grades
        self.asked: list[list[str]] = []

    def member_gaps(self, comparisons: Sequence[Comparison]) -> Tensor:
        self.asked.append([comparison.response for comparison in comparisons])
        return torch.tensor(
            [[grade(c.response) - grade(c.reference_response) for c in comparisons] for grade in self.grades]
        )

    def gaps_with_std(self, comparisons: Sequence[Comparison]) -> tuple[list[float], list[float] | None]:
        gaps_MB = self.member_gaps(comparisons)
        return gaps_MB.mean(0).tolist(), gaps_MB.std(0, correction=0).tolist() if len(gaps_MB) > 1 else None


def points(**words: float) -> Grade:
    return lambda text: sum(words.get(word, 0.0) for word in text.split())


def explained(response: str, draft: str, *grades: Grade) -> Explanation:
    model: Any = Counting(*grades)
    (found,) = explain(model, [Comparison(PROMPT, response, draft)])
    return found


def test_a_share_is_the_part_of_the_gap_that_goes_without_the_edit() -> None:
    """b -> x is worth 3 of 4, d -> y 2, f -> z -1."""
    found = explained("a x c y e z", "a b c d e f", points(x=3, y=2, f=1))
    assert found.gap == 4
    assert [(edit.edit.added, edit.gap, edit.share) for edit in found.edits] == [
        ("x", 3.0, 0.75),
        ("y", 2.0, 0.5),
        ("z", -1.0, -0.25),
    ]
    assert all(edit.low is None and edit.high is None for edit in found.edits)


def test_an_only_edit_has_the_whole_gap_and_equal_texts_have_no_edit() -> None:
    assert [edit.share for edit in explained("a x", "a b", points(x=2)).edits] == [1.0]
    assert explained("a b", "a b", points(x=2)) == Explanation(0.0, [])


@pytest.mark.parametrize(("worth", "share"), [(0.11, 1.0), (0.09, None), (0.0, None), (-3.0, None)])
def test_without_an_improvement_there_is_nothing_to_share(worth: float, share: float | None) -> None:
    (edit,) = explained("a x", "a b", points(x=worth)).edits
    assert edit.gap == pytest.approx(worth)
    assert edit.share == share


def test_the_range_over_the_members_contains_the_share() -> None:
    """The members find x worth 1 and 3, y 2 and -1: gaps of 3 and 2, mean 2.5."""
    x, y = explained("a x c y", "a b c d", points(x=1, y=2), points(x=3, y=-1)).edits
    assert (x.gap, x.share, x.low, x.high) == (2.0, 0.8, 0.4, pytest.approx(1.2))
    assert (y.gap, y.share, y.low, y.high) == (0.5, 0.2, -0.4, 0.8)
    # a member alone may find no improvement at all
    x, y = explained("a x c y", "a b c d", points(x=-1, y=1), points(x=3, y=1)).edits
    assert (x.share, x.low, x.high) == (0.5, -0.5, 1.5)


def test_a_reversal_without_a_gap_is_unknown_and_the_others_are_not() -> None:
    grade = points(x=3, y=2)
    x, y = explained("a x c y", "a b c d", lambda text: math.nan if "d" in text and "x" in text else grade(text)).edits
    assert (y.gap, y.share) == (None, None)
    assert x.share == 0.6
    assert not explained("a x", "a b", lambda text: math.nan).are_finite()


def test_the_texts_of_a_row_are_neighbours_so_that_they_share_a_tree() -> None:
    model: Any = Counting(points())
    explain(model, [Comparison(PROMPT, "a x c y", "a b c d"), Comparison(PROMPT, "z", "b")])
    assert model.asked == [["a x c y", "a b c y", "a x c d", "z", "b"]]


def step(response: str, best: str, **about: Any) -> tuple[Attempt, Attempt]:
    """The attempts before and after an iteration that was accepted."""
    draft = Draft(None, PROMPT, best, {"finished": about.pop("draft_finished", None)})
    record = {"response": response, "gap": 1.0, "p_better": 0.7, "accepted": True, "finished": True, **about}
    return Attempt(draft, best, []), Attempt(draft, response, [record], best_gap=record["gap"])


def pruned(steps: list[tuple[Attempt, Attempt]], *grades: Grade) -> list[Attempt]:
    model: Any = Counting(*grades)
    return prune(model, steps)


def test_edits_that_do_nothing_are_dropped_together() -> None:
    """y is worth nothing, z less: both go; x stays."""
    before, proposed = step("a x c y e z g", "a b c d e f g")
    before = before._replace(best_gap=0.5)
    proposed = proposed._replace(best_gap=before.best_gap + 1.0)
    (after,) = pruned([(before, proposed)], points(x=3, z=-1))
    assert after.best == "a x c d e f g"
    (record,) = after.iterations
    assert (record["response"], record["unpruned_response"]) == (after.best, "a x c y e z g")
    assert (record["gap"], record["pruned_edits"], record["accepted"]) == (3.0, 2, True)
    assert record["p_better"] == pytest.approx(1 / (1 + math.exp(-3)))
    assert after.best_gap == pytest.approx(before.best_gap + 3.0)
    assert after.seen() == ["a b c d e f g", after.best, "a x c y e z g"]  # neither may be proposed again


def test_the_improvement_is_kept_if_its_gap_is_lower_without_them() -> None:
    """Either of x and y is enough; without both the text is worse."""
    either: Grade = lambda text: 1.0 + ("z" in text) if {"x", "y"} & set(text.split()) else 0.0  # noqa: E731
    before, after = step("a x c y e z", "a b c d e f")
    assert pruned([(before, after)], either) == [after]


def test_only_accepted_improvements_with_useless_edits_change() -> None:
    useful = step("a x", "a b")
    rejected = (useful[0], useful[0]._replace(iterations=[{"response": "a y", "accepted": False}]))
    useless = step("a x c y", "a b c d")
    found = pruned([useful, rejected, useless], points(x=1))
    assert found[:2] == [useful[1], rejected[1]]
    assert found[2].best == "a x c d"
    assert pruned([], points()) == []


def test_an_ensemble_records_the_deviation_of_the_pruned_text() -> None:
    (after,) = pruned([step("a x c y", "a b c d", gap_std=9.0)], points(x=1), points(x=3))
    assert (after.iterations[-1]["gap"], after.iterations[-1]["gap_std"]) == (2.0, 1.0)


@pytest.mark.parametrize(("draft_finished", "finished"), [(None, None), (False, False), (True, True)])
def test_a_text_that_ends_as_the_draft_is_as_finished_as_that(
    draft_finished: bool | None, finished: bool | None
) -> None:
    (after,) = pruned([step("a x c y", "a b c d", draft_finished=draft_finished)], points(x=1))
    assert (after.best, after.finished()) == ("a x c d", finished)
    (after,) = pruned([step("a y c x", "a b c d", draft_finished=draft_finished, finished=False)], points(x=1))
    assert (after.best, after.finished()) == ("a b c x", False)  # its end is still the cut one

"""Rated responses become pairs of the best response with each worse one."""

from collections import Counter

import pytest

from pitcli.data.ratings import Rated, pairs_of_ratings, parse_rated
from pitcli.data.rows import Message
from pitcli.data.strict_json import RowProblem

P, Q = (Message("user", "p"),), (Message("user", "q"),)


def pairs_and_notes(rated: list[Rated], margin: float = 0) -> tuple[list[tuple[str, str, str, int]], Counter[str]]:
    notes: Counter[str] = Counter()
    pairs = pairs_of_ratings(rated, margin, notes)
    return [(pair.prompt[0].content, pair.chosen, pair.rejected, pair.line) for pair in pairs], notes


def test_the_best_response_to_a_prompt_is_paired_with_each_worse_one() -> None:
    rated = [
        Rated(P, "ok", 2, 1),
        Rated(Q, "x", 0, 2),
        Rated(P, "best", 4, 3),
        Rated(P, "bad", 0, 4),
        Rated(Q, "y", 1, 5),
    ]
    pairs, notes = pairs_and_notes(rated)
    assert pairs == [("p", "best", "ok", 3), ("p", "best", "bad", 3), ("q", "y", "x", 5)]
    assert not notes


def test_responses_that_make_no_pair_are_counted() -> None:
    rated = [Rated(P, "a", 4, 1), Rated(P, "b", 4, 2), Rated(P, "c", 3, 3), Rated(P, "a", 1, 4), Rated(Q, "x", 4, 5)]
    pairs, notes = pairs_and_notes(rated, 2)
    assert pairs == []
    assert notes == {
        "rated responses skipped: rated too close to the best": 2,
        "rated responses skipped: the same text as the best": 1,
        "rated responses skipped: the only one to their prompt": 1,
    }
    assert pairs_and_notes(rated, 1)[0] == [("p", "a", "c", 1)]


def test_the_ratings_are_kept_under_the_names_of_ultrafeedback() -> None:
    [pair] = pairs_of_ratings([Rated(P, "a", 4, 1), Rated(P, "b", 1.5, 2)], 0, Counter())
    assert pair.extra == {"score_chosen": 4, "score_rejected": 1.5}


def test_helpsteer_turns_and_ratings_in_text_are_parsed() -> None:
    prompt = "c#\n<extra_id_1>Assistant\nWhat about it?\n<extra_id_1>User\nWrite a loop\n<extra_id_1>Assistant\n"
    rated = parse_rated({"prompt": prompt, "response": " for ", "quality": " 3.5"}, "quality", 7)
    turns = (Message("user", "c#"), Message("assistant", "What about it?"), Message("user", "Write a loop"))
    assert rated == Rated(turns, "for", 3.5, 7)


@pytest.mark.parametrize("rating", [None, "good", True, "nan", [1]])
def test_a_rating_that_is_not_a_number_is_refused(rating: object) -> None:
    with pytest.raises(RowProblem) as caught:
        parse_rated({"prompt": "p", "response": "r", "helpfulness": rating}, "helpfulness", 1)
    assert caught.value.field == "helpfulness"
    assert caught.value.reason.startswith("expected a number, got ")

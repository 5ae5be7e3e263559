"""Several pairs of one prompt: the response that won most often becomes the target of all."""

from pitcli.data.rankings import by_prompt, towards_best
from pitcli.data.rows import Message, PreferencePair

A, B = ((Message("user", text),) for text in ("Write about ants.", "Write about cats."))


def pair(prompt: tuple[Message, ...], chosen: str, rejected: str, **changes: bool) -> PreferencePair:
    return PreferencePair(f"{chosen}-{rejected}", prompt, chosen, rejected, {}, **changes)


def responses(pairs: list[PreferencePair]) -> list[tuple[str, str]]:
    return [(pair.chosen, pair.rejected) for pair in pairs]


def test_pairs_are_grouped_in_the_order_of_their_prompts() -> None:
    assert by_prompt([pair(B, "1", "2"), pair(A, "1", "2"), pair(B, "3", "2")]) == [[0, 2], [1]]


def test_the_best_is_the_target_from_every_other_response_and_a_wrong_label_does_not_change_it() -> None:
    labels = [("1", "2"), ("1", "3"), ("4", "1"), ("2", "3"), ("2", "4"), ("3", "4")]  # 4 over 1 is the wrong one
    made = towards_best([pair(A, *label) for label in labels])
    assert sorted(responses(made)) == [("1", "2"), ("1", "3"), ("1", "4")]
    assert len({pair.id for pair in made}) == 3


def test_losses_count_against_a_response_that_was_compared_often() -> None:
    labels = [("1", "2"), ("1", "3"), ("4", "1"), ("5", "1"), ("4", "5")]
    assert {pair.chosen for pair in towards_best([pair(A, *label) for label in labels])} == {"4"}


def test_single_pairs_stay_as_they_are() -> None:
    pairs = [pair(A, "1", "2", chosen_truncated=True), pair(B, "2", "1", rejected_truncated=True)]
    assert towards_best(pairs) == pairs


def test_truncation_goes_with_the_response() -> None:
    first, second = towards_best([pair(A, "1", "2", rejected_truncated=True), pair(A, "1", "3")])
    assert (first.rejected, first.rejected_truncated, first.chosen_truncated) == ("2", True, False)
    assert (second.rejected, second.rejected_truncated) == ("3", False)

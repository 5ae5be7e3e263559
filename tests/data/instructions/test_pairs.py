"""Requests, the guard of the oracle, and the pairs that unequal authors give."""

import json
import random
from itertools import islice
from statistics import mean
from typing import Any

import pytest

from pitcli.data.instructions.grading import STRIKING, UNASKED, grade, sense
from pitcli.data.instructions.kinds import Author
from pitcli.data.instructions.pairs import FLIPPED, Material, edited, preference_pairs, revised, tidied
from pitcli.data.instructions.requests import (
    FORMS,
    HELD_OUT,
    HELD_OUT_FORMS,
    KINDS,
    SUBJECTS,
    Request,
    draw_request,
    request_rows,
)
from pitcli.data.instructions.spoiling import CHANGES, spoiled
from pitcli.errors import InputError

SAMPLES = [
    "A garden needs time. First, you choose a place with sun. Then you dig the soil and add some compost. Many people "
    "plant beans, since they grow fast. Water them in the evening.",
    "Planning a garden is fun. You should think about the light. A small garden can hold many plants. It is important "
    "to leave some space between the rows. Ask a neighbour which plants do well",
    "To plan a small garden, draw a map of it. Mark the trees and the walls. Put tall plants behind short ones. You "
    "can also use pots. Start with herbs, because they forgive mistakes.",
]
ANSWER = SAMPLES[0]


def drawn(count: int, split: str, seed: int) -> list[Request]:
    rng = random.Random(seed)
    return [draw_request(rng, test=split == "test") for _ in range(count)]


def test_what_is_held_out_is_in_tests_only() -> None:
    train, test = drawn(400, "train", 0), drawn(400, "test", 0)
    kinds = {item["kind"] for request in train for item in request.instructions}
    assert kinds == set(KINDS) - set(HELD_OUT)
    assert {item["kind"] for request in test for item in request.instructions} == set(KINDS)
    assert not {request.form for request in train} & HELD_OUT_FORMS
    assert {request.form for request in test} <= HELD_OUT_FORMS
    assert len(HELD_OUT) == 5
    assert len(HELD_OUT_FORMS) / sum(map(len, FORMS.values())) == pytest.approx(0.2, abs=0.03)
    share = mean(any(item["kind"] in HELD_OUT for item in request.instructions) for request in test)
    assert share == pytest.approx(0.5, abs=0.1)


def test_requests_are_many_and_the_same_for_a_seed() -> None:
    assert sum(map(len, SUBJECTS.values())) >= 300
    prompts = [request.prompt for request in drawn(1000, "train", 0)]
    assert prompts == [request.prompt for request in drawn(1000, "train", 0)]
    assert len(set(prompts)) > 990
    assert len(set(prompts) & {request.prompt for request in drawn(1000, "train", 1)}) < 10


def test_no_two_instructions_of_a_request_exclude_one_another() -> None:
    for request in drawn(500, "test", 3):
        shared = [group for item in request.instructions for group in KINDS[item["kind"]].groups]
        assert len(shared) == len(set(shared)), request


@pytest.mark.parametrize(
    ("text", "most"),
    [
        ("", 0.0),
        ("Garden.", 0.1),
        ("The garden is nice. " * 8, 0.2),
        ("Garden grows and garden grows and garden grows and garden grows and garden grows and garden grows.", 0.5),
        ("Grdn plmk tzzq vrrb, gnnk wwop drrt. Snnf grrp qqlm zzkt bnnd frrt.", 0.1),
        ("Trains run on rails. They carry people between towns. Some of them are fast, others are slow.", 0.5),
        ("A. Garden. Is. Fun. To. Plan. And. To. Dig. In. The. Sun.", 0.5),
    ],
)
def test_nonsense_is_no_answer(text: str, most: float) -> None:
    assert sense(ANSWER, "planning a small garden", []) == 1
    assert sense(text, "planning a small garden", []) <= most


def test_the_guard_reads_what_is_in_json_and_after_the_request() -> None:
    subject = "planning a small garden"
    assert sense(json.dumps({"title": "Garden", "answer": ANSWER}), subject, [{"kind": "json"}]) == 1
    repeat = {"kind": "repeat_request", "request": "Give advice on planning a small garden."}
    assert sense(f"{repeat['request']}\n\n{ANSWER}", subject, [repeat]) == 1
    assert sense(repeat["request"], subject, [repeat]) == 0


@pytest.mark.parametrize("kind", STRIKING)
def test_a_striking_form_only_fits_if_it_is_asked_for(kind: str) -> None:
    author = Author(random.Random(0), "planning a small garden", [], SAMPLES[1], {})
    text = KINDS[kind].edit(ANSWER, {"kind": kind}, author)
    assert sense(text, "planning a small garden", [{"kind": kind}]) == 1
    assert sense(text, "planning a small garden", [{"kind": "no_digits"}]) == pytest.approx(UNASKED)


def test_better_authors_have_better_grades() -> None:
    grades: dict[float, list[float]] = {0.0: [], 0.5: [], 1.0: []}
    for number, request in enumerate(drawn(200, "train", 5)):
        row = {**request.row(), "subject": "planning a small garden"}
        rng = random.Random(number)
        for skill, values in grades.items():
            text = edited(Material(row, SAMPLES), number % 3, skill, rng)
            values.append(grade(text, row["subject"], row["instructions"]))
    poor, middling, careful = (mean(values) for values in grades.values())
    assert poor < middling - 0.1 < careful - 0.2
    assert careful > 0.9


def test_pairs_follow_the_truth_with_some_labels_flipped() -> None:
    right = rows = 0
    for request in drawn(300, "train", 6):
        row = {**request.row(), "subject": "planning a small garden"}
        for pair in preference_pairs([{**row, "response": text} for text in SAMPLES], pairs=2, seed=0):
            assert pair["prompt"] == request.prompt and pair["chosen"] != pair["rejected"]
            good, bad = (grade(pair[name], row["subject"], row["instructions"]) for name in ("chosen", "rejected"))
            if abs(good - bad) > 0.4:  # where the label would be certain, but for the flip
                right, rows = right + (good > bad), rows + 1
    assert rows > 100
    assert right / rows == pytest.approx(1 - FLIPPED, abs=0.04)


def test_pairs_are_among_few_texts_and_ties_are_coin_flips() -> None:
    request = drawn(1, "train", 7)[0]
    rows = [{**request.row(), "id": number, "response": text} for number, text in enumerate(SAMPLES)]
    first = tied = 0
    for seed in range(40):
        with_ties = list(preference_pairs(rows, 15, seed, ties=True))
        texts = {text for pair in with_ties for text in (pair["chosen"], pair["rejected"])}
        assert len(texts) <= 6
        assert texts & {*SAMPLES}, "one is a sample as it is"
        assert len({frozenset((pair["chosen"], pair["rejected"])) for pair in with_ties}) == len(with_ties)
        ties = [pair for pair in with_ties if pair.get("tie")]
        first += sum(pair["chosen"] < pair["rejected"] for pair in ties)
        tied += len(ties)
        without = [{pair["chosen"], pair["rejected"]} for pair in preference_pairs(rows, 15, seed)]
        assert without == [{pair["chosen"], pair["rejected"]} for pair in with_ties if pair not in ties]
    assert tied > 50
    assert first / tied == pytest.approx(0.5, abs=0.15)


def test_careless_authors_follow_instructions_with_other_words() -> None:
    """Otherwise every sentence that an author adds is for the better."""
    rng = random.Random(0)
    row = {"prompt": "p", "subject": "a garden", "instructions": [{"kind": "include", "words": ["harbour"]}]}
    texts = [edited(Material(row, SAMPLES), 0, 0.3, rng) for _ in range(300)]
    added = [text.removeprefix(tidied(ANSWER)) for text in texts if text.startswith(tidied(ANSWER))]
    right = sum("harbour" in text for text in added)
    wrong = sum("harbour" not in text and "Also, " in text for text in added)
    assert right > 40
    assert wrong > 40


def test_the_same_seed_gives_the_same_pairs() -> None:
    request = drawn(1, "train", 7)[0]
    rows = [{**request.row(), "id": number, "response": text} for number, text in enumerate(SAMPLES)]
    pairs = list(preference_pairs(rows, 3, seed=1))
    assert pairs == list(preference_pairs(rows, 3, seed=1))
    assert all({"prompt", "chosen", "rejected", "subject", "form", "instructions"} == set(pair) for pair in pairs)


def test_a_source_is_endless_and_has_its_own_seed() -> None:
    first = [row["id"] for row in islice(request_rows("instructions:train"), 3)]
    assert first == ["train-0-0", "train-0-1", "train-0-2"]
    one, other = (next(request_rows(f"instructions:test{seed}"))["prompt"] for seed in ("", ":5"))
    assert one != other
    with pytest.raises(InputError, match="expected instructions:train, instructions:test or instructions:sentences"):
        request_rows("instructions:dev")


def test_a_source_may_be_of_some_kinds_only() -> None:
    rows = list(islice(request_rows("instructions:test:3:title+no_comma+include"), 60))
    assert {item["kind"] for row in rows for item in row["instructions"]} == {"title", "no_comma", "include"}
    with pytest.raises(InputError, match=r"expected kinds of words, .*; got rhyme"):
        request_rows("instructions:train:0:title+rhyme")


def test_tidied_texts_end_in_a_sentence_and_say_nothing_twice() -> None:
    assert tidied("Dig here. Dig here. Plant beans. And the") == "Dig here. Plant beans."


@pytest.mark.parametrize("text", ["", "Hi", "!!!", "# A heading", "One sentence. And another one", "\n\n* a\n* b\n"])
def test_authors_can_edit_texts_that_are_too_short(text: str) -> None:
    """Some samples of a small model hold a sentence or none, and nothing that could be added."""
    for request in drawn(600, "test", 2):
        edited(Material(request.row(), [text]), 0, 1.0, random.Random(0))


def careful_texts(count: int) -> list[tuple[dict[str, Any], str]]:
    """Requests, and an answer each that follows all instructions."""
    rows = [{**request.row(), "subject": "planning a small garden"} for request in drawn(count, "train", 8)]
    numbered = enumerate(rows)
    return [(row, edited(Material(row, SAMPLES), number % 3, 1.0, random.Random(number))) for number, row in numbered]


def test_each_careless_change_makes_good_answers_worse() -> None:
    for change in CHANGES:
        losses = []
        for number, (row, text) in enumerate(careful_texts(150)):
            changed = change(text, Author(random.Random(number), row["subject"], [], "", {}))
            losses.append(
                grade(text, row["subject"], row["instructions"]) - grade(changed, row["subject"], row["instructions"])
            )
        assert mean(losses) > 0.05, change.__name__
        assert mean(loss < -0.02 for loss in losses) < 0.1, change.__name__


@pytest.mark.parametrize("text", ["", "Hi", "!!!", "# A heading", "One sentence. And another one", "* a\n* b\n"])
def test_short_texts_can_be_spoiled(text: str) -> None:
    for seed in range(100):
        spoiled(text, Author(random.Random(seed), "a small garden", [], "", {}))


def test_a_revision_of_a_good_answer_is_seldom_better_and_of_a_draft_often() -> None:
    """One change: what is met already cannot be followed again, and the rest of the changes does not help."""
    of_drafts, of_careful = [], []
    for number, (row, careful) in enumerate(careful_texts(300)):
        for text, gains in ((SAMPLES[number % 3], of_drafts), (careful, of_careful)):
            changed = revised(Material(row, SAMPLES), number % 3, text, random.Random(number))
            gains.append(
                grade(changed, row["subject"], row["instructions"]) - grade(text, row["subject"], row["instructions"])
            )
    assert mean(gain > 0.02 for gain in of_drafts) > 0.2
    assert mean(gain < -0.02 for gain in of_drafts) > 0.05
    assert mean(gain > 0.02 for gain in of_careful) < 0.1 < mean(gain < -0.02 for gain in of_careful)

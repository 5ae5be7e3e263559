"""Data sets whose rows are labelled or graded responses become pairs; ties are counted and left out."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pitcli.data.pair_formats import recognise
from pitcli.data.pair_reading import load_pairs
from pitcli.data.rows import Message
from pitcli.errors import InputError

TIES = "rows skipped: a tie, neither response is better"
ASKED, GOOD, BAD = "How do I descale a kettle?", "Boil vinegar in it, then rinse.", "Buy another."
PROMPT = (Message("user", ASKED),)


def talk(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]


def battle(winner: object, **fields: object) -> dict[str, Any]:
    return {"conversation_a": talk(ASKED, BAD), "conversation_b": talk(ASKED, GOOD), "winner": winner, **fields}


def graded(*grades: object, text: object = BAD) -> dict[str, Any]:
    texts = [GOOD, text, "Use lemon juice."]
    completions = [
        {"model": f"m{n}", "response": t, "overall_score": grade}
        for n, (t, grade) in enumerate(zip(texts, grades, strict=False))
    ]
    return {"instruction": ASKED, "completions": completions, "source": "s"}


# a row, its format, a row of the same format that is a tie, and the fields that are kept
LABELLED: dict[str, tuple[dict[str, Any], str, dict[str, Any] | None, dict[str, Any]]] = {
    "Arena": (
        battle("model_b", turn=1, judge="u1"),
        "Chatbot Arena",
        battle("tie (bothbad)"),
        {"turn": 1, "judge": "u1"},
    ),
    "Nectar": (
        {
            "prompt": f"\n\nHuman: {ASKED}\n\nAssistant: ",
            "answers": [{"answer": BAD, "rank": 5.0, "model": "a"}, {"answer": GOOD, "rank": 1.0, "model": "b"}],
            "turns": 1,
        },
        "Nectar",
        None,
        {"turns": 1, "score_chosen": -1.0, "score_rejected": -5.0},
    ),
    "SHP": (
        {"post_id": "k", "history": ASKED, "human_ref_A": BAD, "human_ref_B": GOOD, "labels": 0, "score_A": 2},
        "SHP",
        None,
        {"post_id": "k", "score_A": 2},
    ),
    "UltraFeedback": (
        graded(7.5, 2.0),
        "UltraFeedback",
        None,
        {"source": "s", "score_chosen": 7.5, "score_rejected": 2.0},
    ),
    "HelpSteer3": (
        {"context": talk(ASKED), "response1": BAD, "response2": GOOD, "overall_preference": 3, "language": "en"},
        "HelpSteer3",
        {"context": talk(ASKED), "response1": BAD, "response2": GOOD, "overall_preference": 0},
        {"language": "en"},
    ),
    "HelpSteer2": (
        {"prompt": ASKED, "response_1": GOOD, "response_2": BAD, "preference_strength": -2},
        "HelpSteer2, preferences",
        {"prompt": ASKED, "response_1": GOOD, "response_2": BAD, "preference_strength": 0},
        {},
    ),
    "a winner": (
        {"prompt": ASKED, "response_a": BAD, "response_b": GOOD, "winner": "B", "judge": "u2"},
        "two responses and a winner",
        {"prompt": ASKED, "response_a": BAD, "response_b": GOOD, "winner": "tie"},
        {"judge": "u2"},
    ),
    "PKU": (
        {"prompt": ASKED, "response_0": BAD, "response_1": GOOD, "better_response_id": 1, "safer_response_id": 0},
        "PKU-SafeRLHF",
        None,
        {"safer_response_id": 0},
    ),
}


def load(tmp_path: Path, *rows: object) -> tuple[list[Any], Counter[str]]:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    notes: Counter[str] = Counter()
    return load_pairs(path, notes=notes), notes


@pytest.mark.parametrize(("row", "name", "tie", "extra"), LABELLED.values(), ids=LABELLED)
def test_a_labelled_row_becomes_a_pair(
    row: dict[str, Any], name: str, tie: dict[str, Any] | None, extra: dict[str, Any], tmp_path: Path
) -> None:
    assert recognise(row).name == name
    [pair], notes = load(tmp_path, row, *([tie] if tie else []))
    assert (pair.prompt, pair.chosen, pair.rejected, pair.extra) == (PROMPT, GOOD, BAD, extra)
    assert notes == ({TIES: 1} if tie else {})


def test_the_other_label_turns_the_pair_around(tmp_path: Path) -> None:
    rows = [
        battle("model_a"),
        {"history": ASKED, "human_ref_A": BAD, "human_ref_B": GOOD, "labels": 1},
        {"context": talk(ASKED), "response1": BAD, "response2": GOOD, "overall_preference": "-1"},
        {"prompt": ASKED, "response_0": BAD, "response_1": GOOD, "better_response_id": 0},
    ]
    for row in rows:
        [pair], _ = load(tmp_path, row)
        assert (pair.chosen, pair.rejected) == (BAD, GOOD)


def test_the_best_of_several_responses_is_paired_with_each_worse_one(tmp_path: Path) -> None:
    """As with ratings; the ids of the pairs of one row are numbered, and unusable responses are counted."""
    pairs, notes = load(tmp_path, {"id": "k1", **graded(6, 2, 8)}, graded(6, "N/A", 6), graded(9, 3, 1, text=None))
    assert [(p.id, p.chosen, p.rejected) for p in pairs[:2]] == [
        ("k1.1", "Use lemon juice.", GOOD),
        ("k1.2", "Use lemon juice.", BAD),
    ]
    assert [(p.chosen, p.rejected) for p in pairs[2:]] == [(GOOD, "Use lemon juice.")]
    assert notes == {
        "rated responses skipped: empty or without a rating": 2,
        "rated responses skipped: rated too close to the best": 1,
        "pairs in both orders": 1,
    }


def test_turns_that_were_not_judged_are_cut(tmp_path: Path) -> None:
    """MT-Bench has both turns in both of its rows, of which turn 1 was judged by its first answer."""
    two = {"conversation_a": talk(ASKED, BAD, "And then?", "x"), "conversation_b": talk(ASKED, GOOD, "And then?", "y")}
    [pair], _ = load(tmp_path, {**two, "winner": "model_b", "turn": 1})
    assert (pair.prompt, pair.chosen) == (PROMPT, GOOD)
    with pytest.raises(InputError, match="differs from chosen at turn 2"):
        load(tmp_path, {**two, "winner": "model_b", "turn": 2})


BAD_LABELS = {
    "winner": (battle("model_c"), "winner: expected model_a, model_b or tie, got …"),
    "no winner": (battle(None), "winner: expected model_a, model_b or tie, got null"),
    "label": (
        {"history": ASKED, "human_ref_A": BAD, "human_ref_B": GOOD, "labels": 2},
        "labels: expected … or …, the better response, got …",
    ),
    "answers": ({"prompt": ASKED, "answers": []}, "answers: expected an array of objects with answer and rank"),
    "messages": ({"messages": ASKED, "rejected_response": BAD}, None),
}


@pytest.mark.parametrize(("row", "reason"), BAD_LABELS.values(), ids=BAD_LABELS)
def test_rows_of_published_formats_that_cannot_be_used_are_counted(
    row: dict[str, Any], reason: str | None, tmp_path: Path
) -> None:
    if reason is None:
        with pytest.raises(InputError, match="messages: expected messages, got text"):
            load(tmp_path, row, battle("model_a"))
        return
    pairs, notes = load(tmp_path, row, battle("model_a"))
    assert (len(pairs), notes) == (1, {f"rows skipped: {reason}": 1})


def scored(
    chosen: object, rejected: object, names: tuple[str, str] = ("score_chosen", "score_rejected")
) -> dict[str, Any]:
    return {"prompt": f"{chosen}, {rejected}", "chosen": "a", "rejected": "b", names[0]: chosen, names[1]: rejected}


def test_equal_scores_are_ties_and_contradictory_ones_are_counted(tmp_path: Path) -> None:
    rows = [
        scored(8.0, 8.0),
        scored("3.5", "3.5", ("chosen-rating", "rejected-rating")),
        scored(2, 9, ("chosen_score", "rejected_score")),
        scored(9, 2),
        scored("good", "good"),
        scored(None, None),
    ]
    pairs, notes = load(tmp_path, *rows)
    assert [pair.prompt[0].content for pair in pairs] == ["2, 9", "9, 2", "good, good", "None, None"]
    assert notes == {TIES: 2, "pairs with a higher score for rejected than for chosen, kept": 1}
    with pytest.raises(InputError, match="no pairs are left: 1 row skipped: a tie"):
        load(tmp_path, scored(1, 1))

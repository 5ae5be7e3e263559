"""Sentences with a keyword that a model wrote, and the authors who add them."""

import random
from itertools import islice

import pytest

from pitcli.data.instructions.content import JOINS, KEYWORDS
from pitcli.data.instructions.pairs import preference_pairs
from pitcli.data.instructions.requests import request_rows
from pitcli.data.instructions.sentences import Sentences, is_sentence, usable

SUBJECT = "a small bakery"
SAMPLES = ["The bakery opens at six. People come for bread.", "There is a bakery at the corner. It smells of bread."]


def written(word: str, subject: str = SUBJECT) -> dict[str, str]:
    return {"subject": subject, "word": word, "response": f"The {word} is next to the door of {subject}."}


def test_prompts_ask_for_each_word_that_the_requests_of_training_need() -> None:
    rows = list(islice(request_rows("instructions:sentences:3"), 40))
    requests = {row["id"]: row for row in islice(request_rows("instructions:train:3"), 1000)}
    for row in rows:
        request = requests[row["id"].rpartition("-")[0]]
        assert row["word"] in KEYWORDS
        assert row["word"] in row["prompt"] and row["subject"] == request["subject"]
        assert row["subject"] in row["prompt"]
        asked = [item for item in request["instructions"] if item["kind"] in ("include", "keyword_times")]
        assert row["word"] in str(asked)
    assert not any(is_sentence(row) for row in rows)  # they have no response yet
    assert all(is_sentence({**row, "response": ""}) for row in rows)
    other = next(request_rows("instructions:sentences:4"))
    assert other != rows[0]


@pytest.mark.parametrize(
    ("response", "sentence"),
    [
        ("A violin hung over the counter of the bakery. It was old.", "A violin hung over the counter of the bakery."),
        ("A piano stood behind the counter of the bakery.", None),  # not the word
        ("A violin hung over the counter of the bakery, and", None),  # cut
        ("A violin hung.", None),  # short
        ("The word violin fits the counter of a bakery.", None),  # about the word
        ("Here is one: a violin hung over the counter.", None),
        ("A 'violin' hung over the counter of the bakery.", None),
        ("A violin hung over the counter of Xqzzt.", None),  # no word of English
        ("It's the baker's violin that hung over the counter.", "It's the baker's violin that hung over the counter."),
        ("", None),
    ],
)
def test_what_an_author_can_use_of_a_response(response: str, sentence: str | None) -> None:
    assert usable(response, "violin") == sentence


def test_sentences_about_the_subject_come_first() -> None:
    others = [written("violin", subject) for subject in ("a busy market", "a quiet harbour", "an early bus")]
    known = Sentences([*others, written("violin"), written("saddle")])
    for seed in range(5):
        found = known.having("violin", SUBJECT, random.Random(seed))
        assert len(found) == 4
        assert found[0] == "The violin is next to the door of a small bakery."
    assert known.having("orchard", SUBJECT, random.Random(0)) == []


def test_authors_add_what_a_model_wrote_about_the_subject() -> None:
    instructions = [{"kind": "include", "words": ["violin", "saddle"]}]
    request = {"prompt": "Describe a small bakery.", "subject": SUBJECT, "form": "Describe {}."}
    rows = [{**request, "instructions": instructions, "response": text} for text in SAMPLES]
    known = Sentences([written("violin"), written("saddle")])

    def texts(written: Sentences | None) -> str:
        pairs = preference_pairs(rows, 28, seed=0, written=written)
        return " ".join(pair[name] for pair in pairs for name in ("chosen", "rejected"))

    added = "Also, the violin is next to the door of a small bakery."
    assert added in texts(known)
    assert added not in texts(None)
    assert not any(join.format(word="violin")[1:] in texts(known) for join in JOINS)
    assert any(join.format(word="violin")[1:] in texts(None) for join in JOINS)

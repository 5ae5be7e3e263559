"""Sentences with a keyword that a model wrote, and the authors who add them."""

import random
from itertools import islice

import pytest

from pitcli.data.instructions.content import JOINS, KEYWORDS, joining
from pitcli.data.instructions.kinds import Author
from pitcli.data.instructions.pairs import Material, _author, preference_pairs
from pitcli.data.instructions.requests import KINDS, request_rows, without_contradictions
from pitcli.data.instructions.sentences import Sentences, is_sentence, usable
from pitcli.data.instructions.spoiling import padded

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
        ("A violin hung there.", None),  # short
        ("A violin hung over the counter of the shop.", None),  # not the subject
        ("The word violin fits the counter of a bakery.", None),  # about the word
        ("Here is one: a violin hung in the bakery.", None),
        ("A 'violin' hung over the counter of the bakery.", None),
        ("A violin hung over the counter of the bakery Xqzzt.", None),  # no word of English
        ("It's the baker's violin that hung in the bakery.", "It's the baker's violin that hung in the bakery."),
        ("", None),
    ],
)
def test_what_an_author_can_use_of_a_response(response: str, sentence: str | None) -> None:
    assert usable(response, "violin", SUBJECT) == sentence


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


@pytest.mark.parametrize(
    ("asked", "word", "unwanted"),
    [
        ({"kind": "include", "words": ["violin"]}, "violin", 0),
        ({"kind": "keyword_times", "word": "violin", "relation": "at least", "n": 2}, "violin", 0),
        ({"kind": "letter_times", "letter": "v", "n": 4}, "violin", 0),
        ({"kind": "letter_times", "letter": "w", "n": 4}, "violin", 1),
        ({"kind": "include", "words": ["saddle"]}, "violin", 1),
        ({"kind": "exclude", "words": ["violin"]}, "violin", 1),
        ({"kind": "placeholders", "n": 1}, "placeholders", 0),
        ({"kind": "no_comma"}, "placeholders", 1),
    ],
)
def test_a_sentence_for_a_word_that_nobody_asked_for_is_unwanted(
    asked: dict[str, object], word: str, unwanted: int
) -> None:
    row = {"prompt": "Describe a small bakery.", "subject": SUBJECT, "instructions": [asked]}
    material = Material(row, SAMPLES, joined={"It has to do with a thing.": word})
    assert material.unwanted(f"{SAMPLES[0]} ALSO IT HAS TO DO WITH A THING.") == unwanted
    assert material.unwanted(SAMPLES[0]) == 0


def test_padding_loses_to_the_same_text_without_it() -> None:
    request = {"prompt": "Describe a small bakery.", "subject": SUBJECT, "form": "Describe {}."}
    rows = [{**request, "instructions": [{"kind": "no_comma"}], "response": text} for text in SAMPLES]
    known = Sentences([written(word, "an early bus") for word in KEYWORDS])
    lost = seen = 0
    for seed in range(60):
        for pair in preference_pairs(rows, 28, seed, written=known):
            more, less = (
                ("chosen", "rejected") if len(pair["chosen"]) > len(pair["rejected"]) else ("rejected", "chosen")
            )
            if pair[more].startswith(pair[less]) and "early bus" in pair[more].removeprefix(pair[less]):
                seen, lost = seen + 1, lost + (more == "rejected")
    assert seen > 30
    assert lost / seen > 0.6


def test_what_authors_add_is_noted() -> None:
    joined: dict[str, str] = {}
    author = Author(random.Random(0), SUBJECT, [], "", joined)
    text = padded(SAMPLES[0], author)
    assert joined
    assert all(sentence[1:] in text for sentence in joined)


def test_no_sentence_is_added_twice() -> None:
    author = Author(random.Random(0), SUBJECT, [], "", {})
    text = SAMPLES[0]
    for _ in range(20):
        text = f"{text} {joining('violin', text, author)}"
    assert len(author.joined) == 20


def test_nothing_is_added_that_another_instruction_forbids() -> None:
    asked = [{"kind": "exclude", "words": ["also", "people", "very"]}, {"kind": "include", "words": ["violin"]}]
    long = {"kind": "sentences", "relation": "at least", "n": 8}
    request = {"prompt": "Describe a small bakery.", "subject": SUBJECT, "form": "Describe {}."}
    others = ["People love a small bakery very much.", "A small bakery also has a bell.", *SAMPLES]
    material = Material({**request, "instructions": [*asked, long]}, ["A small bakery.", " ".join(others)])
    author = _author(material, 0, random.Random(0))
    text = SAMPLES[0]
    for item in [*asked, long]:
        text = KINDS[item["kind"]].edit(text, item, author)
    assert [KINDS[item["kind"]].score(text, item) for item in asked] == [1.0, 1.0]


def test_no_request_excludes_a_word_that_it_asks_for() -> None:
    asked = [{"kind": "first_word", "word": "However"}, {"kind": "exclude", "words": ["however", "people"]}]
    assert without_contradictions(asked)[1]["words"] == ["people"]

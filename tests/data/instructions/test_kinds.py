"""Every kind of instruction: one answer that meets it, one that does not; careful authors make answers meet it."""

import random

import pytest

from pitcli.data.instructions.content import KEYWORDS
from pitcli.data.instructions.kinds import Author
from pitcli.data.instructions.requests import KINDS

WORDS = KEYWORDS[:18]
THREE = "The fox sleeps. The dog barks at it. Nobody wakes up?"

MET = {
    "words": ({"relation": "at most", "n": 11}, THREE),
    "sentences": ({"relation": "exactly", "n": 3}, THREE),
    "paragraphs": ({"n": 2, "divider": "***"}, "One fox.\n\n***\n\nTwo dogs."),
    "paragraph_first_word": ({"n": 2, "which": 2, "word": "Soon"}, "A fox.\n\nSoon, it sleeps."),
    "bullets": ({"n": 2}, "Foxes:\n* They sleep.\n* They wake."),
    "numbered": ({"n": 2}, "1. They sleep.\n2. They wake."),
    "sections": ({"n": 2, "label": "Part"}, "Part 1\nA fox.\n\nPart 2\nA dog."),
    "include": ({"words": ["fox", "bark"]}, "A Fox hears a bark."),
    "exclude": ({"words": ["cat", "fo"]}, THREE),
    "keyword_times": ({"word": "fox", "relation": "at least", "n": 2}, "Fox and fox."),
    "letter_times": ({"letter": "b", "n": 3}, "Bob buys."),
    "placeholders": ({"n": 2}, "I am [name] from [place]."),
    "first_word": ({"word": "Often"}, "Often, foxes sleep."),
    "first_phrase": ({"phrase": "Good morning."}, "Good morning. A fox sleeps."),
    "last_phrase": ({"phrase": "Take care."}, "A fox sleeps. Take care."),
    "end_question": ({}, THREE),
    "postscript": ({"marker": "P.S."}, "A fox sleeps.\n\nP.S. It woke up this morning."),
    "signature": ({"name": "Ada"}, "A fox sleeps.\n\nAda"),
    "title": ({}, "<<The Fox>>\n\nIt sleeps."),
    "heading": ({}, "# The Fox\n\nIt sleeps."),
    "quotation": ({}, '"A fox sleeps."'),
    "json": ({}, '```json\n{"answer": "A fox sleeps."}\n```'),
    "two_answers": ({}, "The fox sleeps in its den.\n******\nThe fox hunts in the wood."),
    "repeat_request": ({"request": "Describe a fox."}, "Describe a fox.\n\nIt is a small red animal that sleeps."),
    "lowercase": ({}, "a fox sleeps, 3 dogs do not."),
    "uppercase": ({}, "A FOX SLEEPS, 3 DOGS DO NOT."),
    "capital_words": ({"n": 2}, "A FOX SLEEPS well."),
    "highlights": ({"n": 2}, "A *red fox* sleeps **well**."),
    "no_comma": ({}, THREE),
    "no_digits": ({}, THREE),
}
MISSED = {
    "words": [THREE + " Yes.", ""],
    "sentences": ["The fox sleeps.", THREE + " It dreams."],
    "paragraphs": ["One fox.\n\nTwo dogs.", "A.\n\n***\n\nB.\n\n***\n\nC."],
    "paragraph_first_word": ["A fox.\n\nIt sleeps soon.", "Soon, a fox.\n\nIt sleeps.", "A fox. Soon, it sleeps."],
    "bullets": ["* One.", "* One.\n* Two.\n* Three.", "*one* and *two*"],
    "numbered": ["1. One.", "* One.\n* Two."],
    "sections": ["Part 1\nA fox.", "Section 1\nA.\nSection 2\nB."],
    "include": ["A fox.", "Foxes and barks."],
    "exclude": ["A cat.", "fo"],
    "keyword_times": ["One fox.", "Foxes and foxes."],
    "letter_times": ["Bob."],
    "placeholders": ["I am [name].", "[name\nplace]"],
    "first_word": ["Foxes often sleep.", ""],
    "first_phrase": ["A fox. Good morning.", ""],
    "last_phrase": ["Take care. A fox sleeps.", ""],
    "end_question": ["Who sleeps? A fox.", ""],
    "postscript": ["A fox sleeps.", "P.S. It woke up this morning.\n\nA fox sleeps.", "A fox.\n\nP.S. Ha."],
    "signature": ["A fox sleeps. Ada", "Ada\n\nA fox sleeps."],
    "title": ["The Fox\n\nIt sleeps.", "<<>> It sleeps."],
    "heading": ["The Fox\n\n# It sleeps.", "#fox"],
    "quotation": ['A "fox" sleeps.', '"', ""],
    "json": ["A fox.", '{"answer": "A fox."} So.', '"A fox."'],
    "two_answers": [
        "The fox sleeps in its den.",
        "The fox sleeps here now.\n******\nThe fox sleeps here now.",
        "******",
    ],
    "repeat_request": [
        "It is a small red animal.",
        "Describe a fox.",
        "Sure. Describe a fox. It is a small red animal.",
    ],
    "lowercase": ["A fox sleeps.", "123"],
    "uppercase": ["a FOX SLEEPS", ""],
    "capital_words": ["A FOX sleeps.", "A B C"],
    "highlights": ["A *fox* sleeps.", "* One.\n* Two.", "***", "2 * 3 * 4"],
    "no_comma": ["A fox, a dog."],
    "no_digits": ["3 foxes."],
}


def test_the_tables_below_have_every_kind() -> None:
    assert set(MET) == set(MISSED) == set(KINDS)


@pytest.mark.parametrize("name", KINDS)
def test_an_answer_that_meets_it_scores_one(name: str) -> None:
    params, text = MET[name]
    assert KINDS[name].score(text, params) == 1


@pytest.mark.parametrize("name", KINDS)
def test_an_answer_that_does_not_scores_at_most_half(name: str) -> None:
    params, _ = MET[name]
    scores = [KINDS[name].score(text, params) for text in MISSED[name]]
    assert all(0 <= score <= 0.5 for score in scores), list(zip(MISSED[name], scores, strict=True))


@pytest.mark.parametrize("name", KINDS)
def test_a_careful_author_makes_a_plain_text_meet_it(name: str) -> None:
    kind, rng = KINDS[name], random.Random(0)
    spare = [f"The {word} garden has {number} paths." for number, word in enumerate(WORDS)]
    for _ in range(20):
        params = kind.draw(rng, "Describe a quiet garden.")
        author = Author(rng, "a quiet garden", list(spare), " ".join(spare[:3]), {})
        text = "The garden is quiet, and many people like it. " + " ".join(spare[15:]) * (name != "sentences")
        assert kind.score(kind.edit(text.strip(), params, author), params) == 1, params


LAID_OUT = {"paragraph_first_word", "bullets", "numbered", "sections", "paragraphs"}  # laid out again each time


@pytest.mark.parametrize("name", sorted(KINDS.keys() - LAID_OUT))
def test_editing_twice_changes_nothing(name: str) -> None:
    """An author leaves alone what is right."""
    kind, rng = KINDS[name], random.Random(1)
    params = kind.draw(rng, "Describe a quiet garden.")
    author = Author(
        rng, "a quiet garden", ["The old garden has a wall."] * 3, "A garden. It is old. It is far away.", {}
    )
    once = kind.edit("The garden is quiet. Many people like it. It has paths.", params, author)
    assert kind.edit(once, params, author) == once


@pytest.mark.parametrize("name", KINDS)
def test_the_wordings_show_every_parameter(name: str) -> None:
    kind, rng = KINDS[name], random.Random(2)
    params = kind.draw(rng, "Describe a fox.")
    shown = [str(value) for value in kind.shown(params).values() if isinstance(value, str | int)]
    for wording in kind.wordings:
        text = wording.format(**kind.shown(params))
        assert "{" not in text
        assert all(value in text for value in shown), wording
    assert len(set(kind.wordings)) == len(kind.wordings) >= (1 if kind.held_out else 3)

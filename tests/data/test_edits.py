"""Edits: any of them can be reverted, exactly; and what counts as one edit."""

import random
import string

import pytest

from pitcli.data import edits
from pitcli.data.edits import Edit, edits_between, reverted
from pitcli.data.text_units import unit_spans, units

LETTERS = {
    "few words": ["a", "b", "c", " ", " ", "  ", "\n", ". ", "!"],
    "white space": [" ", "\t", "\n", "\r\n", "\u3000", "\u00a0", "\x1c", "\u2028", "x"],
    "characters without spaces": ["猫", "犬", "か\u3099", "。", "แม", " ", "\n", "GPT"],
    "marks and emoji": ["é", "e\u0301", "👩‍💻", "\ud83d", "ß", "İ", "\u202e", " ", "؟ "],
    "anything": [*string.printable, "…", "”", "\0"],
}


def text(draw: random.Random, letters: list[str]) -> str:
    return "".join(draw.choices(letters, k=draw.choice([0, 1, 2, 5, 12, 40])))


def changed(draw: random.Random, before: str, letters: list[str]) -> str:
    """The text with a few pieces cut out, put in, or moved."""
    for _ in range(draw.randrange(5)):
        start, end, to = sorted(draw.randrange(len(before) + 1) for _ in range(3))
        moved = before[start:end] if draw.random() < 0.3 else text(draw, letters)
        before = before[:start] + before[end:to] + moved + before[to:]
    return before


@pytest.mark.parametrize("letters", LETTERS.values(), ids=LETTERS)
def test_the_texts_come_back_from_the_edits(letters: list[str]) -> None:
    """Reverting none gives the response, reverting all the draft; some, a text between."""
    draw = random.Random(0)
    for number in range(600):
        draft = text(draw, letters)
        response = changed(draw, draft, letters) if number % 3 else text(draw, letters)
        found = edits_between(draft, response)
        assert reverted(response, []) == response
        assert reverted(response, found) == draft, (draft, response)
        assert bool(found) == (draft != response)
        end = 0
        for edit in found:
            assert end <= edit.start <= edit.end
            assert edit.added == response[edit.start : edit.end] != edit.removed
            end = edit.end
        some = [edit for edit in found if draw.random() < 0.5]
        others = [edit for edit in found if edit not in some]
        # what is reverted to the draft and what is left of the response make up both texts
        assert len(reverted(response, some)) + len(reverted(response, others)) == len(draft) + len(response)
        assert edits_between(draft, response) == found


def test_each_edit_alone_is_the_text_around_it() -> None:
    draft, response = "A b c d e f g h.", "A x c d e f g h. New words come here."
    first, second = edits_between(draft, response)
    assert (first.removed, first.added, second.removed) == ("b", "x", "")
    assert reverted(response, [first]) == "A b c d e f g h. New words come here."
    assert reverted(response, [second]) == "A x c d e f g h."


def shown(draft: str, response: str) -> list[tuple[str, str]]:
    return [(edit.removed, edit.added) for edit in edits_between(draft, response)]


@pytest.mark.parametrize(
    ("draft", "response", "expected"),
    [
        ("a b c d e", "a x c y e", [("b", "x"), ("d", "y")]),  # each by itself: one word is kept, one changes
        ("a b b d e e f", "a x x d y y f", [("b b d e e", "x x d y y")]),  # fewer kept than change
        ("a b b d d e e f", "a x x d d y y f", [("b b", "x x"), ("e e", "y y")]),
        ("I really like it", "I like it really", [("really like it", "like it really")]),
        ("gold file", "file gold", [("gold file", "file gold")]),
        ("one soup egg axe", "one egg tan axe", [("soup egg ", "egg tan ")]),  # the places of others do not shift
        ("a b. c", "x b. y", [("a", "x"), ("c", "y")]),
        ("a b c\nd e f", "x y c\nz w f", [("a b", "x y"), ("d e", "z w")]),  # not across lines
        ("Go.", "Go. It is late. We leave at nine.", [("", " It is late."), ("", " We leave at nine.")]),
        ("It is late. We leave at nine. Go.", "Go.", [("It is late. ", ""), ("We leave at nine. ", "")]),
        ("Do:", "Do:\n1. Buy some bread.\n2. Eat it.", [("", "\n1. Buy some bread."), ("", "\n2. Eat it.")]),
        ("今天很冷。", "今天很热。", [("冷", "热")]),
        ("a  b", "a b", [(" ", "")]),
        ("", "a b", [("", "a b")]),
        ("a b\n", "", [("a b\n", "")]),
        ("same", "same", []),
        ("", "", []),
    ],
)
def test_what_is_one_edit(draft: str, response: str, expected: list[tuple[str, str]]) -> None:
    assert shown(draft, response) == expected


def test_long_differences_have_a_limited_number_of_edits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with the fewest kept words between them become one."""
    draft = " ".join(f"w{n} k{n}a k{n}b k{n}c" + f" far{n}" * (n == 50) for n in range(100))
    response = draft.replace("w", "v")
    found = edits_between(draft, response)
    assert len(found) == edits.MOST
    assert reverted(response, found) == draft
    monkeypatch.setattr(edits, "MOST", 2)
    first, second = edits_between(draft, response)
    assert first.added.split()[-1] == "v50"
    assert second.added.split()[0] == "v51"
    sentences = " ".join(["It is late."] * 9)
    assert edits_between("", sentences) == [Edit(0, len(sentences), "", sentences)]


def test_spans_are_those_of_units() -> None:
    for words in ("The cat, too.", "猫がいる GPT", "", " \n a\x1cb"):
        assert [words[start:end] for start, end in unit_spans(words)] == units(words)

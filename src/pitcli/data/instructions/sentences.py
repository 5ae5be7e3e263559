"""Sentences with a keyword, written by a model: what authors add to an answer that lacks the word."""

import random
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

from pitcli.data.instructions.grading import is_known, mentions
from pitcli.data.instructions.text import count_word, is_complete, sentences, words

LENGTHS = (5, 25)  # words, at least and at most


class Sentences:
    """Those of the rows that can be used (rows of instructions:sentences with a response), by their word."""

    def __init__(self, rows: Iterable[dict[str, Any]] = ()) -> None:
        self._of_word: dict[str, dict[str, str]] = defaultdict(dict)  # word: {sentence: its subject}
        for row in rows:
            if sentence := usable(row["response"], row["word"], row["subject"]):
                self._of_word[row["word"]][sentence] = row["subject"]

    def having(self, word: str, subject: str, rng: random.Random) -> list[str]:
        """All with the word in random order, those about the subject first."""
        known = self._of_word.get(word, {})
        return sorted(rng.sample([*known], len(known)), key=lambda sentence: known[sentence] != subject)


def is_sentence(row: dict[str, Any]) -> bool:
    """Whether it is a row of instructions:sentences with a response."""
    return all(isinstance(row.get(field), str) for field in ("subject", "word", "response"))


def usable(response: str, word: str, subject: str) -> str | None:
    """The first sentence of the response, if it is whole, has the word, and speaks of the subject, not of the word."""
    first = next(iter(sentences(response)), "")
    found = words(first)
    whole = is_complete(first) and LENGTHS[0] <= len(found) <= LENGTHS[1]
    fits = whole and count_word(first, word) and mentions(first, subject)
    plain = not re.search(r"[^\w\s,.!?;'’-]|\b(word|sentence)s?\b|(?<!\w)['’]|['’](?!\w)", first, re.IGNORECASE)
    return first if fits and plain and all(is_known(part.lower()) for part in found) else None

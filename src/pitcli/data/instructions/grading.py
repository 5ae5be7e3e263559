"""The oracle of the instruction task: how far an answer meets its instructions, and whether it is an answer at all."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import resources
from statistics import mean

from pitcli.data.instructions.kinds import Params
from pitcli.data.instructions.requests import KINDS
from pitcli.data.instructions.text import sentences, words
from pitcli.data.instructions.wrapping import parsed_json

FEWEST_WORDS = 12
KNOWN_SHARE = 0.8  # of the words, at least, must be in the word list
SENTENCE_LENGTHS = (3, 45)  # mean words per sentence of an answer, at least and at most
STRIKING = ("uppercase", "lowercase", "json", "quotation", "title", "two_answers")  # forms that only fit if asked for
UNASKED = 0.7
ENDINGS = ("'s", "s", "es", "ed", "d", "ing", "ly", "er", "est", "y", "ness", "ful")


def grade(text: str, subject: str, instructions: Sequence[Params]) -> float:
    """In [0, 1]: the mean score over the instructions, times `sense`."""
    return mean(scores(text, instructions)) * sense(text, subject, instructions)


def scores(text: str, instructions: Sequence[Params]) -> list[float]:
    return [KINDS[item["kind"]].score(text, item) for item in instructions]


def sense(text: str, subject: str, instructions: Sequence[Params]) -> float:
    """Guard against answers that meet instructions without being an answer, in [0, 1].

    It multiplies: length below FEWEST_WORDS; the share of distinct sentences and of distinct 4-grams; the share of
    words in a word list; the length of its sentences; whether the subject is mentioned at all; and UNASKED for each
    striking form that nobody asked for.
    """
    body = _body(text, instructions)
    found = [word.lower() for word in words(body)]
    if not found:
        return 0.0
    return (
        min(1.0, len(found) / FEWEST_WORDS)
        * _distinct(body, found)
        * min(1.0, sum(is_known(word) for word in found) / len(found) / KNOWN_SHARE) ** 2
        * _sentence_length(body, found)
        * (1.0 if mentions(body, subject) else 0.5)
        * UNASKED ** len(unasked_forms(text, instructions))
    )


def unasked_forms(text: str, instructions: Sequence[Params]) -> list[str]:
    """The striking forms of the text that no instruction asks for."""
    asked = {item["kind"] for item in instructions}
    return [kind for kind in STRIKING if kind not in asked and KINDS[kind].score(text, {}) == 1]


def mentions(text: str, subject: str) -> bool:
    """Whether a word of four letters or more of the subject occurs, in any form that begins alike."""
    stems = [word.lower()[: max(4, len(word) - 3)] for word in words(subject) if len(word) >= 4]
    return not stems or any(stem in text.lower() for stem in stems)


def is_known(word: str) -> bool:
    """Whether the word, its parts around hyphens, or the word without a common ending is in the word list."""
    if word.isdigit():
        return True
    return all(_known_part(part) for part in re.split("[-’']", word) if part)


def _known_part(word: str) -> bool:
    known = word_list()
    if word in known or len(word) == 1:
        return True
    for ending in ENDINGS:
        stem = word.removesuffix(ending)
        if stem != word and (stem in known or f"{stem}e" in known or (stem[-2:-1] == stem[-1:] and stem[:-1] in known)):
            return True
    return False


@cache
def word_list() -> frozenset[str]:
    """Whole lower-case words of SmolLM2's vocabulary (Apache-2.0): the commonest of English text."""
    return frozenset((resources.files("pitcli") / "assets" / "instructions" / "words.txt").read_text("utf-8").split())


def _body(text: str, instructions: Sequence[Params]) -> str:
    """What was written: without the repeated request and JSON's keys and braces."""
    for item in instructions:
        if item["kind"] == "repeat_request" and text.lower().startswith(item["request"].lower()):
            text = text[len(item["request"]) :]
    value = parsed_json(text)
    return "\n".join(_strings(value)) if value is not None else text


def _strings(value: object) -> list[str]:
    if isinstance(value, Mapping):
        return [text for item in value.values() for text in _strings(item)]
    if isinstance(value, list):
        return [text for item in value for text in _strings(item)]
    return [str(value)]


def _distinct(body: str, found: Sequence[str]) -> float:
    counts = Counter(" ".join(words(sentence)).lower() for sentence in sentences(body) if len(words(sentence)) > 2)
    distinct = len(counts) / counts.total() if counts else 1.0
    grams = [tuple(found[start : start + 4]) for start in range(len(found) - 3)]
    return distinct * (min(1.0, len(set(grams)) / len(grams) / 0.9) if grams else 1.0)


def _sentence_length(body: str, found: Sequence[str]) -> float:
    least, most = SENTENCE_LENGTHS
    length = len(found) / max(1, len(sentences(body)))
    return 1.0 if least <= length <= most else 0.5

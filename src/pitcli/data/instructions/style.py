"""Kinds of instructions about case, punctuation, digits and emphasis."""

import random
import re
from collections.abc import Callable

from pitcli.data.instructions.kinds import Author, Kind, Params, groups
from pitcli.data.instructions.text import closeness, words

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


class Lowercase(Kind):
    name = "lowercase"
    wordings = (
        "Your entire response should be in all lowercase letters. No capital letters are allowed.",
        "Answer in lowercase letters only.",
        "Do not use any capital letters.",
        "Write everything in small letters.",
        "All lowercase, please.",
    )
    groups = groups("case")
    step = 6

    def score(self, text: str, params: Params) -> float:
        return cased(text, str.islower)

    def edit(self, text: str, params: Params, author: Author) -> str:
        return text.lower()


class Uppercase(Kind):
    name = "uppercase"
    wordings = (
        "Your entire response should be in all capital letters.",
        "Answer in capital letters only.",
        "Write everything in capital letters.",
        "Use ALL CAPS for the whole answer.",
        "No lowercase letters are allowed.",
    )
    groups = groups("case")
    step = 6

    def score(self, text: str, params: Params) -> float:
        return cased(text, str.isupper)

    def edit(self, text: str, params: Params, author: Author) -> str:
        return text.upper()


class CapitalWords(Kind):
    name = "capital_words"
    wordings = (
        "Use at least {n} words in all capital letters.",
        "Words with all capital letters should appear at least {n} times.",
        "Stress at least {n} words by writing them in ALL CAPS.",
    )
    groups = groups("case")
    step = 6

    def draw(self, rng: random.Random, request: str) -> Params:
        return {"n": rng.randint(1, 4)}

    def score(self, text: str, params: Params) -> float:
        return closeness(sum(len(word) > 1 and word.isupper() for word in words(text)), params["n"])

    def edit(self, text: str, params: Params, author: Author) -> str:
        missing = params["n"] - sum(len(word) > 1 and word.isupper() for word in words(text))
        return emphasised(text, missing, str.upper)


class Highlights(Kind):
    name = "highlights"
    wordings = (
        "Highlight at least {n} sections in your answer with markdown, i.e. *highlighted section*.",
        "Mark at least {n} words or phrases with asterisks, such as *this*.",
        "Highlight {n} or more parts of the text with markdown, for example *important point*.",
        "Put at least {n} words between asterisks, *like this*.",
    )
    groups = groups("json")
    step = 6

    def draw(self, rng: random.Random, request: str) -> Params:
        return {"n": rng.randint(1, 3)}

    def score(self, text: str, params: Params) -> float:
        return closeness(highlights(text), params["n"])

    def edit(self, text: str, params: Params, author: Author) -> str:
        return emphasised(text, params["n"] - highlights(text), lambda word: f"*{word}*")


class NoComma(Kind):
    name = "no_comma"
    wordings = (
        "Do not use any commas.",
        "Your answer must not contain commas.",
        "In your entire response, refrain from the use of any commas.",
        "Write without commas.",
        "No commas, please.",
    )
    groups = groups("punctuation", "json")
    step = 6

    def score(self, text: str, params: Params) -> float:
        return 1.0 if "," not in text else max(0.0, 0.5 - 0.1 * text.count(","))

    def edit(self, text: str, params: Params, author: Author) -> str:
        return re.sub(r",(?=\S)", " ", text.replace(", ", " ")).replace(",", "")


class NoDigits(Kind):
    name = "no_digits"
    wordings = ("Do not use any digits.", "Write all numbers as words, without digits.")
    groups = groups("punctuation", "list")
    step = 6
    held_out = True

    def score(self, text: str, params: Params) -> float:
        return float(not re.search(r"\d", text))

    def edit(self, text: str, params: Params, author: Author) -> str:
        return re.sub(r"\d", lambda match: NAMES[int(match[0])], text)


def cased(text: str, is_cased: Callable[[str], bool]) -> float:
    """1 if all letters have the case; otherwise half the share of words that have it."""
    found = [word for word in words(text) if any(letter.isalpha() for letter in word)]
    if not found:
        return 0.0
    share = sum(is_cased(word) for word in found) / len(found)
    return 1.0 if share == 1 else 0.5 * share


def highlights(text: str) -> int:
    """Spans between single or double asterisks in one line; bullets and dividers are none."""
    return len(re.findall(r"(?<![*\w])\*{1,2}[^\s*](?:[^*\n]*[^\s*])?\*{1,2}(?![*\w])", text))


def emphasised(text: str, count: int, change: Callable[[str], str]) -> str:
    """The text with the first `count` of its words of two letters or more changed."""
    found = [match for match in re.finditer(r"(?<![\w*<\[])[A-Za-z]{2,}(?![\w*>\]])", text)]
    for match in reversed(found[: max(count, 0)]):
        text = f"{text[: match.start()]}{change(match[0])}{text[match.end() :]}"
    return text

"""Kinds of instructions about lengths and layout: words, sentences, paragraphs, lists, sections."""

import random
import re
from collections.abc import Callable
from typing import ClassVar

from pitcli.data.instructions.kinds import Author, Kind, Params, groups
from pitcli.data.instructions.text import (
    append_also,
    closeness,
    count_word,
    is_complete,
    is_in,
    keep_sentences,
    lower_first,
    paragraphs,
    sentences,
    words,
)

STARTERS = (
    "However", "Today", "Often", "Sometimes", "Perhaps", "Meanwhile", "First", "Finally", "Indeed", "Still",
    "Usually", "Naturally", "Clearly", "Soon",
)  # fmt: skip
MARGIN = 12  # words that other instructions may add to an answer of limited length


class Words(Kind):
    name = "words"
    wordings = (
        "Answer in {relation} {n} words.",
        "Your answer must have {relation} {n} words.",
        "Use {relation} {n} words.",
        "The response should contain {relation} {n} words.",
        "Write {relation} {n} words.",
        "Keep the answer to {relation} {n} words.",
    )
    groups = groups("length", "json")
    step = 2

    def draw(self, rng: random.Random, request: str) -> Params:
        relation = rng.choice(["at least", "at most"])
        return {"relation": relation, "n": rng.choice(range(60, 95, 5) if relation == "at least" else range(25, 65, 5))}

    def score(self, text: str, params: Params) -> float:
        return closeness(len(words(text)), *bounds(params))

    def edit(self, text: str, params: Params, author: Author) -> str:
        if params["relation"] == "at least":
            return lengthen(text, author, lambda longer: len(words(longer)) >= params["n"])
        return shorten(text, author, lambda shorter: len(words(shorter)) <= params["n"] - MARGIN)


class Sentences(Kind):
    name = "sentences"
    wordings = (
        "Write {relation} {n} sentences.",
        "Your response should contain {relation} {n} sentences.",
        "Answer in {relation} {n} sentences.",
        "The number of sentences should be {relation} {n}.",
        "Use {relation} {n} sentences in your reply.",
    )
    groups = groups("length", "end", "json", "list")
    step = 2

    def draw(self, rng: random.Random, request: str) -> Params:
        relation = rng.choice(["exactly", "at least", "at most"])
        return {"relation": relation, "n": rng.randint(5, 7) if relation == "at least" else rng.randint(2, 5)}

    def score(self, text: str, params: Params) -> float:
        return closeness(len(sentences(text)), *bounds(params))

    def edit(self, text: str, params: Params, author: Author) -> str:
        if params["relation"] != "at most":
            text = lengthen(text, author, lambda longer: len(sentences(longer)) >= params["n"])
        if params["relation"] != "at least":
            text = shorten(text, author, lambda shorter: len(sentences(shorter)) <= params["n"])
        return text


class Paragraphs(Kind):
    name = "paragraphs"
    wordings = (
        "Write {n} paragraphs, separated by {divider}.",
        "There should be {n} paragraphs. Paragraphs are separated by {divider}.",
        "Give your answer in {n} paragraphs with {divider} between them.",
        "Split the answer into exactly {n} paragraphs, with {divider} after each but the last.",
    )
    groups = groups("layout", "json", "list")
    step = 3

    def draw(self, rng: random.Random, request: str) -> Params:
        return {"n": rng.randint(2, 4), "divider": rng.choice(["", "***"])}

    def shown(self, params: Params) -> Params:
        return {**params, "divider": "the line ***" if params["divider"] else "a blank line"}

    def score(self, text: str, params: Params) -> float:
        return closeness(len(paragraphs(text, params["divider"])), params["n"], params["n"])

    def edit(self, text: str, params: Params, author: Author) -> str:
        between = f"\n\n{params['divider']}\n\n" if params["divider"] else "\n\n"
        return between.join(in_paragraphs(text, params["n"], author))


class ParagraphFirstWord(Kind):
    name = "paragraph_first_word"
    wordings = (
        "Write {n} paragraphs with a blank line between them. Paragraph {which} must start with the word '{word}'.",
        "There should be {n} paragraphs, separated by two line breaks, and paragraph {which} begins with '{word}'.",
        "Give {n} paragraphs separated by blank lines. The first word of paragraph {which} is '{word}'.",
    )
    groups = groups("layout", "json", "list", "start")
    step = 3

    def draw(self, rng: random.Random, request: str) -> Params:
        n = rng.randint(2, 4)
        return {"n": n, "which": rng.randint(1, n), "word": rng.choice(STARTERS)}

    def score(self, text: str, params: Params) -> float:
        parts = paragraphs(text)
        begins = len(parts) >= params["which"] and starts_with(parts[params["which"] - 1], params["word"])
        count = closeness(len(parts), params["n"], params["n"])
        return 1.0 if begins and count == 1 else (count + begins) / 4

    def edit(self, text: str, params: Params, author: Author) -> str:
        parts = in_paragraphs(text, params["n"], author)
        which = params["which"] - 1
        if which < len(parts):  # there may have been too few sentences for n paragraphs
            parts[which] = begin(parts[which], params["word"])
        return "\n\n".join(parts)


class Bullets(Kind):
    name = "bullets"
    wordings: ClassVar[tuple[str, ...]] = (
        "Your answer must contain exactly {n} bullet points. Use markdown bullets such as: * This is a point.",
        "Give exactly {n} bullet points that begin with '* '.",
        "Answer as a list of {n} bullets, each on its own line and starting with '* '.",
        "Include exactly {n} bullet points in markdown, for example: * This is point 1.",
    )
    groups = groups("layout", "json", "list", "length")
    step = 3
    pattern: ClassVar[str] = r"^\s*[*-] +\S"
    marker: ClassVar[str] = "* "

    def draw(self, rng: random.Random, request: str) -> Params:
        return {"n": rng.randint(2, 5)}

    def score(self, text: str, params: Params) -> float:
        return closeness(len(re.findall(self.pattern, text, re.MULTILINE)), params["n"], params["n"])

    def edit(self, text: str, params: Params, author: Author) -> str:
        n = params["n"]
        parts = sentences(lengthen(text, author, lambda longer: len(sentences(longer)) >= n))
        marked = [self.marker.replace("1", str(number)) + part for number, part in enumerate(parts[:n], 1)]
        return "\n".join(marked)


class Numbered(Bullets):
    name = "numbered"
    wordings = (
        "Give exactly {n} numbered points (1., 2., and so on), each on its own line.",
        "Answer as a numbered list of {n} points.",
    )
    pattern = r"^\s*\d+\. +\S"
    marker = "1. "
    held_out = True


class Sections(Kind):
    name = "sections"
    wordings = (
        "Your answer must have {n} sections. Mark the beginning of each with {label} X, such as: {label} 1",
        "Divide the answer into {n} parts that begin with {label} 1, {label} 2 and so on.",
        "Write {n} sections, each under a line with its name, such as '{label} 1'.",
    )
    groups = groups("layout", "json", "list", "case", "start")
    step = 3

    def draw(self, rng: random.Random, request: str) -> Params:
        return {"n": rng.randint(2, 3), "label": rng.choice(["Section", "SECTION", "Part", "Chapter", "Day"])}

    def score(self, text: str, params: Params) -> float:
        return closeness(len(re.findall(rf"^\W*{params['label']} \d+", text, re.MULTILINE)), params["n"], params["n"])

    def edit(self, text: str, params: Params, author: Author) -> str:
        parts = in_paragraphs(text, params["n"], author)
        return "\n\n".join(f"{params['label']} {number}\n{part}" for number, part in enumerate(parts, 1))


def bounds(params: Params) -> tuple[int, int | None]:
    n = params["n"]
    return {"at least": (n, None), "at most": (1, n), "exactly": (n, n)}[params["relation"]]


def lengthen(text: str, author: Author, enough: Callable[[str], bool]) -> str:
    """Add spare sentences that the text does not have until it is long enough or none is left."""
    for sentence in author.spare:
        if enough(text):
            break
        if not is_in(sentence, text):
            text = append_also(text, sentence, author.avoided)
    return text


def shorten(text: str, author: Author, enough: Callable[[str], bool]) -> str:
    """Take away sentences from the end, those with a word that is needed only if no other is left."""
    while not enough(text) and len(parts := sentences(text)) > 1:
        free = [part for part in parts[1:] if not any(count_word(part, word) for word in author.needed)]
        gone = free[-1] if free else parts[-1]
        shorter = keep_sentences(text, lambda sentence, gone=gone: gone not in sentence)  # type: ignore[misc]
        if shorter == text:
            break
        text = shorter
    return text


def in_paragraphs(text: str, n: int, author: Author) -> list[str]:
    """n paragraphs: a sentence each, and the last one with the rest."""
    text = lengthen(text, author, lambda longer: len(sentences(longer)) >= n)
    parts = [part if is_complete(part) else f"{part}." for part in sentences(text)]
    return [*parts[: n - 1], " ".join(parts[n - 1 :])] if len(parts) >= n else parts


def starts_with(text: str, word: str) -> bool:
    first = words(text)[:1]
    return bool(first) and first[0].lower() == word.lower()


def begin(text: str, word: str) -> str:
    return text if starts_with(text, word) else f"{word}, {lower_first(text)}"

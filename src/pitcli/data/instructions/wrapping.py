"""Kinds of instructions about what goes around an answer: titles, quotation marks, JSON, a second answer."""

import json
import random
import re
from string import capwords
from typing import ClassVar

from pitcli.data.instructions.kinds import Author, Kind, Params, groups
from pitcli.data.instructions.text import is_complete, sentences, words

TITLES = (
    "{subject}",
    "On {subject}",
    "A Note on {subject}",
    "About {subject}",
    "All About {subject}",
    "Notes: {subject}",
)


class Title(Kind):
    name = "title"
    wordings: ClassVar[tuple[str, ...]] = (
        "Your answer must contain a title, wrapped in double angular brackets, such as <<poem of joy>>.",
        "Add a title in double angular brackets, i.e. <<title>>.",
        "Give your answer a title that is wrapped in << and >>.",
        "Put a title in double angular brackets, such as <<a day out>>, at the top.",
    )
    groups = groups("start", "json")
    step = 5
    pattern = r"<<[^\n<>]+>>"

    def score(self, text: str, params: Params) -> float:
        return float(re.search(self.pattern, text, re.MULTILINE) is not None)

    def edit(self, text: str, params: Params, author: Author) -> str:
        if self.score(text, params):
            return text
        return f"{self.marked(author.rng.choice(TITLES).format(subject=capwords(author.subject)))}\n\n{text}"

    def marked(self, title: str) -> str:
        return f"<<{title}>>"


class Heading(Title):
    name = "heading"
    wordings = (
        "Put a markdown heading (# ...) on the first line.",
        "Start with a heading in markdown, such as: # Heading",
    )
    pattern = r"\A\s*#+ \S"
    held_out = True

    def marked(self, title: str) -> str:
        return f"# {title}"


class Quotation(Kind):
    name = "quotation"
    wordings = (
        "Wrap your entire response with double quotation marks.",
        "Put your whole answer in double quotation marks.",
        "Your entire response should be wrapped in double quotation marks.",
        'Enclose everything that you write in " and ".',
    )
    groups = groups("start", "end", "json", "list")
    step = 5

    def score(self, text: str, params: Params) -> float:
        text = text.strip()
        return float(len(text) > 1 and text.startswith('"') and text.endswith('"'))

    def edit(self, text: str, params: Params, author: Author) -> str:
        return text if self.score(text, params) else '"' + text.replace('"', "'").strip() + '"'


class Json(Kind):
    name = "json"
    wordings = (
        "Entire output should be wrapped in JSON format.",
        "Give your whole answer as JSON.",
        "Answer with a JSON object and nothing else.",
        "Your entire answer must be valid JSON.",
    )
    groups = groups("start", "end", "json", "layout", "length", "case")
    step = 5

    def score(self, text: str, params: Params) -> float:
        return float(parsed_json(text) is not None)

    def edit(self, text: str, params: Params, author: Author) -> str:
        if self.score(text, params):
            return text
        key, title = author.rng.choice(["answer", "response", "text"]), author.rng.choice(["", "title", "subject"])
        named = {title: capwords(author.subject)} if title else {}
        return json.dumps({**named, key: text.strip()}, indent=author.rng.choice([None, 2]), ensure_ascii=False)


class TwoAnswers(Kind):
    name = "two_answers"
    wordings = (
        "Give two different responses. Separate them with six asterisks: ******",
        "Provide exactly two different answers, separated by 6 asterisk symbols: ******",
        "Write two different answers, with a line of six asterisks (******) between them.",
        "Give two different responses, separated only by ******.",
    )
    groups = groups("start", "end", "json", "layout", "length", "list")
    step = 5

    def score(self, text: str, params: Params) -> float:
        answers = [part.strip() for part in text.split("******")]
        full = [answer for answer in answers if len(words(answer)) >= 6]
        return 1.0 if len(answers) == len(full) == len(set(full)) == 2 else 0.0

    def edit(self, text: str, params: Params, author: Author) -> str:
        parts = sentences(text)
        half = max(1, len(parts) // 2)
        second = " ".join([part for part in sentences(author.other) if part not in parts and is_complete(part)][:4])
        if len(words(second)) < 6:
            text, second = " ".join(parts[:half]), " ".join(parts[half:])
        return text if self.score(text, params) else f"{text.strip()}\n******\n{second}"


class RepeatRequest(Kind):
    name = "repeat_request"
    wordings = (
        "First repeat the request word for word without change, then give your answer (the request you need to repeat "
        "is: {request})",
        'Before you answer, repeat this request exactly: "{request}"',
        "First, repeat the request above word for word without change, then answer. Do not say anything before it. "
        "(Repeat only: {request})",
    )
    groups = groups("start", "json", "case", "punctuation", "length", "layout")
    step = 5

    def draw(self, rng: random.Random, request: str) -> Params:
        return {"request": request}

    def score(self, text: str, params: Params) -> float:
        begins = text.strip().lower().startswith(params["request"].lower())
        return 1.0 if begins and len(words(text)) >= 2 * len(words(params["request"])) else 0.0

    def edit(self, text: str, params: Params, author: Author) -> str:
        return text if self.score(text, params) else f"{params['request']}\n\n{text}"


def parsed_json(text: str) -> object:
    """The object or list that the whole text is, with or without a markdown fence; None if it is not."""
    inner = re.sub(r"^```(?:json)?|```$", "", text.strip()).strip()
    try:
        value = json.loads(inner)
    except ValueError:
        return None
    return value if isinstance(value, dict | list) else None

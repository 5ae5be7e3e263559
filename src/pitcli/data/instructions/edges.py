"""Kinds of instructions about how an answer begins and ends."""

import random
import re

from pitcli.data.instructions.content import KEYWORDS, joining
from pitcli.data.instructions.kinds import Author, Kind, Params, groups
from pitcli.data.instructions.lengths import STARTERS, begin, starts_with
from pitcli.data.instructions.text import append, is_complete, is_in, words

LAST_PHRASES = (
    "Is there anything else I can help with?", "Any other questions?", "I hope this helps.", "That is all for today.",
    "Thank you for reading.", "Let me know what you think.", "And that is the whole story.", "Please write again soon.",
    "This is where it ends.", "Take care of yourself.", "Now it is your turn.", "Good luck with it.",
)  # fmt: skip
FIRST_PHRASES = (
    "Thank you for your question.", "Here is my answer.", "This is a fine subject.", "Let us begin at the beginning.",
    "I have thought about this for a while.", "Good morning to you.",
)  # fmt: skip
QUESTIONS = (
    "What would you do first?", "What do you think about it?", "What would you add?", "What is your own experience?",
    "What else would you like to know?", "What comes to mind when you read this?",
)  # fmt: skip
NAMES = ("Ada", "Tom Baker", "Maria", "Your friend Sam", "Grandpa Joe", "J. Miller", "The Green Team")


class FirstWord(Kind):
    name = "first_word"
    wordings = (
        "Begin with the word '{word}'.",
        "The first word of your answer must be '{word}'.",
        "Start your response with the word '{word}'.",
        "Your answer should start with '{word}'.",
        "Let '{word}' be the first word.",
    )
    groups = groups("start", "json")
    step = 4

    def draw(self, rng: random.Random, request: str) -> Params:
        return {"word": rng.choice(STARTERS)}

    def score(self, text: str, params: Params) -> float:
        return float(starts_with(text, params["word"]))

    def edit(self, text: str, params: Params, author: Author) -> str:
        marker, rest = re.match(r"(\s*(?:[*-] |\d+\. )?)(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
        return f"{marker}{begin(rest, params['word'])}"


class FirstPhrase(Kind):
    name = "first_phrase"
    wordings = ("Start your answer with this exact sentence: {phrase}", 'Begin with the sentence "{phrase}"')
    groups = groups("start", "json")
    step = 4
    held_out = True

    def draw(self, rng: random.Random, request: str) -> Params:
        return {"phrase": rng.choice(FIRST_PHRASES)}

    def score(self, text: str, params: Params) -> float:
        return float(text.strip().lower().startswith(params["phrase"].lower()))

    def edit(self, text: str, params: Params, author: Author) -> str:
        between = "\n\n" if re.match(r"[*-] |\d+\. |#", text) else " "
        return text if self.score(text, params) else f"{params['phrase']}{between}{text}"


class LastPhrase(Kind):
    name = "last_phrase"
    wordings = (
        "Finish your response with this exact phrase: {phrase}",
        'End with the sentence "{phrase}" and nothing after it.',
        "The very last sentence should be: {phrase}",
        "Your answer must end with this exact phrase: {phrase} No other words should follow it.",
        'Close with "{phrase}"',
    )
    groups = groups("end", "json")
    step = 4

    def draw(self, rng: random.Random, request: str) -> Params:
        return {"phrase": rng.choice(LAST_PHRASES)}

    def score(self, text: str, params: Params) -> float:
        return float(text.strip().strip('"').lower().endswith(params["phrase"].lower()))

    def edit(self, text: str, params: Params, author: Author) -> str:
        return text if self.score(text, params) else append(text, params["phrase"])


class EndQuestion(Kind):
    name = "end_question"
    wordings = (
        "End with a question.",
        "The last sentence must be a question.",
        "Finish with a question to the reader.",
        "Close your answer with a question.",
    )
    groups = groups("end", "json")
    step = 4

    def score(self, text: str, params: Params) -> float:
        return float(text.rstrip().rstrip('"').endswith("?"))

    def edit(self, text: str, params: Params, author: Author) -> str:
        return text if self.score(text, params) else append(text, author.rng.choice(QUESTIONS))


class Postscript(Kind):
    name = "postscript"
    wordings = (
        "At the end of your response, please add a postscript starting with {marker}",
        "Add a postscript that begins with {marker}",
        "There should be a postscript at the end, starting with {marker}",
        "Close with a postscript ({marker}).",
    )
    groups = groups("end", "json")
    step = 4

    def draw(self, rng: random.Random, request: str) -> Params:
        return {"marker": rng.choice(["P.S.", "P.P.S"])}

    def score(self, text: str, params: Params) -> float:
        last = text.rstrip().rpartition("\n")[2].strip('" ')
        begins = last.lower().startswith(params["marker"].lower())
        return 1.0 if begins and len(words(last)) >= 5 else 0.5 * (params["marker"].lower() in text.lower())

    def edit(self, text: str, params: Params, author: Author) -> str:
        if self.score(text, params) == 1:
            return text
        spare = [part for part in author.spare if is_complete(part) and not is_in(part, text)]
        added = author.rng.choice(spare) if spare else joining(author.rng.choice(KEYWORDS), text, author)
        author.joined[added] = self.name  # asked for by this, whatever its words
        return f"{text.rstrip()}\n\n{params['marker']} {added}"


class Signature(Kind):
    name = "signature"
    wordings = (
        "Sign with the name {name} on the last line.",
        "The last line must be the name {name} and nothing else.",
    )
    groups = groups("end", "json", "case")
    step = 4
    held_out = True

    def draw(self, rng: random.Random, request: str) -> Params:
        return {"name": rng.choice(NAMES)}

    def score(self, text: str, params: Params) -> float:
        last = text.rstrip().rpartition("\n")[2].strip()
        return 1.0 if last == params["name"] else 0.5 * (text.rstrip(". ").endswith(params["name"]))

    def edit(self, text: str, params: Params, author: Author) -> str:
        return text if self.score(text, params) == 1 else f"{text.rstrip()}\n\n{params['name']}"

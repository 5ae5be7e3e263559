"""Kinds of instructions about words: which must occur, which must not, how often."""

import random
import re

from pitcli.data.instructions.kinds import Author, Kind, Params, asset_lines, asset_words, groups, listed
from pitcli.data.instructions.text import (
    append_also,
    closeness,
    count_word,
    has_any,
    is_in,
    keep_sentences,
    upper_first,
    words,
)

KEYWORDS = asset_words("keywords")
COMMON = asset_words("common")
SYNONYMS = {
    "very": "quite", "important": "essential", "really": "truly", "many": "several", "people": "folks",
    "help": "support", "make": "create", "time": "while", "good": "fine", "great": "wonderful", "also": "too",
    "because": "since", "always": "at all times", "often": "frequently", "most": "the majority of", "best": "finest",
    "different": "distinct", "however": "still", "known": "famous", "place": "spot", "way": "manner",
    "world": "globe", "create": "build", "feel": "sense", "used": "employed", "need": "require", "find": "discover",
}  # fmt: skip
JOINS = asset_lines("joins")  # sentences with {word}, that fit any
PLACEHOLDER_JOINS = asset_lines("placeholders")  # sentences with one [placeholder]
RARE_LETTERS = {
    letter: [word for word in KEYWORDS if letter in word] for letter in "bgkpvw"
}  # a letter that few words have, and keywords that bring it in


class Include(Kind):
    name = "include"
    wordings = (
        "Include the words {words}.",
        "Use the words {words} in your answer.",
        "Include keywords {words} in the response.",
        "Make sure that {words} appear in the text.",
        "Your answer must mention {words}.",
        "The response has to contain the words {words}.",
        "Work {words} into your answer.",
    )
    step = 1

    def draw(self, rng: random.Random, request: str) -> Params:
        return {"words": rng.sample(fresh(KEYWORDS, request), rng.randint(1, 3))}

    def shown(self, params: Params) -> Params:
        return {"words": listed(params["words"])}

    def score(self, text: str, params: Params) -> float:
        found = sum(count_word(text, word) > 0 for word in params["words"])
        return 1.0 if found == len(params["words"]) else 0.5 * found / len(params["words"])

    def edit(self, text: str, params: Params, author: Author) -> str:
        for word in params["words"]:
            if not count_word(text, word):
                text = append_also(text, joining(word, text, author), author.avoided)
        return text


class Exclude(Kind):
    name = "exclude"
    wordings = (
        "Do not use the words {words}.",
        "Do not include keywords {words} in the response.",
        "Avoid the words {words}.",
        "The words {words} must not appear in your answer.",
        "Answer without the words {words}.",
        "Your text may not contain {words}.",
    )
    step = 0

    def draw(self, rng: random.Random, request: str) -> Params:
        return {"words": rng.sample(fresh(COMMON, request), rng.randint(2, 4))}

    def shown(self, params: Params) -> Params:
        return {"words": listed(params["words"])}

    def score(self, text: str, params: Params) -> float:
        found = sum(count_word(text, word) > 0 for word in params["words"])
        return 1.0 if not found else 0.5 * (1 - found / len(params["words"]))

    def edit(self, text: str, params: Params, author: Author) -> str:
        for word in params["words"]:
            other = SYNONYMS.get(word)
            if other in params["words"] or not other:
                shorter = keep_sentences(text, lambda sentence, word=word: not count_word(sentence, word))  # type: ignore[misc]
                text = shorter if len(words(shorter)) >= 20 else text
            if count_word(text, word):
                text = replace_word(text, word, other or "")
        return text


class KeywordTimes(Kind):
    name = "keyword_times"
    wordings = (
        "The word '{word}' should appear {relation} {n} times.",
        "Use the word '{word}' {relation} {n} times.",
        "In your response, the word '{word}' must occur {relation} {n} times.",
        "Mention '{word}' {relation} {n} times.",
    )
    groups = groups("keyword")
    step = 1

    def draw(self, rng: random.Random, request: str) -> Params:
        return {"word": rng.choice(fresh(KEYWORDS, request)), "relation": "at least", "n": rng.randint(2, 4)}

    def score(self, text: str, params: Params) -> float:
        return closeness(count_word(text, params["word"]), params["n"])

    def edit(self, text: str, params: Params, author: Author) -> str:
        missing = params["n"] - count_word(text, params["word"])
        for _ in range(missing):
            text = append_also(text, joining(params["word"], text, author), author.avoided)
        return text


class LetterTimes(Kind):
    name = "letter_times"
    wordings = (
        "The letter '{letter}' should appear at least {n} times.",
        "Use the letter '{letter}' at least {n} times.",
        "Let the letter '{letter}' occur {n} times or more.",
    )
    groups = groups("keyword")
    step = 1

    def draw(self, rng: random.Random, request: str) -> Params:
        return {"letter": rng.choice(list(RARE_LETTERS)), "n": rng.randint(4, 8)}

    def score(self, text: str, params: Params) -> float:
        return closeness(text.lower().count(params["letter"]), params["n"])

    def edit(self, text: str, params: Params, author: Author) -> str:
        letter = params["letter"]
        spare = sorted(author.spare, key=lambda sentence: -sentence.lower().count(letter))
        useful = [sentence for sentence in spare[:2] if letter in sentence.lower() and not is_in(sentence, text)]
        for sentence in [*useful, *[None] * 8]:
            if self.score(text, params) == 1:
                break
            added = sentence or joining(author.rng.choice(RARE_LETTERS[letter]), text, author)
            text = append_also(text, added, author.avoided)
        return text


class Placeholders(Kind):
    name = "placeholders"
    wordings = (
        "The response must contain at least {n} placeholders in square brackets, such as [address].",
        "Include at least {n} placeholders such as [name] or [date].",
        "Use {n} or more placeholders in square brackets, for example [place].",
    )
    groups = groups("keyword")
    step = 1

    def draw(self, rng: random.Random, request: str) -> Params:
        return {"n": rng.randint(1, 3)}

    def score(self, text: str, params: Params) -> float:
        return closeness(len(re.findall(r"\[[^\]\n]+\]", text)), params["n"])

    def edit(self, text: str, params: Params, author: Author) -> str:
        missing = params["n"] - len(re.findall(r"\[[^\]\n]+\]", text))
        for sentence in author.rng.sample(PLACEHOLDER_JOINS, max(0, missing)):
            author.joined[sentence] = self.name
            text = append_also(text, sentence, author.avoided)
        return text


def fresh(pool: list[str], request: str) -> list[str]:
    """The words of the pool that the request does not have."""
    return [word for word in pool if not count_word(request, word)]


def joining(word: str, text: str, author: Author) -> str:
    """A sentence with the word that the text does not have; one that fits any word if the author knows no other."""
    fitting_any = (upper_first(join.format(word=word)) for join in author.rng.sample(JOINS, len(JOINS)))
    new = [sentence for sentence in (*author.having(word), *fitting_any) if not is_in(sentence, text)]
    sentence = next((sentence for sentence in new if not has_any(sentence, author.avoided)), new[0])
    author.joined[sentence] = word
    return sentence


def replace_word(text: str, word: str, other: str) -> str:
    def same_case(match: re.Match[str]) -> str:
        return upper_first(other) if match[0][:1].isupper() else other

    return re.sub(r"(?<=\S)  +", " ", re.sub(rf"\b{word}\b", same_case, text, flags=re.IGNORECASE))

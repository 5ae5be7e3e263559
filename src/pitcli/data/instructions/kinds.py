"""What one kind of instruction is: its wordings, its parameters, its check, and how an author follows it."""

import random
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any, ClassVar, NamedTuple

Params = dict[str, Any]


class Author(NamedTuple):
    """What an author who edits an answer may use.

    spare: whole sentences of other answers to the same request; other: another answer; subject: of the request;
    joined: sentences that authors have added for the sake of a word, {sentence: word}; needed: words that other
    instructions ask for; avoided: words that must not occur; having: sentences with a word, those about the subject
    first.
    """

    rng: random.Random
    subject: str
    spare: list[str]
    other: str
    joined: dict[str, str]
    needed: tuple[str, ...] = ()
    avoided: tuple[str, ...] = ()
    having: Callable[[str], list[str]] = lambda word: []


class Kind:
    """One kind of instruction. Two kinds that share a group are never asked for together.

    step: the order in which authors follow instructions: 0 takes away, 1 adds sentences, 2 counts, 3 layout,
    4 beginnings and ends, 5 wraps the whole, 6 case and punctuation.
    """

    name: ClassVar[str]
    wordings: ClassVar[tuple[str, ...]]
    groups: ClassVar[frozenset[str]] = frozenset()
    step: ClassVar[int]
    held_out: ClassVar[bool] = False  # asked for in tests only, never in training

    def draw(self, rng: random.Random, request: str) -> Params:
        """The parameters of one instruction, as JSON."""
        return {}

    def wording(self, params: Params, rng: random.Random) -> str:
        return rng.choice(self.wordings).format(**self.shown(params))

    def shown(self, params: Params) -> Params:
        """The parameters as the wordings show them."""
        return params

    def score(self, text: str, params: Params) -> float:
        """How far the text meets the instruction: 1 if it does, at most 1/2 if it nearly does, down to 0."""
        raise NotImplementedError

    def edit(self, text: str, params: Params, author: Author) -> str:
        """The text edited so that it meets the instruction, as a careful person would.

        Edits keep to one place, such as the end: an improver that samples cool writes the likeliest token, and at each
        of many places where an edit could begin, that is the draft's own.
        """
        raise NotImplementedError


def groups(*names: str) -> frozenset[str]:
    return frozenset(names)


def listed(words: Sequence[str]) -> str:
    """'a', 'b' and 'c'."""
    quoted = [f"'{word}'" for word in words]
    return quoted[0] if len(quoted) == 1 else f"{', '.join(quoted[:-1])} and {quoted[-1]}"


def asset_lines(name: str) -> list[str]:
    text = (resources.files("pitcli") / "assets" / "instructions" / f"{name}.txt").read_text(encoding="utf-8")
    return text.splitlines()


def asset_words(name: str) -> list[str]:
    return " ".join(asset_lines(name)).split()

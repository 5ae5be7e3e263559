"""How an author who does not look at the instructions spoils an answer."""

import random
import re

from pitcli.data.instructions.content import KEYWORDS, joining
from pitcli.data.instructions.text import append_also, is_complete, sentences

_MARKERS = re.compile(r"^\s*(?:[*-] |\d+\. |#+ |\*+$)", re.MULTILINE)


def spoiled(text: str, rng: random.Random) -> str:
    """The text with one or two careless changes. Each takes away what some instruction asked for, if it was met."""
    for change in rng.sample(CHANGES, rng.randint(1, 2)):
        text = change(text, rng)
    return text.strip()


def padded(text: str, rng: random.Random) -> str:
    """One to three sentences more, about nothing in particular."""
    for _ in range(rng.randint(1, 3)):
        text = append_also(text, joining(rng.choice(KEYWORDS), rng))
    return text


def without_beginning(text: str, rng: random.Random) -> str:
    """Without its first line, or its first sentence if there is one line."""
    first, rest = re.match(r"(.*?(?:\n+|[.!?] +|$))(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    return rest or first


def without_end(text: str, rng: random.Random) -> str:
    """Without its last sentence, or its last third."""
    parts = sentences(text)
    gone = parts[-max(1, len(parts) // rng.choice([3, len(parts) or 1])) :] if len(parts) > 1 else []
    return text[: text.rindex(gone[0])] if gone else text


def in_one_line(text: str, rng: random.Random) -> str:
    """Without paragraphs, headings and lists."""
    lines = (line.strip() for line in _MARKERS.sub("", text).split("\n"))
    return " ".join(line if is_complete(line) else f"{line}." for line in lines if line)


def in_other_case(text: str, rng: random.Random) -> str:
    """Lower and upper case in sentence case, other texts in lower case."""
    if not (text.islower() or text.isupper()):
        return text.lower()
    return re.sub(r"(?:^|[.!?]\s+|\n)[a-z]", lambda begin: begin[0].upper(), text.lower())


CHANGES = (padded, without_beginning, without_end, in_one_line, in_other_case)

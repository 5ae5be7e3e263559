"""How an author who does not look at the instructions spoils an answer."""

import re

from pitcli.data.instructions.content import KEYWORDS, joining
from pitcli.data.instructions.grading import mentions
from pitcli.data.instructions.kinds import Author
from pitcli.data.instructions.text import append, append_also, is_complete, keep_sentences, sentences, words

_MARKERS = re.compile(r"^\s*(?:[*-] |\d+\. |#+ |\*+$)", re.MULTILINE)


def spoiled(text: str, author: Author) -> str:
    """The text with one or two careless changes. Each takes away what somebody asked for, if it was there."""
    for change in author.rng.sample(CHANGES, author.rng.randint(1, 2)):
        text = change(text, author)
    return text.strip()


def off_subject(text: str, author: Author) -> str:
    """Without the sentences that mention the subject, and with some about nothing in particular if few are left."""
    rest = keep_sentences(text, lambda sentence: not mentions(sentence, author.subject))
    return rest if len(words(rest)) >= 20 else padded(rest, author)


def padded(text: str, author: Author) -> str:
    """One to three sentences more, about nothing in particular."""
    for _ in range(author.rng.randint(1, 3)):
        text = append_also(text, joining(author.rng.choice(KEYWORDS), text, author), author.avoided)
    return text


def repeating(text: str, author: Author) -> str:
    """One to four of its sentences once more at the end, as a model that has lost its way."""
    parts = sentences(text)
    for part in author.rng.sample(parts, min(len(parts), author.rng.randint(1, 4))):
        text = append(text, part)
    return text


def without_beginning(text: str, author: Author) -> str:
    """Without its first line, or its first sentence if there is one line."""
    first, rest = re.match(r"(.*?(?:\n+|[.!?] +|$))(.*)", text, re.DOTALL).groups()  # type: ignore[union-attr]
    return rest or first


def without_end(text: str, author: Author) -> str:
    """Without its last sentence, or its last third."""
    parts = sentences(text)
    gone = parts[-max(1, len(parts) // author.rng.choice([3, len(parts) or 1])) :] if len(parts) > 1 else []
    return text[: text.rindex(gone[0])] if gone else text


def in_one_line(text: str, author: Author) -> str:
    """Without paragraphs, headings and lists."""
    lines = (line.strip() for line in _MARKERS.sub("", text).split("\n"))
    return " ".join(line if is_complete(line) else f"{line}." for line in lines if line)


def in_other_case(text: str, author: Author) -> str:
    """Lower and upper case in sentence case, other texts in lower case."""
    if not (text.islower() or text.isupper()):
        return text.lower()
    return re.sub(r"(?:^|[.!?]\s+|\n)[a-z]", lambda begin: begin[0].upper(), text.lower())


CHANGES = (off_subject, padded, repeating, without_beginning, without_end, in_one_line, in_other_case)

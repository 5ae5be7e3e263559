"""The units in which lengths, edits and repetition are measured: words, or characters in scripts without spaces."""

import re
from collections.abc import Iterator
from difflib import SequenceMatcher

# Scripts without spaces between words: Thai, Lao, Tibetan, Burmese, Khmer, Tai and Javanese scripts; Chinese
# characters, kana, bopomofo and Yi with their punctuation and full-width forms.
_UNSPACED = (
    "\u0e00-\u0fff\u1000-\u109f\u1780-\u17ff\u1950-\u19ff\u1a20-\u1aaf\ua980-\ua9df\uaa60-\uaadf"
    "\u2e80-\u2fff\u3001-\u312f\u31a0-\u33ff\u3400-\u4dbf\u4e00-\u9fff\ua000-\ua4cf\uf900-\ufaff\ufe30-\ufe4f\uff00-\uffef"
    "\U0001aff0-\U0001b16f\U0001f200-\U0001f2ff\U00020000-\U0003ffff"
)
# vowel signs, tone marks and variants, which belong to the character before them
_MARKS = (
    "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ece\u0f18\u0f19\u0f35\u0f37\u0f39\u0f3e\u0f3f"
    "\u0f71-\u0f84\u0f86\u0f87\u0f8d-\u0fbc\u0fc6\u102b-\u103e\u1056-\u1059\u105e-\u1060\u1062-\u1064\u1067-\u106d"
    "\u1071-\u1074\u1082-\u108d\u108f\u109a-\u109d\u17b4-\u17d3\u17dd\u1a55-\u1a7f\ua980-\ua983\ua9b3-\ua9c0"
    "\uaa7b-\uaa7d\uaab0\uaab2-\uaab4\uaab7\uaab8\uaabe\uaabf\uaac1\u302a-\u302f\u3099\u309a"
    "\u0300-\u036f\u200d\ufe00-\ufe0f\U000e0100-\U000e01ef"
)
_UNIT = rf"(?:[{_UNSPACED}][{_MARKS}]*|[^\s{_UNSPACED}]+)"
_UNITS = re.compile(_UNIT)
_PIECES = re.compile(rf"\s*{_UNIT}|\s+")


def units(text: str) -> list[str]:
    """The words of a text; in scripts without spaces, each character is a unit, with the marks on it."""
    return text.split() if text.isascii() else _UNITS.findall(text)


def unit_spans(text: str) -> list[tuple[int, int]]:
    """Where each unit begins and ends."""
    return [found.span() for found in _UNITS.finditer(text)]


def pieces(text: str) -> list[str]:
    """The units, each with the white space before it, and the white space at the end: joined, they are the text."""
    return _PIECES.findall(text)


def opcodes(old: list[str], new: list[str]) -> list[tuple[str, int, int, int, int]]:
    """How difflib turns the pieces of one text into those of another, whatever the white space."""
    old, new = ([piece.strip() for piece in pieces] for pieces in (old, new))
    return list(SequenceMatcher(None, old, new, autojunk=False).get_opcodes())


def differences(before: str, after: str) -> Iterator[tuple[str, str]]:
    """The second text in parts, with those of the first that it lacks: (kind, text), kind being " ", "-" or "+"."""
    old, new = pieces(before), pieces(after)
    for kind, old_start, old_end, new_start, new_end in opcodes(old, new):
        removed, added = "".join(old[old_start:old_end]), "".join(new[new_start:new_end])
        if kind == "equal":
            yield " ", added
            continue
        shown = added or removed
        yield " ", shown[: len(shown) - len(shown.lstrip())]
        yield "-", removed.strip()
        yield "+", added.strip()

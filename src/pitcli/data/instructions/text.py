"""Words, sentences and paragraphs of an English answer: what the checks count and the authors edit."""

import re
from collections.abc import Callable, Sequence

_SENTENCE_END = re.compile(r"(?<=[.!?])[\"')\]*]*\s+|\n+")
_MARKER = re.compile(r"^\s*(?:[*-] |\d+\. |#+ )")
_WORD = re.compile(r"[A-Za-z0-9]+(?:['’-][A-Za-z0-9]+)*")


def words(text: str) -> list[str]:
    return _WORD.findall(text)


def sentences(text: str) -> list[str]:
    """Split after ., ! and ? and at line ends; bullets, numbers and headings lose their marker."""
    parts = (_MARKER.sub("", part).strip() for part in _SENTENCE_END.split(text))
    return [part for part in parts if words(part)]


def paragraphs(text: str, divider: str = "") -> list[str]:
    """The non-empty parts between blank lines, or between lines that are the divider."""
    pattern = rf"\n\s*{re.escape(divider)}\s*\n" if divider else r"\n\s*\n"
    return [part.strip() for part in re.split(pattern, text) if part.strip()]


def count_word(text: str, word: str) -> int:
    return len(re.findall(rf"\b{re.escape(word)}\b", text, re.IGNORECASE))


def is_complete(sentence: str) -> bool:
    return sentence.rstrip("\"')]*").endswith((".", "!", "?"))


def lower_first(text: str) -> str:
    """The sentence as it goes on after a word put before it; "I" and names in capitals stay."""
    first = text.split(" ", 1)[0]
    stays = first in ("I", "I'm", "I've", "I'd", "I'll") or (first.isupper() and first != "A")
    return text if stays else text[:1].lower() + text[1:]


def upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def append(text: str, sentence: str) -> str:
    """The sentence after the text: on a line of its own after a list, a section or an empty text."""
    last_line = text.rstrip().rpartition("\n")[2]
    if not last_line:
        return sentence
    return f"{text.rstrip()}{chr(10) * 2 if _MARKER.match(last_line) else ' '}{sentence}"


def append_also(text: str, sentence: str, avoided: Sequence[str] = ()) -> str:
    """The sentence after the text, begun with "Also", unless that is avoided: one first word, whatever is added."""
    return append(text, sentence if "also" in avoided else f"Also, {lower_first(sentence)}")


def has_any(sentence: str, avoided: Sequence[str]) -> bool:
    return any(count_word(sentence, word) for word in avoided)


def is_in(sentence: str, text: str) -> bool:
    """Whether the text has the sentence, as it is or after "Also,"."""
    return sentence[1:] in text


def keep_sentences(text: str, keep: Callable[[str], bool]) -> str:
    """The text without the sentences that `keep` refuses; line breaks stay."""
    lines = []
    for line in text.split("\n"):
        marker = _MARKER.match(line)
        kept = [part for part in re.split(r"(?<=[.!?]) +", line) if not words(part) or keep(part)]
        joined = " ".join(kept)
        if joined.strip() or not line.strip():
            lines.append(f"{marker[0]}{joined}" if marker and not _MARKER.match(joined) else joined)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()


def closeness(value: int, low: int, high: int | None = None) -> float:
    """1 if low <= value <= high (None: no bound); otherwise at most 1/2, falling to 0 with the relative distance."""
    if value >= low and (high is None or value <= high):
        return 1.0
    bound = low if value < low or high is None else high
    return max(0.0, 0.5 * (1 - abs(value - bound) / max(bound, 1)))

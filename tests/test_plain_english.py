"""A short list of phrases stays out of the code, the tests and the docs: the words in which pit used to speak."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
BANNED = {
    r"\bwanted\b": "expected, needed, required",
    r"\bstands\b": "is, appears",
    r"\btold\b": "printed, reported",
    r"\bheld against\b": "compared with",
    r"\banew\b": "again, from scratch",
    r"\bso many\b": "this many",
    r"\bwhat is there\b": "the existing rows, files, ...",
    r"\bis no judge\b": "must not judge",
    r"\b(?:goes|gone|going|go) on (?:with|from)\b": "resume, continue",
    r"\bwhere (?:there|it|that|they|no|none|nothing|one|this) (?:is|are|has|have|do(?:es)?|was|were|fits?|can)\b": "if",
    r"\b(?:Error|None|False) where\b": "if",
}
FOLDERS = ("src", "tests", "examples", "benchmarks", "docs")
FILES = [
    ROOT / name for name in ("README.md", "SECURITY.md", "CHANGELOG.md", "Makefile", "pyproject.toml", "mkdocs.yml")
]
SUFFIXES = {".py", ".md", ".jinja", ".yaml", ".sh", ".toml", ".yml"}
ALLOWED = {
    ("tests/test_plain_english.py", "*"): "the list itself",
}


def texts() -> list[Path]:
    found = [path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*")) if path.suffix in SUFFIXES]
    return [*FILES, *(path for path in found if "fixtures" not in path.parts)]


def phrases(text: str, pattern: str) -> list[tuple[int, str]]:
    """The line and the words of each match; a match may run over the end of a line. What a model wrote is skipped."""
    text = re.sub(r"^~~~~text\n.*?^~~~~$", lambda quoted: "\n" * quoted[0].count("\n"), text, flags=re.M | re.S)
    flexible = pattern.replace(" ", r"[\s#>]+")
    return [(text.count("\n", 0, m.start()) + 1, m[0]) for m in re.finditer(flexible, text, re.IGNORECASE)]


@pytest.mark.parametrize("pattern", BANNED)
def test_the_phrase_does_not_occur(pattern: str) -> None:
    found = []
    for path in texts():
        name = str(path.relative_to(ROOT))
        if (name, "*") in ALLOWED:
            continue
        for line, words in phrases(path.read_text(encoding="utf-8"), pattern):
            if (name, words.lower()) not in ALLOWED:
                found.append(f"{name}:{line}: {words!r}; better: {BANNED[pattern]}")
    assert not found, "\n".join(found)


def test_phrases_are_found_across_lines_and_in_comments() -> None:
    assert phrases("a row is\nwanted", r"\bis wanted\b") == [(1, "is\nwanted")]
    assert phrases("x  # only so\n# many rows", r"\bso many\b") == [(1, "so\n# many")]
    assert not phrases("unwanted", r"\bwanted\b")
    assert phrases("~~~~text\nwanted\n~~~~\nwanted", r"\bwanted\b") == [(4, "wanted")]


def test_every_exception_is_still_needed() -> None:
    for name, words in ALLOWED:
        assert words == "*" or words in (ROOT / name).read_text(encoding="utf-8"), (name, words)

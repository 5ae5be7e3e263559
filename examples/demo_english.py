"""The end of `make demo`: eight English drafts of SmolLM2, improved by the trained run that pit ships.

Code that knows what each request asks for then says which instructions a text meets. Training saw other requests, and
only pairs of a better and a worse answer.
"""

import json
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pitcli.cli import main as pit
from pitcli.console import visible
from pitcli.data.instructions.grading import grade, scores

COLUMNS = 80
HEADS = ("request", "draft", "improved")
INDENT = "  "
DRAFTS = "--model smollm2 --data instructions:test:8 --max-rows 8 --temperature 0.5 --max-new-tokens 80"
IMPROVE = "--run pit:instructions --max-iters 3 --max-new-tokens 200"


def english(out: Path) -> Iterator[str]:
    """Draft, improve and yield the texts as lines of at most 80 columns. Exits if a command fails."""
    drafts, improved = out / "english_drafts.jsonl", out / "english_improved.jsonl"
    _run("sample", *DRAFTS.split(), "--output", str(drafts), "--resume")
    _run("improve", *IMPROVE.split(), "--input", str(drafts), "--output", str(improved), "--resume")
    rows = [json.loads(line) for line in improved.read_text("utf-8").splitlines()]
    for row in rows:
        yield from shown(row)
    yield from totals(rows)


def _run(*words: str) -> None:
    if code := pit([*words]):
        sys.exit(code)


def shown(row: dict[str, Any]) -> Iterator[str]:
    """One request, its draft and its improvement, each with the instructions that it meets."""
    for head, text in zip(HEADS, (row["prompt"], row["original_response"], row["response"]), strict=True):
        met = "" if head == "request" else f" ({checks(text, row)})"
        same = head == "improved" and text == row["original_response"]
        yield f"{head}{met}"
        yield from [f"{INDENT}(kept as it is)"] if same else wrapped(text)
    yield ""


def checks(text: str, row: dict[str, Any]) -> str:
    """Each kind of instruction of the row: met or not."""
    found = zip(row["instructions"], scores(text, row["instructions"]), strict=True)
    return ", ".join(f"{item['kind'].replace('_', ' ')}: {'yes' if score == 1 else 'no'}" for item, score in found)


def wrapped(text: str) -> list[str]:
    """The lines of a text, wrapped and indented; empty lines left out."""
    width = COLUMNS - len(INDENT)
    return [INDENT + piece for line in text.splitlines() for piece in textwrap.wrap(visible(line), width)]


def totals(rows: list[dict[str, Any]]) -> Iterator[str]:
    """Instructions met, and mean grade, before and after."""
    for head, key in (("drafts", "original_response"), ("improved", "response")):
        met = [score == 1 for row in rows for score in scores(row[key], row["instructions"])]
        grades = [grade(row[key], row["subject"], row["instructions"]) for row in rows]
        yield f"{head + ':':10}{sum(met)} of {len(met)} instructions met, mean grade {sum(grades) / len(grades):.2f}"

"""IFEval's published checker, as a program for judges `cmd:` and as a table.

    python check.py < rows.jsonl             one row per line in, the share of instructions that it follows out
    python check.py --table improved.jsonl   prompt-level and instruction-level accuracy, draft and each iteration

Rows are those of IFEval (prompt, instruction_id_list, kwargs) with a `response`, as `pit sample` and `pit improve`
write them. Runs in an environment of its own (requirements.txt), with punkt's data in NLTK_DATA; `make ifeval` makes
both.
"""

import argparse
import json
import sys
from collections.abc import Iterable
from typing import Any, NamedTuple

from if_verifiable.common import evaluate_instructions
from if_verifiable.ifeval import INSTRUCTION_DICT


class Score(NamedTuple):
    """Which instructions of a row a response follows, strictly and loosely."""

    strict: list[bool]
    loose: list[bool]


def check(row: dict[str, Any], response: str) -> Score:
    """Check a response against the instructions of its row; an empty response follows none, as published."""
    if not response.strip():
        return Score([False] * len(row["instruction_id_list"]), [False] * len(row["instruction_id_list"]))
    results, _ = evaluate_instructions(
        response=response,
        instruction_id_list=row["instruction_id_list"],
        kwargs_list=[{name: value for name, value in kwargs.items() if value is not None} for kwargs in row["kwargs"]],
        prompt=row["prompt"],
        instruction_registry=INSTRUCTION_DICT,
    )
    return Score([result.strict_pass for result in results], [result.loose_pass for result in results])


def versions(row: dict[str, Any]) -> list[str]:
    """The draft, then the best response after each iteration; the response alone if the row was never improved."""
    if "original_response" not in row:
        return [row["response"]]
    texts = [row["original_response"]]
    for iteration in row["iterations"]:
        texts.append(iteration["response"] if iteration["accepted"] else texts[-1])
    return texts


def table(rows: Iterable[dict[str, Any]]) -> None:
    """Print the four accuracies of IFEval for the drafts and after each iteration."""
    scores = [[check(row, text) for text in versions(row)] for row in rows]
    print(f"{len(scores)} rows, {sum(len(row[0].strict) for row in scores)} instructions")
    print("iteration  prompt strict  prompt loose  instruction strict  instruction loose")
    for iteration in range(max(map(len, scores))):
        at = [row[min(iteration, len(row) - 1)] for row in scores]
        figures = []
        for form in ("strict", "loose"):
            followed = [getattr(score, form) for score in at]
            figures += [sum(map(all, followed)) / len(followed), sum(map(sum, followed)) / sum(map(len, followed))]
        prompt_strict, strict, prompt_loose, loose = figures
        print(f"{iteration:9}  {prompt_strict:13.3f}  {prompt_loose:12.3f}  {strict:18.3f}  {loose:17.3f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", metavar="FILE", help="rows of pit improve, or of pit sample")
    arguments = parser.parse_args()
    if arguments.table:
        with open(arguments.table, encoding="utf-8") as rows:
            table(map(json.loads, rows))
        return
    for line in sys.stdin:
        row = json.loads(line)
        strict = check(row, row["response"]).strict
        print(sum(strict) / len(strict))


if __name__ == "__main__":
    main()

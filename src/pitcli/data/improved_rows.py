"""Rows that pit improve wrote: their drafts, what they cost, and the preference pairs of draft and improvement."""

import math
from collections import Counter
from typing import Any

from pitcli.data.drafts import parse_draft
from pitcli.data.reading import listed, load_rows, parsed_rows
from pitcli.data.rows import Draft, RowError
from pitcli.data.streams import row_key
from pitcli.data.strict_json import RowProblem, Unused, describe
from pitcli.errors import RunError

FIELDS = {"prompt": "prompt", "chosen": "response", "rejected": "original_response"}


def check_improved(row: dict[str, Any], min_p_better: float) -> None:
    """Raise Unused for a row that was not improved, or whose P(better) does not exceed the minimum; 0 is no minimum.

    Raises RowProblem for a row of another format, or without P(better) if there is a minimum.
    """
    if missing := [field for field in FIELDS.values() if field not in row]:
        raise RowProblem(missing[0], "missing; give rows that pit improve wrote (--output-format rows)")
    texts = (row["response"], row["original_response"])
    if all(isinstance(text, str) for text in texts) and texts[0].strip() == texts[1].strip():
        raise Unused("", "not improved")
    if min_p_better == 0:
        return
    found = row.get("p_better")
    if not isinstance(found, int | float):
        remedy = "add it by pit score --against original_response, or use --min-p-better 0"
        raise RowProblem("p_better", f"expected a number, got {describe(found)}; {remedy}")
    if not found > min_p_better:
        raise Unused("", f"P(better) of at most {min_p_better:g}")


def improved_draft(row: dict[str, Any], file: str, line: int) -> Draft:
    """The draft that an improved row was made from; RowProblem if it is not a row of pit improve."""
    if "original_response" not in row:
        raise RowProblem("original_response", "missing; expected a row of pit improve --output-format rows")
    try:
        return parse_draft({**row, "response": row["original_response"]}, file, line)
    except RowProblem as problem:
        field = "original_response" if problem.field == "response" else problem.field
        raise RowProblem(field, problem.reason) from None


def gap_of(row: dict[str, Any]) -> float:
    """The gap of a row or of one of its iterations; NaN if it was not finite."""
    return math.nan if row["gap"] is None else float(row["gap"])


def improved_keys(path: str) -> Counter[int]:
    """How many rows each draft has in the output of pit improve, by row key; RunError if a row cannot be read."""
    errors: list[RowError] = []
    done = Counter(row_key(draft) for _, draft in parsed_rows(path, improved_draft, errors.append))
    if errors:
        raise RunError([f"{error}; cannot resume from this file" for error in listed(errors)])
    return done


def read_budgets(path: str) -> dict[int, int]:
    """The tokens that each draft cost in the output of another pit improve, by row key."""

    def parse(row: dict[str, Any], file: str, line: int) -> tuple[int, int]:
        draft = improved_draft(row, file, line)
        if not isinstance(tokens := row.get("generated_tokens"), int):
            raise RowProblem(
                "generated_tokens", f"expected a number, got {describe(tokens)}; is this the output of pit improve?"
            )
        return row_key(draft), tokens

    return dict(load_rows(path, parse))

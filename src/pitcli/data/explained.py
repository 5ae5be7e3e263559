"""Explained rows: improvements and, in the field edits, what each of their edits does, as pit explain writes them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from pitcli.data.candidates import response_at
from pitcli.data.drafts import parse_draft
from pitcli.data.edits import Edit, reverted
from pitcli.data.reading import file_label
from pitcli.data.rows import Comparison, Draft, OnError, RowError
from pitcli.data.sources import open_rows
from pitcli.data.strict_json import RowProblem

EDITS = "edits"
NAMES = {"from", "to", "at"}
NUMBERS = ("gap", "share", "low", "high")


class ExplainedEdit(NamedTuple):
    """An edit with its gap and share, as engine/improving/explaining.py defines them; None: unknown.

    low, high: the least and the largest share by one member of an ensemble; None: there is one gap model, or no share.
    """

    edit: Edit
    gap: float | None
    share: float | None
    low: float | None = None
    high: float | None = None

    def fields(self) -> dict[str, Any]:
        """The edit as rows have it."""
        edit = self.edit
        found: dict[str, Any] = {"from": edit.removed, "to": edit.added, "at": [edit.start, edit.end]}
        found |= {"gap": self.gap, "share": self.share}
        return found if self.low is None else {**found, "low": self.low, "high": self.high}


class Improvement(NamedTuple):
    """A response, in its row, and the draft that it improves."""

    improved: Draft
    original: str

    def comparison(self) -> Comparison:
        return Comparison(self.improved.prompt, self.improved.response, self.original)

    def row(self, edits: Sequence[ExplainedEdit]) -> dict[str, Any]:
        """The row with its edits."""
        return {**without_edits(self.improved.row), EDITS: [edit.fields() for edit in edits]}


def without_edits(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if name != EDITS}


def iter_improvements(
    path: str, against: str, on_error: OnError, notes: Counter[str]
) -> Iterator[tuple[int, Improvement]]:
    """Yields improvements as their lines arrive; an unusable file is refused by the call.

    against: the field with the draft.
    """
    return _improvements(open_rows(path, on_error, notes), file_label(path), against, on_error)


def _improvements(
    rows: Iterator[tuple[int, dict[str, Any]]], label: str, against: str, on_error: OnError
) -> Iterator[tuple[int, Improvement]]:
    for line, row in rows:
        try:
            improved = parse_draft(row, label, line)
            improvement = Improvement(improved, response_at(row, against, improved.prompt))
        except RowProblem as problem:
            on_error(RowError.of(label, line, problem))
        else:
            yield line, improvement


def parse_edits(row: dict[str, Any], original: str, response: str) -> list[ExplainedEdit]:
    """The edits of a row, none if it is not explained; RowProblem if they are not those of these texts."""
    values = row.get(EDITS)
    if not values or not isinstance(values, list):
        return []
    if not all(isinstance(value, dict) and value.keys() >= NAMES for value in values):
        return []  # a field of somebody else
    try:
        edits = [_parse(value) for value in values]
    except (TypeError, ValueError):
        raise RowProblem(EDITS, "not as pit explain writes them; run it again") from None
    found = [explained.edit for explained in edits]
    places = [place for edit in found for place in (edit.start, edit.end)]
    fit = sorted(places) == places and all(response[edit.start : edit.end] == edit.added for edit in found)
    if not fit or reverted(response, found) != original:
        raise RowProblem(EDITS, "not the edits between original_response and response; run pit explain again")
    return edits


def _parse(value: dict[str, Any]) -> ExplainedEdit:
    start, end = value["at"]
    numbers = [None if (number := value.get(name)) is None else float(number) for name in NUMBERS]
    return ExplainedEdit(Edit(int(start), int(end), str(value["from"]), str(value["to"])), *numbers)

"""What pit improve writes for a finished draft, in the format of --output-format."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from pitcli.data.drafts import as_messages, with_response
from pitcli.data.sources import open_rows
from pitcli.data.strict_json import encode
from pitcli.engine.improving.stop_rule import Attempt, finished_row
from pitcli.settings.base import OutputFormat
from pitcli.settings.generating import ImproveConfig


def written(attempt: Attempt, config: ImproveConfig, is_first: bool, columns: Sequence[str] | None = None) -> str:
    """Return the text for a finished draft; empty if it is not written.

    is_first: whether the output is empty. columns: see csv_columns.
    """
    if config.only_changed and not attempt.changed():
        return ""
    format_of_output = config.written_format()
    if format_of_output is OutputFormat.text:
        return f"{attempt.best}\n"
    if format_of_output is OutputFormat.rows:
        return f"{encode(finished_row(attempt))}\n"
    as_row = with_response if format_of_output is OutputFormat.same else as_messages
    row = as_row(attempt.draft, attempt.best)
    if attempt.changed():  # these were about the draft
        about_best = {"finished": attempt.finished(), "thoughts": attempt.thoughts()}
        row = {name: about_best.get(name, value) for name, value in row.items()}
    if format_of_output is OutputFormat.same and (delimiter := csv_delimiter(config.input)):
        columns = columns or [*row]
        header = _csv_line(columns, delimiter) if is_first else ""
        return header + _csv_line((row[name] for name in columns), delimiter)
    return f"{encode(row)}\n"


def csv_columns(config: ImproveConfig) -> list[str] | None:
    """Return the columns of a CSV file, None of other inputs and pipes; a row whose draft had thoughts has one more."""
    if config.written_format() is not OutputFormat.same or not csv_delimiter(config.input):
        return None
    if not Path(config.input).is_file():  # a pipe can be read once
        return None
    return next(([*row] for _, row in open_rows(config.input, lambda error: None)), None)


def csv_delimiter(path: str) -> str | None:
    """Return what separates the cells of a CSV file, by its name; None for other files."""
    name = path.lower().removesuffix(".gz")
    return "\t" if name.endswith(".tsv") else "," if name.endswith(".csv") else None


def _csv_line(cells: Iterable[object], delimiter: str) -> str:
    line = io.StringIO()
    csv.writer(line, delimiter=delimiter, lineterminator="\n").writerow(cells)
    return line.getvalue()

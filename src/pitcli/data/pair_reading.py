"""Reads files of any known format into preference pairs, or raises one error that lists their problems."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from pitcli.console import counted, warn
from pitcli.data.bad_rows import REMEDY, BadRows, check_list, write_list
from pitcli.data.field_paths import suggested_fields, with_fields
from pitcli.data.known_formats import KNOWN, RATING_FIELD, RATINGS, UnknownFormat
from pitcli.data.pair_formats import canonical, parse_pairs, recognise
from pitcli.data.ratings import Rated, pairs_of_ratings, parse_rated
from pitcli.data.reading import file_label, listed
from pitcli.data.rows import PreferencePair, Prompt, Row, RowError
from pitcli.data.sources import open_rows
from pitcli.data.strict_json import RowProblem
from pitcli.data.thoughts import CUT, pair_without_thoughts
from pitcli.errors import InputError
from pitcli.settings.pairs import PairRowSettings
from pitcli.settings.values import parse_fields, split_commas

UNKNOWN = "unknown"
REPEATED = "every chosen response begins with its prompt, and would be learned so; remove the prompt from the responses"


class ReadingOptions(NamedTuple):
    """How rows are read: --skip-bad, --list-bad, --fields, and how pairs are made from ratings.

    append: to the rows that --list-bad has already, of another file of the same command. check: raises RowProblem for a
    row that must not be used, Unused for one that is left out.
    """

    skip_bad: bool | None = None
    list_bad: str | None = None
    fields: Mapping[str, str] | None = None
    rating_field: str = RATING_FIELD
    rating_margin: float = 0
    append: bool = False
    check: Callable[[Row], None] | None = None


def options_of(settings: PairRowSettings, append: bool = False) -> ReadingOptions:
    fields = parse_fields(settings.fields) if settings.fields else None
    return ReadingOptions(settings.skip_bad, settings.list_bad, fields, append=append)


class Reading(NamedTuple):
    """The pairs of a file, the errors of its other rows, and the number of rows per format.

    unknown: the first row of no known format.
    """

    pairs: list[PreferencePair]
    errors: list[str]
    formats: Counter[str]
    unknown: Row | None = None


@dataclass
class Formats:
    """The number of rows per format, and the first row of none."""

    rows: Counter[str] = field(default_factory=Counter)
    unknown: Row | None = None


def load_pairs(
    path: str | Path,
    max_rows: int | None = None,
    notes: Counter[str] | None = None,
    options: ReadingOptions = ReadingOptions(),  # noqa: B008
) -> list[PreferencePair]:
    """All pairs of a file, or of several (comma-separated); raises one InputError that lists the problems, if any."""
    reading = read_pairs(path, max_rows, notes, options)
    if reading.errors:
        raise InputError(reading.errors)
    return reading.pairs


def read_pairs(
    path: str | Path,
    max_rows: int | None = None,
    notes: Counter[str] | None = None,
    options: ReadingOptions = ReadingOptions(),  # noqa: B008
) -> Reading:
    """As load_pairs, but returns the errors with the pairs; raises only if a file is unusable."""
    notes = Counter() if notes is None else notes
    files = split_commas(str(path))
    check_list(options.list_bad, files)
    errors: list[RowError] = []
    bad = BadRows(options.skip_bad, notes, errors.append, keep_all=options.list_bad is not None)
    formats = Formats()
    pairs: dict[tuple[Prompt, str, str], PreferencePair] = {}
    repeating = set(map(file_label, files))  # the files whose chosen responses begin with their prompts
    for pair in chain.from_iterable(_pairs_of_file(file, bad, formats, options) for file in files):
        content = (pair.prompt, pair.chosen, pair.rejected)
        if content in pairs:
            notes["duplicate rows"] += 1
            continue
        if (pair.prompt, pair.rejected, pair.chosen) in pairs:
            notes["pairs in both orders"] += 1
        pairs[content] = pair
        if pair.file in repeating and not pair.chosen.startswith(pair.prompt[-1].content.strip()):
            repeating.remove(pair.file)
        if len(pairs) == max_rows:
            break
    write_list(options.list_bad, bad.all, options.append)
    lines = _problems(file_label(path), errors, bad, formats, found=len(pairs))
    for file in sorted(repeating & {pair.file for pair in pairs.values()}):
        warn(f"{file}: {REPEATED}")
    return Reading(list(pairs.values()), lines, +formats.rows, formats.unknown)


def _problems(label: str, errors: list[RowError], bad: BadRows, formats: Formats, found: int) -> list[str]:
    """The lines of the error; none if there are pairs and all other rows were skipped."""
    if not errors and found:
        return []
    lines = listed(errors)
    if not errors and bad.skipped:
        lines = [*bad.first_lines(), f"{label}: no pairs are left: {counted(bad.skipped, 'rows skipped')}"]
    elif not errors and (reasons := bad.reasons()):
        lines = [f"{label}: no pairs are left: {reasons}"]
    elif not errors:
        lines = [f"{label}: no pairs can be made from its ratings" if +formats.rows else f"{label}: no rows"]
    if suggestion := formats.unknown and suggested_fields(formats.unknown):
        texts = ", ".join(suggestion.texts)[:200]
        lines.append(
            f"to read a row of no known format, name its fields: --fields {suggestion.fields}; its texts: {texts}"
        )
    return [*lines, REMEDY] if errors and found else lines


def _pairs_of_file(path: str, bad: BadRows, formats: Formats, options: ReadingOptions) -> Iterator[PreferencePair]:
    """Yields each pair; pairs from ratings, which need all rows, come last."""
    rated: list[Rated] = []
    label, notes, margin = file_label(path), bad.notes, options.rating_margin
    for line, row in open_rows(path, bad.add, notes):
        try:
            if options.check:
                options.check(row)
            if options.fields:
                row = with_fields(row, options.fields)  # noqa: PLW2901
                recognised = canonical(row)
            else:
                recognised = recognise(row, options.rating_field)
            formats.rows[recognised.name] += 1
            row = recognised.renamed_row(row) if recognised.renamed else row  # noqa: PLW2901
            if recognised.name == RATINGS:
                rated.append(parse_rated(row, options.rating_field, line))
                continue
            parsed = list(parse_pairs(row, recognised, label, line, notes, margin))
            pairs = [_counted_without_thoughts(pair, notes) for pair in parsed]
        except RowProblem as problem:
            reason = problem.reason
            if isinstance(problem, UnknownFormat):
                formats.rows[UNKNOWN] += 1
                reason += f"; {KNOWN}" if formats.unknown is None else ""  # once: the list is long
                formats.unknown = formats.unknown or row
            bad.add(RowError(label, line, problem.field, reason), problem)
        else:
            yield from pairs
    for pair in pairs_of_ratings(rated, margin, notes):
        try:
            yield _counted_without_thoughts(replace(pair, file=label), notes)
        except RowProblem as problem:
            bad.add(RowError.of(label, pair.line, problem), problem)


def _counted_without_thoughts(pair: PreferencePair, notes: Counter[str]) -> PreferencePair:
    without = pair_without_thoughts(pair)
    if without is not pair:
        notes[CUT] += 1
    return without

"""Reads files of any known format into preference pairs or drafts, or raises one error that lists their problems."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from pitcli.data.conversations import checked_text, parse_prompt, required
from pitcli.data.pair_formats import KNOWN, RATING_FIELD, RATINGS, UnknownFormat, parse_id, parse_pair, recognise
from pitcli.data.ratings import Rated, pairs_of_ratings, parse_rated
from pitcli.data.reading import file_label, listed
from pitcli.data.rows import Draft, PreferencePair, Prompt, RowError
from pitcli.data.sources import open_rows
from pitcli.data.strict_json import RowProblem
from pitcli.errors import InputError
from pitcli.settings.values import split_commas

UNKNOWN = "unknown"


def parse_draft(row: dict[str, Any], file: str, line: int) -> Draft:
    """A draft; its response stays verbatim, so that an unchanged draft is written back byte for byte."""
    prompt = parse_prompt(required(row, "prompt"), "prompt")
    response = checked_text(required(row, "response"), "response")
    return Draft(parse_id(row), prompt, response, row, line)


def parse_question(row: dict[str, Any], file: str, line: int) -> Draft:
    """A prompt without a response: from a row with a prompt, or from a pair, whose prompt is then added to the row."""
    if "prompt" in row:
        prompt = parse_prompt(row["prompt"], "prompt")
        return Draft(parse_id(row), prompt, response="", row=row, line=line)
    prompt = parse_pair(row, file, line).prompt
    return Draft(
        parse_id(row), prompt, response="", row={**row, "prompt": [message._asdict() for message in prompt]}, line=line
    )


class Reading(NamedTuple):
    """The pairs of a file, the errors of its other rows, and the number of rows per format."""

    pairs: list[PreferencePair]
    errors: list[str]
    formats: Counter[str]


def load_pairs(
    path: str | Path, max_rows: int | None = None, notes: Counter[str] | None = None
) -> list[PreferencePair]:
    """All pairs of a file, or of several (comma-separated); raises one InputError that lists the problems, if any."""
    pairs, errors, _ = read_pairs(path, max_rows, notes)
    if errors:
        raise InputError(errors)
    return pairs


def read_pairs(
    path: str | Path,
    max_rows: int | None = None,
    notes: Counter[str] | None = None,
    rating_field: str = RATING_FIELD,
    rating_margin: float = 0,
) -> Reading:
    """As load_pairs, but returns the errors with the pairs; raises only if a file is unusable."""
    notes = Counter() if notes is None else notes
    errors: list[RowError] = []
    formats: Counter[str] = Counter()
    lines_by_id: dict[tuple[str, str], int] = {}
    pairs: dict[tuple[Prompt, str, str], PreferencePair] = {}
    rows = (
        _parsed_pairs(file, errors.append, notes, formats, rating_field, rating_margin)
        for file in split_commas(str(path))
    )
    for pair, has_id in chain.from_iterable(rows):
        content = (pair.prompt, pair.chosen, pair.rejected)
        if content in pairs:
            notes["duplicate rows"] += 1
            continue
        if has_id and (first := lines_by_id.setdefault((pair.file, pair.id), pair.line)) != pair.line:
            errors.append(RowError(pair.file, pair.line, "id", f"duplicate of the id on line {first}"))
            continue
        if (pair.prompt, pair.rejected, pair.chosen) in pairs:
            notes["pairs in both orders"] += 1
        pairs[content] = pair
        if len(pairs) == max_rows:
            break
    lines, label = listed(errors), file_label(path)
    if not errors and not pairs:
        lines.append(f"{label}: no pairs can be made from its ratings" if formats[RATINGS] else f"{label}: no rows")
    return Reading(list(pairs.values()), lines, +formats)


def _parsed_pairs(
    path: str | Path,
    on_error: Callable[[RowError], None],
    notes: Counter[str],
    formats: Counter[str],
    rating_field: str,
    rating_margin: float,
) -> Iterator[tuple[PreferencePair, bool]]:
    """Yields each pair and whether its row has an id; pairs from ratings, which need all rows, come last."""
    rated: list[Rated] = []
    label = file_label(path)
    for line, row in open_rows(path, on_error, notes):
        try:
            name = recognise(row, rating_field).name
            formats[name] += 1
            if name == RATINGS:
                rated.append(parse_rated(row, rating_field, line))
                continue
            pair = parse_pair(row, label, line)
        except RowProblem as problem:
            reason = problem.reason
            if isinstance(problem, UnknownFormat):
                formats[UNKNOWN] += 1
                reason += f"; {KNOWN}" if formats[UNKNOWN] == 1 else ""  # once: the list is long
            on_error(RowError(label, line, problem.field, reason))
        else:
            yield pair, row.get("id") is not None
    yield from ((replace(pair, file=label), False) for pair in pairs_of_ratings(rated, rating_margin, notes))


def iter_drafts(
    path: str | Path, on_error: Callable[[RowError], None], notes: Counter[str] | None = None
) -> Iterator[tuple[int, Draft]]:
    """Yields drafts as their lines arrive; an unusable file is refused by the call, before the first draft."""
    notes = Counter() if notes is None else notes
    return _parsed(parse_draft, open_rows(path, on_error, notes), file_label(path), on_error, notes)


def iter_questions(
    path: str | Path, on_error: Callable[[RowError], None], notes: Counter[str] | None = None
) -> Iterator[tuple[int, Draft]]:
    """As iter_drafts, for rows that have no response yet."""
    notes = Counter() if notes is None else notes
    return _parsed(parse_question, open_rows(path, on_error, notes), file_label(path), on_error, notes)


def _parsed(
    parse: Callable[[dict[str, Any], str, int], Draft],
    rows: Iterator[tuple[int, dict[str, Any]]],
    label: str,
    on_error: Callable[[RowError], None],
    notes: Counter[str],
) -> Iterator[tuple[int, Draft]]:
    seen: set[int] = set()
    for line, row in rows:
        try:
            draft = parse(row, label, line)
            if seen_before(seen, row if draft.id is None else draft.id):
                if draft.id is not None:
                    raise RowProblem("id", "duplicate of an earlier id; give each row its own id, or none")
                notes["duplicate rows"] += 1
        except RowProblem as problem:
            on_error(RowError(label, line, problem.field, problem.reason))
        else:
            yield line, draft


def seen_before(seen: set[int], value: object) -> bool:
    """Whether the value is in `seen`, to which it is added; compares 60 bits of a hash.

    A million values need 64 MiB, and the chance that any two collide is 1 in 2 million.
    """
    key = hash(repr(value)) >> 4
    if key in seen:
        return True
    seen.add(key)
    return False

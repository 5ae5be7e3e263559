"""Recognises the format of a row by its fields, and reads the row as pairs."""

from collections import Counter
from dataclasses import replace
from functools import lru_cache
from typing import NamedTuple

from pitcli.data.completions import SAME
from pitcli.data.conversations import PublishedProblem
from pitcli.data.ids import content_id, parse_id
from pitcli.data.known_formats import CANONICAL, FORMATS, RATING_FIELD, Format, UnknownFormat
from pitcli.data.published_formats import Tie
from pitcli.data.ratings import number_of, pairs_of_ratings
from pitcli.data.rows import PreferencePair, Prompt, Row
from pitcli.data.strict_json import RowProblem

CONTRADICTIONS = "pairs with a higher score for rejected than for chosen, kept"


class Recognised(NamedTuple):
    """The format of the rows with certain field names.

    renamed: the format's name of each field that a row spells in another case. used: fields that are not kept as extra.
    scores: the fields with the scores of chosen and rejected, if there are any.
    """

    format: Format
    renamed: dict[str, str]
    used: frozenset[str]
    scores: tuple[str, str] | None

    @property
    def name(self) -> str:
        return self.format.name

    def renamed_row(self, row: Row) -> Row:
        return {self.renamed.get(name, name): value for name, value in row.items()}


_SCORES = (
    ("score_chosen", "score_rejected"),
    *((f"chosen{mark}{kind}", f"rejected{mark}{kind}") for kind in ("score", "rating") for mark in "_-"),
)


def recognise(row: Row, rating_field: str = RATING_FIELD) -> Recognised:
    """The format of a row, by its fields; raises UnknownFormat if none fits, or more than one."""
    return _recognise(frozenset(row), tuple(row)[:8], rating_field)


@lru_cache(maxsize=1024)
def _recognise(present: frozenset[str], shown: tuple[str, ...], rating_field: str) -> Recognised:
    known = (*FORMATS[:-1], FORMATS[-1]._replace(fields=("prompt", "response", rating_field)))
    plain = {_plain(name): name for name in sorted(present, reverse=True)}  # of "Prompt" and "prompt", the latter
    fitting = [f for f in known if plain.keys() >= set(map(_plain, f.fields))]
    if plain.keys() >= set(CANONICAL):  # a row with a prompt and both responses needs no guessing
        fitting = [candidate for candidate in fitting if set(candidate.fields).issuperset(CANONICAL)]
    # prefer the format with the most fields: Orca's question, chosen and rejected include TRL's chosen and rejected
    fitting = [f for f in fitting if not any(_is_part_of(f, other) for other in fitting)]
    if len(fitting) == 1:
        return _in_format(fitting[0], present, plain)
    if fitting:
        raise UnknownFormat(
            "", f"fits more than one format: {', or '.join(map(str, fitting))}; remove fields until one fits"
        )
    # one's own rows are rarely meant to be of a published data set
    nearest = max(known, key=lambda f: len(present.intersection(f.fields)) / len(f.fields) - f.published / 4)
    missing = next(field for field in nearest.fields if field not in present)
    fields = ", ".join(map(repr, shown))[:120] or "no fields"
    raise UnknownFormat(missing, f"missing; the row has {fields}; the nearest format is {nearest}")


def _plain(name: str) -> str:
    return name.strip().lower()


def _is_part_of(first: Format, second: Format) -> bool:
    """Whether the second format uses all fields of the first one, and more."""
    of_first, of_second = set(first.fields), {*second.fields, *second.optional}
    return of_first < set(second.fields) or (
        of_first <= of_second and not set(second.fields) <= {*first.fields, *first.optional}
    )


def _in_format(row_format: Format, present: frozenset[str], plain: dict[str, str]) -> Recognised:
    names = (*row_format.fields, *row_format.optional, "id", *(name for pair in _SCORES for name in pair))
    renamed = {plain[_plain(name)]: name for name in names if name not in present and _plain(name) in plain}
    explicit = set(CANONICAL) <= set(row_format.fields)
    used = {"id", *CANONICAL, *row_format.optional, *(() if explicit else row_format.fields)}
    scores = next((pair for pair in _SCORES if {*present, *renamed.values()} >= set(pair)), None)
    return Recognised(row_format, renamed, frozenset(used), scores)


def canonical(row: Row) -> Recognised:
    """The format of a row whose fields were named by --fields: with a prompt, or with two whole conversations."""
    return _canonical(frozenset(row))


@lru_cache(maxsize=1024)
def _canonical(present: frozenset[str]) -> Recognised:
    name = "canonical / TRL preference" if "prompt" in present else FORMATS[0].name
    return _in_format(next(f for f in FORMATS if f.name == name), present, {})


def parse_pairs(
    row: Row, recognised: Recognised, file: str, line: int, notes: Counter[str], margin: float = 0
) -> list[PreferencePair]:
    """The pairs of a row: one, or several if it contains more than two responses with grades.

    Completions are stripped, as white space between turns is not their text. Raises Tie if neither is better.
    """
    row_format, _, used, scores = recognised
    try:
        parsed = row_format.parse(row)
        if isinstance(parsed, tuple) and parsed[1] == parsed[2]:
            raise RowProblem("rejected" if "rejected" in row else "", SAME)
    except RowProblem as problem:
        if row_format.published and not isinstance(problem, Tie):
            raise PublishedProblem(problem.field, problem.reason) from None
        raise
    extra = {key: row[key] for key in row if key not in used}
    row_id = parse_id(row)
    if isinstance(parsed, tuple):
        if scores:
            _check_scores(row, scores, parsed[0], notes)
        return [PreferencePair(row_id or content_id(*parsed), *parsed, extra, line, file)]
    return [
        replace(pair, id=f"{row_id}.{n}" if row_id else pair.id, extra=extra | pair.extra, line=line, file=file)
        for n, pair in enumerate(pairs_of_ratings(parsed, margin, notes), start=1)
    ]


def _check_scores(row: Row, scores: tuple[str, str], prompt: Prompt, notes: Counter[str]) -> None:
    """Raises Tie if chosen and rejected have one score; counts pairs whose scores contradict their order."""
    try:
        chosen, rejected = (number_of(row[field], field) for field in scores)
    except RowProblem:
        return  # not a number, so nobody reads it
    if chosen == rejected:
        raise Tie(prompt)
    if chosen < rejected:
        notes[CONTRADICTIONS] += 1


def parse_pair(row: Row, file: str, line: int) -> PreferencePair:
    """A pair from a row of any format; of several pairs, the first."""
    recognised = recognise(row)
    pairs = parse_pairs(recognised.renamed_row(row), recognised, file, line, Counter())
    if not pairs:
        raise Tie
    return pairs[0]

"""Reads files of any known format into drafts and questions, one row at a time."""

from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from pitcli.data.bad_rows import BadRows, check_list, write_list
from pitcli.data.drafts import parse_draft, parse_question
from pitcli.data.pair_reading import ReadingOptions
from pitcli.data.reading import file_label
from pitcli.data.rows import Draft, RowError
from pitcli.data.sources import open_rows
from pitcli.data.strict_json import RowProblem
from pitcli.data.thoughts import CUT


def iter_drafts(
    path: str | Path, on_error: Callable[[RowError], None], notes: Counter[str] | None = None
) -> Iterator[tuple[int, Draft]]:
    """Yields drafts as their lines arrive; an unusable file is refused by the call, before the first draft."""
    bad = BadRows(False, Counter() if notes is None else notes, on_error)
    return _parsed(parse_draft, open_rows(path, bad.add, bad.notes), file_label(path), bad)


def iter_questions(
    path: str | Path,
    on_error: Callable[[RowError], None],
    notes: Counter[str] | None = None,
    options: ReadingOptions = ReadingOptions(),  # noqa: B008
) -> Iterator[tuple[int, Draft]]:
    """As iter_drafts, for rows that have no response yet."""
    check_list(options.list_bad, [str(path)])
    bad = BadRows(
        options.skip_bad, Counter() if notes is None else notes, on_error, keep_all=options.list_bad is not None
    )
    rows = open_rows(path, bad.add, bad.notes)

    def questions() -> Iterator[tuple[int, Draft]]:
        try:  # whoever reads may stop before the end
            yield from _parsed(partial(parse_question, fields=options.fields), rows, file_label(path), bad)
        finally:
            write_list(options.list_bad, bad.all)

    return questions()


def _parsed(
    parse: Callable[[dict[str, Any], str, int], Draft],
    rows: Iterator[tuple[int, dict[str, Any]]],
    label: str,
    bad: BadRows,
) -> Iterator[tuple[int, Draft]]:
    seen: set[int] = set()
    for line, row in rows:
        try:
            draft = parse(row, label, line)
        except RowProblem as problem:
            bad.add(RowError.of(label, line, problem), problem)
            continue
        # equal rows are counted, not dropped: whether they have one id or several is not for pit to judge
        if seen_before(seen, (draft.id, draft.prompt, draft.response)):
            bad.notes["duplicate rows"] += 1
        if draft.response and draft.row is not row:
            bad.notes[CUT] += 1
        yield line, draft


def seen_before(seen: set[int], value: object) -> bool:
    """Whether the value is in `seen`, to which it is added; compares 60 bits of a hash.

    A million values need 64 MiB, and the chance that any two collide is 1 in 2 million.
    """
    key = hash(value) >> 4
    if key in seen:
        return True
    seen.add(key)
    return False

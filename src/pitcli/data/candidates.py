"""What pit score compares: the responses to a prompt, of neighbouring rows or listed in one row."""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import NamedTuple

from pitcli.data.conversations import written_prompt
from pitcli.data.drafts import RESPONSE, parse_draft
from pitcli.data.field_paths import value_at
from pitcli.data.long_rows import Limit, check_conversation
from pitcli.data.reading import file_label
from pitcli.data.rows import Draft, OnError, PreferencePair, Prompt, Row, RowError
from pitcli.data.sources import open_rows
from pitcli.data.strict_json import RowProblem, describe
from pitcli.settings.scoring import ALL, ORIGINAL_RESPONSE, OTHERS

RESPONSES = "responses"
MOST = 64  # responses that are compared with one another; the work grows with their square
ALONE = (
    "expected another response to compare with, got one; name a field with --against, or put the responses to a prompt "
    "next to one another"
)


class Candidates(NamedTuple):
    """Responses to one prompt that are scored together.

    reference: the text that each is compared with; None: they are compared with one another. rows: one per response, or
    a single one that lists them all (are_listed). line: of the first row.
    """

    prompt: Prompt
    responses: tuple[str, ...]
    reference: str | None
    rows: tuple[Row, ...] = ()
    line: int = 0
    are_listed: bool = False


def check_candidates(candidates: Candidates, limit: Limit, notes: Counter[str]) -> None:
    """Raises RowProblem or TooLong, as check_conversation does, if the responses cannot be compared."""
    texts = {f"response {index + 1}": text for index, text in enumerate(candidates.responses)}
    texts |= {} if candidates.reference is None else {"reference": candidates.reference}
    check_conversation(candidates.prompt, texts, limit, notes)


def iter_candidates(
    path: str, against: str | None, on_error: OnError, notes: Counter[str] | None = None
) -> Iterator[Candidates]:
    """Yields candidates as their lines arrive; an unusable file is refused by the call.

    against: the field of the reference, or OTHERS or ALL; None: original_response if a row has it, otherwise OTHERS.
    """
    return _candidates(open_rows(path, on_error, notes), file_label(path), against, on_error)


def labelled(pair: PreferencePair) -> Candidates:
    """The candidates of a preference pair: chosen, compared with rejected."""
    row = {**pair.extra, "id": pair.id, "prompt": written_prompt(pair.prompt)}
    row |= {"chosen": pair.chosen, "rejected": pair.rejected}
    return Candidates(pair.prompt, (pair.chosen,), pair.rejected, (row,), pair.line)


def _candidates(
    rows: Iterator[tuple[int, Row]], label: str, against: str | None, on_error: OnError
) -> Iterator[Candidates]:
    def parsed() -> Iterator[Candidates]:
        for line, row in rows:
            try:
                yield _parse(row, label, line, against)
            except RowProblem as problem:
                on_error(RowError.of(label, line, problem))

    for prompt, group in groupby(parsed(), key=_needs_others):
        if prompt is None:
            yield from group
            continue
        together: list[Candidates] = []
        for candidates in group:
            if len(together) < MOST:
                together.append(candidates)
            else:
                reason = f"expected at most {MOST} neighbouring rows with this prompt, got more"
                on_error(RowError(label, candidates.line, "prompt", reason))
        if len(together) < 2:
            on_error(RowError(label, together[0].line, RESPONSE, ALONE))
        else:
            yield _joined(together)


def _needs_others(candidates: Candidates) -> Prompt | None:
    """The prompt of a response that is compared with those of neighbouring rows; None for other candidates."""
    return None if candidates.reference is not None or candidates.are_listed else candidates.prompt


def _joined(rows: Sequence[Candidates]) -> Candidates:
    return rows[0]._replace(
        responses=tuple(row.responses[0] for row in rows),
        rows=tuple(row.rows[0] for row in rows),
    )


def _parse(row: Row, file: str, line: int, against: str | None) -> Candidates:
    """The candidates of one row: its response, or the responses that it lists."""
    name = next((name for name in row if name.strip().lower() == RESPONSES), None)
    if name is None:
        if row.get(RESPONSE) is None and {"chosen", "rejected"} <= row.keys():
            raise RowProblem(RESPONSE, "missing: the row is a preference pair; use --labels")
        draft = parse_draft(row, file, line)
        reference = _reference(row, draft.prompt, against)
        return Candidates(draft.prompt, (draft.response,), reference, (row,), line)
    drafts = _listed(row, name, file, line)
    prompt = drafts[0].prompt
    reference = _reference(row, prompt, against)
    if len(drafts) < 2 and reference is None:
        raise RowProblem(name, ALONE)
    return Candidates(prompt, tuple(draft.response for draft in drafts), reference, (row,), line, are_listed=True)


def _listed(row: Row, name: str, file: str, line: int) -> list[Draft]:
    values = row[name]
    if not isinstance(values, list):
        raise RowProblem(name, f"expected a list of responses, got {describe(values)}")
    if not 1 <= len(values) <= MOST:
        raise RowProblem(name, f"expected 1 to {MOST} responses, got {len(values)}")
    rest = {field: value for field, value in row.items() if field != name}
    return [_draft({**rest, RESPONSE: value}, f"{name}[{index}]", file, line) for index, value in enumerate(values)]


def _reference(row: Row, prompt: Prompt, against: str | None) -> str | None:
    """The response that the others are compared with; None if they are compared with one another."""
    if against in (OTHERS, ALL) or (against is None and row.get(ORIGINAL_RESPONSE) is None):
        return None
    return response_at(row, against or ORIGINAL_RESPONSE, prompt)


def response_at(row: Row, field: str, prompt: Prompt) -> str:
    """Another response to the prompt, in a field of the row (--against); RowProblem if there is none."""
    try:
        value = value_at(row, field)
    except RowProblem as problem:
        raise RowProblem(problem.field, problem.reason.replace("--fields", "--against")) from None
    return _draft({"prompt": written_prompt(prompt), RESPONSE: value}, field, "", 0).response


def _draft(row: Row, field: str, file: str, line: int) -> Draft:
    """A draft whose problems name the field from which its response was taken."""
    try:
        return parse_draft(row, file, line)
    except RowProblem as problem:
        is_response = problem.field.partition(".")[0] == RESPONSE
        raise RowProblem(field if is_response else problem.field, problem.reason) from None

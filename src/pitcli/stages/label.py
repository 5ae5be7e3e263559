"""pit label: turns rows into preference pairs, labelled by any judge."""

import shlex
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

from pitcli.console import counted, error, next_command, note, progress, samples
from pitcli.data.drafts import with_prompt
from pitcli.data.formats import iter_drafts
from pitcli.data.reading import file_label, refuse_output_as_input
from pitcli.data.rows import Comparison, Draft, OnError, Prompt, RowError
from pitcli.data.streams import content_key, windows
from pitcli.data.strict_json import RowProblem, encode
from pitcli.errors import InputError, SettingsError
from pitcli.evaluation.judge import Verdict
from pitcli.evaluation.load_judge import LABELS, check_judge, load_judge
from pitcli.evaluation.systems import other_fields, parse_row
from pitcli.runs.earlier import EarlierRun
from pitcli.runs.growing_rows import GrowingRows, growing_rows, keys_by, refuse_other_output
from pitcli.settings.tools import LabelConfig

SHOWN_ROWS = 2
NO_VERDICT = "pairs skipped: no verdict"
EXPECTED = "give rows of pit improve, or of pit sample --draws 2, with the rows of a prompt next to one another"


class Candidate(NamedTuple):
    """Two responses to be labelled. row: the row of the second one; pair_id: None if the row has no id."""

    comparison: Comparison
    row: dict[str, Any]
    pair_id: str | None


def run(config: LabelConfig) -> int:
    """Write a pair for each two responses that the judge tells apart; return 1 if some rows failed, otherwise 0."""
    judge_run = check_judge(config.judge, config, others=[LABELS])
    refuse_output_as_input(config.input, config.output)
    refuse_other_output(config.input)
    notes, errors, shown = Counter[str](), list[RowError](), list[dict[str, Any]]()

    def on_error(problem: RowError) -> None:
        errors.append(problem)
        error(str(problem))

    drafts = islice(iter_drafts(config.input, on_error, notes), config.max_rows)
    usable = different(candidates(drafts, config, on_error), notes)
    judge = cache(lambda: WindowJudge(config, judge_run))  # not before the output is known to be usable

    def made_with() -> dict[str, Any]:
        return {"settings": config.identity(), "judge": judge().identity}

    with (
        growing_rows(config, made_with, keys_by(pair_key)) as rows,
        progress("labelling", None, rows.stream) as advance,
    ):
        notes.update({"pairs already written": rows.done.total()} if rows.done else {})
        for pair in labelled(usable, judge(), config, notes, advance=advance, rows=rows):
            rows.write(pair_key(pair), f"{encode(pair)}\n")
            notes["pairs written"] += 1
            if len(shown) < SHOWN_ROWS:
                shown.append(pair)
        if not (errors or any(text.startswith("pairs") for text in notes)):
            raise InputError(f"{file_label(config.input)}: no two responses to compare; {EXPECTED}")
    report(config, notes, shown)
    # people label what they like; from any other judge a verdict is missing
    return 1 if errors or (notes[NO_VERDICT] and not of_people(config)) else 0


def of_people(config: LabelConfig) -> bool:
    return config.judge.startswith(LABELS.partition("FILE")[0])


def candidates(drafts: Iterable[tuple[int, Draft]], config: LabelConfig, on_error: OnError) -> Iterator[Candidate]:
    """Yield the iterations of improved rows, each against the response before it, and neighbouring samples."""
    for _, group in groupby(drafts, key=lambda numbered: numbered[1].prompt):
        before: Draft | None = None
        for line, draft in group:
            if "original_response" in draft.row:
                try:
                    yield from of_improved_row(draft, config)
                except RowProblem as problem:
                    on_error(RowError.of(file_label(config.input), line, problem))
                continue
            if before is not None:
                yield Candidate(Comparison(draft.prompt, draft.response, before.response), with_prompt(draft), draft.id)
            before = draft


def of_improved_row(draft: Draft, config: LabelConfig) -> Iterator[Candidate]:
    """Yield the steps of a row of pit improve; people have labelled its response against its original."""
    row = parse_row(draft.row, config.input, draft.line, seed=0, by=None)
    steps = [(step.before, step.written) for step in row.steps]
    if not steps or of_people(config):
        steps = [(row.original, row.response)]
    for number, (before, written) in enumerate(steps, start=1):
        pair_id = None if draft.id is None else f"{draft.id}.{number}"
        yield Candidate(Comparison(draft.prompt, written, before), with_prompt(draft), pair_id)


def different(candidates: Iterable[Candidate], notes: Counter[str]) -> Iterator[Candidate]:
    """Yield the candidates with two different texts, stripped, as training reads them."""
    for candidate in candidates:
        prompt, response, reference = candidate.comparison
        comparison = Comparison(prompt, response.strip(), reference.strip())
        if not (comparison.response and comparison.reference_response):
            notes["pairs skipped: a response is empty"] += 1
        elif comparison.response == comparison.reference_response:
            notes["pairs skipped: the responses are equal"] += 1
        else:
            yield candidate._replace(comparison=comparison)


def pair_key(row: dict[str, Any]) -> int:
    """Return what is the same whichever response the judge prefers."""
    rest = {name: value for name, value in row.items() if name not in ("chosen", "rejected", "judge", "p_chosen")}
    return content_key([rest, sorted([str(row.get("chosen")), str(row.get("rejected"))])])


class WindowJudge:
    """The judge, with the other fields of the prompts of one window only: the input may be large."""

    def __init__(self, config: LabelConfig, run: EarlierRun | None) -> None:
        self._fields: dict[Prompt, dict[str, Any]] = {}
        cache = Path(config.output).parent / "openai-cache.sqlite"
        self._judge, identity = load_judge(config.judge, config, self._fields, cache=cache, run=run)
        self.identity = {name: value for name, value in identity.items() if name != "base_url"}  # it may move
        self.per_call = self._judge.per_call

    def verdicts(self, window: Sequence[Candidate]) -> Sequence[Verdict]:
        self._fields.clear()
        self._fields.update((candidate.comparison.prompt, other_fields(candidate.row)) for candidate in window)
        return self._judge.verdicts([candidate.comparison for candidate in window])


def labelled(
    candidates: Iterable[Candidate],
    judge: WindowJudge,
    config: LabelConfig,
    notes: Counter[str],
    advance: Any,
    rows: GrowingRows,
) -> Iterator[dict[str, Any]]:
    """Yield the rows of the pairs that the judge decides with --min-confidence.

    With --resume, pairs that are not written are judged again: a verdict may have been missing.
    """
    for window in windows(candidates, judge.per_call, config.input):
        left = [c for c in window if not rows.take(pair_key(pair_row(c, Verdict(1.0), judge="")))]
        advance(len(window) - len(left))
        for candidate, verdict in zip(left, judge.verdicts(left) if left else [], strict=True):
            advance(1)
            if problem := undecided(verdict, config.min_confidence):
                notes[problem] += 1
            else:
                yield pair_row(candidate, verdict, config.judge)
    if foreign := rows.done.total():
        raise SettingsError(f"--resume: {config.output}: {counted(foreign, 'pairs')} not from {config.input}")


def undecided(verdict: Verdict, min_confidence: float) -> str | None:
    """Return why a verdict makes no pair, or None if it makes one."""
    if verdict.p_better is None:
        return NO_VERDICT
    if verdict.p_better == 0.5:
        return "pairs skipped: a tie"
    return "pairs skipped: below --min-confidence" if abs(2 * verdict.p_better - 1) < min_confidence else None


def pair_row(candidate: Candidate, verdict: Verdict, judge: str) -> dict[str, Any]:
    assert verdict.p_better is not None
    _, response, reference = candidate.comparison
    chosen, rejected = (response, reference) if verdict.p_better > 0.5 else (reference, response)
    return {
        **other_fields(candidate.row),
        **({"id": candidate.pair_id} if candidate.pair_id is not None else {}),
        "chosen": chosen,
        "rejected": rejected,
        "judge": judge,
        "p_chosen": max(verdict.p_better, 1 - verdict.p_better),
    }


def report(config: LabelConfig, notes: Counter[str], shown: list[dict[str, Any]]) -> None:
    rows = [(str(pair["prompt"]), pair["rejected"], pair["chosen"]) for pair in shown]
    samples(rows, labels=("prompt", "rejected", "chosen"))
    for text, count in sorted(notes.items()):
        note(f"{file_label(config.input)}: {counted(count, text)}")
    if notes["pairs written"] and config.output != "-":
        note("to train the gap model on them as well, from the base:")
        next_command(f"pit train-reward --data OLD.jsonl,{shlex.quote(config.output)}")

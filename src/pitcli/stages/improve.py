"""pit improve: reads drafts and writes improved rows in the same order; a stopped command can be resumed."""

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain, islice, repeat
from pathlib import Path
from typing import Any

from pitcli.console import counted, next_command, note, progress, samples, warn, word_changes
from pitcli.data.drafts import draft_without_thoughts
from pitcli.data.formats import iter_drafts
from pitcli.data.improved_rows import improved_keys, read_budgets
from pitcli.data.long_rows import Limit, check_conversation
from pitcli.data.plain_text import read_text_draft
from pitcli.data.reading import file_label, refuse_output_as_input
from pitcli.data.rows import Draft, RowError
from pitcli.data.streams import WINDOW, row_key, windows
from pitcli.data.strict_json import RowProblem
from pitcli.data.tally import RowTally
from pitcli.data.text_units import differences
from pitcli.data.thoughts import THINK
from pitcli.engine.generation.methods import extra_room
from pitcli.engine.improving.models import Models, find_models, with_threshold
from pitcli.engine.improving.opening import open_scheduler, refuse_unusable_endpoints
from pitcli.engine.improving.scheduler import Scheduler
from pitcli.engine.improving.stop_rule import FAILURES, Attempt
from pitcli.engine.improving.written import csv_columns, written
from pitcli.engine.models.opening import Base, open_base
from pitcli.processes.collectives import map_over_ranks
from pitcli.processes.ranks import is_rank_0, world_size
from pitcli.runs.earlier import warn_if_not_calibrated
from pitcli.runs.files import file_digest
from pitcli.runs.growing_rows import GrowingRows, growing_rows
from pitcli.settings.base import OutputFormat
from pitcli.settings.generating import ImproveConfig

SHOWN_ROWS = 3


class Tally(RowTally):
    """Counts what became of the drafts, and keeps a few changed ones to show."""

    def __init__(self, config: ImproveConfig) -> None:
        super().__init__(config.input)
        self.config = config
        self.changed = self.cut = self.pruned = 0
        self.shown: list[tuple[str, str, str]] = []

    def on_error(self, problem: RowError) -> None:
        if problem.line == 1 and problem.reason.startswith("not JSON"):
            problem = problem._replace(reason=f"{problem.reason}; to improve a plain text, give --prompt TEXT")
        super().on_error(problem)

    def add(self, attempt: Attempt) -> None:
        self.rows += 1
        if attempt.problem:
            self.on_error(RowError(self.label, attempt.draft.line, "", f"{attempt.problem}; --resume asks again"))
        elif attempt.stop_reason in FAILURES:
            reason = f"{FAILURES[attempt.stop_reason]}; the draft is kept as it was"
            self.on_error(RowError(self.label, attempt.draft.line, "response", reason))
        self.cut += sum(iteration["finished"] is False for iteration in attempt.iterations)
        self.pruned += sum(iteration.get("pruned_edits", 0) for iteration in attempt.iterations)
        if not attempt.changed():
            return
        self.changed += 1
        if self.config.diff:
            words = differences(attempt.draft.response, attempt.best)
            word_changes(f"{self.label}:{attempt.draft.line}", words)
        elif len(self.shown) < SHOWN_ROWS:
            self.shown.append((attempt.draft.prompt[-1].content, attempt.draft.response, attempt.best))

    def report(self) -> None:
        config = self.config
        samples(self.shown, labels=("prompt", "draft", "improved"))
        pruned = f", {counted(self.pruned, 'edits dropped')}" if config.prune_edits else ""
        note(f"{counted(self.rows, 'drafts')}, {self.changed} changed{pruned}{self.failures()}")
        if self.cut:
            fate = (
                "could be accepted"
                if config.accept_truncated
                else "were not accepted (--accept-truncated accepts them)"
            )
            limit = f"--max-new-tokens {config.max_new_tokens}"
            warn(f"{limit} cut {counted(self.cut, 'improvements')} before the end; they {fate}")
        if config.output != "-" and self.rows and config.written_format() is OutputFormat.rows:
            next_command(f"jq -r .response {shlex.quote(config.output)}")


def run(config: ImproveConfig) -> int:
    """Improve every draft and write the rows in the order of the input; return 1 if some rows failed."""
    refuse_output_as_input(config.input, config.output)
    refuse_unusable_endpoints(config)
    models = find_models(config)
    config = with_threshold(config, models)
    tally = Tally(config)
    drafts = open_drafts(config, tally.on_error, tally.notes)
    # with a writer at an endpoint and no gap model, no model is needed here
    base = open_base(config, models.runs()) if models.runs() or not config.writer else None
    budgets = read_budgets(config.equal_tokens) if config.equal_tokens else None
    made_with, columns = partial(origin_of_rows, config, base, models), csv_columns(config)
    with (
        growing_rows(config, made_with, improved_keys if config.rows_tell_what_is_done() else None) as rows,
        open_scheduler(config, base, models, budgets) as scheduler,
        progress("improving", None, rows.stream) as advance,
    ):
        usable = fitting_drafts(drafts, base, config, tally.on_error, tally.notes, budgets)
        for attempt in new_attempts(scheduler, usable, rows):
            if attempt is not None and not attempt.problem:
                rows.write(row_key(attempt.draft), written(attempt, config, not rows.size, columns))
            if attempt is not None:
                tally.add(attempt)
            advance(1, changed=tally.changed)
    tally.show_notes()
    tally.report()
    if models.gap_run:
        warn_if_not_calibrated(models.gap_run)
    # 0 on the other ranks: at a nonzero exit code, a launcher would kill rank 0 before it has finished
    return 1 if tally.failed and is_rank_0() else 0


def new_attempts(scheduler: Scheduler, drafts: Iterator[Draft], rows: GrowingRows) -> Iterator[Attempt | None]:
    """Yield the attempt at each draft, or None if its row exists already, in the order of the drafts."""
    config = scheduler.config
    if scheduler.batching is not None:
        most, is_file = WINDOW * scheduler.batching.slots, Path(config.input).is_file()
        missing = (draft for draft in drafts if not rows.take(row_key(draft)))
        # from a pipe first one, two, four ..., so that the first rows come out before many are read
        yield from scheduler.improve(missing, lambda yielded: most if is_file else min(most, 1 + yielded))
        return
    batches = windows(drafts, WINDOW * config.sample_batch_size, config.input)
    while group := list(islice(batches, world_size())):
        yield from improve_new(scheduler, group, rows)


def open_drafts(
    config: ImproveConfig, on_error: Callable[[RowError], None], notes: Counter[str]
) -> Iterator[tuple[int, Draft]]:
    if config.prompt is None:
        return iter_drafts(config.input, on_error, notes)
    return iter([(1, read_text_draft(config.input, config.prompt))])


def improve_new(scheduler: Scheduler, group: Sequence[list[Draft]], rows: GrowingRows) -> Iterator[Attempt | None]:
    """Yield the attempt at each draft, or None if its row exists already; the windows are spread over the ranks.

    A window with some missing rows is improved as a whole, so that its rows do not depend on the interruption.
    """
    pending = [[(draft, not rows.take(row_key(draft))) for draft in window] for window in group]

    def attempts_at(window: Sequence[tuple[Draft, bool]]) -> Iterator[Attempt | None]:
        any_new = any(is_new for _, is_new in window)
        attempts = (
            scheduler.improve_within_memory([draft for draft, _ in window]) if any_new else repeat(None, len(window))
        )
        return (attempt if is_new else None for attempt, (_, is_new) in zip(attempts, window, strict=True))

    if world_size() == 1:
        return chain.from_iterable(map(attempts_at, pending))  # each attempt as soon as it ends
    return chain.from_iterable(map_over_ranks(pending, lambda mine: [list(attempts_at(window)) for window in mine]))


def origin_of_rows(config: ImproveConfig, base: Base | None, models: Models) -> dict[str, Any]:
    """Return everything that the rows depend on; none of it may change when the command is resumed."""
    temperatures = [*models.gap_temperatures().values()]
    return {
        "settings": config.identity(),
        "base": base.identity.model_dump(mode="json") if base else {},
        "adapters": models.digests(),
        "gap_temperature": temperatures if temperatures[1:] else next(iter(temperatures), None),
        "origin": {
            **models.origin(),
            **({"gap_at_a_server": True} if config.gap_url and models.gap_run else {}),
            "equal_tokens": file_digest(Path(config.equal_tokens)) if config.equal_tokens else None,
        },
    }


def limit_of(config: ImproveConfig, base: Base | None) -> Limit | None:
    """Return the limit on a conversation in this process; None if no model reads it here. Servers have their own."""
    if base is None:
        return None
    extra = 0 if config.writer else extra_room(config.method, base.chat, config.max_new_tokens)
    return Limit(base.chat, base.max_length, config.max_new_tokens + extra)


def fitting_drafts(
    drafts: Iterable[tuple[int, Draft]],
    base: Base | None,
    config: ImproveConfig,
    on_error: Callable[[RowError], None],
    notes: Counter[str],
    budgets: Mapping[int, int] | None = None,
) -> Iterator[Draft]:
    """Yield the drafts whose improvement fits the context; report the others as row errors."""
    limit, tags = limit_of(config, base), base.chat.thought_tags if base else (THINK,)
    for line, read in drafts:
        try:
            draft = draft_without_thoughts(read, tags)
            if budgets is not None and row_key(draft) not in budgets:
                raise RowProblem("", f"expected a row for this draft in --equal-tokens {config.equal_tokens}, got none")
            if limit is not None:
                check_conversation(draft.prompt, {"response": draft.response}, limit, notes)
        except RowProblem as problem:
            on_error(RowError.of(file_label(config.input), line, problem))
        else:
            yield draft

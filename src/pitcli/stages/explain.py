"""pit explain: reads improved rows, and writes which of their edits the gap model finds better, and by how much."""

import shlex
from collections.abc import Iterator

from pitcli.console import counted, edit_shares, next_command, note, progress
from pitcli.data.explained import Improvement, iter_improvements, without_edits
from pitcli.data.long_rows import Limit, check_conversation
from pitcli.data.reading import refuse_output_as_input
from pitcli.data.rows import Row, RowError
from pitcli.data.streams import content_key, windows
from pitcli.data.strict_json import RowProblem, encode
from pitcli.data.tally import RowTally
from pitcli.engine.improving.explaining import Explanation, explain
from pitcli.engine.improving.opening import load_gap_model
from pitcli.engine.improving.scoring import within_memory
from pitcli.engine.models.opening import Base, open_base
from pitcli.equations import p_better
from pitcli.runs.earlier import EarlierRun, find_gap_models, gap_loss_of, warn_if_not_calibrated
from pitcli.runs.growing_rows import COMPLETE, growing_rows, keys_by, refuse_other_output
from pitcli.settings.base import GapBound
from pitcli.settings.scoring import ExplainConfig


class Tally(RowTally):
    """Counts what became of the rows and their edits."""

    def __init__(self, config: ExplainConfig) -> None:
        super().__init__(config.input)
        self.diff = config.diff
        self.edits = self.useless = 0

    def add(self, improvement: Improvement, explanation: Explanation | None) -> None:
        """Count a new row, and show it. explanation: None if the row does not fit into memory."""
        self.rows += 1
        line = improvement.improved.line
        if explanation is None or not explanation.are_finite():
            reason = "no finite gap" if explanation else "out of memory even by itself"
            self.on_error(RowError(self.label, line, "", reason))
            return
        self.edits += len(explanation.edits)
        self.useless += sum(edit.gap is not None and edit.gap <= 0 for edit in explanation.edits)
        if self.diff and explanation.edits:
            gap = f"gap {explanation.gap:+.2f}, P(better) {p_better(explanation.gap, 1.0):.2f}"
            response = improvement.improved.response
            edit_shares(f"{self.label}:{line}: {gap}", response, [edit.fields() for edit in explanation.edits])


def run(config: ExplainConfig) -> int:
    """Write every row with its edits, in the order of the input; return 1 if some rows failed, otherwise 0."""
    refuse_output_as_input(config.input, config.output)
    gap_run, tally = find_gap_models(config.reward), Tally(config)
    improved = iter_improvements(config.input, config.against, tally.on_error, tally.notes)
    base = open_base(config, [gap_run])
    with growing_rows(config, lambda: origin_of_rows(config, base, gap_run), keys_by(explained_row_key)) as rows:
        gap_model = load_gap_model(base, gap_run, config.micro_batch_size, GapBound.mean)
        # a response without an edit may be longer than both texts
        gap_model = gap_model._replace(max_length=base.max_length)
        usable = fitting(improved, base, gap_run, tally)
        with progress("explaining", None, rows.stream) as advance:
            for window in windows(usable, config.micro_batch_size, config.input):
                are_new = [not rows.take(explained_row_key(improvement.improved.row)) for improvement in window]
                # as a whole, so that its rows do not depend on where the command was stopped
                comparisons = [improvement.comparison() for improvement in window] if any(are_new) else []
                explained = within_memory(gap_model, comparisons, explain)
                for improvement, is_new, explanation in zip(window, are_new, explained, strict=False):
                    if is_new:
                        tally.add(improvement, explanation)
                        if explanation is not None:
                            row = improvement.row(explanation.edits)
                            rows.write(explained_row_key(row), f"{encode(row)}\n")
                    advance()
    report(config, tally, gap_run)
    return 1 if tally.failed else 0


def fitting(
    improved: Iterator[tuple[int, Improvement]], base: Base, gap_run: EarlierRun, tally: Tally
) -> Iterator[Improvement]:
    """Yield the improvements that fit into the context; report the others as row errors."""
    limit = Limit(base.chat, base.max_length, responses=gap_loss_of(gap_run.manifest).responses_read)
    for line, improvement in improved:
        texts = {"response": improvement.improved.response, "draft": improvement.original}
        try:
            check_conversation(improvement.improved.prompt, texts, limit, tally.notes)
        except RowProblem as problem:
            tally.on_error(RowError.of(tally.label, line, problem))
        else:
            yield improvement


def origin_of_rows(config: ExplainConfig, base: Base, gap_run: EarlierRun) -> Row:
    """Return how the rows were improved, which pit evaluate reads, and what their edits depend on."""
    adapters = gap_run.gap_digests()
    explained = {**config.identity(), "base": base.identity.model_dump(mode="json"), "adapters": adapters}
    made_with = {part: value for part, value in refuse_other_output(config.input).items() if part != COMPLETE}
    return {**made_with, "explained": explained}


def explained_row_key(row: Row) -> int:
    return content_key(without_edits(row))


def report(config: ExplainConfig, tally: Tally, gap_run: EarlierRun) -> None:
    tally.show_notes()
    useless = f", {tally.useless} without a gain by the gap model" if tally.edits else ""
    note(f"{counted(tally.rows, 'rows')} explained, {counted(tally.edits, 'edits')}{useless}{tally.failures()}")
    warn_if_not_calibrated(gap_run)
    if config.output != "-" and tally.rows:
        next_command(f"jq -c '.edits[]' {shlex.quote(config.output)}")

"""pit score: scores and ranks responses by the gap model, and measures its accuracy on preference pairs."""

import math
import os
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from statistics import fmean
from typing import Any

import numpy as np

from pitcli.console import counted, next_command, note, progress, warn
from pitcli.data.candidates import Candidates, check_candidates, iter_candidates, labelled
from pitcli.data.improved_rows import gap_of
from pitcli.data.long_rows import Limit
from pitcli.data.pair_reading import load_pairs, options_of
from pitcli.data.reading import load_rows, refuse_output_as_input
from pitcli.data.rows import Row, RowError
from pitcli.data.splits import prompt_sketch
from pitcli.data.streams import WINDOW, content_key, windows
from pitcli.data.strict_json import RowProblem, encode
from pitcli.data.tally import RowTally
from pitcli.engine.improving.opening import load_gap_model
from pitcli.engine.improving.ranking import Scores, score, without_scores
from pitcli.engine.improving.scoring import within_memory
from pitcli.engine.models.opening import Base, open_base
from pitcli.engine.training.reward_report import effective_count, wilson_interval
from pitcli.equations import log_losses
from pitcli.runs.earlier import EarlierRun, find_gap_models, warn_if_not_calibrated
from pitcli.runs.growing_rows import GrowingRows, growing_rows, keys_by
from pitcli.settings.base import GapLoss
from pitcli.settings.scoring import ALL, ScoreConfig


class Tally(RowTally):
    """Counts what became of the rows. pairs: those of --labels, each with its gap."""

    def __init__(self, config: ScoreConfig) -> None:
        super().__init__(config.input)
        self.of_labels = config.labels
        self.pairs: list[Row] = []

    def add(self, candidates: Candidates, scores: Scores | None, rows: int) -> None:
        """Count the new rows of candidates. scores: None if they do not fit into memory."""
        self.rows += rows
        if scores is None or not scores.are_finite():
            reason = "no finite gap" if scores else "out of memory even by itself"
            self.on_error(RowError(self.label, candidates.line, "", reason))
        if self.of_labels and scores:
            self.pairs.append({**candidates.rows[0], "gap": scores.gap[0]})


def run(config: ScoreConfig) -> int:
    """Write every row with its scores, in the order of the input; return 1 if some rows failed, otherwise 0."""
    refuse_output_as_input(config.input, config.output)
    gap_run, tally = find_gap_models(config.reward), Tally(config)
    candidates = open_candidates(config, gap_run, tally)
    base = open_base(config, [gap_run])
    rows_go_out = not (config.labels and config.output == "-")
    made_with = partial(origin_of_rows, config, base, gap_run)
    with growing_rows(config, made_with, keys_by(scored_row_key)) if rows_go_out else no_rows() as rows:
        gap_model = load_gap_model(base, gap_run, config.micro_batch_size, config.gap_bound)
        compare = partial(score, pairwise=config.against == ALL)
        usable = fitting(candidates, base, gap_model.loss, tally)
        with progress("scoring", None, rows.stream) as advance:
            for window in windows(usable, WINDOW * config.micro_batch_size, config.input):
                pending = [(each, [not rows.take(scored_row_key(row)) for row in each.rows]) for each in window]
                if not any(any(are_new) for _, are_new in pending):
                    continue
                # as a whole, so that its rows do not depend on where the command was stopped
                for (each, are_new), scores in zip(pending, within_memory(gap_model, window, compare), strict=True):
                    if any(are_new):
                        tally.add(each, scores, sum(are_new))
                    for row, is_new in zip(scores.rows(each) if scores else (), are_new, strict=False):
                        if is_new:
                            rows.write(scored_row_key(row), f"{encode(row)}\n")
                    advance(len(each.responses))
    report(config, tally, gap_run)
    return 1 if tally.failed else 0


def open_candidates(config: ScoreConfig, gap_run: EarlierRun, tally: Tally) -> Iterator[Candidates]:
    if not config.labels:
        return iter_candidates(config.input, config.against, tally.on_error, tally.notes)
    pairs = load_pairs(config.input, notes=tally.notes, options=options_of(config))
    if set(prompt_sketch(pairs)) & set(gap_run.manifest.data.prompts):
        warn(f"{gap_run.folder} was trained on prompts of {tally.label}: its accuracy on other prompts is lower")
    return map(labelled, pairs)


def fitting(candidates: Iterator[Candidates], base: Base, loss: GapLoss, tally: Tally) -> Iterator[Candidates]:
    """Yield the candidates that fit into the context; report the others as row errors."""
    limit = Limit(base.chat, base.max_length, responses=loss.responses_read)
    for each in candidates:
        try:
            check_candidates(each, limit, tally.notes)
        except RowProblem as problem:
            tally.on_error(RowError.of(tally.label, each.line, problem))
        else:
            yield each


def origin_of_rows(config: ScoreConfig, base: Base, gap_run: EarlierRun) -> dict[str, Any]:
    """Return everything that the rows depend on; none of it may change when the command is resumed."""
    return {
        "settings": config.identity(),
        "base": base.identity.model_dump(mode="json"),
        "adapters": gap_run.gap_digests(),
    }


def scored_row_key(row: Row) -> int:
    return content_key(without_scores(row))


@contextmanager
def no_rows() -> Iterator[GrowingRows]:
    """The output of --labels without a file: the accuracy alone goes to stdout."""
    with open(os.devnull, "w") as nowhere:
        yield GrowingRows(nowhere)


def report(config: ScoreConfig, tally: Tally, gap_run: EarlierRun) -> None:
    tally.show_notes()
    note(f"{counted(tally.rows, 'pairs' if config.labels else 'rows')} scored{tally.failures()}")
    warn_if_not_calibrated(gap_run)
    if config.labels:
        # a file also has the pairs of an earlier start
        pairs = load_rows(config.output, lambda row, *_: row) if os.path.isfile(config.output) else tally.pairs
        print(encode(accuracy(pairs)))
    elif config.output != "-" and tally.rows:
        next_command(f"jq -r .p_better {shlex.quote(config.output)}")


def accuracy(pairs: Sequence[Row]) -> dict[str, Any]:
    """Return how often chosen has the larger score, with a 95% interval; a pair without a finite gap is wrong.

    Pairs of one prompt count as fewer (effective_count). Everything is None if there are no pairs.
    """
    if not pairs:
        return {"pairs": 0} | dict.fromkeys(("accuracy", "accuracy_ci", "log_loss", "mean_gap"))
    gaps = [*map(gap_of, pairs)]
    right = [1.0 if gap > 0 else 0.5 if gap == 0 else 0.0 for gap in gaps]
    finite = [gap for gap in gaps if math.isfinite(gap)]
    count = effective_count(np.array(right), [encode({"prompt": row["prompt"]}) for row in pairs])
    return {
        "pairs": len(gaps),
        "accuracy": fmean(right),
        "accuracy_ci": list(wilson_interval(fmean(right), count)),
        "log_loss": float(log_losses(finite, 1.0).mean()) if finite else None,
        "mean_gap": sum(finite) / len(finite) if finite else None,
    }

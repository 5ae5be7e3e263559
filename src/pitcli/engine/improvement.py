"""The improvement loop, the same for every method: y0 -> y1 -> y2 ... for as long as the gap model finds it better."""

import math
from collections.abc import Mapping, Sequence
from itertools import count
from typing import Any, NamedTuple

from pitcli.config import ImproveConfig
from pitcli.console import warn
from pitcli.data.records import Comparison, Draft
from pitcli.data.streams import row_key, row_seed
from pitcli.engine.equations import p_better
from pitcli.engine.methods import PROPOSE, Asked, Proposal, Writer
from pitcli.engine.scoring import calibrated_gaps
from pitcli.errors import is_out_of_memory
from pitcli.sections import Method, StopRule

NON_FINITE = "non_finite_gap"
OUT_OF_MEMORY = "out_of_memory"
FAILURES = {NON_FINITE: "no finite gap", OUT_OF_MEMORY: "out of memory even by itself"}


class Tools(NamedTuple):
    """What an improvement takes: who writes, and how to judge.

    gap_temperature: None where there is no gap model, so --stop none without gaps. budgets: the tokens that each draft
    may take, by its key, whatever --max-iters says; None where --max-iters is the limit.
    """

    writer: Writer
    gap_temperature: float | None
    config: ImproveConfig
    budgets: Mapping[int, int] | None = None


class Attempt(NamedTuple):
    """One draft on its way: the best response so far, every iteration, and why it stopped (None: not yet).

    best_gap: best-of-n only, the gap of the best response over the draft.
    """

    draft: Draft
    best: str
    iterations: list[dict[str, Any]]
    stop_reason: str | None
    best_gap: float = 0.0

    def tokens(self) -> int:
        return sum(iteration["generated_tokens"] for iteration in self.iterations)


def improve_within_memory(tools: Tools, drafts: Sequence[Draft]) -> list[Attempt]:
    """As improve; where memory runs out, in halves. A draft that fails by itself is kept as it is."""
    try:
        return improve(tools, drafts)
    except (MemoryError, RuntimeError) as problem:
        if not is_out_of_memory(problem):
            raise
    if len(drafts) == 1:
        return [Attempt(drafts[0], drafts[0].response, [], OUT_OF_MEMORY)]
    warn(f"out of memory with {len(drafts)} drafts together; trying half as many (--sample-batch-size)")
    middle = len(drafts) // 2
    return [*improve_within_memory(tools, drafts[:middle]), *improve_within_memory(tools, drafts[middle:])]


def improve(tools: Tools, drafts: Sequence[Draft]) -> list[Attempt]:
    """Iterate each draft until its stop rule or --max-iters says stop."""
    attempts = [Attempt(draft, draft.response, [], None) for draft in drafts]
    for iteration in count(1):
        running = [index for index, attempt in enumerate(attempts) if _goes_on(tools, attempt)]
        if not running:
            break
        for index, after in zip(running, _iterate(tools, [attempts[i] for i in running], iteration), strict=True):
            attempts[index] = after
    return [attempt._replace(stop_reason=attempt.stop_reason or "max_iters") for attempt in attempts]


def _goes_on(tools: Tools, attempt: Attempt) -> bool:
    if attempt.stop_reason is not None:
        return False
    if tools.budgets is None:
        return len(attempt.iterations) < tools.config.max_iters
    return attempt.tokens() < tools.budgets[row_key(attempt.draft)]


def _iterate(tools: Tools, attempts: Sequence[Attempt], iteration: int) -> list[Attempt]:
    """One more response for each: written for its best response so far, and judged against that."""
    writer, config = tools.writer, tools.config
    seeds = [row_seed(config.seed, attempt.draft, iteration) for attempt in attempts]
    asked = [Asked(attempt.draft.prompt, attempt.best) for attempt in attempts]
    proposals = PROPOSE[config.method](writer, asked, seeds)
    gaps: list[float | None] = [None] * len(attempts)
    if tools.gap_temperature is not None:
        # samples of one policy are ranked by their gaps over the draft; an improvement must beat the best so far
        ranked = config.method is Method.best_of_n
        references = [attempt.draft.response if ranked else attempt.best for attempt in attempts]
        comparisons = [
            Comparison(row.prompt, proposal.response or reference, reference)
            for row, proposal, reference in zip(asked, proposals, references, strict=True)
        ]
        gaps = calibrated_gaps(
            writer.model, writer.chat, comparisons, tools.gap_temperature, config.sample_batch_size
        ).tolist()
    judge = best_of_n if config.method is Method.best_of_n else chain
    return [
        judge(attempt, proposal, gap, config) for attempt, proposal, gap in zip(attempts, proposals, gaps, strict=True)
    ]


def best_of_n(attempt: Attempt, proposal: Proposal, gap: float | None, config: ImproveConfig) -> Attempt:
    """Best-of-N by the gap over the draft, which is one of the N + 1."""
    finite = gap is not None and math.isfinite(gap)
    better = bool(proposal.response) and gap is not None and finite and gap > attempt.best_gap
    iterations = [*attempt.iterations, _record(attempt, proposal, gap, better)]
    if gap is not None and better:
        return Attempt(attempt.draft, proposal.response, iterations, None, gap)
    return attempt._replace(iterations=iterations, stop_reason=None if finite else NON_FINITE)


def chain(attempt: Attempt, proposal: Proposal, gap: float | None, config: ImproveConfig) -> Attempt:
    """The stop rule: an improvement is taken only if P(better than the best so far) clears the threshold.

    One that is refused ends the draft's turn, or with --patience the last of so many in a row.
    """
    text = proposal.response
    finite = gap is None or math.isfinite(gap)
    probability = p_better(gap, 1.0) if gap is not None and finite else None
    reason = None
    if not text:
        reason = "empty"
    elif not finite:
        reason = NON_FINITE
    elif config.stop is StopRule.gap:
        reason = _refusal(attempt, text, probability, config.threshold)
    iterations = [*attempt.iterations, _record(attempt, proposal, gap, reason is None)]
    if reason is None:
        return Attempt(attempt.draft, text, iterations, None)
    last = [iteration["accepted"] for iteration in iterations[-config.patience :]]
    patient = finite and config.stop is StopRule.gap and (any(last) or len(last) < config.patience)
    return Attempt(attempt.draft, attempt.best, iterations, None if patient else reason)


def _record(attempt: Attempt, proposal: Proposal, gap: float | None, accepted: bool) -> dict[str, Any]:
    known = gap is not None and math.isfinite(gap)
    return {
        "iteration": len(attempt.iterations) + 1,
        "response": proposal.response,
        "gap": gap if known else None,
        "p_better": p_better(gap, 1.0) if gap is not None and known else None,
        "accepted": accepted,
        "generated_tokens": proposal.generated_tokens,
        "finished": proposal.finished,
        **proposal.extra,
    }


def _refusal(attempt: Attempt, text: str, probability: float | None, threshold: float) -> str | None:
    """Why an improvement is not taken, or None."""
    seen = [attempt.draft.response, *(row["response"] for row in attempt.iterations)]
    if text == attempt.best.strip():
        return "copy"
    if text in (earlier.strip() for earlier in seen):
        return "cycle"
    return "not_better" if probability is not None and not probability > threshold else None


def finished_row(attempt: Attempt) -> dict[str, Any]:
    """The draft's own fields with `response` now the best one, and how it came about."""
    return {
        **attempt.draft.row,
        "response": attempt.best,
        "original_response": attempt.draft.response,
        "iterations": attempt.iterations,
        "stop_reason": attempt.stop_reason,
        "generated_tokens": attempt.tokens(),
    }

"""The improvement loop, the same for every method: y0 -> y1 -> y2 ... for as long as the gap model finds it better."""

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from pitcli.console import warn
from pitcli.data.records import Comparison, Draft
from pitcli.data.streams import row_key, row_seed
from pitcli.engine.generation.continuous_batching import Call, Slots, Waves, open_places
from pitcli.engine.generation.methods import PROPOSE, Asked, Proposal, Writer, Writing, extra_room
from pitcli.engine.improving.scoring import calibrated_gaps
from pitcli.engine.models.roles import IMPROVER
from pitcli.equations import p_better
from pitcli.errors import is_out_of_memory
from pitcli.settings.base import Method, StopRule
from pitcli.settings.training import ImproveConfig

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


def improve_within_memory(tools: Tools, drafts: Sequence[Draft]) -> Iterator[Attempt]:
    """As improve; where memory runs out, with half as many together. A draft that fails by itself is kept as it is."""
    done = 0
    try:
        for attempt in improve(tools, drafts):
            done += 1
            yield attempt
        return
    except (MemoryError, RuntimeError) as problem:
        if not is_out_of_memory(problem):
            raise
    rest = drafts[done:]
    if len(rest) == 1:
        yield Attempt(rest[0], rest[0].response, [], OUT_OF_MEMORY)
        return
    together = min(len(rest), tools.config.sample_batch_size)
    warn(f"out of memory with {together} drafts together; trying half as many (--sample-batch-size)")
    half = max(1, together // 2)
    for start in range(0, len(rest), half):
        yield from improve_within_memory(tools, rest[start : start + half])


def improve(tools: Tools, drafts: Sequence[Draft]) -> Iterator[Attempt]:
    """Iterate each draft until its stop rule or --max-iters says stop; attempts in the order of the drafts.

    At most --sample-batch-size responses are written at a time. When some have ended they are judged together; what
    they go on with, or the next drafts, take their places.
    """
    attempts = [Attempt(draft, draft.response, [], None) for draft in drafts]
    begun = {index: _begin(tools, attempt) for index, attempt in enumerate(attempts) if _goes_on(tools, attempt)}
    writing = {index: writing for index, (writing, _) in begun.items()}
    waiting = deque((index, call) for index, (_, call) in begun.items())
    slots = _places(tools, [call for _, call in waiting])
    told = 0
    while writing:
        slots.admit([waiting.popleft() for _ in range(min(slots.free(), len(waiting)))])
        proposals: dict[int, Proposal] = {}
        going_on: list[tuple[int, Call]] = []
        for index, sample in slots.run(slots.refill):
            try:
                going_on.append((index, writing[index].send(sample)))
            except StopIteration as ended:
                proposals[index] = ended.value
        for index, attempt in _judged(tools, attempts, proposals):
            attempts[index] = attempt
            del writing[index]
            if _goes_on(tools, attempt):
                writing[index], call = _begin(tools, attempt)
                going_on.append((index, call))
        waiting.extendleft(reversed(going_on))
        while told < len(attempts) and told not in writing:
            yield _ended(attempts[told])
            told += 1
    yield from map(_ended, attempts[told:])


def _ended(attempt: Attempt) -> Attempt:
    return attempt._replace(stop_reason=attempt.stop_reason or "max_iters")


def _begin(tools: Tools, attempt: Attempt) -> tuple[Writing, Call]:
    """One more response for the best so far: how it is written, and what the model is asked for first."""
    asked = Asked(attempt.draft.prompt, attempt.best)
    seed = row_seed(tools.config.seed, attempt.draft, len(attempt.iterations) + 1)
    writing = PROPOSE[tools.config.method](tools.writer, asked, seed)
    return writing, next(writing)


def _places(tools: Tools, calls: Sequence[Call]) -> Slots | Waves:
    """Where the model writes, on conversations as long as these may become."""
    writer, config = tools.writer, tools.config
    new = writer.decoding.max_new_tokens
    longest = max((len(call.prompt) for call in calls), default=0) + 2 * new
    longest += extra_room(config.method, writer.chat, new)
    role = IMPROVER if config.method is Method.pit else writer.policy
    return open_places(writer.model, role, writer.decoding, min(len(calls), config.sample_batch_size), longest)


def _goes_on(tools: Tools, attempt: Attempt) -> bool:
    if attempt.stop_reason is not None:
        return False
    if tools.budgets is None:
        return len(attempt.iterations) < tools.config.max_iters
    return attempt.tokens() < tools.budgets[row_key(attempt.draft)]


def _judged(
    tools: Tools, attempts: Sequence[Attempt], proposals: Mapping[int, Proposal]
) -> Iterator[tuple[int, Attempt]]:
    """What becomes of each attempt, by its index, with its proposal judged against its best response so far."""
    writer, config = tools.writer, tools.config
    gaps: list[float | None] = [None] * len(proposals)
    if tools.gap_temperature is not None and proposals:
        # samples of one policy are ranked by their gaps over the draft; an improvement must beat the best so far
        ranked = config.method is Method.best_of_n
        comparisons = []
        for index, proposal in proposals.items():
            draft, best = attempts[index].draft, attempts[index].best
            reference = draft.response if ranked else best
            comparisons.append(Comparison(draft.prompt, proposal.response or reference, reference))
        gaps = calibrated_gaps(
            writer.model, writer.chat, comparisons, tools.gap_temperature, config.sample_batch_size
        ).tolist()
    judge = best_of_n if config.method is Method.best_of_n else chain
    for (index, proposal), gap in zip(proposals.items(), gaps, strict=True):
        yield index, judge(attempts[index], proposal, gap, config)


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

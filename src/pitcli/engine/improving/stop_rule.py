"""When a draft has been improved enough: what becomes of it with each proposal, and why its turn ends.

The learned stop rule: an improvement is taken only if P(it is better than the best so far) exceeds the threshold, and
one that is not taken ends the draft's turn (with --patience N, the last of N in a row).
"""

import math
from enum import StrEnum
from typing import Any, NamedTuple

from pitcli.data.rows import Draft
from pitcli.engine.generation.methods import Proposal
from pitcli.equations import p_better
from pitcli.settings.base import StopRule
from pitcli.settings.training import ImproveConfig


class StopReason(StrEnum):
    not_better = "not_better"  # P(better) does not exceed the threshold
    copy = "copy"  # the proposal is the best so far
    cycle = "cycle"  # it is an earlier response
    empty = "empty"  # the model wrote nothing
    max_iters = "max_iters"  # or, with --equal-tokens, no tokens are left
    non_finite_gap = "non_finite_gap"
    out_of_memory = "out_of_memory"


# the draft is kept as it was, and its row counts as failed
FAILURES = {
    StopReason.non_finite_gap: "no finite gap",
    StopReason.out_of_memory: "out of memory even by itself",
}


class Attempt(NamedTuple):
    """One draft on its way: the best response so far, every iteration, and why it stopped (None: not yet).

    best_gap: best-of-n only, the gap of the best response over the draft.
    """

    draft: Draft
    best: str
    iterations: list[dict[str, Any]]
    stop_reason: StopReason | None = None
    best_gap: float = 0.0

    def tokens(self) -> int:
        return sum(iteration["generated_tokens"] for iteration in self.iterations)

    def seen(self) -> list[str]:
        """The draft and every response since."""
        return [self.draft.response, *(iteration["response"] for iteration in self.iterations)]


def after_proposal(attempt: Attempt, proposal: Proposal, gap: float | None, config: ImproveConfig) -> Attempt:
    """The attempt with one iteration more. gap: of the proposal over the best so far, divided by T; None: not asked."""
    refused = refusal(attempt, proposal.response, gap, config)
    iterations = [*attempt.iterations, record(attempt, proposal, gap, accepted=refused is None)]
    if refused is None:
        return Attempt(attempt.draft, proposal.response, iterations)
    last = [iteration["accepted"] for iteration in iterations[-config.patience :]]
    patient = config.stop is StopRule.gap and refused is not StopReason.non_finite_gap
    goes_on = patient and (any(last) or len(last) < config.patience)
    return Attempt(attempt.draft, attempt.best, iterations, None if goes_on else refused)


def refusal(attempt: Attempt, response: str, gap: float | None, config: ImproveConfig) -> StopReason | None:
    """Why a response is not taken, or None. With --stop none only what is unusable is refused."""
    reason: StopReason | None = None
    if not response:
        reason = StopReason.empty
    elif gap is not None and not math.isfinite(gap):
        reason = StopReason.non_finite_gap
    elif config.stop is StopRule.gap:
        if response == attempt.best.strip():
            reason = StopReason.copy
        elif response in (earlier.strip() for earlier in attempt.seen()):
            reason = StopReason.cycle
        elif gap is not None and not p_better(gap, 1.0) > config.threshold:
            reason = StopReason.not_better
    return reason


def best_of_n(attempt: Attempt, proposal: Proposal, gap: float | None) -> Attempt:
    """Best-of-N by the gap over the draft, which is one of the N + 1; only a gap that is not finite ends it early."""
    finite = gap is not None and math.isfinite(gap)
    better = bool(proposal.response) and gap is not None and finite and gap > attempt.best_gap
    iterations = [*attempt.iterations, record(attempt, proposal, gap, accepted=better)]
    if gap is not None and better:
        return Attempt(attempt.draft, proposal.response, iterations, best_gap=gap)
    return attempt._replace(iterations=iterations, stop_reason=None if finite else StopReason.non_finite_gap)


def record(attempt: Attempt, proposal: Proposal, gap: float | None, accepted: bool) -> dict[str, Any]:
    """An iteration as it is written into the row."""
    known = gap if gap is not None and math.isfinite(gap) else None
    return {
        "iteration": len(attempt.iterations) + 1,
        "response": proposal.response,
        "gap": known,
        "p_better": None if known is None else p_better(known, 1.0),
        "accepted": accepted,
        "generated_tokens": proposal.generated_tokens,
        "finished": proposal.finished,
        **proposal.extra,
    }


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

"""The stop rule: whether a proposed response replaces the best so far, and when a draft is finished.

The learned stop rule accepts a proposal only if P(better than the best so far) exceeds 0.5. The first rejected proposal
ends the draft. Then P(better than the draft) must exceed --threshold; if it does not, the draft is kept. Whatever the
rule and the method, a proposal that --max-new-tokens truncated is rejected, unless --accept-truncated is given.
"""

import math
from collections.abc import Sequence
from enum import StrEnum
from typing import Any, NamedTuple

from pitcli.data.drafts import with_prompt
from pitcli.data.rows import Draft
from pitcli.engine.generation.methods import Proposal
from pitcli.equations import p_better
from pitcli.settings.base import StopRule
from pitcli.settings.generating import ImproveConfig


class StopReason(StrEnum):
    """Why a draft was not improved further."""

    not_better = "not_better"  # than the best so far, or not enough better than the draft
    copy = "copy"  # the proposal equals the best so far
    cycle = "cycle"  # the proposal equals an earlier response
    empty = "empty"  # the proposal is empty
    truncated = "truncated"  # the proposal was cut by --max-new-tokens
    max_iters = "max_iters"  # or, with --equal-tokens, no tokens left
    non_finite_gap = "non_finite_gap"
    out_of_memory = "out_of_memory"
    no_reply = "no_reply"  # the endpoint of the writer did not answer; no row is written


EVEN = 0.5  # P(better) of two equal responses

# these count as failed rows; the draft is kept
FAILURES = {
    StopReason.non_finite_gap: "no finite gap",
    StopReason.out_of_memory: "out of memory even by itself",
}


class Attempt(NamedTuple):
    """The state of one draft while it is improved.

    best: the best response so far. iterations: a record of each. stop_reason: None until the draft stops. best_gap: the
    gap / T of the best response over the draft; for best-of-n it is scored, otherwise it is the sum of the gaps of the
    accepted iterations, each over the one before. problem: why the writer gave no reply.
    """

    draft: Draft
    best: str
    iterations: list[dict[str, Any]]
    stop_reason: StopReason | None = None
    best_gap: float = 0.0
    problem: str = ""

    def tokens(self) -> int:
        """Return the tokens generated for this draft so far."""
        return sum(iteration["generated_tokens"] for iteration in self.iterations)

    def seen(self) -> list[str]:
        """Return the draft and every response proposed since, also as it was before --prune-edits."""
        names = ("response", "unpruned_response")
        proposed = [iteration[name] for iteration in self.iterations for name in names if name in iteration]
        return [self.draft.response, *proposed]

    def changed(self) -> bool:
        return self.best != self.draft.response

    def gap(self) -> float | None:
        """Return the gap / T of the best response over the draft; None if there was no gap model."""
        return self.best_gap if any(iteration["gap"] is not None for iteration in self.iterations) else None

    def finished(self) -> bool | None:
        """Return whether the best response ended by itself; for the draft, what its row says (None: unknown)."""
        finished = self._origin_of_best().get("finished")
        return finished if isinstance(finished, bool) else None

    def thoughts(self) -> str | None:
        """Return the thoughts before the best response; None if there are none."""
        return self._origin_of_best().get("thoughts")

    def _origin_of_best(self) -> dict[str, Any]:
        """Return the record of the iteration that wrote the best response, or the row of the draft."""
        accepted = [iteration for iteration in self.iterations if iteration["accepted"]]
        return accepted[-1] if accepted else self.draft.row


def after_proposal(attempt: Attempt, proposal: Proposal, gap: float | None, config: ImproveConfig) -> Attempt:
    """Return the attempt after one more iteration.

    gap: gap / T of the proposal over the best so far; None if there is no gap model.
    """
    rejected = refusal(attempt, proposal, gap, config)
    iterations = [*attempt.iterations, record(attempt, proposal, gap, accepted=rejected is None)]
    if rejected is None:
        return Attempt(attempt.draft, proposal.response, iterations, best_gap=attempt.best_gap + (gap or 0.0))
    # without a stop rule the next proposal is made from the best so far once more
    continues = config.stop is StopRule.none and rejected is StopReason.truncated
    return attempt._replace(iterations=iterations, stop_reason=None if continues else rejected)


def settled(attempt: Attempt, config: ImproveConfig) -> Attempt:
    """Return the attempt with what is kept if it ends now: the draft, if the best is not enough better than it.

    By the learned stop rule only. If the draft is kept, no iteration counts as accepted.
    """
    if config.stop is StopRule.none or not attempt.changed() or p_better(attempt.best_gap, 1.0) > config.threshold:
        return attempt
    rejected = [{**iteration, "accepted": False} for iteration in attempt.iterations]
    return attempt._replace(best=attempt.draft.response, iterations=rejected, best_gap=0.0)


def at_end(attempt: Attempt, config: ImproveConfig) -> Attempt:
    """Return the attempt at its end: with what is kept, and with a stop reason."""
    kept = settled(attempt, config)
    failed = attempt.problem or attempt.stop_reason in FAILURES
    if kept.changed() != attempt.changed() and not failed:
        return kept._replace(stop_reason=StopReason.not_better)
    return kept._replace(stop_reason=attempt.stop_reason or StopReason.max_iters)


class ScoredProposal(NamedTuple):
    """A proposal and its gap / T over the best so far; None if there is no gap model."""

    proposal: Proposal
    gap: float | None


def best_of_width(attempt: Attempt, scored: Sequence[ScoredProposal], config: ImproveConfig) -> ScoredProposal:
    """Return the proposal of an iteration, the best by the gap of --width; its tokens are those of all of them.

    Proposals that the stop rule would reject are chosen only if there are no others.
    """

    def value(candidate: ScoredProposal) -> tuple[bool, float]:
        gap = -math.inf if candidate.gap is None or math.isnan(candidate.gap) else candidate.gap
        return refusal(attempt, candidate.proposal, candidate.gap, config) is None, gap

    best = max(scored, key=value)
    tokens = sum(candidate.proposal.generated_tokens for candidate in scored)
    return best._replace(proposal=best.proposal._replace(generated_tokens=tokens))


def refusal(attempt: Attempt, proposal: Proposal, gap: float | None, config: ImproveConfig) -> StopReason | None:
    """Return why a proposal is rejected, or None if it is accepted.

    --stop none rejects only empty and truncated responses and gaps that are not finite.
    """
    response = proposal.response
    reason: StopReason | None = None
    if not response:
        reason = StopReason.empty
    elif gap is not None and not math.isfinite(gap):
        reason = StopReason.non_finite_gap
    elif is_cut(proposal, config):
        reason = StopReason.truncated
    elif config.stop is StopRule.gap:
        if response == attempt.best.strip():
            reason = StopReason.copy
        elif response in (earlier.strip() for earlier in attempt.seen()):
            reason = StopReason.cycle
        elif gap is not None and not p_better(gap, 1.0) > min(config.threshold, EVEN):
            reason = StopReason.not_better
    return reason


def is_cut(proposal: Proposal, config: ImproveConfig) -> bool:
    """Return whether a proposal must not be accepted because --max-new-tokens truncated it."""
    return not (proposal.finished or config.accept_truncated)


def best_of_n(attempt: Attempt, proposal: Proposal, gap: float | None, config: ImproveConfig) -> Attempt:
    """Return the attempt after one more sample of best-of-N.

    gap: gap / T of the sample over the draft. The best of the N whole samples and the draft has the largest gap, the
    draft's being 0. Only a gap that is not finite ends the draft early.
    """
    finite = gap is not None and math.isfinite(gap)
    usable = bool(proposal.response) and not is_cut(proposal, config)
    better = usable and gap is not None and finite and gap > attempt.best_gap
    iterations = [*attempt.iterations, record(attempt, proposal, gap, accepted=better)]
    if gap is not None and better:
        return Attempt(attempt.draft, proposal.response, iterations, best_gap=gap)
    return attempt._replace(iterations=iterations, stop_reason=None if finite else StopReason.non_finite_gap)


def record(attempt: Attempt, proposal: Proposal, gap: float | None, accepted: bool) -> dict[str, Any]:
    """Return the record of an iteration for the output row."""
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
    """Return the output row: the draft's fields, the best response as `response`, and how it was reached."""
    row = dict(with_prompt(attempt.draft))
    thoughts = {"thoughts": attempt.thoughts(), "original_thoughts": row.pop("thoughts", None)}
    gap = attempt.gap()
    return {
        **row,
        "response": attempt.best,
        "original_response": attempt.draft.response,
        **{name: text for name, text in thoughts.items() if text},
        "gap": gap,
        "p_better": None if gap is None else p_better(gap, 1.0),
        "iterations": attempt.iterations,
        "stop_reason": attempt.stop_reason,
        "finished": attempt.finished(),
        "generated_tokens": attempt.tokens(),
    }

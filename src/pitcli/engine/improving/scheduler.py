"""The scheduler of improvements: many drafts at a time, each at its own iteration, y0 -> y1 -> y2 ...

A method (methods.py) proposes responses and the stop rule (stop_rule.py) accepts or rejects them. The scheduler keeps
the model busy: it scores the responses that have just ended together, and fills the free slots with the drafts that
continue and with new ones.
"""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from pitcli.console import counted, warn
from pitcli.data.rows import Comparison, Draft
from pitcli.data.streams import row_key, row_seed
from pitcli.engine.generation.continuous_batching import ContinuousBatching, open_batching
from pitcli.engine.generation.endpoint import EndpointBatching, Unanswered
from pitcli.engine.generation.methods import (
    PROPOSE,
    LocalWriter,
    PromptWithReference,
    Proposal,
    Proposing,
    Writer,
    extra_room,
)
from pitcli.engine.generation.sampling import Request
from pitcli.engine.generation.static_batching import StaticBatching
from pitcli.engine.improving.endpoint_gap import EndpointGapModel
from pitcli.engine.improving.pruning import prune
from pitcli.engine.improving.scoring import GapModel
from pitcli.engine.improving.stop_rule import (
    Attempt,
    ScoredProposal,
    StopReason,
    after_proposal,
    at_end,
    best_of_n,
    best_of_width,
)
from pitcli.engine.models.roles import IMPROVER
from pitcli.errors import is_out_of_memory
from pitcli.settings.base import Method
from pitcli.settings.generating import ImproveConfig

SEED_STEP = 7919  # between the seeds of the proposals of an iteration


class Scheduler(NamedTuple):
    """Improves drafts with a writer, a gap model and the settings of pit improve.

    gap_model: None only with --stop none; then no gaps are reported. budgets: the tokens that each draft may cost, by
    row key; they replace --max-iters (None: --max-iters is the limit). batching: of a writer behind an endpoint.
    """

    writer: Writer
    gap_model: GapModel | EndpointGapModel | None
    config: ImproveConfig
    budgets: Mapping[int, int] | None = None
    batching: EndpointBatching | None = None

    def improve_within_memory(self, drafts: Sequence[Draft]) -> Iterator[Attempt]:
        """Yield the attempts of `improve`, with smaller batches if memory runs out.

        Each time half as many drafts are improved together. A draft that fails by itself is kept as it is, with the
        stop reason out_of_memory.
        """
        done = 0
        try:
            for attempt in self.improve(drafts):
                done += 1
                yield attempt
            return
        except (MemoryError, RuntimeError) as problem:
            if not is_out_of_memory(problem):
                raise
        rest = drafts[done:]
        if len(rest) == 1:
            yield Attempt(rest[0], rest[0].response, [], StopReason.out_of_memory)
            return
        together = min(len(rest), self.config.sample_batch_size)
        warn(f"out of memory with {counted(together, 'drafts')} together; trying half as many (--sample-batch-size)")
        half = max(1, together // 2)
        for start in range(0, len(rest), half):
            yield from self.improve_within_memory(rest[start : start + half])

    def improve(self, drafts: Iterable[Draft], most: Callable[[int], int] | None = None) -> Iterator[Attempt]:
        """Improve each draft until the stop rule or --max-iters ends it; yield the attempts in the drafts' order.

        most: how many drafts may be in memory, given how many have been yielded (None: all).
        """
        source, attempts, iterations = enumerate(drafts), dict[int, Attempt](), dict[int, Iteration]()
        waiting = deque[tuple[int, Any]]()

        def begin_more() -> None:
            for index, draft in islice(source, most(yielded) - len(attempts) if most else None):
                attempt = attempts[index] = Attempt(draft, draft.response, [])
                if self.continues(attempt):
                    iterations[index] = self.begin(index, attempt)
                    waiting.extend(iterations[index].first_requests)

        yielded = 0
        begin_more()
        batching = self._open_batching([request for _, request in waiting])
        while attempts:
            while yielded in attempts and yielded not in iterations:
                yield at_end(attempts.pop(yielded), self.config)
                yielded += 1
            begin_more()
            batching.admit([waiting.popleft() for _ in range(min(batching.free(), len(waiting)))])
            next_requests, changed = self._advanced(attempts, iterations, batching.run(batching.refill))
            for index, attempt in changed:
                attempts[index] = attempt
                del iterations[index]
                if self.continues(attempt):
                    iterations[index] = self.begin(index, attempt)
                    next_requests += iterations[index].first_requests
            waiting.extendleft(reversed(next_requests))

    def _advanced(
        self,
        attempts: Mapping[int, Attempt],
        iterations: Mapping[int, "Iteration"],
        samples: Sequence[tuple[int, Any]],
    ) -> tuple[list[tuple[int, Any]], list[tuple[int, Attempt]]]:
        """Return the next requests of the proposals that need several, and the attempts whose iteration has ended."""
        next_requests: list[tuple[int, Any]] = []
        complete: dict[int, list[Proposal]] = {}
        failed: dict[int, Attempt] = {}
        for key, sample in samples:
            index, number = divmod(key, self.config.width)
            if index not in iterations or index in failed:
                continue  # another proposal of this iteration got no reply
            if isinstance(sample, Unanswered):
                failed[index] = attempts[index]._replace(stop_reason=StopReason.no_reply, problem=sample.reason)
                continue
            next_requests += [(key, request) for request in iterations[index].receive(number, sample)]
            if proposals := iterations[index].complete():
                complete[index] = proposals
        judged = dict(self._judged(attempts, complete))
        if self.config.prune_edits and self.gap_model is not None:
            steps = [(attempts[index], attempt) for index, attempt in judged.items()]
            judged = dict(zip(judged, prune(self.gap_model, steps), strict=True))
        return next_requests, [*failed.items(), *judged.items()]

    def begin(self, index: int, attempt: Attempt) -> "Iteration":
        """Start an iteration from the best response so far: --width proposals, each with its own seed."""
        width = self.config.width
        row = PromptWithReference(attempt.draft.prompt, attempt.best)
        seed = row_seed(self.config.seed, attempt.draft, len(attempt.iterations) + 1)
        proposing = [PROPOSE[self.config.method](self.writer, row, seed + SEED_STEP * k) for k in range(width)]
        return Iteration(proposing, [(index * width + k, next(started)) for k, started in enumerate(proposing)], {})

    def _open_batching(self, requests: Sequence[Request]) -> ContinuousBatching | StaticBatching | EndpointBatching:
        """Open slots for conversations as long as these can become; those of an endpoint are open already."""
        writer, config = self.writer, self.config
        if self.batching is not None:
            return self.batching
        assert isinstance(writer, LocalWriter)
        new = writer.decoding.max_new_tokens
        longest = max((len(request.prompt) for request in requests), default=0) + 2 * new
        longest += extra_room(config.method, writer.chat, new)
        role = IMPROVER if config.method is Method.pit else writer.policy
        slots = min(len(requests), config.sample_batch_size)
        return open_batching(writer.model, role, writer.decoding, slots, longest)

    def continues(self, attempt: Attempt) -> bool:
        """Return whether the attempt has another iteration."""
        if attempt.stop_reason is not None:
            return False
        if self.budgets is None:
            return len(attempt.iterations) < self.config.max_iters
        return attempt.tokens() < self.budgets[row_key(attempt.draft)]

    def _judged(
        self, attempts: Mapping[int, Attempt], complete: Mapping[int, Sequence[Proposal]]
    ) -> Iterator[tuple[int, Attempt]]:
        """Score the proposals of complete iterations, by index of their attempt; yield (index, attempt after it)."""
        # best-of-N compares each sample with the draft, the other methods compare with the best so far
        ranked = self.config.method is Method.best_of_n
        rows = [(attempts[index], proposal) for index, proposals in complete.items() for proposal in proposals]
        scored = iter(self.scored(rows, ranked))
        for index, proposals in complete.items():
            attempt = attempts[index]
            proposal, gap = best_of_width(attempt, list(islice(scored, len(proposals))), self.config)
            if ranked:
                yield index, best_of_n(attempt, proposal, gap, self.config)
            else:
                yield index, after_proposal(attempt, proposal, gap, self.config)

    def scored(self, rows: Sequence[tuple[Attempt, Proposal]], ranked: bool) -> list[ScoredProposal]:
        """Return each proposal with its gap; with several gap models, also with the field gap_std of its record.

        ranked: compare with the draft instead of the best so far.
        """
        if self.gap_model is None or not rows:
            return [ScoredProposal(proposal, None) for _, proposal in rows]
        comparisons = []
        for attempt, proposal in rows:
            reference = attempt.draft.response if ranked else attempt.best
            comparisons.append(Comparison(attempt.draft.prompt, proposal.response or reference, reference))
        gaps, stds = self.gap_model.gaps_with_std(comparisons)
        proposals = [proposal for _, proposal in rows]
        if stds is not None:
            fields = [{"gap_std": std if math.isfinite(std) else None} for std in stds]
            proposals = [p._replace(extra=p.extra | field) for p, field in zip(proposals, fields, strict=True)]
        return list(map(ScoredProposal, proposals, gaps))


class Iteration(NamedTuple):
    """The proposals of a draft's next iteration. The key of a request is index of the draft * --width + number.

    proposing: their generators. first_requests: (key, request) of each. proposals: those that have ended, by number.
    """

    proposing: list[Proposing]
    first_requests: list[tuple[int, Any]]
    proposals: dict[int, Proposal]

    def receive(self, number: int, sample: Any) -> list[Any]:
        """Pass a sample to the proposal that asked for it; return its next request, none if the proposal has ended."""
        try:
            return [self.proposing[number].send(sample)]
        except StopIteration as ended:
            self.proposals[number] = ended.value
            return []

    def complete(self) -> list[Proposal]:
        """Return the proposals by number if all have ended, otherwise none."""
        if len(self.proposals) < len(self.proposing):
            return []
        return [proposal for _, proposal in sorted(self.proposals.items())]

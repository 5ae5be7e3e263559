"""The scheduler of improvements: many drafts at a time, each at its own iteration, y0 -> y1 -> y2 ...

A method (methods.py) proposes responses and the stop rule (stop_rule.py) accepts or rejects them. The scheduler keeps
the model busy: it scores the responses that have just ended together, and fills the free slots with the drafts that
continue and with new ones.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

from pitcli.console import warn
from pitcli.data.rows import Comparison, Draft
from pitcli.data.streams import row_key, row_seed
from pitcli.engine.generation.continuous_batching import ContinuousBatching, open_batching
from pitcli.engine.generation.methods import PROPOSE, PromptWithReference, Proposal, Proposing, Writer, extra_room
from pitcli.engine.generation.static_batching import Request, StaticBatching
from pitcli.engine.improving.scoring import GapModel
from pitcli.engine.improving.stop_rule import Attempt, StopReason, after_proposal, best_of_n
from pitcli.engine.models.roles import IMPROVER
from pitcli.errors import is_out_of_memory
from pitcli.settings.base import Method
from pitcli.settings.generating import ImproveConfig


class Scheduler(NamedTuple):
    """Improves drafts with a writer, a gap model and the settings of pit improve.

    gap_model: None only with --stop none; then no gaps are reported. budgets: the tokens that each draft may cost, by
    row key; they replace --max-iters (None: --max-iters is the limit).
    """

    writer: Writer
    gap_model: GapModel | None
    config: ImproveConfig
    budgets: Mapping[int, int] | None = None

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
        warn(f"out of memory with {together} drafts together; trying half as many (--sample-batch-size)")
        half = max(1, together // 2)
        for start in range(0, len(rest), half):
            yield from self.improve_within_memory(rest[start : start + half])

    def improve(self, drafts: Sequence[Draft]) -> Iterator[Attempt]:
        """Improve each draft until the stop rule or --max-iters ends it; yield the attempts in the drafts' order."""
        attempts = [Attempt(draft, draft.response, []) for draft in drafts]
        started = {index: self._begin(attempt) for index, attempt in enumerate(attempts) if self._continues(attempt)}
        proposing = {index: proposing for index, (proposing, _) in started.items()}
        waiting = deque((index, request) for index, (_, request) in started.items())
        batching = self._open_batching([request for _, request in waiting])
        yielded = 0
        while proposing:
            batching.admit([waiting.popleft() for _ in range(min(batching.free(), len(waiting)))])
            proposals: dict[int, Proposal] = {}
            next_requests: list[tuple[int, Request]] = []
            for index, sample in batching.run(batching.refill):
                try:
                    next_requests.append((index, proposing[index].send(sample)))
                except StopIteration as ended:
                    proposals[index] = ended.value
            for index, attempt in self._judged(attempts, proposals):
                attempts[index] = attempt
                del proposing[index]
                if self._continues(attempt):
                    proposing[index], request = self._begin(attempt)
                    next_requests.append((index, request))
            waiting.extendleft(reversed(next_requests))
            while yielded < len(attempts) and yielded not in proposing:
                yield _ended(attempts[yielded])
                yielded += 1
        yield from map(_ended, attempts[yielded:])

    def _begin(self, attempt: Attempt) -> tuple[Proposing, Request]:
        """Start an iteration from the best response so far; return the method's generator and its first request."""
        row = PromptWithReference(attempt.draft.prompt, attempt.best)
        seed = row_seed(self.config.seed, attempt.draft, len(attempt.iterations) + 1)
        proposing = PROPOSE[self.config.method](self.writer, row, seed)
        return proposing, next(proposing)

    def _open_batching(self, requests: Sequence[Request]) -> ContinuousBatching | StaticBatching:
        """Open slots for conversations as long as these can become."""
        writer, config = self.writer, self.config
        new = writer.decoding.max_new_tokens
        longest = max((len(request.prompt) for request in requests), default=0) + 2 * new
        longest += extra_room(config.method, writer.chat, new)
        role = IMPROVER if config.method is Method.pit else writer.policy
        slots = min(len(requests), config.sample_batch_size)
        return open_batching(writer.model, role, writer.decoding, slots, longest)

    def _continues(self, attempt: Attempt) -> bool:
        """Return whether the attempt has another iteration."""
        if attempt.stop_reason is not None:
            return False
        if self.budgets is None:
            return len(attempt.iterations) < self.config.max_iters
        return attempt.tokens() < self.budgets[row_key(attempt.draft)]

    def _judged(self, attempts: Sequence[Attempt], proposals: Mapping[int, Proposal]) -> Iterator[tuple[int, Attempt]]:
        """Score the proposals, by index of their attempt; yield (index, attempt after its proposal)."""
        # best-of-N compares each sample with the draft, the other methods compare with the best so far
        ranked = self.config.method is Method.best_of_n
        gaps: list[float | None] = [None] * len(proposals)
        if self.gap_model is not None and proposals:
            comparisons = []
            for index, proposal in proposals.items():
                draft, best = attempts[index].draft, attempts[index].best
                reference = draft.response if ranked else best
                comparisons.append(Comparison(draft.prompt, proposal.response or reference, reference))
            gaps = self.gap_model.gaps(comparisons).tolist()
        for (index, proposal), gap in zip(proposals.items(), gaps, strict=True):
            attempt = attempts[index]
            if ranked:
                yield index, best_of_n(attempt, proposal, gap)
            else:
                yield index, after_proposal(attempt, proposal, gap, self.config)


def _ended(attempt: Attempt) -> Attempt:
    return attempt._replace(stop_reason=attempt.stop_reason or StopReason.max_iters)

"""The scheduler of improvements: with what drafts are improved, and all drafts of a file in their order."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import Any, NamedTuple

from pitcli.console import counted, warn
from pitcli.data.rows import Comparison, Draft
from pitcli.data.streams import row_key, row_seed
from pitcli.engine.generation.continuous_batching import open_batching
from pitcli.engine.generation.endpoint import EndpointBatching
from pitcli.engine.generation.methods import (
    PROPOSE,
    LocalWriter,
    PromptWithReference,
    Proposal,
    Writer,
    extra_room,
)
from pitcli.engine.improving.endpoint_gap import EndpointGapModel
from pitcli.engine.improving.improvements import Batching, Improvements, Iteration
from pitcli.engine.improving.scoring import GapModel
from pitcli.engine.improving.stop_rule import Attempt, ScoredProposal, StopReason, at_end
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
        improvements = Improvements(self._open_batching, self.config.width)
        source, places, ended, yielded = enumerate(drafts), dict[int, int](), dict[int, Attempt](), 0
        while True:
            room = most(yielded) - len(improvements) - len(ended) if most else None
            for place, draft in islice(source, room):
                attempt = Attempt(draft, draft.response, [])
                if self.continues(attempt):
                    places[improvements.add(self, attempt)] = place
                else:
                    ended[place] = at_end(attempt, self.config)
            if not (improvements or ended):
                return
            for key, attempt in improvements.advance() if improvements else ():
                if attempt.stop_reason is not None:
                    ended[places.pop(key)] = attempt
            while yielded in ended:
                yield ended.pop(yielded)
                yielded += 1

    def begin(self, index: int, attempt: Attempt) -> Iteration:
        """Start an iteration from the best response so far: --width proposals, each with its own seed."""
        width = self.config.width
        row = PromptWithReference(attempt.draft.prompt, attempt.best)
        seed = row_seed(self.config.seed, attempt.draft, len(attempt.iterations) + 1)
        proposing = [PROPOSE[self.config.method](self.writer, row, seed + SEED_STEP * k) for k in range(width)]
        return Iteration(proposing, [(index * width + k, next(started)) for k, started in enumerate(proposing)], {})

    def continues(self, attempt: Attempt) -> bool:
        """Return whether the attempt has another iteration."""
        if attempt.stop_reason is not None:
            return False
        if self.budgets is None:
            return len(attempt.iterations) < self.config.max_iters
        return attempt.tokens() < self.budgets[row_key(attempt.draft)]

    def scored(self, rows: Sequence[tuple["Scheduler", Attempt, Proposal]]) -> list[ScoredProposal]:
        """Return each proposal with its gap; with several gap models, also with the field gap_std of its record.

        The gap is that over the best response so far; of best-of-n over the draft.
        """
        proposals = [proposal for *_, proposal in rows]
        if self.gap_model is None or not rows:
            return [ScoredProposal(proposal, None) for proposal in proposals]
        comparisons = []
        for scheduler, attempt, proposal in rows:
            over_draft = scheduler.config.method is Method.best_of_n
            reference = attempt.draft.response if over_draft else attempt.best
            comparisons.append(Comparison(attempt.draft.prompt, proposal.response or reference, reference))
        gaps, stds = self.gap_model.gaps_with_std(comparisons)
        if stds is not None:
            fields = [{"gap_std": std if math.isfinite(std) else None} for std in stds]
            proposals = [p._replace(extra=p.extra | field) for p, field in zip(proposals, fields, strict=True)]
        return list(map(ScoredProposal, proposals, gaps))

    def _open_batching(self, requests: Sequence[Any]) -> Batching:
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

"""Improvements in progress: many drafts side by side, each at its own iteration, y0 -> y1 -> y2 ...

A method (methods.py) proposes responses and the stop rule (stop_rule.py) accepts or rejects them. Slots are kept busy:
they go to the drafts that continue, then to new ones, and the responses that have just ended are scored together.
"""

from collections import deque
from collections.abc import Callable, Sequence
from itertools import count, islice
from typing import TYPE_CHECKING, Any, NamedTuple

from pitcli.engine.generation.continuous_batching import ContinuousBatching
from pitcli.engine.generation.endpoint import EndpointBatching, Unanswered
from pitcli.engine.generation.methods import Proposal, Proposing
from pitcli.engine.generation.static_batching import StaticBatching
from pitcli.engine.improving.pruning import prune
from pitcli.engine.improving.stop_rule import (
    Attempt,
    StopReason,
    after_proposal,
    at_end,
    best_of_n,
    best_of_width,
    settled,
)
from pitcli.settings.base import Method

if TYPE_CHECKING:
    from pitcli.engine.improving.scheduler import Scheduler

Batching = ContinuousBatching | StaticBatching | EndpointBatching
OpenBatching = Callable[[Sequence[Any]], Batching]


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

    def is_complete(self) -> bool:
        return len(self.proposals) == len(self.proposing)

    def complete(self) -> list[Proposal]:
        """Return the proposals by number."""
        return [proposal for _, proposal in sorted(self.proposals.items())]


class _Improvement(NamedTuple):
    """A draft with its settings, the attempt so far, and the iteration in progress."""

    scheduler: "Scheduler"
    attempt: Attempt
    iteration: Iteration


class Improvements:
    """Improves drafts that come and go side by side; each has its own settings, but for --width and the gap model.

    The caller adds drafts and calls `advance` until none is left. A draft's result depends on its own text, settings
    and seed only. open_batching: opens the slots, given the first requests.
    """

    def __init__(self, open_batching: OpenBatching, width: int) -> None:
        self._open_batching, self._width = open_batching, width
        self._batching: Batching | None = None
        self._slots = 0
        self._improvements: dict[int, _Improvement] = {}
        self._waiting: deque[tuple[int, Any]] = deque()
        self._indices = count()

    def __len__(self) -> int:
        return len(self._improvements)

    def waiting(self) -> int:
        """Return how many responses wait for a slot."""
        return len(self._waiting)

    def add(self, scheduler: "Scheduler", attempt: Attempt) -> int:
        """Begin the next iteration of an attempt, which must have one; return its key."""
        index = next(self._indices)
        self._waiting.extend(self._begin(index, scheduler, attempt))
        return index

    def drop(self, index: int) -> None:
        """Forget an improvement and free its slots; nothing happens if it has ended."""
        if self._improvements.pop(index, None):
            self._waiting = deque(item for item in self._waiting if item[0] // self._width != index)
            for number in range(self._width if self._batching else 0):
                self._batching.drop(index * self._width + number)  # type: ignore[union-attr]

    def restart(self) -> None:
        """Begin the current iteration of every draft again, in new slots."""
        self._waiting.clear()
        self._batching = None
        for index, (scheduler, attempt, _) in self._improvements.items():
            self._waiting.extend(self._begin(index, scheduler, attempt))

    def advance(self) -> list[tuple[int, Attempt]]:
        """Run one pass over the slots; return (key, attempt) after each iteration that has been judged.

        The attempts are as if they ended there. An attempt with a stop reason has ended, and its draft is forgotten.
        While responses wait for slots, slots are refilled and proposals scored by several at a time; otherwise each as
        soon as possible.
        """
        if self._batching is None:
            self._batching = self._open_batching([request for _, request in self._waiting])
            self._slots = self._batching.free()
        batching, free = self._batching, self._batching.free()
        enough = batching.refill if len(self._waiting) > free else 1
        if self._waiting and free >= min(enough, len(self._waiting)):
            batching.admit([self._waiting.popleft() for _ in range(min(free, len(self._waiting)))])
        failed = self._receive(batching.advance())
        complete = [index for index, (_, _, iteration) in self._improvements.items() if iteration.is_complete()]
        is_idle = batching.free() == self._slots
        return [*failed, *(self._judge(complete) if len(complete) >= enough or is_idle else [])]

    def _begin(self, index: int, scheduler: "Scheduler", attempt: Attempt) -> list[tuple[int, Any]]:
        """Begin the next iteration of a draft; return its first requests."""
        iteration = scheduler.begin(index, attempt)
        self._improvements[index] = _Improvement(scheduler, attempt, iteration)
        return iteration.first_requests

    def _receive(self, samples: Sequence[tuple[int, Any]]) -> list[tuple[int, Attempt]]:
        """Pass samples to the proposals that asked for them; return the attempts that ended without a reply."""
        failed: list[tuple[int, Attempt]] = []
        next_requests: list[tuple[int, Any]] = []
        for key, sample in samples:
            index, number = divmod(key, self._width)
            if index not in self._improvements:
                continue  # another proposal of this iteration got no reply
            scheduler, attempt, iteration = self._improvements[index]
            if isinstance(sample, Unanswered):
                unanswered = attempt._replace(stop_reason=StopReason.no_reply, problem=sample.reason)
                failed.append((index, at_end(unanswered, scheduler.config)))
                self.drop(index)
            else:
                next_requests += [(key, request) for request in iteration.receive(number, sample)]
        kept = [item for item in next_requests if item[0] // self._width in self._improvements]
        self._waiting.extendleft(reversed(kept))
        return failed

    def _judge(self, indices: Sequence[int]) -> list[tuple[int, Attempt]]:
        """Score the complete iterations of these drafts together, and begin the next iterations."""
        results, requests = [], list[tuple[int, Any]]()
        judged = [self._improvements[index] for index in indices]
        for index, (scheduler, *_), attempt in zip(indices, judged, _after_iteration(judged), strict=True):
            if scheduler.continues(attempt):
                requests += self._begin(index, scheduler, attempt)
                results.append((index, settled(attempt, scheduler.config)))
            else:
                results.append((index, at_end(attempt, scheduler.config)))
                del self._improvements[index]
        self._waiting.extendleft(reversed(requests))
        return results


def _after_iteration(improvements: Sequence[_Improvement]) -> list[Attempt]:
    """Return the attempts after the complete iterations of these drafts, whose proposals are scored together."""
    if not improvements:
        return []
    first = improvements[0].scheduler
    rows = [(each.scheduler, each.attempt, proposal) for each in improvements for proposal in each.iteration.complete()]
    scored = iter(first.scored(rows))
    attempts = []
    for scheduler, attempt, iteration in improvements:
        config = scheduler.config
        best = best_of_width(attempt, [*islice(scored, len(iteration.proposing))], config)
        after = best_of_n if config.method is Method.best_of_n else after_proposal
        attempts.append(after(attempt, best.proposal, best.gap, config))
    if first.config.prune_edits and first.gap_model is not None:
        steps = [(each.attempt, attempt) for each, attempt in zip(improvements, attempts, strict=True)]
        return prune(first.gap_model, steps)
    return attempts

"""Improvements that come and go: those of a server, whose requests arrive and are cancelled at any time."""

from collections import deque
from collections.abc import Callable
from itertools import count

from pitcli.engine.generation.continuous_batching import ContinuousBatching
from pitcli.engine.generation.methods import Proposal
from pitcli.engine.generation.sampling import Request
from pitcli.engine.generation.static_batching import StaticBatching
from pitcli.engine.improving.scheduler import Iteration, Scheduler
from pitcli.engine.improving.stop_rule import Attempt, after_proposal, at_end, best_of_width, settled


class _Improvement:
    """One draft. complete: its proposals of an iteration that is not scored yet."""

    def __init__(self, scheduler: Scheduler, attempt: Attempt) -> None:
        self.scheduler, self.attempt = scheduler, attempt
        self.iteration: Iteration | None = None
        self.complete: list[Proposal] = []


class LiveImprovements:
    """Improves drafts with PIT's improver side by side; each has its own settings, but for --width.

    The caller adds drafts and calls `advance` until none is left. A draft's result depends on its own text, settings
    and seed only, as in Scheduler.improve.
    """

    def __init__(self, open_batching: Callable[[], ContinuousBatching | StaticBatching], width: int) -> None:
        self._width = width
        self._batching = open_batching()
        self._slots = self._batching.free()
        self._improvements: dict[int, _Improvement] = {}
        self._waiting: deque[tuple[int, Request]] = deque()
        self._indices = count()

    def __len__(self) -> int:
        return len(self._improvements)

    def waiting(self) -> int:
        """Return how many responses wait for a slot."""
        return len(self._waiting)

    def add(self, scheduler: Scheduler, attempt: Attempt) -> int:
        """Begin the next iteration of an attempt, which must have one; return its key."""
        index = next(self._indices)
        self._improvements[index] = _Improvement(scheduler, attempt)
        self._waiting.extend(self._begin(index))
        return index

    def drop(self, index: int) -> None:
        """Forget an improvement and free its slots; nothing happens if it has ended."""
        if self._improvements.pop(index, None):
            self._waiting = deque(item for item in self._waiting if item[0] // self._width != index)
            for number in range(self._width):
                self._batching.drop(index * self._width + number)

    def restart(self, open_batching: Callable[[], ContinuousBatching | StaticBatching]) -> None:
        """Begin the current iteration of every draft again, in new slots."""
        self._waiting.clear()
        self._batching = open_batching()
        self._slots = self._batching.free()
        for index in self._improvements:
            self._waiting.extend(self._begin(index))

    def advance(self) -> list[tuple[int, Attempt]]:
        """Run one pass over the slots; return (key, attempt) after each iteration that has been judged.

        The attempts are as if they ended there.
        An attempt with a stop reason has ended, and its draft is forgotten. While responses wait for slots, slots are
        refilled and proposals scored by several at a time; otherwise each as soon as possible.
        """
        batching, free = self._batching, self._batching.free()
        enough = batching.refill if len(self._waiting) > free else 1
        if self._waiting and free >= min(enough, len(self._waiting)):
            batching.admit([self._waiting.popleft() for _ in range(min(free, len(self._waiting)))])
        next_requests: list[tuple[int, Request]] = []
        for key, sample in batching.advance():
            index, number = divmod(key, self._width)
            improvement = self._improvements[index]
            assert improvement.iteration is not None
            next_requests += [(key, request) for request in improvement.iteration.receive(number, sample)]
            improvement.complete = improvement.iteration.complete()
        self._waiting.extendleft(reversed(next_requests))
        complete = [index for index, improvement in self._improvements.items() if improvement.complete]
        is_idle = batching.free() == self._slots
        return self._judge(complete) if len(complete) >= enough or is_idle else []

    def _begin(self, index: int) -> list[tuple[int, Request]]:
        """Begin the next iteration of a draft; return its first requests."""
        improvement = self._improvements[index]
        improvement.complete = []
        improvement.iteration = improvement.scheduler.begin(index, improvement.attempt)
        return improvement.iteration.first_requests

    def _judge(self, indices: list[int]) -> list[tuple[int, Attempt]]:
        """Score the complete iterations of these drafts together, and begin the next iterations."""
        judged = [self._improvements[index] for index in indices]
        rows = [(improvement.attempt, proposal) for improvement in judged for proposal in improvement.complete]
        scored = iter(judged[0].scheduler.scored(rows, ranked=False)) if judged else iter(())
        results = []
        for index, improvement in zip(indices, judged, strict=True):
            scheduler = improvement.scheduler
            best = best_of_width(improvement.attempt, [next(scored) for _ in improvement.complete], scheduler.config)
            attempt = after_proposal(improvement.attempt, best.proposal, best.gap, scheduler.config)
            if scheduler.continues(attempt):
                improvement.attempt = attempt
                self._waiting.extendleft(reversed(self._begin(index)))
                results.append((index, settled(attempt, scheduler.config)))
            else:
                results.append((index, at_end(attempt, scheduler.config)))
                del self._improvements[index]
        return results

"""The engine thread: the only one that uses the model; it improves and scores what all requests send.

The event loop puts jobs into an inbox, and the thread sends their results back through the loop. A job that nobody
waits for any more is dropped from the slots before the next pass.
"""

import asyncio
from collections import Counter, deque
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import suppress
from queue import Empty, SimpleQueue
from threading import Thread
from typing import Any

from pitcli.console import error, warn
from pitcli.data.candidates import Candidates, check_candidates
from pitcli.data.drafts import draft_without_thoughts
from pitcli.data.long_rows import Limit, check_conversation
from pitcli.data.rows import Comparison, Draft
from pitcli.engine.generation.continuous_batching import ContinuousBatching, open_batching
from pitcli.engine.generation.methods import LocalWriter
from pitcli.engine.generation.static_batching import StaticBatching
from pitcli.engine.improving.explaining import Explanation, explain
from pitcli.engine.improving.improvements import Improvements
from pitcli.engine.improving.ranking import Scores, score
from pitcli.engine.improving.scheduler import Scheduler
from pitcli.engine.improving.scoring import GapModel, within_memory
from pitcli.engine.improving.stop_rule import Attempt, at_end
from pitcli.engine.models.roles import IMPROVER
from pitcli.errors import is_out_of_memory
from pitcli.serving.errors import for_the_log


class EngineProblem(Exception):
    """The engine failed while it worked on a job; its message is for the client."""


class _Job:
    """Work for the engine thread. An exception among the results ends it."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.results: asyncio.Queue[Any] = asyncio.Queue()

    def send(self, result: object) -> None:
        """Pass a result to the event loop, from the engine thread."""
        with suppress(RuntimeError):  # the loop is closed: the server has stopped
            self._loop.call_soon_threadsafe(self.results.put_nowait, result)


class _ImproveJob(_Job):
    def __init__(self, scheduler: Scheduler, draft: Draft) -> None:
        super().__init__()
        self.scheduler, self.draft = scheduler, draft


class _ScoreJob(_Job):
    """candidates: the texts, which must fit into the context. compute: what to do with them."""

    def __init__(self, candidates: Candidates, compute: Callable[[GapModel], Scores | Explanation]) -> None:
        super().__init__()
        self.candidates, self.compute = candidates, compute


class Engine:
    """Improves drafts and scores comparisons for many requests at a time.

    slots: drafts in progress. max_length: longest conversation in tokens.
    """

    def __init__(self, scheduler: Scheduler, max_length: int) -> None:
        assert isinstance(scheduler.writer, LocalWriter) and isinstance(scheduler.gap_model, GapModel)
        self.scheduler, self.max_length = scheduler, max_length
        self.writer, self.gap_model = scheduler.writer, scheduler.gap_model
        self._slots = scheduler.config.sample_batch_size
        self._improvements = Improvements(self._open_batching, scheduler.config.width)
        self._jobs: dict[int, _ImproveJob] = {}  # by key of the improvement
        self._scores: deque[_ScoreJob] = deque()
        self._inbox: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._stopped = False
        self.tokens = 0  # generated since the start
        self._thread = Thread(target=self._run, name="engine", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop after the pass that is running; what is not done by then is forgotten."""
        self._inbox.put(self._stop)
        self._thread.join()

    def is_alive(self) -> bool:
        return self._thread.is_alive()

    def in_progress(self) -> int:
        """Return how many drafts are being improved and requests scored."""
        return len(self._jobs) + len(self._scores)

    def waiting(self) -> int:
        """Return how many responses wait for a slot."""
        return self._improvements.waiting()

    async def improve(self, scheduler: Scheduler, draft: Draft) -> AsyncGenerator[Attempt, None]:
        """Yield the attempt after each iteration; the last one has a stop reason.

        Raises RowProblem if the draft cannot be improved, EngineProblem if the engine fails. If the iterator is closed
        early, the draft leaves its slot.
        """
        job = _ImproveJob(scheduler, draft)
        self._inbox.put(lambda: self._begin(job))
        try:
            while True:
                attempt = await job.results.get()
                if isinstance(attempt, Exception):
                    raise attempt
                yield attempt
                if attempt.stop_reason is not None:
                    return
        finally:
            self._inbox.put(lambda: self._drop(job))

    async def scores(self, candidates: Candidates) -> Scores:
        """Return the scores of responses; RowProblem if they do not fit, EngineProblem if the engine fails."""
        found: Scores = await self._scored(_ScoreJob(candidates, lambda gap_model: score(gap_model, [candidates])[0]))
        return found

    async def explanation(self, improvement: Comparison) -> Explanation:
        """Return what each edit of a response does, compared with its draft; raises as `scores` does."""
        prompt, response, draft = improvement
        longest = self.max_length  # a response without an edit may be longer than both texts

        def compute(gap_model: GapModel) -> Explanation:
            return explain(gap_model._replace(max_length=longest), [improvement])[0]

        found: Explanation = await self._scored(_ScoreJob(Candidates(prompt, (response,), draft), compute))
        return found

    async def _scored(self, job: _ScoreJob) -> Any:
        self._inbox.put(lambda: self._begin_scores(job))
        try:
            result = await job.results.get()
        finally:
            self._inbox.put(lambda: self._drop_scores(job))
        if isinstance(result, Exception):
            raise result
        return result

    def _stop(self) -> None:
        self._stopped = True

    def _run(self) -> None:
        while not self._stopped:
            self._read_inbox(wait=not self.in_progress())
            try:
                self._work()
            except Exception as problem:
                self._recover(problem)

    def _read_inbox(self, wait: bool) -> None:
        """Take all messages; wait for one if there is nothing else to do."""
        with suppress(Empty):
            while True:
                self._inbox.get(block=wait)()
                wait = False

    def _begin(self, job: _ImproveJob) -> None:
        chat, config = self.writer.chat, job.scheduler.config
        try:
            draft = draft_without_thoughts(job.draft, chat.thought_tags)
            limit = Limit(chat, self.max_length, config.max_new_tokens)
            check_conversation(draft.prompt, {"response": draft.response}, limit, Counter())
            attempt = Attempt(draft, draft.response, [])
            if job.scheduler.continues(attempt):
                self._jobs[self._improvements.add(job.scheduler, attempt)] = job
            else:
                job.send(at_end(attempt, config))
        except Exception as problem:  # a RowProblem, and anything that this draft alone causes
            job.send(problem)

    def _begin_scores(self, job: _ScoreJob) -> None:
        limit = Limit(self.writer.chat, self.max_length, responses=self.gap_model.loss.responses_read)
        try:
            check_candidates(job.candidates, limit, Counter())
        except Exception as problem:
            job.send(problem)
        else:
            self._scores.append(job)

    def _drop(self, job: _ImproveJob) -> None:
        for key in [key for key, other in self._jobs.items() if other is job]:
            del self._jobs[key]
            self._improvements.drop(key)

    def _drop_scores(self, job: _ScoreJob) -> None:
        if job in self._scores:
            self._scores.remove(job)

    def _work(self) -> None:
        """Do one pass of the improvements, and score the responses of one request."""
        for key, attempt in self._improvements.advance() if self._improvements else ():
            self.tokens += attempt.iterations[-1]["generated_tokens"]
            job = self._jobs[key] if attempt.stop_reason is None else self._jobs.pop(key)
            job.send(attempt)
        if self._scores:
            asked = self._scores[0]
            [found] = within_memory(self.gap_model, [asked], lambda gap_model, jobs: [jobs[0].compute(gap_model)])
            self._scores.popleft()
            if found is None:
                asked.send(EngineProblem("out of memory on this request"))
            else:
                asked.send(found if found.are_finite() else EngineProblem("no finite gap"))

    def _open_batching(self, requests: Sequence[Any]) -> ContinuousBatching | StaticBatching:
        return open_batching(self.writer.model, IMPROVER, self.writer.decoding, self._slots, self.max_length)

    def _recover(self, problem: Exception) -> None:
        """Out of memory: half the slots. Otherwise, or with one slot left: the jobs fail, and the engine continues."""
        if is_out_of_memory(problem) and self._slots > 1:
            self._slots //= 2
            warn(f"out of memory; continuing with {self._slots} drafts together (--sample-batch-size)")
        else:
            failure = EngineProblem(
                "out of memory on this request" if is_out_of_memory(problem) else "the engine failed on this request"
            )
            error(f"{failure}: {for_the_log(problem)}")
            for job in [*self._jobs.values(), *self._scores]:
                job.send(failure)
            for key in self._jobs:
                self._improvements.drop(key)
            self._jobs.clear()
            self._scores.clear()
        self._improvements.restart()

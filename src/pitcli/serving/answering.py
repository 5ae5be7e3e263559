"""Answers requests: asks the upstream for drafts, has the engine improve or rank them, and keeps the time limit."""

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from pitcli.data.candidates import Candidates
from pitcli.data.long_rows import TooLong
from pitcli.data.rows import Comparison, Draft, Prompt
from pitcli.data.strict_json import RowProblem
from pitcli.engine.improving.explaining import Explanation
from pitcli.engine.improving.ranking import Scores
from pitcli.engine.improving.scheduler import Scheduler
from pitcli.engine.improving.stop_rule import Attempt
from pitcli.serving.engine import Engine, EngineProblem
from pitcli.serving.errors import RequestError, bad_request
from pitcli.serving.requests import (
    ChatRequest,
    ExplainRequest,
    RerankRequest,
    ScoreRequest,
    Task,
    draft_of,
    prompt_in,
    prompt_of,
    task_of,
)
from pitcli.serving.upstream import Upstream, WrittenDraft, different_seeds

TOO_LONG = "too_long"  # the draft of the upstream leaves no room for an improvement
TIMEOUT = "timeout"
BEST_OF_N = "best_of_n"


@dataclass
class Outcome:
    """What was done for a chat completion so far.

    drafts: those that the upstream wrote, with P(better than another of them) if there are several. stop_reason: None
    while it is being improved. tokens: prompt and completion tokens of the upstream.
    """

    prompt: Prompt
    draft: str = ""
    response: str = ""
    finished: bool | None = None
    from_upstream: bool = False
    iterations: list[dict[str, Any]] = field(default_factory=list)
    drafts: list[dict[str, Any]] = field(default_factory=list)
    stop_reason: str | None = None
    tokens: tuple[int, int] = (0, 0)

    def p_better(self) -> float | None:
        """Return P(better) of the response over what it was chosen instead of; None if the draft was kept."""
        accepted = [iteration["p_better"] for iteration in self.iterations if iteration["accepted"]]
        return accepted[-1] if accepted else max((draft["p_better"] for draft in self.drafts), default=None)

    def update(self, attempt: Attempt) -> None:
        self.response, self.iterations = attempt.best, attempt.iterations
        self.stop_reason = attempt.stop_reason
        if attempt.changed():
            self.finished = attempt.finished()

    def choose(self, drafts: Sequence[WrittenDraft], scores: Sequence[float]) -> None:
        """Take the best of several drafts; the first one counts as the draft."""
        best = max(range(len(drafts)), key=lambda index: scores[index])
        self.draft, self.response, self.finished = drafts[0].text, drafts[best].text, drafts[best].finished
        self.drafts = [
            {"response": draft.text, "p_better": score, "finished": draft.finished}
            for draft, score in zip(drafts, scores, strict=True)
        ]
        self.stop_reason = BEST_OF_N


class Answering:
    """Answers requests with an engine and, if there is one, an upstream; timeout_s is that of a request."""

    def __init__(self, engine: Engine, upstream: Upstream | None, timeout_s: float) -> None:
        self.engine, self.upstream, self.timeout_s = engine, upstream, timeout_s

    def checked(self, request: ChatRequest) -> Task:
        """Return what a request asks for; RequestError if it cannot be answered."""
        task = task_of(request.model, self.upstream is not None)
        (draft_of if task.upstream is None else prompt_of)(request.messages)
        self.scheduler_for(request)
        return task

    async def chat(self, request: ChatRequest, task: Task) -> AsyncGenerator[Outcome, None]:
        """Yield the outcome after the draft and after each iteration; the last one has a stop reason.

        When the time is up, the best response so far is the result, if anything was done for it.
        """
        until = time.monotonic() + self.timeout_s
        outcome = None
        try:
            async with aclosing(self._steps(request, task)) as steps:
                while True:
                    async with asyncio.timeout(until - time.monotonic()):
                        outcome = await anext(steps)
                    yield outcome
                    if outcome.stop_reason is not None:
                        return
        except TimeoutError:
            if outcome is None or not (outcome.iterations or outcome.from_upstream):
                raise self._too_late() from None
            outcome.stop_reason = TIMEOUT
            yield outcome
        except EngineProblem as problem:
            raise RequestError(500, str(problem), "engine_failed") from None

    async def _steps(self, request: ChatRequest, task: Task) -> AsyncGenerator[Outcome, None]:
        if task.upstream is None:
            prompt, draft = draft_of(request.messages)
            outcome = Outcome(prompt, draft, draft)
        else:
            outcome = Outcome(prompt_of(request.messages), from_upstream=True)
            drafts = await self._written(request, task, outcome.prompt)
            outcome.tokens = (sum(draft.prompt_tokens for draft in drafts), sum(draft.tokens for draft in drafts))
            outcome.draft, outcome.finished = drafts[0].text, drafts[0].finished
            outcome.response = outcome.draft
        try:
            if task.drafts > 1:
                outcome.choose(drafts, await self._ranked(outcome.prompt, [draft.text for draft in drafts]))
                yield outcome
                return
            yield outcome
            row = Draft(None, outcome.prompt, outcome.draft, {"finished": outcome.finished})
            async with aclosing(self.engine.improve(self.scheduler_for(request), row)) as attempts:
                async for attempt in attempts:
                    outcome.update(attempt)
                    yield outcome
        except TooLong as problem:
            if not outcome.from_upstream:
                raise bad_request(f"messages: {problem}", "messages", "context_length_exceeded") from None
            outcome.stop_reason = TOO_LONG
            yield outcome
        except RowProblem as problem:
            raise bad_request(f"messages: {problem}", "messages") from None

    async def _written(self, request: ChatRequest, task: Task, prompt: Prompt) -> list[WrittenDraft]:
        """Return the drafts of the upstream, asked for at the same time."""
        assert self.upstream is not None and task.upstream is not None
        writing = []
        try:
            async with asyncio.TaskGroup() as group:
                for seed in different_seeds(request.seed, task.drafts):
                    options = self.upstream.options(request.temperature, request.top_p, request.token_limit(), seed)
                    writing.append(group.create_task(self.upstream.write(task.upstream, prompt, options)))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None
        return [task.result() for task in writing]

    def scheduler_for(self, request: ChatRequest) -> Scheduler:
        """Return the scheduler with the settings of a request, none of which may cost more than those of the server."""
        scheduler, writer, options = self.engine.scheduler, self.engine.writer, request.pit
        config = scheduler.config
        if options.max_iters is not None and options.max_iters > config.max_iters:
            raise bad_request(f"pit.max_iters: expected at most {config.max_iters} (--max-iters of pit serve)", "pit")
        chosen = {
            "max_iters": options.max_iters,
            "threshold": options.threshold,
            "temperature": request.temperature,
            "top_p": request.top_p,
            "max_new_tokens": min(request.token_limit() or config.max_new_tokens, config.max_new_tokens),
            "seed": None if request.seed is None else request.seed % 2**32,
        }
        config = config.model_copy(update={name: value for name, value in chosen.items() if value is not None})
        decoding = writer.decoding._replace(
            temperature=config.temperature, top_p=config.top_p, max_new_tokens=config.max_new_tokens
        )
        return scheduler._replace(config=config, writer=writer._replace(decoding=decoding))

    async def rerank(self, request: RerankRequest) -> list[float]:
        """Return for each document P(better than another one), the mean over the others."""
        prompt, texts = prompt_in(request.query, "query"), request.texts()
        return await self._in_time(self._ranked(prompt, texts), "documents")

    async def score(self, request: ScoreRequest) -> list[dict[str, float]]:
        """Return the gap of each response over the reference response, and P(better)."""
        prompt = prompt_in(request.prompt, "prompt")
        responses = [request.response] if isinstance(request.response, str) else request.response
        candidates = Candidates(prompt, tuple(responses), request.reference)
        scores: Scores = await self._in_time(self.engine.scores(candidates), "response")
        found = {"gap": scores.gap, "p_better": scores.p_better}
        found |= {"gap_std": scores.gap_std} if scores.gap_std else {}
        return [{name: values[index] for name, values in found.items()} for index in range(len(responses))]

    async def explain(self, request: ExplainRequest) -> dict[str, Any]:
        """Return the gap of the response over the draft, and its edits as pit explain writes them."""
        improvement = Comparison(prompt_in(request.prompt, "prompt"), request.response, request.draft)
        found: Explanation = await self._in_time(self.engine.explanation(improvement), "response")
        return {"gap": found.gap, "edits": [edit.fields() for edit in found.edits]}

    async def _in_time(self, work: Any, param: str) -> Any:
        try:
            async with asyncio.timeout(self.timeout_s):
                return await work
        except TimeoutError:
            raise self._too_late() from None
        except TooLong as problem:
            raise bad_request(f"{param}: {problem}", param, "context_length_exceeded") from None
        except RowProblem as problem:
            raise bad_request(f"{param}: {problem}", param) from None
        except EngineProblem as problem:
            raise RequestError(500, str(problem), "engine_failed") from None

    async def _ranked(self, prompt: Prompt, texts: Sequence[str]) -> list[float]:
        """Return P(better) of each text, the mean over the others; a single text has 0.5."""
        if len(texts) == 1:
            return [0.5]
        return (await self.engine.scores(Candidates(prompt, tuple(texts), None))).p_better

    def _too_late(self) -> RequestError:
        message = f"not answered within {self.timeout_s:g} s (--request-timeout of pit serve)"
        return RequestError(504, message, "timeout")

"""The web application: its routes, how they answer, and what happens when a client leaves."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from pitcli.console import error as log_error
from pitcli.serving.answering import Answering, Outcome
from pitcli.serving.errors import RequestError, for_the_log
from pitcli.serving.guard import Admission, App, Guard, Limits
from pitcli.serving.metrics import CONTENT_TYPE_LATEST, Metrics
from pitcli.serving.page import Page
from pitcli.serving.pairs import PairFile
from pitcli.serving.recording import LEFT, QUIET, Recording, log_fields
from pitcli.serving.replies import ChatReply, event, headers_of
from pitcli.serving.requests import (
    GAP,
    IMPROVE,
    ChatRequest,
    ExplainRequest,
    PairRequest,
    RerankRequest,
    ScoreRequest,
    prompt_in,
    read_body,
)

T = TypeVar("T")


@dataclass
class Server:
    """What the routes answer with. pairs: where the page's choices go (None: nowhere)."""

    answering: Answering
    page: Page
    pairs: PairFile | None
    log_prompts: bool
    metrics: Metrics | None = None

    async def chat(self, request: Request) -> Response:
        body: ChatRequest = read_body(await request.body(), ChatRequest)
        task = self.answering.checked(body)
        reply = ChatReply(body, self.answering.engine.writer.chat)
        outcomes = self.answering.chat(body, task)
        if not body.stream:
            outcome = await unless_client_leaves(request, last(outcomes))
            self._record(request, body, outcome)
            return JSONResponse(reply.completion(outcome), headers=headers_of(outcome))
        # an error of the upstream must come before the headers of a stream
        first = await unless_client_leaves(request, anext(outcomes))
        return EventStream(self._events(request, reply, first, outcomes), outcomes)

    async def _events(
        self, request: Request, reply: ChatReply, first: Outcome, outcomes: AsyncGenerator[Outcome, None]
    ) -> AsyncGenerator[str, None]:
        """Yield the events of a stream: what was done after each iteration, then the response.

        Tokens that are not judged yet are not sent: the stop rule may reject them.
        """
        yield reply.chunk({"role": "assistant", "content": ""}, first)
        outcome = first
        try:
            async for outcome in outcomes:
                if outcome.stop_reason is None:
                    yield reply.chunk({}, outcome)
        except RequestError as error:
            yield event(error.body())
            return
        self._record(request, reply.request, outcome)
        for chunk in reply.last_chunks(outcome):
            yield chunk

    def _record(self, request: Request, body: ChatRequest, outcome: Outcome) -> None:
        request.scope["pit"].update(log_fields(outcome, body.model, self.log_prompts))
        if self.metrics:
            self.metrics.improved(outcome)

    async def rerank(self, request: Request) -> Response:
        body: RerankRequest = read_body(await request.body(), RerankRequest)
        check_gap(body.model)
        scores = await unless_client_leaves(request, self.answering.rerank(body))
        ranked = sorted(range(len(scores)), key=lambda index: -scores[index])[: body.top_n]
        texts = body.texts()
        results = [
            {
                "index": index,
                "relevance_score": scores[index],
                **({"document": {"text": texts[index]}} if body.return_documents else {}),
            }
            for index in ranked
        ]
        return JSONResponse({"object": "list", "model": body.model, "results": results})

    async def score(self, request: Request) -> Response:
        body: ScoreRequest = read_body(await request.body(), ScoreRequest)
        check_gap(body.model)
        scores = await unless_client_leaves(request, self.answering.score(body))
        data = [{"index": i, "object": "score", "score": s["p_better"], **s} for i, s in enumerate(scores)]
        return JSONResponse({"object": "list", "model": body.model, "data": data})

    async def explain(self, request: Request) -> Response:
        body: ExplainRequest = read_body(await request.body(), ExplainRequest)
        return JSONResponse(await unless_client_leaves(request, self.answering.explain(body)))

    async def keep(self, request: Request) -> Response:
        """Append the pair that somebody chose on the page."""
        if self.pairs is None:
            raise RequestError(404, "pairs are not collected; start pit serve with --collect FILE", "not_collected")
        pair: PairRequest = read_body(await request.body(), PairRequest)
        await asyncio.to_thread(self.pairs.append, pair, prompt_in(pair.prompt, "prompt"))
        return JSONResponse({"saved": True})

    async def models(self, request: Request) -> Response:
        upstream = self.answering.upstream
        written = await upstream.models() if upstream else []
        names = [IMPROVE, GAP, *(f"pit/{name}" for name in written), *(f"pit/best-of-4/{name}" for name in written)]
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "pit"} for name in names]
        return JSONResponse({"object": "list", "data": data})

    async def health(self, request: Request) -> Response:
        alive = self.answering.engine.is_alive()
        return JSONResponse({"status": "ok" if alive else "the engine has stopped"}, 200 if alive else 503)

    async def metrics_text(self, request: Request) -> Response:
        assert self.metrics is not None
        return Response(self.metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def index(self, request: Request) -> Response:
        return HTMLResponse(self.page.html, headers=self.page.headers)

    def routes(self) -> list[Route]:
        return [
            Route("/", self.index),
            Route("/health", self.health),
            Route("/metrics", self.metrics_text),
            Route("/v1/models", self.models),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/rerank", self.rerank, methods=["POST"]),
            Route("/score", self.score, methods=["POST"]),
            Route("/v1/score", self.score, methods=["POST"]),
            Route("/explain", self.explain, methods=["POST"]),
            Route("/pairs", self.keep, methods=["POST"]),
        ]


def application(server: Server, limits: Limits, max_requests: int) -> App:
    """Return the whole application; the engine runs while it does."""
    engine, upstream = server.answering.engine, server.answering.upstream

    @asynccontextmanager
    async def running(app: Starlette) -> AsyncIterator[None]:
        engine.start()
        yield
        await asyncio.to_thread(engine.stop)
        if upstream:
            await upstream.close()

    routes = server.routes()
    handlers: Mapping[Any, Any] = {RequestError: answer_error, HTTPException: answer_unknown, Exception: answer_bug}
    starlette = Starlette(routes=routes, lifespan=running, exception_handlers=dict(handlers))
    admission = Admission(starlette, max_requests, {"/", "/v1/models", *QUIET})
    server.metrics = Metrics(engine, lambda: admission.running)
    return Recording(Guard(admission, limits), server.metrics, {route.path for route in routes})


class EventStream(StreamingResponse):
    """A stream of events; when it ends or its client leaves, the work for it ends too."""

    def __init__(self, events: AsyncGenerator[str, None], outcomes: AsyncGenerator[Outcome, None]) -> None:
        super().__init__(events, media_type="text/event-stream", headers={"Cache-Control": "no-store"})
        self._events, self._outcomes = events, outcomes

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async with aclosing(self._outcomes), aclosing(self._events):
            await super().__call__(scope, receive, send)


async def unless_client_leaves(request: Request, work: Awaitable[T]) -> T:
    """Return the result of the work; cancel it and raise RequestError if the client leaves before."""
    working = asyncio.ensure_future(work)
    leaving = asyncio.ensure_future(_disconnected(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise RequestError(LEFT, "the client left", "client_left")
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
            with suppress(BaseException):
                await task


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def last(outcomes: AsyncGenerator[Outcome, None]) -> Outcome:
    async with aclosing(outcomes):
        async for outcome in outcomes:
            if outcome.stop_reason is not None:
                return outcome
    raise AssertionError("an outcome without a stop reason is not the last")


def check_gap(model: str) -> None:
    if model != GAP:
        raise RequestError(404, f"model: expected {GAP}, got {model[:80]}", "model_not_found", "model")


async def answer_error(request: Request, error: RequestError) -> Response:
    return JSONResponse(error.body(), error.status, headers=error.headers)


async def answer_unknown(request: Request, error: HTTPException) -> Response:
    what = f"{request.method} {request.url.path[:80]}: {error.detail}"
    body = RequestError(error.status_code, what, "not_found" if error.status_code == 404 else "not_allowed").body()
    return JSONResponse(body, error.status_code, headers=error.headers)


async def answer_bug(request: Request, error: Exception) -> Response:
    log_error(f"{request.method} {request.url.path[:80]}: {for_the_log(error)}")
    return JSONResponse(RequestError(500, "internal error of pit serve", "internal_error").body(), 500)

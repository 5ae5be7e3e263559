"""A writer behind an OpenAI-compatible endpoint, with the interface of continuous batching: free, admit, run.

The requests run in a thread with an event loop, so that replies arrive while the gap model scores earlier ones.
"""

import asyncio
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from itertools import islice
from queue import SimpleQueue
from threading import Thread
from typing import Any, NamedTuple, Self, TypeVar

from pitcli.console import warn
from pitcli.data.rows import Prompt
from pitcli.data.streams import WINDOW
from pitcli.data.thoughts import answer_of
from pitcli.endpoints.client import ABOUT_THE_REQUEST, Client, Endpoint, api_key, check_addresses, open_client
from pitcli.endpoints.replies import NoReply, Reply
from pitcli.engine.generation.methods import Proposal
from pitcli.settings.endpoints import OPENAI, WriterSettings

Row = TypeVar("Row")

SEEDS = 2**31  # servers differ in the largest seed that they accept
# Servers have defaults of their own for these: llama.cpp samples from the 40 best tokens, vLLM follows the model's
# generation_config.json. A repetition penalty changes greedy decoding too. min_tokens: as here, no response is empty.
NOTHING_ELSE = {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "repeat_penalty": 1.0, "min_tokens": 1}


class Question(NamedTuple):
    """A conversation to which the model writes the response. seed: of its random draws."""

    messages: Prompt
    seed: int


class Unanswered(NamedTuple):
    """What a question gets instead of a reply."""

    reason: str


class EndpointWriter(NamedTuple):
    """The model behind an endpoint that generates responses.

    template_options: variables that are set in the server's chat template.
    """

    endpoint: Endpoint
    temperature: float
    top_p: float
    max_new_tokens: int
    template_options: Mapping[str, Any]

    def request(self, prompt: Prompt, seed: int) -> Question:
        """Ask for the response to a prompt; earlier responses are sent without their thoughts, as in training."""
        cut = (m._replace(content=answer_of(m.content).text) if m.role == "assistant" else m for m in prompt)
        return Question(tuple(cut), seed)

    def proposal(self, reply: Reply) -> Proposal:
        extra = {"thoughts": reply.thoughts} if reply.thoughts else {}
        return Proposal(reply.text, reply.tokens or 0, reply.finished, extra)

    def fields(self, seed: int) -> dict[str, Any]:
        """Return the fields of a request besides its messages."""
        options = {"chat_template_kwargs": dict(self.template_options)} if self.template_options else {}
        limit = self.endpoint.length_limit(self.max_new_tokens)
        return {"temperature": self.temperature, "top_p": self.top_p, "seed": seed % SEEDS, **limit, **options}


def endpoint_of(config: WriterSettings, kept: str) -> Endpoint:
    """Return the endpoint of --writer; raise SettingsError if an address or the key cannot be one."""
    urls = config.base_urls()
    check_addresses(urls)
    api_key(urls)
    model = str(config.writer).removeprefix(OPENAI).strip()
    return Endpoint(f"--writer {config.writer}", model, urls, config.concurrency, config.request_timeout, kept)


class EndpointBatching:
    """Asks several questions at the same time; a context manager, which ends the requests that are still in flight.

    slots: most questions at a time. refill: replies are returned as soon as there is one.
    """

    refill = 1

    def __init__(self, writer: EndpointWriter) -> None:
        self.writer = writer
        self.slots = writer.endpoint.slots()
        self._sampling = NOTHING_ELSE if "max_tokens" in writer.endpoint.length_limit(1) else {}
        self._accepted = False  # whether the server has accepted these fields
        self._in_flight = 0
        self._ended: SimpleQueue[tuple[int, Reply | Unanswered | Exception]] = SimpleQueue()
        self._tasks: set[asyncio.Task[None]] = set()
        self._opened: Future[tuple[asyncio.AbstractEventLoop, asyncio.Event]] = Future()
        self._thread = Thread(target=lambda: asyncio.run(self._serve()), name="endpoint", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self._loop, self._over = self._opened.result()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join()

    def free(self) -> int:
        """Return how many questions can be admitted now."""
        return self.slots - self._in_flight

    def admit(self, questions: Sequence[tuple[int, Question]]) -> None:
        """Send (key, question) pairs; `run` returns each reply with its key."""
        self._in_flight += len(questions)
        for key, question in questions:
            self._loop.call_soon_threadsafe(self._begin, key, question)

    def run(self, until: int) -> list[tuple[int, Reply | Unanswered]]:
        """Wait until at least `until` questions are answered, or none is left; return the (key, reply) of each.

        Raises the error of a question if all others would fail too.
        """
        answered: list[tuple[int, Reply | Unanswered]] = []
        while self._in_flight and (len(answered) < until or not self._ended.empty()):
            key, reply = self._ended.get()
            self._in_flight -= 1
            if isinstance(reply, Exception):
                raise reply
            answered.append((key, reply))
        return answered

    def advance(self) -> list[tuple[int, Reply | Unanswered]]:
        """Wait until a question is answered; return the (key, reply) of each that is."""
        return self.run(1)

    def drop(self, key: int) -> None:
        """Nothing: a question that has been sent is answered, and nobody reads the reply."""

    async def _serve(self) -> None:
        try:
            async with open_client(self.writer.endpoint) as self._client:
                over = asyncio.Event()
                self._opened.set_result((asyncio.get_running_loop(), over))
                await over.wait()
                for task in self._tasks:
                    task.cancel()
                await asyncio.gather(*self._tasks, return_exceptions=True)
        except Exception as error:
            if self._opened.done():
                raise
            self._opened.set_exception(error)

    def _begin(self, key: int, question: Question) -> None:
        task = asyncio.get_running_loop().create_task(self._answer(key, question))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, key: int, question: Question) -> None:
        try:
            reply = await self._ask(self._client, question)
            uncounted = Unanswered("the server did not count the tokens (usage.completion_tokens)")
            self._ended.put((key, uncounted if reply.tokens is None else reply))
        except NoReply as problem:
            self._ended.put((key, Unanswered(problem.reason)))
        except Exception as error:
            self._ended.put((key, error))

    async def _ask(self, client: Client, question: Question) -> Reply:
        """Ask without the server's own sampling defaults; with them if it refuses fields that OpenAI does not have."""
        fields, sampling = self.writer.fields(question.seed), self._sampling
        try:
            reply = await client.chat(question.messages, **fields, **sampling)
            self._accepted = True
            return reply
        except NoReply as problem:
            if self._accepted or not sampling or problem.status not in ABOUT_THE_REQUEST:
                raise
            try:
                reply = await client.chat(question.messages, **fields)
            except NoReply:
                raise problem from None
        if self._sampling:
            self._sampling = {}
            warn(f"{self.writer.endpoint.option}: refuses {', '.join(sampling)}; its own defaults apply")
        return reply


def replies_in_order(
    batching: EndpointBatching, rows: Iterable[tuple[Row, Question]], at_once: bool
) -> Iterator[tuple[Row, Reply | Unanswered]]:
    """Yield each row with the reply to its question, in the order of the rows.

    At most WINDOW rows per slot are in memory. at_once: fill all slots at the start; otherwise, for rows from a pipe,
    one, two, four ..., so that the first rows come out before many are read.
    """
    source = enumerate(rows)
    open_rows: deque[tuple[int, Row]] = deque()
    replies: dict[int, Reply | Unanswered] = {}
    yielded = 0
    while True:
        while open_rows and open_rows[0][0] in replies:
            key, row = open_rows.popleft()
            yield row, replies.pop(key)
            yielded += 1
        most = WINDOW * batching.slots if at_once else min(WINDOW * batching.slots, 1 + yielded)
        for key, (row, question) in islice(source, min(batching.free(), most - len(open_rows))):
            open_rows.append((key, row))
            batching.admit([(key, question)])
        if not open_rows:
            return
        replies.update(batching.run(1))

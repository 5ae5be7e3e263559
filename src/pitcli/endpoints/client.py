"""A client of OpenAI-compatible servers: one model behind one or several addresses, with retries and a limit.

    async with open_client(Endpoint("--writer openai:m", "m", ("http://localhost:8000/v1",))) as client:
        reply = await client.chat(messages, max_tokens=64, temperature=0.0)

`chat` raises NoReply if this request got no reply, SettingsError if every other request would fail too (the key, the
model or the address is wrong), and RunError if no server can be reached.
"""

import asyncio
import json
import os
import random
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from urllib.parse import urlsplit

from pitcli.console import warn
from pitcli.data.rows import Message
from pitcli.endpoints.replies import NoReply, Reply, asked_wait, message_of, reply_of
from pitcli.errors import RunError, SettingsError

if TYPE_CHECKING:
    from openai import APIStatusError, AsyncOpenAI

T = TypeVar("T")

KEY_VARIABLE = "OPENAI_API_KEY"
MAX_RETRIES = 5
TIMEOUT_S = 300.0
CONNECT_S = 10.0
FIRST_WAIT_S = 0.5  # before the first retry; doubled each time
LONGEST_WAIT_S = 30.0  # also of what a server asks for by Retry-After
MOST_IN_A_ROW = 32  # requests without a reply, one after another, after which none will get one
RETRIED = {408, 409, 425, 429}  # and every 5xx
ABOUT_THE_REQUEST = {400, 413, 422}  # another request may succeed


def length_limit(base_urls: Sequence[str], tokens: int) -> dict[str, int]:
    """Return the field that limits a reply: OpenAI reads only the new one, some other servers only the old one."""
    of_openai = not base_urls or any(urlsplit(url).hostname == "api.openai.com" for url in base_urls)
    return {"max_completion_tokens" if of_openai else "max_tokens": tokens}


class Endpoint(NamedTuple):
    """A model behind OpenAI-compatible servers.

    option: what names it in errors, such as --writer openai:MODEL. base_urls: its servers, which are used alike; none:
    OpenAI's. concurrency: most requests in flight per server. timeout_s: of one request. kept: what a user reads when
    no server can be reached. not_found: what a 404 means.
    """

    option: str
    model: str
    base_urls: tuple[str, ...] = ()
    concurrency: int = 8
    timeout_s: float | None = None
    kept: str = "replies so far are kept"
    not_found: str = "has no such model (404), or --base-url is wrong (most end in /v1)"

    def slots(self) -> int:
        """Return the most requests in flight over all servers."""
        return self.concurrency * max(1, len(self.base_urls))

    def length_limit(self, tokens: int) -> dict[str, int]:
        return length_limit(self.base_urls, tokens)


class _Server:
    """One address.

    in_flight: requests that it has, or that wait for it. rests_until: when it is tried again after failed connections,
    on the clock of the event loop; 0 if the last one succeeded. failures: how many failed in a row. answered: whether
    it has ever answered.
    """

    def __init__(self, client: "AsyncOpenAI", concurrency: int) -> None:
        self.client = client
        self.places = asyncio.Semaphore(concurrency)
        self.host = client.base_url.netloc.decode()  # without user name and password
        self.in_flight = 0
        self.rests_until = 0.0
        self.failures = 0
        self.answered = False


class Client:
    """Sends requests to the servers of an endpoint, each to the one with the fewest in flight."""

    def __init__(self, endpoint: Endpoint, servers: Sequence[_Server], key: str) -> None:
        self.endpoint = endpoint
        self._servers = servers
        self._key = key
        self._limit = asyncio.Semaphore(endpoint.slots())
        self._without_reply = 0
        self._own_temperature = False

    def address(self) -> str:
        """Return the base URL of the first server, as it is used."""
        return str(self._servers[0].client.base_url)

    def without_key(self, text: str) -> str:
        """Mask the key, which a server may repeat; a key as short as a word is no secret, and the reply must stay."""
        return text.replace(self._key, "[key]") if len(self._key) > len("none") else text

    async def chat(self, messages: Sequence[Message], **options: Any) -> Reply:
        """Return the reply to a conversation. options: further fields of the request, such as temperature or seed.

        A model that refuses a temperature, as OpenAI's reasoning models do, is asked without one from then on.
        """
        turns = [message._asdict() for message in messages]
        while True:
            if self._own_temperature:
                options.pop("temperature", None)
            body = {"model": self.endpoint.model, "messages": turns, **options}
            try:
                return await self.post("/chat/completions", body, partial(reply_of, options=options))
            except NoReply as problem:
                if problem.status != 400 or "temperature" not in problem.reason or "temperature" not in options:
                    raise
            if not self._own_temperature:
                warn(f"{self.endpoint.option}: refuses a temperature; its own applies")
            self._own_temperature = True

    async def post(self, path: str, body: dict[str, Any], read: Callable[[Any], T | None]) -> T:
        """Return what `read` finds in the JSON that a server answers; NoReply if it finds None.

        path: below the base URL.
        """
        async with self._limit:
            try:
                found = await self._with_retries(path, body, read)
            except NoReply as problem:
                self._count(problem)
                raise
        self._without_reply = 0
        return found

    async def _with_retries(self, path: str, body: dict[str, Any], read: Callable[[Any], T | None]) -> T:
        tried = 0
        while True:
            server = self._next_server()
            try:
                found = read(await self._once(server, path, body))
                if found is None:
                    raise NoReply(f"{server.host} answered without text")
                return found
            except _Retryable as failure:
                if failure.no_connection:
                    self._rest(server)
                if tried == MAX_RETRIES:
                    raise self._given_up(server, failure) from None
                if not (failure.no_connection and self._awake()):
                    wait = _backoff(tried) if failure.wait_s is None else failure.wait_s
                    await asyncio.sleep(min(LONGEST_WAIT_S, wait))
                tried += 1

    def _awake(self) -> list[_Server]:
        now = asyncio.get_running_loop().time()
        return [server for server in self._servers if server.rests_until <= now]

    def _next_server(self) -> _Server:
        """Return the server with the fewest requests in flight; if all rest, the one that is tried again first."""
        return min(self._awake() or self._servers, key=lambda server: (server.in_flight, server.rests_until))

    def _rest(self, server: _Server) -> None:
        """Let a server rest; raise RunError if no server has ever answered, because then the address is wrong."""
        if not server.failures and len(self._servers) > 1:
            warn(f"{self.endpoint.option}: cannot connect to {server.host}; the other servers get its requests")
        server.rests_until = asyncio.get_running_loop().time() + _backoff(server.failures)
        server.failures += 1
        if all(other.failures and not other.answered for other in self._servers):
            raise self._unreachable()

    def _unreachable(self) -> RunError:
        hosts = ", ".join(server.host for server in self._servers)
        return RunError(f"{self.endpoint.option}: cannot connect to {hosts}; {self.endpoint.kept}")

    def _given_up(self, server: _Server, failure: "_Retryable") -> Exception:
        if failure.no_connection and all(other.failures for other in self._servers):
            return self._unreachable()
        return NoReply(failure.reason, failure.status)

    def _count(self, problem: NoReply) -> None:
        """Raise RunError if many requests in a row got no reply; one after another may be a bad row by chance."""
        if problem.status in ABOUT_THE_REQUEST and any(server.answered for server in self._servers):
            return
        self._without_reply += 1
        if self._without_reply >= max(MOST_IN_A_ROW, 2 * self.endpoint.slots()):
            failed = f"{self._without_reply} requests in a row got no reply, the last because {problem.reason}"
            raise RunError(f"{self.endpoint.option}: {failed}; {self.endpoint.kept}") from None

    async def _once(self, server: _Server, path: str, body: dict[str, Any]) -> Any:
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        seconds = self.endpoint.timeout_s or TIMEOUT_S
        too_slow = f"{server.host} did not answer within {seconds:g} s"
        server.in_flight += 1
        try:
            async with server.places, asyncio.timeout(seconds):  # of the whole reply, however slowly it arrives
                text = await server.client.post(path, body=body, cast_to=str)
        # The texts of these errors quote the server, which may quote the key.
        except APIStatusError as error:
            raise self._failure(server, error) from None
        except (APITimeoutError, TimeoutError):
            raise _Retryable(too_slow) from None
        except APIConnectionError as error:
            # the class of whichever HTTP library openai uses
            refused = type(error.__cause__).__name__ in ("ConnectError", "ConnectTimeout")
            raise _Retryable(f"lost the connection to {server.host}", no_connection=refused) from None
        finally:
            server.in_flight -= 1
        server.answered, server.rests_until, server.failures = True, 0.0, 0
        with suppress(ValueError):
            return json.loads(text)
        return None

    def _failure(self, server: _Server, error: "APIStatusError") -> Exception:
        """What an error of the server means: another try, no reply to this request, or the end of all."""
        status, host = error.status_code, server.host
        if status == 401 or (status == 403 and not server.answered):  # later, 403 is about this request: moderation
            given = os.environ.get(KEY_VARIABLE, "").strip()
            why = f"{host} does not accept it" if given else f"not set, and {host} requires a key"
            return SettingsError(f"{KEY_VARIABLE}: {why} ({status})")
        if status == 404:
            return SettingsError(f"{self.endpoint.option}: {host} {self.endpoint.not_found}")
        reason = f"{host} answered {status}"
        if status in RETRIED or status >= 500:
            server.answered, server.rests_until, server.failures = True, 0.0, 0
            return _Retryable(reason, status, asked_wait(error.response.headers))
        said = self.without_key(message_of(error.body))
        return NoReply(f"{reason}: {said}" if said else reason, status)


class _Retryable(Exception):
    """A failure after which the request is sent again. wait_s: what the server asks for."""

    def __init__(
        self, reason: str, status: int | None = None, wait_s: float | None = None, no_connection: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason, self.status, self.wait_s, self.no_connection = reason, status, wait_s, no_connection


def _backoff(failures: int) -> float:
    """Return the seconds to wait after this many failures before: doubled each time, a little at random."""
    return min(LONGEST_WAIT_S, FIRST_WAIT_S * 2.0 ** min(failures, 10)) * random.uniform(0.75, 1.0)


@asynccontextmanager
async def open_client(endpoint: Endpoint) -> AsyncIterator[Client]:
    """Open a client of an endpoint; the key is read from the environment and stored nowhere."""
    from openai import AsyncOpenAI, Timeout

    check_addresses(endpoint.base_urls)
    key = api_key(endpoint.base_urls)
    seconds = endpoint.timeout_s or TIMEOUT_S
    timeout = Timeout(seconds, connect=min(CONNECT_S, seconds))
    async with AsyncExitStack() as stack:
        clients = [
            AsyncOpenAI(api_key=key, base_url=url, max_retries=0, timeout=timeout)
            for url in endpoint.base_urls or (None,)
        ]
        opened = [await stack.enter_async_context(client) for client in clients]
        yield Client(endpoint, [_Server(client, endpoint.concurrency) for client in opened], key)


async def all_of(requests: Iterable[Coroutine[Any, Any, T]]) -> list[T]:
    """Return the results of requests that run together; if one fails, end the rest and raise its error."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(request) for request in requests]
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None
    return [task.result() for task in tasks]


def check_addresses(base_urls: Sequence[str], option: str = "--base-url") -> None:
    """Raise SettingsError if one of the addresses cannot be one."""
    for url in base_urls:
        try:
            parts = urlsplit(url)
            usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
        except ValueError:
            usable = False
        if not usable or re.search(r"\s", url):
            raise SettingsError(f"{option}: expected an address such as http://localhost:8000/v1")


def api_key(base_urls: Sequence[str]) -> str:
    """Return the key in the environment; raise SettingsError if it is unusable, or missing for OpenAI's server."""
    key = os.environ.get(KEY_VARIABLE, "").strip()
    if not key and not base_urls:
        raise SettingsError(f"{KEY_VARIABLE}: not set; set this environment variable to the key of the endpoint")
    if not (key.isascii() and key.isprintable()):
        raise SettingsError(f"{KEY_VARIABLE}: contains characters that cannot be part of a key")
    return key or "none"

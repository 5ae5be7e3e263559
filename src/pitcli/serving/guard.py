"""What every request passes first: the key, the host and origin of browsers, the size and speed of the body."""

import asyncio
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from starlette.responses import JSONResponse

from pitcli.serving.errors import RequestError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN = {"/", "/health"}  # without a key: the page has no data, and asks for the key
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
READ_S = 20.0  # without a byte of the body
DISCARDED = 64 * 2**20  # bytes of a body that is too large, read so that the client gets the answer


class Limits(NamedTuple):
    """api_key: None if no key is needed. max_body: bytes. host: the address that the server listens on."""

    api_key: str | None
    max_body: int
    host: str


class Admission:
    """The application behind the limit on requests that run or wait; the others are answered with 429."""

    def __init__(self, app: App, most: int, free: set[str]) -> None:
        self.app, self.most, self.free = app, most, free
        self.running = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self.free:
            await self.app(scope, receive, send)
            return
        if self.running >= self.most:
            message = f"{self.most} requests run or wait already (--max-requests of pit serve); try again later"
            error = RequestError(429, message, "too_many_requests", headers={"Retry-After": "1"})
            await JSONResponse(error.body(), error.status, headers=error.headers)(scope, receive, send)
            return
        self.running += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.running -= 1


class Guard:
    """The application behind its limits."""

    def __init__(self, app: App, limits: Limits) -> None:
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        try:
            self._check(scope)
            body = await self._body(scope, receive)
        except RequestError as error:
            answer = JSONResponse(error.body(), error.status, headers={**error.headers, "Connection": "close"})
            await answer(scope, receive, send)
            return
        if body is None:
            return
        pending = [{"type": "http.request", "body": body, "more_body": False}]

        async def receive_whole() -> Message:
            return pending.pop() if pending else await receive()

        await self.app(scope, receive_whole, send)

    def _check(self, scope: Scope) -> None:
        """Raise RequestError if the request may not be answered."""
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        host = headers.get("host", "")
        name = (urlsplit(f"//{host}").hostname or "") if _parses(host) else ""
        if self.limits.host in LOOPBACK and name not in LOOPBACK | {self.limits.host}:
            # a name of somebody else that leads here: DNS rebinding
            raise RequestError(403, f"host: expected localhost or 127.0.0.1, got {host[:80]}", "forbidden_host")
        origin = headers.get("origin")
        if origin is not None and origin.partition("://")[2] != host:
            raise RequestError(403, "origin: the page of another site may not use this server", "forbidden_origin")
        key = self.limits.api_key
        if key is None or scope["path"] in OPEN:
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not given.strip():
            raise _unauthorized("no key; send the header Authorization: Bearer KEY")
        if not hmac.compare_digest(given.strip().encode(), key.encode()):
            raise _unauthorized("a wrong key; expected the one of --api-key")

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Return the whole body; None if the client has left. RequestError if it is too large or too slow."""
        parts, size, more = [], 0, True
        while more:
            try:
                async with asyncio.timeout(READ_S):
                    message = await receive()
            except TimeoutError:
                raise RequestError(408, f"the body did not arrive within {READ_S:g} s", "slow_body") from None
            if message["type"] == "http.disconnect":
                return None
            part, more = message.get("body", b""), message.get("more_body", False)
            size += len(part)
            if size <= self.limits.max_body:
                parts.append(part)
            else:
                parts.clear()
            if size > DISCARDED:
                break
        if size > self.limits.max_body:
            most = f"{self.limits.max_body // 1024} KiB (--max-body of pit serve)"
            raise RequestError(413, f"the body is too large; expected at most {most}", "body_too_large")
        return b"".join(parts)


def _parses(host: str) -> bool:
    try:
        return bool(urlsplit(f"//{host}").hostname)
    except ValueError:
        return False


def _unauthorized(what: str) -> RequestError:
    return RequestError(401, what, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})

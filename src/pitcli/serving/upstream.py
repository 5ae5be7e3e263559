"""The upstream: the OpenAI-compatible server that writes the drafts. Its errors become those of the request.

A request fails at once if the upstream does, unlike those of pitcli.endpoints.client, which wait for a server.
"""

import json
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from pitcli.data.rows import Prompt
from pitcli.endpoints.client import KEY_VARIABLE, api_key, check_addresses, length_limit
from pitcli.endpoints.replies import asked_wait, reply_of
from pitcli.serving.errors import RequestError

if TYPE_CHECKING:
    from openai import APIStatusError

RETRIES = 1
CONNECT_S = 5.0
LISTED_S = 30.0  # how long the list of its models is kept
LIST_S = 5.0


class WrittenDraft(NamedTuple):
    """A draft of the upstream. prompt_tokens, tokens: as it counts them; 0 if it does not."""

    text: str
    finished: bool
    prompt_tokens: int
    tokens: int


class Upstream:
    """A client of the upstream; the key is read from the environment and stored nowhere."""

    def __init__(self, url: str, timeout_s: float) -> None:
        from openai import AsyncOpenAI, Timeout

        check_addresses([url], "--upstream")
        key = api_key([url])
        timeout = Timeout(timeout_s, connect=CONNECT_S)
        self._client: AsyncOpenAI = AsyncOpenAI(base_url=url, api_key=key, timeout=timeout, max_retries=RETRIES)
        self._host = self._client.base_url.netloc.decode().rpartition("@")[2]
        self._url = url
        self._answered = False
        self._models: tuple[float, list[str]] = (-LISTED_S, [])

    async def write(self, model: str, prompt: Prompt, options: Mapping[str, Any]) -> WrittenDraft:
        """Return a draft; RequestError 502 if the upstream cannot write one."""
        messages: Any = [message._asdict() for message in prompt]
        body = {"model": model, "messages": messages, **options}
        parsed = await self._post(model, body)
        reply = reply_of(parsed, options)
        if reply is None or not reply.text:
            raise self._failure("answered without text")
        return WrittenDraft(reply.text, reply.finished, _prompt_tokens(parsed), reply.tokens or 0)

    def options(
        self, temperature: float | None, top_p: float | None, limit: int | None, seed: int | None
    ) -> dict[str, Any]:
        """Return the fields of a request that are passed on, if they are given."""
        options = {"temperature": temperature, "top_p": top_p, "seed": seed}
        given = {name: value for name, value in options.items() if value is not None}
        return given if limit is None else {**given, **length_limit([self._url], limit)}

    async def models(self) -> list[str]:
        """Return the names of its models; none if it does not answer."""
        listed, names = self._models
        if time.monotonic() - listed < LISTED_S:
            return names
        try:
            page = await self._client.with_options(timeout=LIST_S, max_retries=0).models.list()
            names = [model.id for model in page.data]
        except Exception:  # a list is only a convenience, whatever a server answers
            return []
        self._models = (time.monotonic(), names)
        return names

    async def close(self) -> None:
        await self._client.close()

    async def _post(self, model: str, body: dict[str, Any]) -> Any:
        from openai import APIConnectionError, APIStatusError, APITimeoutError

        try:
            text = await self._client.post("/chat/completions", body=body, cast_to=str)
            self._answered = True
            return json.loads(text)
        except APIStatusError as error:
            raise self._refusal(error, model) from None
        except APITimeoutError:
            raise self._failure("did not answer in time", status=504) from None
        except APIConnectionError:
            raise self._failure("cannot be reached; is it running?") from None
        except ValueError:
            raise self._failure("answered with something that is not JSON") from None

    def _refusal(self, error: "APIStatusError", model: str) -> RequestError:
        """Return the error of a request that the upstream refused; its text may quote the key, and is not passed on."""
        status = error.status_code
        if status == 404:
            return RequestError(
                404, f"model: the upstream {self._host} has no model {model}", "model_not_found", "model"
            )
        if status == 401 or (status == 403 and not self._answered):  # later, 403 is about this request: moderation
            return self._failure(f"does not accept the key in {KEY_VARIABLE} of pit serve ({status})")
        if status == 429:
            wait = {"Retry-After": f"{asked_wait(error.response.headers) or 1:.0f}"}
            return RequestError(429, f"the upstream {self._host} is busy", "upstream_busy", headers=wait)
        if status in (400, 403, 413, 422):
            return RequestError(400, f"the upstream {self._host} refused the request ({status})", "upstream_refused")
        return self._failure(f"answered {status}")

    def _failure(self, what: str, status: int = 502) -> RequestError:
        return RequestError(status, f"the upstream {self._host} {what}", "upstream_failed")


def _prompt_tokens(parsed: Any) -> int:
    usage = parsed.get("usage")
    count = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return count if isinstance(count, int) else 0


def different_seeds(seed: int | None, drafts: int) -> Sequence[int | None]:
    """Return the seed of each draft of best-of-N: without one, the upstream chooses."""
    return [None if seed is None else seed + number for number in range(drafts)]

"""What an OpenAI-compatible server sends back: a chat completion, an error, or how long to wait."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from pitcli.data.thoughts import answer_of

SHOWN_CHARACTERS = 200


class Reply(NamedTuple):
    """What a model replied.

    text: without thoughts and outer white space. tokens: as the server counts them (None: it does not). finished:
    whether the reply ended by itself, before the limit on its length. content: as the server sends it.
    """

    text: str
    thoughts: str
    tokens: int | None
    finished: bool
    content: str


class NoReply(Exception):
    """A request got no usable reply. status: the HTTP status, if that is why."""

    def __init__(self, reason: str, status: int | None = None) -> None:
        super().__init__(reason)
        self.reason, self.status = reason, status


ENDED = {"stop", "eos", "eos_token", "stop_sequence"}  # OpenAI's finish_reason, and those of other servers


def reply_of(parsed: Any, options: Mapping[str, Any]) -> Reply | None:
    """Read a chat completion; None if there is no message in it. options: the fields of the request."""
    match parsed:
        case {"choices": [{"message": {"content": str() | None as sent} as message} as choice, *_]}:
            pass
        case _:
            return None
    named = (message.get(name) for name in ("reasoning_content", "reasoning"))
    reasoning = next((_plain(value) for value in named if isinstance(value, str)), "")
    if sent is None and not reasoning:
        return None
    content = _plain(sent or "")
    text, thoughts = answer_of(content)
    usage = parsed.get("usage")
    tokens = usage.get("completion_tokens") if isinstance(usage, dict) else None
    tokens = tokens if type(tokens) is int else None
    limit = options.get("max_tokens", options.get("max_completion_tokens"))
    ended = choice.get("finish_reason")
    cut = ended not in ENDED if isinstance(ended, str) else None not in (tokens, limit) and tokens >= limit
    return Reply(text.strip(), reasoning.strip() or thoughts, tokens, finished=not cut, content=content)


def _plain(text: str) -> str:
    """The text without what no row may contain: lone surrogates and NUL."""
    return text.encode(errors="replace").decode().replace("\0", "")


def message_of(body: object) -> str:
    """What a server says about an error, in one short line: OpenAI's, vLLM's and FastAPI's forms."""
    match body:
        case (
            str(text)
            | {"error": {"message": str(text)}}
            | {"message": str(text)}
            | {"error": str(text)}
            | {"detail": str(text)}
        ):
            line = " ".join(_plain(text).split())
            return line if len(line) <= SHOWN_CHARACTERS else f"{line[: SHOWN_CHARACTERS - 1]}…"
    return ""


def asked_wait(headers: Any) -> float | None:
    """The seconds of Retry-After-Ms or Retry-After; None without one."""
    for name, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            return max(0.0, float(headers[name]) * unit)
        except (KeyError, ValueError):
            continue
    return None

"""The replies in the form of OpenAI's API, with what pit did in the field `pit` and in headers."""

import json
import re
import time
from collections.abc import Iterator, Mapping
from typing import Any
from uuid import uuid4

from pitcli.data.rows import Prompt
from pitcli.data.templates import ChatFormat
from pitcli.data.text_units import differences
from pitcli.serving.answering import Outcome
from pitcli.serving.requests import ChatRequest

PIECE = re.compile(r"\s*\S+\s*")
WORDS = 8  # per chunk of a stream


class ChatReply:
    """The reply to one chat completion."""

    def __init__(self, request: ChatRequest, chat: ChatFormat) -> None:
        self.request, self._chat = request, chat
        self.id, self.created = f"chatcmpl-{uuid4().hex}", int(time.time())

    def completion(self, outcome: Outcome) -> dict[str, Any]:
        """Return the whole reply."""
        message = {"role": "assistant", "content": outcome.response}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish_reason(outcome)}
        return {
            **self._head("chat.completion"),
            "choices": [choice],
            "usage": self._usage(outcome),
            **self._pit(outcome),
        }

    def chunk(self, delta: Mapping[str, str], outcome: Outcome | None = None, ends: bool = False) -> str:
        """Return one event of a stream; outcome: what was done so far, if the event shows it."""
        reason = _finish_reason(outcome) if ends and outcome else None
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event({**self._head("chat.completion.chunk"), "choices": [choice], **self._pit(outcome)})

    def last_chunks(self, outcome: Outcome) -> Iterator[str]:
        """Yield the events of a finished response: its words, what was done, the usage if it was asked for."""
        words = PIECE.findall(outcome.response) or [outcome.response]
        for start in range(0, len(words), WORDS):
            yield self.chunk({"content": "".join(words[start : start + WORDS])})
        yield self.chunk({}, outcome, ends=True)
        if self.request.stream_options and self.request.stream_options.include_usage:
            yield event({**self._head("chat.completion.chunk"), "choices": [], "usage": self._usage(outcome)})
        yield "data: [DONE]\n\n"

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.request.model}

    def _pit(self, outcome: Outcome | None) -> dict[str, Any]:
        if outcome is None:
            return {}
        done: dict[str, Any] = {
            "draft": outcome.draft,
            "draft_from": "upstream" if outcome.from_upstream else "request",
            "changed": outcome.response != outcome.draft,
            "p_better": outcome.p_better(),
            "iterations": outcome.iterations,
            "stop_reason": outcome.stop_reason,
        }
        if outcome.drafts:
            done["drafts"] = outcome.drafts
        if self.request.pit.diff and outcome.stop_reason:
            done["diff"] = [part for part in differences(outcome.draft, outcome.response) if part[1]]
        return {"pit": done}

    def _usage(self, outcome: Outcome) -> dict[str, int]:
        """Count the tokens of the prompt, and those that the upstream and the improver generated."""
        generated = sum(iteration["generated_tokens"] for iteration in outcome.iterations)
        prompt = outcome.tokens[0] or prompt_tokens(outcome.prompt, self._chat)
        completion = outcome.tokens[1] + generated
        return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def prompt_tokens(prompt: Prompt, chat: ChatFormat) -> int:
    return sum(len(chat.encode_text(message.content)) for message in prompt)


def headers_of(outcome: Outcome) -> dict[str, str]:
    """Return what was done as headers of a whole reply."""
    p_better = outcome.p_better()
    return {
        "X-Pit-Iterations": str(len(outcome.iterations)),
        "X-Pit-Changed": str(outcome.response != outcome.draft).lower(),
        "X-Pit-Stop-Reason": str(outcome.stop_reason),
        **({} if p_better is None else {"X-Pit-P-Better": f"{p_better:.4f}"}),
    }


def event(content: Mapping[str, Any]) -> str:
    """Return one server-sent event."""
    return f"data: {json.dumps(content)}\n\n"


def _finish_reason(outcome: Outcome) -> str:
    return "length" if outcome.finished is False else "stop"

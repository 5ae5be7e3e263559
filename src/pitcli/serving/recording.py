"""One log line per request, and its metrics; the line has no text of prompts or responses unless it is asked for."""

import asyncio
import json
import time
from typing import Any

from pitcli.console import note
from pitcli.serving.answering import Outcome
from pitcli.serving.guard import App, Message, Receive, Scope, Send
from pitcli.serving.metrics import Metrics

LEFT = 499  # the client left before its answer
QUIET = {"/health", "/metrics"}  # polled by machines


class Recording:
    """The application, each of whose answers is counted and logged. paths: those that metrics name."""

    def __init__(self, app: App, metrics: Metrics, paths: set[str]) -> None:
        self.app, self.metrics, self.paths = app, metrics, paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began, status, is_complete = time.monotonic(), LEFT, False
        scope["pit"] = {}

        async def noting_status(message: Message) -> None:
            nonlocal status, is_complete
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)
            is_complete = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await self.app(scope, receive, noting_status)
        except asyncio.CancelledError:
            status = LEFT
            raise
        finally:
            status = status if is_complete else LEFT
            if status == LEFT:
                self.metrics.left()
            path = scope["path"] if scope["path"] in self.paths else "other"
            seconds = time.monotonic() - began
            self.metrics.answered(path, status, seconds)
            if path not in QUIET:
                done = "".join(f" {name}={value}" for name, value in scope["pit"].items())
                note(f"{scope['method']} {scope['path'][:80]} {status} {seconds:.2f}s{done}")


def log_fields(outcome: Outcome, model: str, with_texts: bool) -> dict[str, Any]:
    """Return what the log line shows of an outcome."""
    p_better = outcome.p_better()
    fields: dict[str, Any] = {
        "model": model[:80],
        "iterations": len(outcome.iterations),
        "stop": outcome.stop_reason,
        "p_better": "-" if p_better is None else f"{p_better:.3f}",
    }
    if with_texts:
        prompt = [message._asdict() for message in outcome.prompt]
        texts = {"prompt": prompt, "draft": outcome.draft, "response": outcome.response}
        fields["texts"] = json.dumps(texts, ensure_ascii=False)
    return fields

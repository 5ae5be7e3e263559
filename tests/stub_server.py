"""A server with the chat completions API whose replies a test decides."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple


class Reply(NamedTuple):
    """A reply of the server. text: of the model; body: sent verbatim instead; status 0 closes the connection."""

    text: str = ""
    status: int = 200
    body: str | None = None
    headers: tuple[tuple[str, str], ...] = (("Retry-After-Ms", "1"),)
    ended: str | None = "stop"


class Request(NamedTuple):
    path: str
    authorization: str | None
    body: dict[str, Any]

    @property
    def question(self) -> str:
        return str(self.body["messages"][0]["content"])


class Server(NamedTuple):
    url: str
    requests: list[Request]
    at_once: list[int]


Answer = Callable[[Request], Reply]


@contextmanager
def serving(answer: Answer) -> Iterator[Server]:
    requests: list[Request] = []
    at_once: list[int] = []
    running = [0]
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            request = Request(self.path, self.headers["Authorization"], body)
            with lock:
                requests.append(request)
                running[0] += 1
                at_once.append(running[0])
            reply = answer(request)
            with lock:
                running[0] -= 1
            if reply.status:
                with suppress(ConnectionError):
                    self.send(reply)

        def send(self, reply: Reply) -> None:
            message = {"role": "assistant", "content": reply.text}
            choice = {"index": 0, "message": message, "finish_reason": reply.ended}
            usage = {"prompt_tokens": 9, "completion_tokens": len(reply.text.split()), "total_tokens": 99}
            completion = {"object": "chat.completion", "choices": [choice], "usage": usage}
            content = reply.body if reply.body is not None else json.dumps(completion)
            self.send_response(reply.status)
            for header in (("Content-Type", "application/json"), *reply.headers):
                self.send_header(*header)
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield Server(f"http://127.0.0.1:{server.server_port}/v1", requests, at_once)
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def always(text: str) -> Answer:
    return lambda request: Reply(text)

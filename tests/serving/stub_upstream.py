"""An OpenAI-compatible server without a model: `stub_upstream.py PORT` prints its port and serves until it is killed.

The model says what it does: `stub` answers, `slow` first waits, `locked` requires another key, `empty` has no text,
`broken` answers 500, `flagged` 403, `echo` answers with what it was sent.
"""

import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TEXTS = ("pie cow", "pie cake milk", "rice ham fig", "cake")
REFUSED = {"locked": 401, "broken": 500, "busy": 429, "flagged": 403}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def reply(self, status: int, body: dict[str, Any]) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self) -> None:
        self.reply(200, {"object": "list", "data": [{"id": "stub", "object": "model", "created": 0, "owned_by": "x"}]})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        model = asked["model"]
        if model not in ("stub", "slow", "empty", "echo"):
            secret = f"key {self.headers['Authorization']} refused"  # a server may quote the key
            self.reply(REFUSED.get(model, 404), {"error": {"message": secret}})
            return
        if model == "slow":
            time.sleep(60)
        text = json.dumps(asked) if model == "echo" else "" if model == "empty" else TEXTS[(asked.get("seed") or 0) % 4]
        choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 3, "completion_tokens": 2, "total_tokens": 5}
        self.reply(200, {"id": "x", "object": "chat.completion", "created": 0, "choices": [choice], "usage": usage})

    def log_message(self, format: str, *arguments: Any) -> None:
        pass


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()

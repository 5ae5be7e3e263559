"""Servers as real processes, on small runs of the embedded base, and a stub of an upstream in another process."""

import json
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from openai import OpenAI

from pitcli.data.synthetic import preference_rows
from tests.conftest import Share
from tests.faults.warm import Command, Ended, Warm

SMALL = "--data pairs.jsonl --model tiny --max-steps 1 --lora-rank 2 --batch-size 4"
STUB = Path(__file__).with_name("stub_upstream.py")
WAIT_S = 60.0
Messages = list[dict[str, str]]


class Answer(NamedTuple):
    status: int
    body: Any
    headers: dict[str, str]

    @property
    def error(self) -> str:
        return str(self.body["error"]["message"])


class Server(NamedTuple):
    """A running pit serve."""

    command: Command
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, key: str = "none", **options: Any) -> OpenAI:
        return OpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0, timeout=WAIT_S, **options)

    def ask(self, path: str, body: object = None, **headers: str) -> Answer:
        """GET, or POST a body: bytes as they are, anything else as JSON."""
        data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        request = urllib.request.Request(self.url + path, data, {"Content-Type": "application/json", **sent})
        try:
            with urllib.request.urlopen(request, timeout=WAIT_S) as response:
                return _answer(response.status, response)
        except urllib.error.HTTPError as error:
            return _answer(error.code, error)

    def metric(self, name: str) -> float:
        """The sum of a metric over its labels."""
        lines = str(self.ask("/metrics").body).splitlines()
        return sum(float(line.split()[-1]) for line in lines if re.match(rf"{name}[{{ ]", line))

    def log(self) -> str:
        return (self.command.folder / f".err-{self.command.pid}").read_text()

    def stop(self) -> Ended:
        self.command.kill(signal.SIGTERM)
        return self.command.wait()


def _answer(status: int, response: Any) -> Answer:
    text, headers = response.read().decode(), {k.lower(): v for k, v in response.headers.items()}
    is_json = headers.get("content-type", "").startswith("application/json")
    return Answer(status, json.loads(text) if is_json else text, headers)


def until(holds: Callable[[], object], seconds: float = WAIT_S) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def turns(prompt: str, draft: str | None = None) -> Messages:
    asked = [{"role": "user", "content": prompt}]
    return asked if draft is None else [*asked, {"role": "assistant", "content": draft}]


def chat(prompt: str = "Write 3 foods.", draft: str = "pie cow", **options: Any) -> dict[str, Any]:
    """A request to improve a draft."""
    return {"model": "pit/improve", "messages": turns(prompt, draft), **options}


@pytest.fixture(scope="session")
def project(share: Share, warm: Warm) -> Path:
    """A folder with 12 pairs and drafts, an improver and a gap model."""

    def fill(folder: Path) -> None:
        pairs = list(preference_rows(12, seed=3))
        drafts = [{"prompt": row["prompt"], "response": row["rejected"]} for row in pairs]
        for name, rows in (("pairs", pairs), ("drafts", drafts)):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for command in ("sft", "train-reward"):
            ended = warm.run(folder, command, *SMALL.split())
            assert ended.code == 0, ended.err

    return share("serving", fill)


@pytest.fixture(scope="module")
def folder(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the project, in which servers run."""
    return Path(shutil.copytree(project, tmp_path_factory.mktemp("serving") / "work"))


Start = Callable[..., Server]


@pytest.fixture(scope="module")
def start(folder: Path, warm: Warm) -> Iterator[Start]:
    """(arguments, fault) -> a server that has started; it is killed at the end, unless it has ended."""
    servers: list[Server] = []

    def started(arguments: str = "", fault: dict[str, Any] | None = None, **environment: str) -> Server:
        line = f"serve --port 0 --max-new-tokens 16 {arguments}"
        command = warm.start(folder, *line.split(), fault=fault, environment=environment)
        log = folder / f".err-{command.pid}"
        until(lambda: log.exists() and re.search(r"serving on|error: ", log.read_text()))
        found = re.search(r"serving on http://127.0.0.1:(\d+)", log.read_text())
        assert found, log.read_text()
        server = Server(command, int(found[1]))
        until(lambda: server.ask("/health").status == 200)
        servers.append(server)
        return server

    yield started
    for server in servers:
        if (folder / f".err-{server.command.pid}").exists():  # its end was not waited for
            server.command.kill()
            server.command.wait()


@pytest.fixture(scope="module")
def server(start: Start) -> Server:
    return start("--max-iters 3")


class StubUpstream:
    """An upstream in another process, on the same port each time it is started."""

    def __init__(self) -> None:
        self.port = 0
        self.start()

    def start(self) -> None:
        command = [sys.executable, str(STUB), str(self.port)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.port = int(self.process.stdout.readline())

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        assert self.process.stdout is not None
        self.process.stdout.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"


@pytest.fixture(scope="module")
def stub() -> Iterator[StubUpstream]:
    upstream = StubUpstream()
    yield upstream
    upstream.kill()

"""Bad input and full servers: a clear error, with the status and the shape of OpenAI's API."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest

from pitcli.settings.serving import ServeConfig
from pitcli.stages.serve import checked_key
from tests.faults.warm import Warm
from tests.serving.conftest import Server, Start, chat, turns, until

PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def locked(start: Start) -> Server:
    return start("--api-key sesame --max-body 4")


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "the body is empty; expected a JSON object"),
        (b'{"model": "pit/improve", ', 400, "the body is not a valid JSON object: the line ends inside the object"),
        (b"[1]", 400, "the body is not a valid JSON object: expected an object, got an array"),
        (b'{"a": 1, "a": 2}', 400, "a duplicate key"),
        (b'{"temperature": NaN}', 400, "temperature NaN"),
        (b'{"model": "\xff"}', 400, "not UTF-8"),
        (b"[" * 3000, 400, "nested more than 100 deep"),
        ({}, 400, "model: Field required"),
        (chat(model="gpt-4"), 404, "expected pit/improve, got gpt-4; start pit serve with --upstream"),
        (chat(model="pit/gap"), 404, "expected pit/improve"),
        (chat(messages=[]), 400, "messages: "),
        (chat(messages=[1]), 400, "messages[0]: expected a message with role and content, got a number"),
        (chat(messages=turns("x")), 400, "expected the assistant's draft as the last message, got user"),
        (chat(messages=turns("x", " ")), 400, "messages[1].content: empty"),
        (chat(messages=[{"role": "tool", "content": "x"}]), 400, "expected system, user or assistant"),
        (chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]), 400, "a part of type"),
        (chat(prompt="pie " * 9000), 400, "messages: prompt: expected a conversation of at most"),
        (chat(n=2), 400, "n: only 1 is supported"),
        (chat(stop=["x"]), 400, "stop: not supported"),
        (chat(tools=[{}]), 400, "tools: not supported"),
        (chat(max_tokens=0), 400, "max_tokens: "),
        (chat(temperature=-1), 400, "temperature: "),
        (chat(pit={"max_iters": 99}), 400, "pit.max_iters: expected at most 3"),
        (chat(pit={"treshold": 1}), 400, "pit.treshold: "),
    ],
)
def test_a_request_that_cannot_be_answered(server: Server, body: Any, status: int, message: str) -> None:
    answer = server.ask(PATH, body)
    assert answer.status == status
    assert message in answer.error
    assert answer.body["error"]["type"] == "invalid_request_error"
    assert server.metric("pit_requests_running") == 0


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/rerank", {"query": "x", "documents": []}, "documents: "),
        ("/v1/rerank", {"query": "x", "documents": [1]}, "documents[0]: expected text, got a number"),
        ("/v1/rerank", {"query": "", "documents": ["a"]}, "query: empty"),
        ("/v1/rerank", {"query": "x", "documents": ["a"] * 65}, "documents: "),
        ("/score", {"prompt": "x", "response": "a", "reference": ""}, "reference: "),
        ("/explain", {"prompt": "x", "response": "a"}, "draft: "),
        ("/explain", {"prompt": "x", "response": "pie " * 9000, "draft": "a"}, "conversation of at most"),
        ("/score", {"prompt": "x", "response": "pie " * 9000, "reference": "a"}, "conversation of at most"),
        ("/pairs", {"prompt": "x", "chosen": "a", "rejected": "b"}, "start pit serve with --collect"),
        ("/nothing", {}, "POST /nothing: Not Found"),
        ("/health", {}, "Method Not Allowed"),
    ],
)
def test_other_paths(server: Server, path: str, body: Any, message: str) -> None:
    answer = server.ask(path, body)
    assert 400 <= answer.status < 500
    assert message in answer.error


def test_the_key(locked: Server) -> None:
    with pytest.raises(openai.AuthenticationError, match="a wrong key; expected the one of --api-key"):
        locked.client("open").models.list()
    assert "no key; send the header" in locked.ask("/metrics").error
    assert locked.ask("/metrics", authorization="Bearer sesame").status == 200
    assert locked.client("sesame").models.list().data
    assert locked.ask("/").status == locked.ask("/health").status == 200
    assert "sesame" not in locked.log()


def test_a_huge_body(locked: Server) -> None:
    for size in (5_000, 8_000_000):
        answer = locked.ask(PATH, chat(prompt="x" * size), authorization="Bearer sesame")
        assert (answer.status, answer.error) == (
            413,
            "the body is too large; expected at most 4 KiB (--max-body of pit serve)",
        )
    assert locked.ask(PATH, chat(), authorization="Bearer sesame").status == 200


def test_pages_of_other_sites_get_nothing(server: Server) -> None:
    """Neither by a name that leads to this machine, nor by a form of another page."""
    assert server.ask("/health", host="evil.example").status == 403
    assert server.ask(PATH, chat(), origin="https://evil.example").status == 403
    assert server.ask(PATH, chat(), origin=server.url).status == 200


def test_a_full_server_answers_429_and_keeps_the_others(start: Start) -> None:
    full = start("--max-requests 3 --sample-batch-size 2", fault={"slow_pass": 0.2})
    client = full.client()

    def ask(number: int) -> str:
        try:
            client.chat.completions.create(**chat(prompt=f"Write {number} foods."))
        except openai.RateLimitError as error:
            assert error.response.headers["Retry-After"] == "1"
            return ("3 requests run or wait already" in str(error) and "busy") or str(error)
        return "ok"

    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, range(8)))
    assert sorted(answers) == ["busy"] * 5 + ["ok"] * 3
    assert ask(1) == "ok"


def test_a_request_takes_no_longer_than_its_limit(start: Start) -> None:
    slow = start("--request-timeout 1", fault={"slow_pass": 0.4})
    began = time.monotonic()
    answer = slow.ask(PATH, chat())
    assert (answer.status, answer.error) == (504, "not answered within 1 s (--request-timeout of pit serve)")
    assert time.monotonic() - began < 3
    until(lambda: slow.metric("pit_engine_jobs") == 0)


def test_out_of_memory_is_tried_with_fewer_slots_and_a_bug_fails_its_requests_only(start: Start) -> None:
    failing = start(fault={"fail_pass": 2})
    answer = failing.ask(PATH, chat())
    assert (answer.status, answer.error) == (500, "the engine failed on this request")
    assert "out of memory; continuing with 8 drafts together" in failing.log()
    assert "Traceback" not in failing.log()
    assert failing.ask(PATH, chat()).status == 200


@pytest.mark.parametrize(("most", "status"), [(1, 200), (0, 500)])
def test_scores_that_run_out_of_memory_cost_no_other_request(most: int, status: int, start: Start) -> None:
    full = start(fault={"fit_scores": most, "slow_pass": 0.2})
    with ThreadPoolExecutor(1) as pool:
        improvement = pool.submit(full.ask, PATH, chat())
        until(lambda: full.metric("pit_engine_jobs") == 1)
        scores = full.ask("/score", {"prompt": "Write 3 foods.", "response": "pie", "reference": "ham"})
        assert improvement.result().status == 200
    assert scores.status == status
    assert status == 200 or scores.error == "out of memory on this request"


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ("--port {port}", 3, "--port: {port} is in use by another program"),
        ("--port 99999", 2, "--port: "),
        ("--host nowhere.invalid", 2, "--host: cannot listen on nowhere.invalid"),
        ("--collect missing/pairs.jsonl", 2, "--collect: missing is not an existing folder; create it first"),
        ("--upstream localhost:8000", 2, "--upstream: expected an address such as http://localhost:8000/v1"),
        ("--run runs/nothing", 2, "runs/nothing: no such run; create one with pit rl"),
        ("--api-key=a\u00e4", 2, "--api-key: expected printable ASCII"),
    ],
)
def test_a_server_that_cannot_start(
    server: Server, folder: Path, warm: Warm, arguments: str, code: int, message: str
) -> None:
    line = arguments.format(port=server.port)
    ended = warm.run(folder, "serve", *(["--port", "0"] if "--port" not in line else []), *line.split())
    assert ended.code == code
    assert message.format(port=server.port) in ended.err
    assert "Traceback" not in ended.err
    assert json.dumps(server.ask("/health").body) == '{"status": "ok"}'


def test_a_key_in_the_environment(start: Start, folder: Path) -> None:
    keyed = start(PIT_API_KEY="sesame")
    assert keyed.ask("/v1/models").status == 401


def test_a_warning_if_other_machines_need_no_key(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    monkeypatch.delenv("PIT_API_KEY", raising=False)
    assert checked_key(ServeConfig(host="0.0.0.0")) is None
    assert "warning: --host 0.0.0.0 lets other machines use this server without a key" in capsys.readouterr().err
    assert checked_key(ServeConfig(host="0.0.0.0", api_key="sesame")) == "sesame"
    assert "warning" not in capsys.readouterr().err

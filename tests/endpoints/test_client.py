"""The client: what servers send, which errors are retried, and how the requests are shared between servers."""

import asyncio
import json
import socket
import threading
import time
from itertools import count
from typing import Any

import pytest

from pitcli.data.rows import Message
from pitcli.endpoints import client as module
from pitcli.endpoints.client import Endpoint, open_client
from pitcli.endpoints.replies import NoReply, Reply, reply_of
from pitcli.errors import RunError, SettingsError
from tests import stub_server
from tests.stub_server import Answer, Request, serving

QUESTION = [Message("user", "Why is the sky blue?")]
KEY = "sk-test-3c1a8f52"
SOON = (("Retry-After-Ms", "1"),)


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(module, "FIRST_WAIT_S", 0.01)


def endpoint(*urls: str, **fields: Any) -> Endpoint:
    return Endpoint("--writer openai:m", "m", urls, **fields)


def ask(asked: Endpoint, questions: int = 1, **options: Any) -> list[Reply | NoReply]:
    """The replies to this many requests at the same time; any other error ends all."""

    async def run() -> list[Reply | NoReply]:
        async with open_client(asked) as client:

            async def one() -> Reply | NoReply:
                try:
                    return await client.chat(QUESTION, **options)
                except NoReply as problem:
                    return problem

            try:
                async with asyncio.TaskGroup() as group:
                    tasks = [group.create_task(one()) for _ in range(questions)]
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None
            return [task.result() for task in tasks]

    return asyncio.run(run())


def completion(message: dict[str, Any], ended: str | None = "stop", tokens: int = 3) -> dict[str, Any]:
    """In the shape that vLLM sends."""
    return {
        **{"id": "chatcmpl-1", "object": "chat.completion", "created": 1, "model": "m", "prompt_logprobs": None},
        "choices": [
            {"index": 0, "message": {"role": "assistant", **message}, "logprobs": None, "finish_reason": ended}
        ],
        "usage": {"prompt_tokens": 9, "total_tokens": 9 + tokens, "completion_tokens": tokens},
    }


@pytest.mark.parametrize(
    ("sent", "reply"),
    [
        (completion({"content": " Air. \n"}), Reply("Air.", "", 3, True, " Air. \n")),
        (completion({"content": "Air"}, "length"), Reply("Air", "", 3, False, "Air")),
        (completion({"content": "Air"}, "eos"), Reply("Air", "", 3, True, "Air")),
        (completion({"content": "Air"}, None), Reply("Air", "", 3, True, "Air")),
        (completion({"content": "Air"}, None, tokens=8), Reply("Air", "", 8, False, "Air")),
        (completion({"content": "Air"}, "content_filter"), Reply("Air", "", 3, False, "Air")),
        (
            completion({"content": "<think>Hm.</think>\n\nAir."}),
            Reply("Air.", "Hm.", 3, True, "<think>Hm.</think>\n\nAir."),
        ),
        (completion({"content": "\n\nAir.", "reasoning_content": "Hm.\n"}), Reply("Air.", "Hm.", 3, True, "\n\nAir.")),
        (completion({"content": None, "reasoning": "Hm"}, "length"), Reply("", "Hm", 3, False, "")),
        (completion({"content": "a\ud800b"}), Reply("a?b", "", 3, True, "a?b")),
        (completion({"content": "a\0b"}), Reply("ab", "", 3, True, "ab")),
        ({"choices": [{"message": {"content": "Air"}}]}, Reply("Air", "", None, True, "Air")),
        (completion({"content": None}), None),
        (completion({"content": ["Air"]}), None),
        ({"choices": []}, None),
        ({"error": "x"}, None),
        ([], None),
        (None, None),
    ],
)
def test_what_a_server_sends_is_read(sent: Any, reply: Reply | None) -> None:
    assert reply_of(sent, {"max_tokens": 8}) == reply


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (
            400,
            {"error": {"message": "This model's maximum context length is 64 tokens.", "type": "BadRequestError"}},
            "HOST answered 400: This model's maximum context length is 64 tokens.",
        ),
        (400, {"object": "error", "message": "max_tokens must be at least 1", "code": 400}, "HOST answered 400: max_t"),
        (422, {"detail": "Field required"}, "HOST answered 422: Field required"),
        (413, {"error": f"key {KEY}"}, "HOST answered 413: key [key]"),
        (400, {"error": {"message": "x" * 999}}, f"HOST answered 400: {'x' * 199}…"),
        (200, {"choices": []}, "HOST answered without text"),
    ],
)
def test_a_request_that_is_refused_is_not_repeated(status: int, body: Any, reason: str) -> None:
    with serving(lambda request: stub_server.Reply(status=status, body=json.dumps(body))) as server:
        (problem,) = ask(endpoint(server.url))
    assert isinstance(problem, NoReply)
    assert problem.reason.startswith(reason.replace("HOST", server.url.split("/")[2]))
    assert len(server.requests) == 1


@pytest.mark.parametrize("body", ['{"choices": [{"message": {"cont', "<html>", ""])
def test_truncated_json_is_no_reply(body: str) -> None:
    with serving(lambda request: stub_server.Reply(body=body)) as server:
        (problem,) = ask(endpoint(server.url))
    assert isinstance(problem, NoReply) and problem.reason.endswith("answered without text")


@pytest.mark.parametrize("status", [0, 408, 429, 500, 502, 503])
def test_passing_errors_are_retried(status: int) -> None:
    failures = [stub_server.Reply(status=status, headers=SOON)] * 3
    with serving(lambda request: failures.pop() if failures else stub_server.Reply("Air.")) as server:
        (reply,) = ask(endpoint(server.url))
    assert isinstance(reply, Reply) and reply.text == "Air."
    assert len(server.requests) == 4


def test_retry_after_is_obeyed() -> None:
    failures = [stub_server.Reply(status=429, headers=(("Retry-After", "0.4"),))]
    start = time.monotonic()
    with serving(lambda request: failures.pop() if failures else stub_server.Reply("Air.")) as server:
        ask(endpoint(server.url))
    assert time.monotonic() - start >= 0.4


@pytest.mark.parametrize("dripping", [False, True])
def test_a_server_that_never_ends_its_answer(dripping: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RETRIES", 1)
    over = threading.Event()

    def serve(listening: socket.socket) -> None:
        while not over.is_set():
            with listening.accept()[0] as connection:
                connection.recv(65536)
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 9999\r\n\r\n")
                while dripping and not over.wait(0.05):
                    try:
                        connection.send(b" ")
                    except OSError:
                        break
                if not dripping:
                    over.wait(0.6)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, args=(listening,), daemon=True)
        thread.start()
        host = f"127.0.0.1:{listening.getsockname()[1]}"
        start = time.monotonic()
        (problem,) = ask(endpoint(f"http://{host}/v1", timeout_s=0.3))
        assert 0.6 <= time.monotonic() - start < 10
        over.set()
    assert isinstance(problem, NoReply) and problem.reason == f"{host} did not answer within 0.3 s"


@pytest.mark.parametrize(
    ("status", "problem"),
    [
        (401, "OPENAI_API_KEY: HOST does not accept it (401)"),
        (403, "OPENAI_API_KEY: HOST does not accept it (403)"),
        (404, "--writer openai:m: HOST has no such model (404), or --base-url is wrong (most end in /v1)"),
    ],
)
def test_what_every_request_would_get_ends_all(status: int, problem: str) -> None:
    body = json.dumps({"object": "error", "message": f"The model `m` does not exist. {KEY}", "type": "NotFoundError"})
    with (
        serving(lambda request: stub_server.Reply(status=status, body=body)) as server,
        pytest.raises(SettingsError) as raised,
    ):
        ask(endpoint(server.url, concurrency=2), questions=50)
    assert raised.value.problems == [problem.replace("HOST", server.url.split("/")[2])]
    assert len(server.requests) <= 4


def test_a_refusal_of_one_request_is_not_about_the_key() -> None:
    """403 after replies: moderation, as OpenRouter has it."""
    numbers = count()
    flagged = json.dumps({"error": {"message": "Input was flagged", "code": 403}})

    def answer(request: Request) -> stub_server.Reply:
        return stub_server.Reply("x") if next(numbers) != 2 else stub_server.Reply(status=403, body=flagged)

    with serving(answer) as server:
        replies = ask(endpoint(server.url, concurrency=1), questions=6)
    (refused,) = [reply for reply in replies if isinstance(reply, NoReply)]
    assert "answered 403: Input was flagged" in refused.reason


def test_a_model_that_refuses_a_temperature_is_asked_without_one(capsys: pytest.CaptureFixture[str]) -> None:
    said = "Unsupported value: 'temperature' does not support 0 with this model. Only the default (1) is supported."

    def answer(request: Request) -> stub_server.Reply:
        refuses = stub_server.Reply(status=400, body=json.dumps({"error": {"message": said}}))
        return refuses if "temperature" in request.body else stub_server.Reply("x")

    with serving(answer) as server:
        replies = ask(endpoint(server.url, concurrency=1), questions=4, temperature=0, seed=1)
    assert [reply.text for reply in replies if isinstance(reply, Reply)] == ["x"] * 4
    assert "temperature" not in server.requests[-1].body
    assert capsys.readouterr().err.count("--writer openai:m: refuses a temperature; its own applies") == 1


def unused_url() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}/v1"


def test_an_address_that_never_answered_is_reported_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_WAIT_S", 5)
    url, start = unused_url(), time.monotonic()
    with pytest.raises(RunError, match=f"^--writer openai:m: cannot connect to {url.split('/')[2]}; kept$"):
        ask(endpoint(url, kept="kept"))
    assert time.monotonic() - start < 4


def test_servers_share_the_requests_by_what_is_in_flight(capsys: pytest.CaptureFixture[str]) -> None:
    """The slow one gets fewer; one that is down gets none; each has its own limit."""

    def slow(request: Request) -> stub_server.Reply:
        time.sleep(0.5)
        return stub_server.Reply("slow")

    down = unused_url()
    with serving(lambda request: stub_server.Reply("fast")) as fast, serving(slow) as other:
        replies = ask(endpoint(fast.url, other.url, down, concurrency=2), questions=60)
        texts = [reply.text for reply in replies if isinstance(reply, Reply)]
    assert len(texts) == 60
    assert 1 <= texts.count("slow") <= 20
    assert max(other.at_once) <= 3
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and f"cannot connect to {down.split('/')[2]}; the other servers get its requests" in err


def test_the_limit_counts_all_servers() -> None:
    def answer(request: Request) -> stub_server.Reply:
        time.sleep(0.03)
        return stub_server.Reply("x")

    with serving(answer) as server:
        ask(endpoint(server.url, concurrency=3), questions=12)
    assert 1 < max(server.at_once) <= 3


def test_many_requests_in_a_row_without_a_reply_end_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_RETRIES", 0)
    with serving(lambda request: stub_server.Reply(status=500)) as server, pytest.raises(RunError) as raised:
        ask(endpoint(server.url, concurrency=2, kept="kept"), questions=99)
    host = server.url.split("/")[2]
    failed = f"32 requests in a row got no reply, the last because {host} answered 500; kept"
    assert raised.value.problems == [f"--writer openai:m: {failed}"]


def test_refused_requests_do_not_end_all_once_one_was_answered(monkeypatch: pytest.MonkeyPatch) -> None:
    numbers = count()

    def answer(request: Request) -> stub_server.Reply:
        return stub_server.Reply("x") if next(numbers) == 0 else stub_server.Reply(status=400, body="{}")

    with serving(answer) as server:
        replies = ask(endpoint(server.url, concurrency=1), questions=50)
    assert sum(isinstance(reply, NoReply) for reply in replies) == 49


@pytest.mark.parametrize(
    ("urls", "field"),
    [
        ((), "max_completion_tokens"),
        (("https://api.openai.com/v1",), "max_completion_tokens"),
        (("http://localhost:11434/v1",), "max_tokens"),
    ],
)
def test_the_limit_is_named_as_the_server_reads_it(urls: tuple[str, ...], field: str) -> None:
    assert endpoint(*urls).length_limit(5) == {field: 5}


def test_fields_of_a_request() -> None:
    answer: Answer = lambda request: stub_server.Reply("x")  # noqa: E731
    with serving(answer) as server:
        ask(endpoint(f"{server.url}/"), temperature=0, seed=7, max_tokens=5)
    (request,) = server.requests
    assert request.path == "/v1/chat/completions" and request.authorization == f"Bearer {KEY}"
    messages = [{"role": "user", "content": QUESTION[0].content}]
    assert request.body == {"model": "m", "messages": messages, "temperature": 0, "seed": 7, "max_tokens": 5}

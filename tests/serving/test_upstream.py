"""Drafts from another server: improved or ranked, and what happens when that server is down."""

import json
from typing import Any

import openai
import pytest

from pitcli.serving.upstream import Upstream
from tests.serving.conftest import Server, Start, StubUpstream, turns, until

PATH = "/v1/chat/completions"


@pytest.fixture(scope="module")
def proxy(start: Start, stub: StubUpstream) -> Server:
    return start(f"--upstream {stub.url} --max-iters 2", OPENAI_API_KEY="hidden-key")


def asked(model: str, **options: Any) -> dict[str, Any]:
    return {"model": model, "messages": turns("Write 3 foods."), **options}


def test_a_draft_of_the_upstream_is_improved(proxy: Server) -> None:
    reply: Any = proxy.client().chat.completions.create(
        **asked("pit/stub", seed=1), extra_body={"pit": {"threshold": 0.0}}
    )
    assert (reply.pit["draft"], reply.pit["draft_from"]) == ("pie cake milk", "upstream")
    assert reply.pit["iterations"]
    generated = sum(step["generated_tokens"] for step in reply.pit["iterations"])
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (3, 2 + generated)
    pasted = {"model": "pit/improve", "messages": turns("Write 3 foods.", "pie cake milk"), "seed": 1}
    same = proxy.ask(PATH, {**pasted, "pit": {"threshold": 0.0}}).body
    assert same["choices"][0]["message"]["content"] == reply.choices[0].message.content


def test_best_of_n_is_the_first_of_rerank(proxy: Server) -> None:
    reply: Any = proxy.client().chat.completions.create(**asked("pit/best-of-4/stub", seed=0))
    texts = [draft["response"] for draft in reply.pit["drafts"]]
    assert len(set(texts)) == 4
    ranked = proxy.ask("/v1/rerank", {"query": "Write 3 foods.", "documents": texts}).body["results"]
    assert reply.choices[0].message.content == ranked[0]["document"]["text"]
    assert reply.pit["p_better"] == pytest.approx(ranked[0]["relevance_score"])
    assert reply.pit["stop_reason"] == "best_of_n"


def test_what_is_passed_on(proxy: Server) -> None:
    options = {"temperature": 0.25, "top_p": 0.5, "max_completion_tokens": 7, "seed": 3}
    draft = proxy.ask(PATH, asked("pit/echo", **options, pit={"max_iters": 0})).body["pit"]["draft"]
    assert json.loads(draft) == {
        "model": "echo",
        "messages": turns("Write 3 foods."),
        "temperature": 0.25,
        "top_p": 0.5,
        "max_tokens": 7,
        "seed": 3,
    }


def test_a_draft_that_leaves_no_room_is_returned_as_it_is(proxy: Server) -> None:
    request = {"model": "pit/echo", "messages": turns("pie " * 3000)}
    reply = proxy.ask(PATH, request).body
    assert reply["pit"]["stop_reason"] == "too_long"
    assert reply["choices"][0]["message"]["content"] == reply["pit"]["draft"]


def test_models_of_the_upstream(proxy: Server) -> None:
    names = {model.id for model in proxy.client().models.list()}
    assert names == {"pit/improve", "pit/gap", "pit/stub", "pit/best-of-4/stub"}


def test_a_draft_that_was_flagged_is_not_about_the_key(proxy: Server) -> None:
    assert proxy.ask(PATH, asked("pit/stub")).status == 200
    answer = proxy.ask(PATH, asked("pit/flagged"))
    assert (answer.status, "refused the request (403)" in answer.error) == (400, True)


def test_the_limit_is_named_as_openai_reads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-x")
    options = Upstream("https://api.openai.com/v1", 5).options(None, None, 7, None)
    assert options == {"max_completion_tokens": 7}


@pytest.mark.parametrize(
    ("model", "status", "message"),
    [
        ("pit/other", 404, "has no model other"),
        ("pit/locked", 502, "does not accept the key in OPENAI_API_KEY of pit serve (401)"),
        ("pit/broken", 502, "answered 500"),
        ("pit/busy", 429, "is busy"),
        ("pit/empty", 502, "answered without text"),
        ("pit/best-of-99/stub", 400, "expected best-of-2 to best-of-16, got pit/best-of-99/stub"),
        ("stub", 404, "expected pit/improve, pit/UPSTREAM or pit/best-of-4/UPSTREAM, got stub"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_of_the_upstream(proxy: Server, model: str, status: int, message: str, stream: bool) -> None:
    answer = proxy.ask(PATH, asked(model, stream=stream))
    assert answer.status == status
    assert message in answer.error
    assert "hidden-key" not in answer.error + proxy.log()


def test_an_upstream_that_is_down_and_up_again(proxy: Server, stub: StubUpstream) -> None:
    stub.kill()
    client = proxy.client()
    for stream in (False, True):
        with pytest.raises(openai.InternalServerError) as caught:
            client.chat.completions.create(**asked("pit/stub", stream=stream))
        assert caught.value.status_code == 502
        assert f"the upstream 127.0.0.1:{stub.port} cannot be reached; is it running?" in str(caught.value)
    assert proxy.ask(PATH, {"model": "pit/improve", "messages": turns("Write 3 foods.", "pie")}).status == 200
    stub.start()
    assert client.chat.completions.create(**asked("pit/stub")).choices[0].message.content
    assert proxy.metric("pit_requests_running") == 0


def test_a_draft_in_time_is_returned_without_its_improvement(start: Start, stub: StubUpstream) -> None:
    slow = start(f"--upstream {stub.url} --request-timeout 1", fault={"slow_pass": 0.5})
    reply = slow.ask(PATH, asked("pit/stub")).body
    assert reply["pit"]["stop_reason"] == "timeout"
    assert reply["choices"][0]["message"]["content"] == "pie cow"
    assert slow.ask(PATH, asked("pit/slow")).status == 504
    until(lambda: slow.metric("pit_engine_jobs") == 0)

"""What clients get: the openai client, curl, rerank, score, and the same improvements as pit improve makes."""

import json
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from tests.faults.warm import Warm
from tests.serving.conftest import Server, chat, turns, until


@pytest.fixture(scope="module")
def improved(folder: Path, warm: Warm) -> list[dict[str, Any]]:
    """The rows of pit improve for the drafts of the project."""
    line = "improve --input drafts.jsonl --output improved.jsonl --max-new-tokens 16 --max-iters 3 --threshold 0.1"
    ended = warm.run(folder, *line.split())
    assert ended.code == 0, ended.err
    return [json.loads(line) for line in (folder / "improved.jsonl").read_text().splitlines()]


def test_many_clients_get_what_pit_improve_writes(server: Server, improved: list[dict[str, Any]]) -> None:
    """Requests with other settings run in the same batch."""
    client = server.client()

    def ask(number: int) -> Any:
        row = improved[number % len(improved)]
        options = {"temperature": 1.5, "max_tokens": 5} if number % 2 else {}
        messages: Any = turns(row["prompt"], row["original_response"])
        return client.chat.completions.create(
            model="pit/improve", messages=messages, extra_body={"pit": {"threshold": 0.1}}, **options
        )

    with ThreadPoolExecutor(24) as pool:
        replies = list(pool.map(ask, range(24)))
    for number, reply in enumerate(replies):
        row = improved[number % len(improved)]
        if number % 2:
            assert all(step["generated_tokens"] <= 5 for step in reply.pit["iterations"])
            continue
        assert reply.choices[0].message.content == row["response"]
        assert reply.pit["stop_reason"] == row["stop_reason"]
        accepted = [(step["response"], step["accepted"]) for step in row["iterations"]]
        assert [(step["response"], step["accepted"]) for step in reply.pit["iterations"]] == accepted
        gaps = [step["gap"] for step in row["iterations"]]
        assert [step["gap"] for step in reply.pit["iterations"]] == pytest.approx(gaps, abs=1e-5)
        assert reply.usage.completion_tokens == row["generated_tokens"]
    assert any(reply.pit["changed"] for reply in replies)
    assert server.metric("pit_engine_jobs") == 0


def test_a_stream_shows_each_iteration_and_then_the_same_text(server: Server) -> None:
    client, request = server.client(), chat(seed=5)
    options = {"threshold": 0.0, "diff": True}
    whole = client.chat.completions.with_raw_response.create(**request, extra_body={"pit": options})
    reply: Any = whole.parse()
    chunks: list[Any] = list(
        client.chat.completions.create(
            **request, stream=True, stream_options={"include_usage": True}, extra_body={"pit": options}
        )
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == reply.choices[0].message.content
    shown = [chunk.pit for chunk in chunks if hasattr(chunk, "pit")]
    assert [len(pit["iterations"]) for pit in shown] == [
        *range(len(reply.pit["iterations"])),
        shown[-1]["iterations"][-1]["iteration"],
    ]
    assert shown[-1] == reply.pit
    assert chunks[-1].usage == reply.usage
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == reply.choices[0].finish_reason
    headers = whole.headers
    assert headers["X-Pit-Iterations"] == str(len(reply.pit["iterations"]))
    assert headers["X-Pit-Changed"] == str(reply.pit["changed"]).lower()
    assert headers["X-Pit-Stop-Reason"] == reply.pit["stop_reason"]
    before = "".join(part for kind, part in reply.pit["diff"] if kind != "+")
    after = "".join(part for kind, part in reply.pit["diff"] if kind != "-")
    assert (before.split(), after.split()) == (reply.pit["draft"].split(), text.split())


def test_curl_needs_no_header(server: Server) -> None:
    command = ["curl", "-sS", f"{server.url}/v1/chat/completions", "-d", json.dumps(chat())]
    reply = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    assert reply["pit"]["draft"] == "pie cow"
    assert reply["choices"][0]["message"]["content"]


def test_explanations_are_those_of_pit_explain(server: Server, folder: Path, warm: Warm) -> None:
    row = {"prompt": "Write 3 foods.", "response": "pie cake fig", "original_response": "ham cake cow 🙂 fig pie"}
    (folder / "one.jsonl").write_text(json.dumps(row))
    ended = warm.run(folder, "explain", "--input", "one.jsonl")
    assert ended.code == 0, ended.err
    (explained,) = map(json.loads, ended.out.splitlines())
    body = {"prompt": row["prompt"], "draft": row["original_response"], "response": row["response"]}
    found = server.ask("/explain", body).body
    score = server.ask("/score", {**body, "reference": body["draft"]}).body["data"][0]
    assert found["gap"] == pytest.approx(score["gap"], abs=1e-5)
    assert len(found["edits"]) == len(explained["edits"]) > 1
    for edit, other in zip(found["edits"], explained["edits"], strict=True):
        assert {**edit, "gap": 0, "share": 0} == {**other, "gap": 0, "share": 0}
        assert edit["gap"] == pytest.approx(other["gap"], abs=1e-5)
    assert server.ask("/explain", {**body, "response": body["draft"]}).body == {"gap": 0.0, "edits": []}


def test_rerank_and_score_agree(server: Server) -> None:
    texts = ["pie cow", "pie cake fig", "ham"]
    score = server.ask("/score", {"prompt": "Write 3 foods.", "response": texts[:2], "reference": "ham"}).body
    assert [entry["index"] for entry in score["data"]] == [0, 1]
    assert score["data"][0]["score"] == score["data"][0]["p_better"] != 0.5
    two = server.ask("/v1/rerank", {"query": "Write 3 foods.", "documents": [texts[0], {"text": "ham"}]}).body
    by_index = {result["index"]: result["relevance_score"] for result in two["results"]}
    assert by_index[0] == pytest.approx(score["data"][0]["p_better"], abs=1e-6)
    assert by_index[0] + by_index[1] == pytest.approx(1)
    body = {"query": turns("Write 3 foods."), "documents": [*texts, texts[0]], "top_n": 3, "return_documents": False}
    ranked = server.ask("/v1/rerank", body).body["results"]
    scores = [result["relevance_score"] for result in ranked]
    assert scores == sorted(scores, reverse=True)
    assert len(ranked) == 3
    assert "document" not in ranked[0]
    equal = server.ask("/v1/rerank", {"query": "x", "documents": ["a", "a", "a"]}).body["results"]
    assert [result["relevance_score"] for result in equal] == [0.5] * 3


def test_models_health_and_metrics(server: Server) -> None:
    assert [model.id for model in server.client().models.list()] == ["pit/improve", "pit/gap"]
    assert server.ask("/health").body == {"status": "ok"}
    before = server.metric("pit_requests_total")
    server.ask("/v1/models")
    assert server.metric("pit_requests_total") > before
    assert server.metric("pit_generated_tokens") > 0


def test_the_log_has_no_prompt_unless_it_is_asked_for(server: Server, start: Any) -> None:
    secret = "Write 2 foods. Include xylophone."
    server.ask("/v1/chat/completions", chat(prompt=secret))
    until(lambda: "POST /v1/chat/completions 200" in server.log())  # a line is written after its reply
    assert "xylophone" not in server.log()
    talkative = start("--log-prompts")
    talkative.ask("/v1/chat/completions", chat(prompt=secret))
    until(lambda: secret in talkative.log())

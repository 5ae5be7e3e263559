"""pit sample and pit improve with a writer behind an endpoint whose replies the test decides."""

import hashlib
import json
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from pitcli import cli
from pitcli.endpoints import client
from tests.endpoints.conftest import ROWS, pit, read_rows, write_rows
from tests.stub_server import Reply, Request, Server, serving

SAMPLE = "sample --data drafts.jsonl --max-new-tokens 9 --writer openai:m --output out.jsonl"
IMPROVE = "improve --input drafts.jsonl --max-new-tokens 9 --writer openai:m --output out.jsonl"


def text_of(request: Request) -> str:
    """A text that depends on what is asked, and on the seed."""
    asked = json.dumps([request.body["messages"], request.body["seed"]])
    return f"word {hashlib.sha256(asked.encode()).hexdigest()[:6]}"


def answer(request: Request) -> Reply:
    return Reply(text_of(request))


def late(request: Request) -> Reply:
    """Replies come in another order than the requests."""
    time.sleep(random.random() * 0.05)
    return answer(request)


def rounded(value: Any) -> Any:
    """The rows with 4 digits of each gap: its last digits depend on which replies are scored together."""
    if isinstance(value, float):
        return round(value, 4)
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return {name: rounded(item) for name, item in value.items()} if isinstance(value, dict) else value


def messages_of(server: Server) -> list[list[tuple[str, str]]]:
    return [[(m["role"], m["content"]) for m in request.body["messages"]] for request in server.requests]


@pytest.mark.usefixtures("project")
def test_drafts_are_in_the_order_of_the_prompts_each_with_its_seed() -> None:
    with serving(late) as server:
        pit(f"{SAMPLE} --base-url {server.url} --draws 2 --concurrency 5")
    rows, drafts = read_rows("out.jsonl"), read_rows("drafts.jsonl")
    assert [row["id"] for row in rows] == [f"{draft['id']}.{draw}" for draft in drafts for draw in (1, 2)]
    assert len({request.body["seed"] for request in server.requests}) == 2 * ROWS
    assert all(0 <= request.body["seed"] < 2**31 for request in server.requests)
    assert 1 < max(server.at_once) <= 5
    texts = {text_of(request): request.body["messages"][-1]["content"] for request in server.requests}
    assert [texts[row["response"]] for row in rows] == [row["prompt"] for row in rows]
    with serving(answer) as server:
        pit(f"{SAMPLE.replace('out.', 'again.')} --base-url {server.url} --draws 2 --concurrency 1")
    assert read_rows("again.jsonl") == rows


@pytest.mark.usefixtures("project")
def test_the_fields_of_a_request() -> None:
    with serving(answer) as server:
        pit(f"{SAMPLE} --base-url {server.url} --temperature 0.5 --top-p 0.9 --template-option enable_thinking=false")
    body = {name: value for name, value in server.requests[0].body.items() if name not in ("messages", "seed")}
    assert body == {
        **{"model": "m", "temperature": 0.5, "top_p": 0.9, "max_tokens": 9},
        **{"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "repeat_penalty": 1.0, "min_tokens": 1},
        "chat_template_kwargs": {"enable_thinking": False},
    }


@pytest.mark.usefixtures("project")
def test_a_server_that_refuses_unknown_fields_is_asked_without_them(capsys: pytest.CaptureFixture[str]) -> None:
    def strict(request: Request) -> Reply:
        if "top_k" not in request.body:
            return answer(request)
        return Reply(status=422, body='{"error": {"message": "Extra inputs are not permitted: top_k"}}')

    with serving(strict) as server:
        pit(f"{SAMPLE} --base-url {server.url} --concurrency 1")
    assert len(server.requests) == ROWS + 1
    assert (
        "refuses top_k, min_p, repetition_penalty, repeat_penalty, min_tokens; its own defaults apply"
        in capsys.readouterr().err
    )


@pytest.mark.usefixtures("project")
def test_what_the_limit_cut_is_not_finished(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda request: Reply("a word", ended="length")) as server:
        pit(f"{SAMPLE} --base-url {server.url}")
        assert {row["finished"] for row in read_rows("out.jsonl")} == {False}
        assert f"--max-new-tokens 9 cut {ROWS} of the drafts" in capsys.readouterr().err
        pit(f"{IMPROVE.replace('out.', 'improved.')} --base-url {server.url}")
    rows = read_rows("improved.jsonl")
    assert {row["stop_reason"] for row in rows} == {"truncated"}
    assert {row["response"] == row["original_response"] for row in rows} == {True}
    assert {row["generated_tokens"] for row in rows} == {2}


@pytest.mark.usefixtures("project")
def test_the_improver_is_asked_as_it_was_trained() -> None:
    with serving(answer) as server:
        pit(f"{IMPROVE} --base-url {server.url} --stop none --max-iters 2 --concurrency 3")
    rows = read_rows("out.jsonl")
    asked = messages_of(server)
    for row in rows:
        references = [row["original_response"], row["iterations"][0]["response"]]
        for reference in references:
            turns = [("user", row["prompt"]), ("assistant", reference), ("user", "Write a better response.")]
            assert turns in asked
    assert len(asked) == 2 * ROWS
    assert [row["id"] for row in rows] == [draft["id"] for draft in read_rows("drafts.jsonl")]


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("method", ["pit", "best-of-n", "self-refine", "resample"])
def test_every_method(method: str) -> None:
    """Whatever is in flight, and in whatever order the replies come, the rows are the same."""
    found = []
    for concurrency, reply in ((1, answer), (7, late)):
        with serving(reply) as server:
            pit(f"{IMPROVE} --base-url {server.url} --method {method} --concurrency {concurrency} --overwrite")
        found.append(rounded(read_rows("out.jsonl")))
    assert found[0] == found[1]
    rows = read_rows("out.jsonl")
    assert [row["id"] for row in rows] == [str(number) for number in range(ROWS)]
    per_iteration = 4 if method == "self-refine" else 2
    assert {i["generated_tokens"] for row in rows for i in row["iterations"]} == {per_iteration}
    if method == "best-of-n":
        assert {len(row["iterations"]) for row in rows} == {3}


@pytest.mark.usefixtures("project")
def test_no_model_is_needed_here_without_a_gap_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pitcli.stages.improve.open_base", None)
    Path("runs").rename("gone")
    with serving(answer) as server:
        pit(f"{IMPROVE} --base-url {server.url} --stop none --max-iters 1")
    assert len(read_rows("out.jsonl")) == ROWS


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("command", [SAMPLE, IMPROVE])
def test_a_request_without_a_reply_fails_its_row_only_and_resume_asks_again(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = read_rows("drafts.jsonl")[4]["prompt"]

    def failing(request: Request) -> Reply:
        if request.body["messages"][0]["content"] == bad:
            return Reply(status=400, body='{"error": {"message": "too long"}}')
        return answer(request)

    with serving(failing) as server:
        pit(f"{command} --base-url {server.url} --concurrency 2", code=1)
    found = re.findall(r"error: (.*)\n", capsys.readouterr().err)
    host = server.url.split("/")[2]
    assert found == [f"drafts.jsonl:5: {host} answered 400: too long; --resume asks again"]
    assert [row["id"] for row in read_rows("out.jsonl")] == [str(n) for n in range(ROWS) if n != 4]
    with serving(answer) as server:
        pit(f"{command} --base-url {server.url} --resume")
        assert {messages[0] for messages in messages_of(server)} == {("user", bad)}
    assert sorted(int(row["id"]) for row in read_rows("out.jsonl")) == list(range(ROWS))


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize("command", [SAMPLE, IMPROVE])
def test_a_server_that_goes_away_ends_the_command_and_nothing_is_lost_or_doubled(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(answer) as server:
        pit(f"{command.replace('out.', 'whole.')} --base-url {server.url}")
    monkeypatch.setattr(client, "MAX_RETRIES", 2)
    monkeypatch.setattr(client, "MOST_IN_A_ROW", 1)
    seen: list[str] = []

    def until_half(request: Request) -> Reply:
        seen.append(request.path)
        return answer(request) if len(seen) <= 7 else Reply(status=500, headers=(("Retry-After-Ms", "1"),))

    with serving(until_half) as server:
        pit(f"{command} --base-url {server.url} --concurrency 1", code=3)
    error = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"error: --writer openai:m: \d+ requests in a row got no reply, .* are kept; --resume cont", error)
    before = Path("out.jsonl").read_bytes()
    with serving(answer) as server:
        pit(f"{command} --base-url {server.url} --resume")
    assert 0 < len(before) < Path("out.jsonl").stat().st_size
    assert Path("out.jsonl").read_bytes().startswith(before)
    rows, whole = rounded(read_rows("out.jsonl")), rounded(read_rows("whole.jsonl"))
    assert sorted(rows, key=lambda row: int(row["id"])) == whole


@pytest.mark.usefixtures("project")
def test_resume_needs_the_same_settings_but_not_the_same_address(capsys: pytest.CaptureFixture[str]) -> None:
    with serving(answer) as server:
        pit(f"{SAMPLE} --base-url {server.url}")
        pit(f"{SAMPLE} --base-url {server.url}", code=2)
        assert "out.jsonl already contains rows; use --resume to continue it" in capsys.readouterr().err
        pit(f"{SAMPLE} --base-url {server.url} --resume --temperature 0.3", code=2)
        assert "--resume: temperature was 0.5 in out.jsonl.manifest.json and is now 0.3" in capsys.readouterr().err
    with serving(answer) as server:
        pit(f"{SAMPLE} --base-url {server.url},{server.url}/ --concurrency 1 --resume")
        assert server.requests == []
        pit(f"{SAMPLE} --base-url {server.url} --overwrite")
    assert len(server.requests) == len(read_rows("out.jsonl")) == ROWS


@pytest.mark.usefixtures("project")
def test_few_rows_are_read_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the first row has no reply, a few rows per slot are read, and no more."""
    write_rows("drafts.jsonl", [{"id": str(n), "prompt": f"Write {n}."} for n in range(300)])
    asked: list[int] = []

    def first_is_slow(request: Request) -> Reply:
        if request.body["messages"][0]["content"] == "Write 0.":
            time.sleep(1.5)
            asked.append(len(server.requests))
        return answer(request)

    with serving(first_is_slow) as server:
        pit(f"{SAMPLE} --base-url {server.url} --concurrency 4")
    assert asked[0] == 16
    assert len(read_rows("out.jsonl")) == 300


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--writer m --base-url http://h/v1", "--writer: expected openai:MODEL, got m"),
        ("--writer openai: --base-url http://h/v1", "--writer: expected openai:MODEL, got openai:"),
        ("--base-url http://h/v1", "--base-url is the address of --writer openai:MODEL, which is not given"),
        (
            "--writer openai:m --base-url localhost:1",
            "--base-url: expected an address such as http://localhost:8000/v1",
        ),
        ("--writer openai:m", "OPENAI_API_KEY: not set; set this environment variable to the key of the endpoint"),
        ("--writer openai:m --base-url http://h/v1 --policy runs/sft", "in this process; remove"),
        (
            "--writer openai:m --base-url http://h/v1 --concurrency 0",
            "--concurrency: must be greater than or equal to 1",
        ),
    ],
)
def test_bad_settings_are_one_line(flags: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    for command in ("sample --data drafts.jsonl", "improve --input drafts.jsonl --stop none"):
        pit(f"{command} --output new.jsonl {flags}", code=2)
        error = capsys.readouterr().err
        assert error.count("\n") == 1 and message in error
        assert not Path("new.jsonl").exists()


@pytest.mark.usefixtures("project")
@pytest.mark.parametrize(
    ("reply", "message", "code"),
    [
        (Reply(status=401, body="{}"), "OPENAI_API_KEY: not set, and HOST requires a key (401)", 2),
        (Reply(status=404, body="{}"), "--writer openai:m: HOST has no such model (404), or --base-url is wrong", 2),
        (Reply(body='{"choices": []}'), "drafts.jsonl:1: HOST answered without text; --resume asks again", 1),
        (Reply(body='{"choices": [{"message": {"content": "x"}}]}'), "drafts.jsonl:1: the server did not count", 1),
    ],
)
def test_bad_replies(reply: Reply, message: str, code: int, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda request: reply) as server:
        pit(f"{SAMPLE} --base-url {server.url}", code=code)
    assert message.replace("HOST", server.url.split("/")[2]) in capsys.readouterr().err
    written = Path("out.jsonl")
    assert written.read_text() == "" if code == 1 else not written.exists()


@pytest.mark.usefixtures("project")
def test_the_key_is_not_stored(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-77")
    with serving(answer) as server:
        assert cli.main(f"{SAMPLE} --base-url {server.url}".split()) == 0
    assert {request.authorization for request in server.requests} == {"Bearer sk-test-77"}
    kept: Any = b"".join(path.read_bytes() for path in Path().glob("out.jsonl*"))
    assert b"sk-test-77" not in kept and "sk-test-77" not in "".join(capfd.readouterr())

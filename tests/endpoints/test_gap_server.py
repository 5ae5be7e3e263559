"""The gap model at a server with vLLM's classification API; it is served by transformers, as pit export wrote it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification

from tests.endpoints.conftest import ROWS, pit, read_rows
from tests.endpoints.test_writers import rounded
from tests.stub_server import Reply, Request, serving

IMPROVE = "improve --input drafts.jsonl --temperature 0 --max-new-tokens 16"
Scorer = Callable[[Request], Reply]


@pytest.fixture
def scorer(project: Path) -> Scorer:
    model: Any = AutoModelForSequenceClassification.from_pretrained("gap", dtype=torch.float32).eval()

    @torch.no_grad()
    def answer(request: Request) -> Reply:
        """In the shape of vLLM's ClassificationResponse."""
        scores = [model(input_ids=torch.tensor([ids])).logits[0].tolist() for ids in request.body["input"]]
        rows = [{"index": n, "label": "LABEL_0", "probs": s, "num_classes": 1} for n, s in enumerate(scores)]
        usage = {"prompt_tokens": 9, "total_tokens": 9, "completion_tokens": 0}
        whole = {"id": "classify-1", "object": "list", "created": 1, "model": "gap", "data": rows[::-1], "usage": usage}
        return Reply(body=json.dumps(whole))

    return answer


def test_the_rows_are_those_of_the_gap_model_here(scorer: Scorer) -> None:
    with serving(scorer) as server:
        pit(f"{IMPROVE} --output here.jsonl")
        pit(f"{IMPROVE} --gap-url {server.url.removesuffix('/v1')} --output there.jsonl")
    assert rounded(read_rows("there.jsonl")) == rounded(read_rows("here.jsonl"))
    assert {request.path for request in server.requests} == {"/classify"}
    assert {request.body["use_activation"] for request in server.requests} == {False}


def test_writer_and_gap_model_at_servers(scorer: Scorer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is loaded here, and --base-url may end in /v1 for both."""
    monkeypatch.setattr("pitcli.engine.models.opening.load_base", None)
    with serving(scorer) as gap, serving(lambda request: Reply("ham pie")) as writer:
        servers = f"--writer openai:m --base-url {writer.url} --gap-url {gap.url}"
        pit(f"{IMPROVE} {servers} --output out.jsonl")
    gaps = [iteration["gap"] for row in read_rows("out.jsonl") for iteration in row["iterations"]]
    assert len(gaps) >= ROWS and len(set(gaps)) > ROWS / 2


def test_another_gap_model_is_refused(scorer: Scorer, capsys: pytest.CaptureFixture[str]) -> None:
    def shifted(request: Request) -> Reply:
        body = json.loads(scorer(request).body or "")
        body["data"][0]["probs"][0] += 3
        return Reply(body=json.dumps(body))

    def as_probability(request: Request) -> Reply:
        body = json.loads(scorer(request).body or "")
        body["data"][0]["probs"] = torch.sigmoid(torch.tensor(body["data"][0]["probs"])).tolist()
        return Reply(body=json.dumps(body))

    with serving(shifted) as server:
        pit(f"{IMPROVE} --gap-url {server.url} --output out.jsonl", code=3)
    assert "for the run's fixed tokens, got" in (err := capsys.readouterr().err)
    assert "serve what pit export --role gap wrote of this run" in err
    with serving(as_probability) as server:
        pit(f"{IMPROVE} --gap-url {server.url} --output out.jsonl --overwrite", code=3)
    assert "it returns probabilities; use a version of vLLM that reads use_activation" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("reply", "message", "code"),
    [
        (Reply(status=404, body='{"detail": "Not Found"}'), "has no classification API (404); serve the exported", 2),
        (Reply(body='{"data": []}'), "answered without text; expected vLLM's classification API", 3),
        (Reply(body='{"data": [{"index": 0, "probs": [0.5, 0.5]}]}'), "expected vLLM's classification API", 3),
    ],
)
@pytest.mark.usefixtures("project")
def test_a_server_that_does_not_score(
    reply: Reply, message: str, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(lambda request: reply) as server:
        pit(f"{IMPROVE} --gap-url {server.url} --output out.jsonl", code=code)
    assert message in capsys.readouterr().err


def test_a_comparison_that_the_server_refuses_keeps_the_draft(
    scorer: Scorer, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Request] = []

    def refusing(request: Request) -> Reply:
        seen.append(request)
        return Reply(status=400, body='{"error": {"message": "too long"}}') if len(seen) == 4 else scorer(request)

    with serving(refusing) as server:
        pit(f"{IMPROVE} --gap-url {server.url} --output out.jsonl", code=1)
    assert [row["stop_reason"] for row in read_rows("out.jsonl")].count("non_finite_gap") == 1
    assert "answered 400: too long" in capsys.readouterr().err

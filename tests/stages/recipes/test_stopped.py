"""pit run resumes after a kill or a signal, with the same results as an uninterrupted run."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from pitcli.settings.tools import EvaluateConfig, LabelConfig
from pitcli.stages import sample
from pitcli.stages.run import asks_server
from tests.faults.warm import Warm
from tests.stages.recipes.conftest import NAMES, SMALL, decisions, outputs, pit, ran, recipe
from tests.stub_server import Reply, Request, serving


@pytest.mark.parametrize(
    ("role", "number", "code"),
    [("improver", signal.SIGKILL, -9), ("gap", signal.SIGINT, 130)],
    ids=["sft killed", "reward interrupted"],
)
def test_a_resumed_recipe_equals_an_uninterrupted_one(
    role: str,
    number: signal.Signals,
    code: int,
    whole: Path,
    folder: Path,
    warm: Warm,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The signal arrives in the second step of training a role."""
    stopped = {"improver": "sft", "gap": "train-reward"}[role]
    recipe(SMALL)
    ended = warm.run(folder, "run", "recipe.yaml", fault={"signal_in_step": [role, 1, number]})
    assert ended.code == code, ended.err
    assert "Traceback" not in ended.err
    if number == signal.SIGINT:
        assert f"{stopped} did not finish; run the same command again to resume\ninterrupted\n" in ended.err
    dry = decisions(pit(capsys, "recipe.yaml", "--dry-run"))
    err = pit(capsys, "recipe.yaml")
    assert decisions(err)[stopped] == dry[stopped] == ("resume", "did not finish")
    assert " --resume\n" in err
    assert ran(err) == NAMES[NAMES.index(stopped) :]
    assert outputs(Path("made")) == outputs(whole / "made")
    assert ran(pit(capsys, "recipe.yaml")) == []


def test_improve_resumes_with_the_existing_rows(
    whole: Path, done: Path, warm: Warm, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in Path("made").glob("improved.jsonl*"):
        path.unlink()
    assert warm.run(done, "run", "recipe.yaml", fault={"kill_at_row": 3}).code == -9
    assert len(Path("made/improved.jsonl").read_text().splitlines()) == 2
    err = pit(capsys, "recipe.yaml")
    assert decisions(err)["improve"] == ("resume", "did not finish")
    assert ran(err) == ["improve"]
    assert "$ pit improve" in err
    assert " --resume\n" in err
    assert outputs(Path("made")) == outputs(whole / "made")


def test_sample_resumes_with_the_drafts_that_it_has(
    whole: Path, done: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("made/rows/drafts.jsonl").unlink()
    write = sample.Drafts.row

    def row(self: sample.Drafts, *arguments: Any) -> Any:
        if self.rows == 2:
            raise KeyboardInterrupt
        return write(self, *arguments)

    with monkeypatch.context() as stopped:
        stopped.setattr(sample.Drafts, "row", row)
        pit(capsys, "recipe.yaml", code=130)
    assert len(Path("made/rows/drafts.jsonl").read_text().splitlines()) == 2
    err = pit(capsys, "recipe.yaml")
    assert decisions(err)["sample"] == ("resume", "did not finish")
    assert outputs(Path("made")) == outputs(whole / "made")


def test_rows_that_fail_again_are_left_alone(capsys: pytest.CaptureFixture[str]) -> None:
    """A second try that changes nothing is the last one."""
    Path("questions.jsonl").write_text('{"prompt": "one"}\n{"prompt": "bad"}\n')

    def answer(request: Request) -> Reply:
        return Reply(status=400, body='{"error": {"message": "no"}}') if request.question == "bad" else Reply("two")

    with serving(answer) as server:
        writer = f'writer: "openai:m", base_url: "{server.url}"'
        recipe(f"out: made\nstages:\n  - sample: {{data: questions.jsonl, output: drafts.jsonl, {writer}}}\n")
        assert ran(pit(capsys, "recipe.yaml", code=1)) == ["sample"]
        assert ran(pit(capsys, "recipe.yaml", code=1)) == ["sample"]
        assert ran(pit(capsys, "recipe.yaml", code=1)) == []


@pytest.mark.parametrize(("judge", "asks"), [("openai:m", True), ("cmd:python verify.py", False)])
def test_a_judge_at_an_endpoint_is_asked_again(judge: str, asks: bool) -> None:
    assert asks_server(LabelConfig(judge=judge, input="rows.jsonl")) == asks
    assert asks_server(EvaluateConfig(judge=("oracle", judge), input=("rows.jsonl",))) == asks


@pytest.mark.parametrize("unanswered", [1, 4])
def test_rows_without_an_answer_are_asked_for_again(unanswered: int, capsys: pytest.CaptureFixture[str]) -> None:
    """The recipe goes on if some rows failed, and stops if every row did."""
    questions = [f"question {number}" for number in range(4)]
    Path("questions.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in questions))
    failing = set(questions[:unanswered])

    def answer(request: Request) -> Reply:
        no = Reply(status=400, body='{"error": {"message": "no"}}')
        return no if request.question in failing else Reply(f"answer to {request.question}")

    with serving(answer) as server:
        recipe(f"""
out: made
shared: {{max_new_tokens: 4}}
stages:
  - sample: {{data: questions.jsonl, output: drafts.jsonl, writer: "openai:m", base_url: "{server.url}"}}
  - improve: {{input: drafts.jsonl, output: improved.jsonl, max_iters: 1, stop: none, method: resample}}
""")
        none_is_answered = unanswered == len(questions)
        err = pit(capsys, "recipe.yaml", code=2 if none_is_answered else 1)
        assert ("sample: every row failed" in err) == none_is_answered
        assert ran(err) == (["sample"] if none_is_answered else ["sample", "improve"])
        failing.clear()
        server.requests.clear()
        err = pit(capsys, "recipe.yaml")
        reason = "did not finish" if none_is_answered else "a server did not answer some rows"
        assert decisions(err)["sample"] == ("resume", reason)
        assert ran(err) == ["sample", "improve"]
        assert len(server.requests) == unanswered
        assert ran(pit(capsys, "recipe.yaml")) == []
    assert len(Path("made/improved.jsonl").read_text().splitlines()) == len(questions)


def test_a_stage_stopped_before_it_replaced_old_output_starts_from_scratch(
    done: Path, warm: Warm, capsys: pytest.CaptureFixture[str]
) -> None:
    """The old run is unchanged: it is replaced, not resumed."""
    recipe(SMALL.replace("micro_batch_size: 2", "learning_rate: 1e-3"))
    assert warm.run(done, "run", "recipe.yaml", fault={"kill_before_loading": "sft"}).code == -9
    assert json.loads((done / "made/pipeline.json").read_text())["runs/sft"]["outputs"] is None
    err = pit(capsys, "recipe.yaml")
    assert decisions(err)["sft"] == ("run", "did not finish")
    assert ran(err) == ["sft", "rl", "improve", "evaluate", "export"]
    assert "learning_rate: 0.001" in (done / "made/runs/sft/config.yaml").read_text()

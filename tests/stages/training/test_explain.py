"""pit explain and pit improve --prune-edits on the embedded model: their gaps, one tree per row, resumed, in a pipe."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pitcli import cli
from pitcli.data.edits import edits_between, reverted
from pitcli.data.explained import parse_edits
from pitcli.engine.models import gaps
from pitcli.settings.base import Method
from pitcli.settings.generating import ImproveConfig
from pitcli.stages import improve
from tests.faults.warm import Warm
from tests.stages.training.conftest import SMALL_FLAGS, read_rows, write_rows

Out = pytest.CaptureFixture[str]
FLAGS = ("--input", "improved.jsonl")


def pit(command: str, *words: str, code: int = 0) -> None:
    assert cli.main([command, *words]) == code


@pytest.fixture(autouse=True, scope="module")
def improved(project: Path) -> None:
    """Rows with several edits, and one without any."""
    pairs = read_rows(project / "pairs.jsonl")[:8]
    rows = [{"id": row["id"], "prompt": row["prompt"], "original_response": row["rejected"]} for row in pairs]
    answers = [{**row, "response": pair["chosen"]} for row, pair in zip(rows, pairs, strict=True)]
    write_rows(project / "improved.jsonl", [*answers[:7], {**rows[7], "response": rows[7]["original_response"]}])


def rows_of(out: Out, *words: str) -> list[dict[str, Any]]:
    out.readouterr()
    pit("explain", *FLAGS, *words)
    return [json.loads(line) for line in out.readouterr().out.splitlines()]


def test_the_gaps_are_those_of_pit_score(capsys: Out) -> None:
    found = rows_of(capsys)
    reversals = []
    for row, given in zip(found, read_rows(Path("improved.jsonl")), strict=True):
        assert row == {**given, "edits": row["edits"]}
        edits = [edit for edit, *_ in parse_edits(row, row["original_response"], row["response"])]
        assert edits == edits_between(row["original_response"], row["response"])
        texts = [row["response"], *(reverted(row["response"], [edit]) for edit in edits)]
        reversals += [{**given, "response": text} for text in texts]
    write_rows(Path("reversals.jsonl"), reversals)
    pit("score", "--input", "reversals.jsonl", "--against", "original_response")
    scored = (json.loads(line)["gap"] for line in capsys.readouterr().out.splitlines())
    several = 0
    for row in found:
        gap = next(scored)
        for edit in row["edits"]:
            drop = gap - next(scored)
            assert edit["gap"] == pytest.approx(drop, abs=1e-4)
            assert edit["share"] == (pytest.approx(drop / gap, rel=1e-2) if gap >= 0.1 else None)
        several += len(row["edits"]) > 1
    assert several > 3
    assert found[-1]["edits"] == []


def test_all_texts_of_a_row_are_one_tree(monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    leaves: list[int] = []
    score_trees = gaps.score_trees

    def counting(model: Any, trees: Any, *rest: Any) -> Any:
        leaves.extend(len(tree.leaves) for tree in trees)
        return score_trees(model, trees, *rest)

    monkeypatch.setattr(gaps, "score_trees", counting)
    found = rows_of(capsys)
    # a reversal that gives the draft is not scored: its gap is 0; both orders of the others are
    counts = [len(row["edits"]) + (len(row["edits"]) != 1) for row in found]
    assert leaves == [2 * count for count in counts[:-1]]


def test_a_killed_command_is_resumed_to_the_same_bytes(tmp_path: Path, capsys: Out) -> None:
    flags = (*FLAGS, "--micro-batch-size", "2")
    pit("explain", *flags, "--output", f"{tmp_path}/whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    for length in (0, len(whole) // 2, len(whole) - 1, len(whole)):
        (tmp_path / "cut.jsonl").write_bytes(whole[:length])
        manifest = json.loads((tmp_path / "whole.jsonl.manifest.json").read_text())
        (tmp_path / "cut.jsonl.manifest.json").write_text(json.dumps({**manifest, "complete": False}))
        pit("explain", *flags, "--output", f"{tmp_path}/cut.jsonl", "--resume")
        assert (tmp_path / "cut.jsonl").read_bytes() == whole
    capsys.readouterr()
    pit("explain", *flags, "--output", f"{tmp_path}/cut.jsonl", "--resume", "--against", "prompt", code=2)
    assert "--resume: against was 'original_response'" in capsys.readouterr().err
    pit("explain", *flags, "--output", f"{tmp_path}/cut.jsonl", code=2)
    assert "already contains rows" in capsys.readouterr().err


def test_from_stdin_to_stdout_with_bad_rows(project: Path, tmp_path: Path, warm: Warm) -> None:
    row = {"prompt": "Write 3 foods.", "response": "pie ham", "original_response": "jam"}
    others = ["{", json.dumps({**row, "original_response": None}), json.dumps({"prompt": "p", "response": "pie"})]
    long = json.dumps({**row, "response": "pie " * 4000})
    (tmp_path / "stdin").write_text("\n".join([json.dumps(row), *others, long, json.dumps(row)]))
    ended = warm.run(project, "explain", "--diff", stdin=str(tmp_path / "stdin"))
    assert ended.code == 1
    first, second = map(json.loads, ended.out.splitlines())
    assert first == second == {**row, "edits": first["edits"]}
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert [line.split(":")[2] for line in errors] == ["2", "3", "4", "5"]
    assert "[-jam-]{+pie ham+}(" in ended.err
    assert "2 rows explained, 2 edits" in ended.err


def test_a_closed_pipe_ends_it_silently(project: Path) -> None:
    write_rows(project / "many.jsonl", read_rows(project / "improved.jsonl") * 60)
    script = f"{sys.executable} -m pitcli explain --input many.jsonl 2>err | head -1 >first; exit ${{PIPESTATUS[0]}}"
    ended = subprocess.run(["bash", "-c", script], cwd=project, check=False)
    assert (ended.returncode, (project / "err").read_text()) == (141, "")
    assert "edits" in json.loads((project / "first").read_text())


def test_settings_and_files_that_do_not_fit(capsys: Out) -> None:
    Path("empty.jsonl").touch()
    pit("explain", "--input", "empty.jsonl")
    assert capsys.readouterr().out == ""
    pit("explain", "--input", "missing.jsonl", code=2)
    assert "missing.jsonl: no such file" in capsys.readouterr().err
    pit("explain", *FLAGS, "--output", "improved.jsonl", code=2)
    assert "is the input" in capsys.readouterr().err
    pit("explain", *FLAGS, "--reward", "runs/sft", code=3)
    assert "expected a run with a gap model" in capsys.readouterr().err
    pit("explain", *FLAGS, "--againt", "draft", code=2)
    assert "did you mean --against?" in capsys.readouterr().err


def test_members_give_a_range(capsys: Out) -> None:
    ensemble = "--members 2 --data pairs.jsonl --max-steps 1 --out runs/ensemble"
    pit("train-reward", *ensemble.split(), *SMALL_FLAGS)
    for row in rows_of(capsys, "--reward", "runs/ensemble"):
        for edit in row["edits"]:
            assert edit.keys() >= {"low", "high"} if edit["share"] is not None else "low" not in edit
            assert edit["share"] is None or edit["low"] <= edit["share"] <= edit["high"]


def pruned_rows(tmp_path: Path, name: str, **settings: Any) -> list[dict[str, Any]]:
    output = tmp_path / f"{name}.jsonl"
    write_rows(tmp_path / "drafts.jsonl", [d for d in read_rows(Path("drafts.jsonl")) if d["response"]])
    common: dict[str, Any] = {"max_new_tokens": 10, "stop": "none", "max_iters": 3, **settings}
    improve.run(ImproveConfig(input=str(tmp_path / "drafts.jsonl"), output=str(output), **common))
    return read_rows(output)


def test_pruned_rows_have_gaps_that_are_not_lower(tmp_path: Path, capsys: Out) -> None:
    """With --stop none, also improvements that the gap model finds worse."""
    rows = pruned_rows(tmp_path, "pruned", prune_edits=True)
    plain = pruned_rows(tmp_path, "plain")
    pairs = [(mine["iterations"][0], other["iterations"][0]) for mine, other in zip(rows, plain, strict=True)]
    changed = [(mine, other) for mine, other in pairs if "pruned_edits" in mine]
    assert changed
    for mine, other in changed:
        assert mine["unpruned_response"] == other["response"] != mine["response"]
        assert mine["gap"] >= other["gap"] - 1e-4
        assert mine["generated_tokens"] == other["generated_tokens"]
    assert all(mine == other for mine, other in pairs if "pruned_edits" not in mine and "pruned_edits" not in other)
    for row in rows:
        accepted = [step["response"] for step in row["iterations"] if step["accepted"]]
        assert row["response"] == (accepted[-1] if accepted else row["original_response"])
    dropped = sum(step.get("pruned_edits", 0) for row in rows for step in row["iterations"])
    assert f"{dropped} edits dropped" in capsys.readouterr().err


@pytest.mark.parametrize("temperature", [0.0, 0.5])
def test_pruned_rows_do_not_depend_on_batches_or_interruptions(temperature: float, tmp_path: Path) -> None:
    common: dict[str, Any] = {"prune_edits": True, "temperature": temperature}
    whole = pruned_rows(tmp_path, "whole", **common)
    by_one = pruned_rows(tmp_path, "one", sample_batch_size=1, **common)
    assert [row["response"] for row in by_one] == [row["response"] for row in whole]
    output = tmp_path / "whole.jsonl"
    output.write_text("".join(output.read_text().splitlines(keepends=True)[:2])[:-9])
    assert pruned_rows(tmp_path, "whole", resume=True, **common) == whole
    with pytest.raises(Exception, match="prune_edits was True"):
        pruned_rows(tmp_path, "whole", resume=True, temperature=temperature)


def test_pruning_is_for_methods_that_rewrite() -> None:
    for method in (Method.best_of_n, Method.resample):
        with pytest.raises(ValueError, match=f"--prune-edits is not for --method {method}"):
            ImproveConfig(prune_edits=True, method=method)
    assert ImproveConfig(prune_edits=True, stop="none").needs_gap_model()  # type: ignore[arg-type]

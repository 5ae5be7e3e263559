"""pit score on the embedded model: from rows to scored rows, resumed, in a pipe, and its accuracy on pairs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pitcli import cli
from pitcli.engine.improving.ranking import without_scores
from pitcli.settings.generating import ImproveConfig
from pitcli.stages import improve
from tests.faults.warm import Warm
from tests.stages.training.conftest import read_rows, write_rows

Out = pytest.CaptureFixture[str]


def pit(*words: str, code: int = 0) -> None:
    assert cli.main(["score", *words]) == code


def samples() -> list[dict[str, Any]]:
    """Three responses to each of five prompts, in rows next to one another."""
    texts = [row["chosen"] for row in read_rows(Path("pairs.jsonl"))[:5]]
    prompts = [row["prompt"] for row in read_rows(Path("pairs.jsonl"))[:5]]
    return [
        {"prompt": prompt, "response": text, "id": f"{number}.{draw}"}
        for number, prompt in enumerate(prompts)
        for draw, text in enumerate([texts[number], "ant", texts[number - 1]])
    ]


def test_a_response_has_the_gap_that_pit_improve_reports(tmp_path: Path) -> None:
    drafts = [{**draft, "response": draft["response"] or "ant"} for draft in read_rows(Path("drafts.jsonl"))]
    write_rows(tmp_path / "drafts.jsonl", drafts)
    config = {"input": str(tmp_path / "drafts.jsonl"), "max_iters": 1, "max_new_tokens": 10, "threshold": 0.0}
    improve.run(ImproveConfig(output=str(tmp_path / "improved.jsonl"), **config))
    pit("--input", f"{tmp_path}/improved.jsonl", "--output", f"{tmp_path}/scored.jsonl", "--reward", "runs/rl")
    improved, scored = read_rows(tmp_path / "improved.jsonl"), read_rows(tmp_path / "scored.jsonl")
    changed = [(row, s) for row, s in zip(improved, scored, strict=True) if row["response"] != row["original_response"]]
    assert len(changed) > 2
    for row, with_scores in changed:
        assert with_scores["gap"] == pytest.approx(row["iterations"][0]["gap"], abs=1e-4)
        assert with_scores["p_better"] == pytest.approx(row["iterations"][0]["p_better"], abs=1e-4)
        assert row["p_better"] == row["iterations"][0]["p_better"]
        assert without_scores(with_scores) == without_scores(row)


def test_neighbouring_rows_and_a_row_with_a_list_have_the_same_scores(capsys: Out) -> None:
    rows = samples()
    write_rows(Path("rows.jsonl"), rows)
    write_rows(
        Path("listed.jsonl"),
        [
            {"prompt": rows[start]["prompt"], "responses": [row["response"] for row in rows[start : start + 3]]}
            for start in range(0, len(rows), 3)
        ],
    )
    capsys.readouterr()
    pit("--input", "rows.jsonl", "--against", "all")
    of_rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["id"] for row in of_rows] == [row["id"] for row in rows]
    pit("--input", "listed.jsonl", "--against", "all")
    listed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    for number, row in enumerate(listed):
        group = of_rows[3 * number : 3 * number + 3]
        assert sorted(row["rank"]) == [1, 2, 3]
        for name in ("gap", "p_better", "rank", "gaps"):
            assert row[name] == [one[name] for one in group]
        assert row["gap"][0] == pytest.approx(sum(row["gaps"][0]) / 2, abs=1e-6)


def test_a_killed_command_is_resumed_to_the_same_bytes(tmp_path: Path, capsys: Out) -> None:
    write_rows(tmp_path / "rows.jsonl", samples())
    flags = ("--input", f"{tmp_path}/rows.jsonl", "--micro-batch-size", "1")
    pit(*flags, "--output", f"{tmp_path}/whole.jsonl")
    whole = (tmp_path / "whole.jsonl").read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1, len(whole)):
        (tmp_path / "cut.jsonl").write_bytes(whole[:length])
        shutil.copy(tmp_path / "whole.jsonl.manifest.json", tmp_path / "cut.jsonl.manifest.json")
        pit(*flags, "--output", f"{tmp_path}/cut.jsonl", "--resume")
        assert (tmp_path / "cut.jsonl").read_bytes() == whole
    capsys.readouterr()
    pit(*flags, "--output", f"{tmp_path}/cut.jsonl", "--resume", "--against", "all", code=2)
    assert "against was None" in capsys.readouterr().err
    pit(*flags, "--output", f"{tmp_path}/cut.jsonl", code=2)
    assert "already contains rows" in capsys.readouterr().err


def test_from_stdin_to_stdout_with_bad_rows(project: Path, tmp_path: Path, warm: Warm) -> None:
    row = {"prompt": "Write 3 foods.", "response": "pie", "original_response": "jam"}
    lines = [json.dumps(row), "{", json.dumps({**row, "original_response": 3}), json.dumps(row)]
    (tmp_path / "stdin").write_text("\n".join(lines))
    ended = warm.run(project, "score", stdin=str(tmp_path / "stdin"))
    assert ended.code == 1
    first, second = map(json.loads, ended.out.splitlines())
    assert first == second
    assert {**row, "gap": first["gap"], "p_better": first["p_better"]} == first
    errors = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert [line.split(":")[2] for line in errors] == ["2", "3"]


def test_the_accuracy_on_pairs(capsys: Out) -> None:
    pit("--labels", "--input", "pairs.jsonl")
    captured = capsys.readouterr()
    result = json.loads(captured.out)
    assert "was trained on prompts of pairs.jsonl" in captured.err
    assert result["pairs"] == 40
    low, high = result["accuracy_ci"]
    assert low <= result["accuracy"] <= high
    pit("--labels", "--input", "pairs.jsonl", "--output", "scored-pairs.jsonl")
    assert json.loads(capsys.readouterr().out) == result
    rows = read_rows(Path("scored-pairs.jsonl"))
    assert result["accuracy"] == sum(row["gap"] > 0 for row in rows) / 40
    Path("scored-pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:11]))
    pit("--labels", "--input", "pairs.jsonl", "--output", "scored-pairs.jsonl", "--resume")
    assert json.loads(capsys.readouterr().out) == result


def test_settings_that_do_not_fit(capsys: Out) -> None:
    pit("--labels", "--against", "others", code=2)
    assert "--against is not for --labels" in capsys.readouterr().err
    pit("--skip-bad", code=2)
    assert "--skip-bad is for preference pairs; use it with --labels" in capsys.readouterr().err
    pit("--reward", "runs/sft", "--input", "pairs.jsonl", code=3)
    assert "runs/sft: expected a run with a gap model, got a sft run" in capsys.readouterr().err
    Path("empty.jsonl").touch()
    pit("--input", "empty.jsonl")
    assert capsys.readouterr().out == ""
    pit("--labels", "--input", "empty.jsonl", code=2)
    assert "empty.jsonl: no rows" in capsys.readouterr().err

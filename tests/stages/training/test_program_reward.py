"""pit rl --reward cmd:COMMAND: the reward is the difference of two scores of a program, and there is no gap model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from pitcli import cli
from pitcli.engine.models.opening import Base
from pitcli.errors import RunError, SettingsError
from pitcli.runs.folder import RunFolder
from pitcli.settings.training import RlConfig
from pitcli.stages import rl
from tests.conftest import cmd
from tests.stages.training.conftest import RL_SMALL, files_of, read_rows, run_files, write_rows

WORDS = cmd("import json, sys\nfor line in sys.stdin: print(len(set(json.loads(line)['response'].split())))")
SETTINGS: dict[str, Any] = {**RL_SMALL, "force": False, "data": "pairs.jsonl", "reward": WORDS, "max_steps": 3}


@pytest.fixture(scope="module")
def rewarded(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run rewarded by a program, made in a project without a gap model."""
    folder = Path(shutil.copytree(project, tmp_path_factory.mktemp("program") / "work"))
    shutil.rmtree(folder / "runs/reward")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        rl.run(RlConfig(out=Path("runs/program"), **SETTINGS))
    return folder


@pytest.fixture(autouse=True)
def in_folder(rewarded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(rewarded)


def test_the_run_contains_the_improver_only() -> None:
    assert files_of(Path("runs/program")) == run_files("improver")
    manifest = json.loads(Path("runs/program/manifest.json").read_text())
    assert manifest["inputs"].keys() == {"improver", "policy"}
    assert (manifest["config"]["reward"], manifest["gap_data"]) == (WORDS, None)
    assert "gap_temperature" not in manifest["results"]
    assert yaml.safe_load(Path("runs/program/config.yaml").read_text())["reward"] == WORDS


def test_a_bound_of_gap_models_is_refused_with_a_program(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["rl", "--reward", "cmd:cat", "--gap-bound", "min"]) == 2
    assert "error: --gap-bound is for gap models: expected a run folder as --reward, got cmd:cat" in (
        capsys.readouterr().err
    )
    saved = yaml.safe_load(Path("runs/program/config.yaml").read_text())
    assert RlConfig(**saved).gap_bound == "mean", "the settings of a run can be given again"


def test_the_reward_is_the_difference_of_the_scores(tmp_path: Path) -> None:
    """All scores are equal: the gap is 0, P(better) one half, and there is nothing to learn."""
    rl.run(RlConfig(**{**SETTINGS, "reward": "cmd:sed s/.*/5/", "max_steps": 1}, out=tmp_path / "run"))
    (row,) = read_rows(tmp_path / "run/metrics.jsonl")
    assert (row["gap"], row["p_better"], row["grad_norm"]) == (0, 0.5, pytest.approx(0, abs=1e-6))
    first = read_rows(Path("runs/program/metrics.jsonl"))[0]
    assert first["gap"] != 0
    assert (first["p_better"] * RL_SMALL["batch_size"] * 4 * 2).is_integer()  # a share of wins, and of ties as halves


def test_it_raises_the_score_on_four_prompts(tmp_path: Path) -> None:
    changed = {"samples_per_prompt": 8, "learning_rate": 5e-3, "epochs": 12, "max_rows": 4, "max_steps": None}
    rl.run(RlConfig(**{**SETTINGS, **changed}, kl_coef=0.0, out=tmp_path / "run"))
    gaps = [row["gap"] for row in read_rows(tmp_path / "run/metrics.jsonl")]
    assert sum(gaps[-4:]) > sum(gaps[:4])


def test_the_program_gets_the_other_fields_of_the_pair(tmp_path: Path) -> None:
    write_rows(tmp_path / "pairs.jsonl", [{**row, "answer": row["chosen"]} for row in read_rows(Path("pairs.jsonl"))])
    log = tmp_path / "log"
    score = f"print(len(json.loads(line)['answer']), file=open({str(log)!r}, 'a')); print(1)"
    code = f"import json, sys\nfor line in sys.stdin: {score}"
    changed = {"data": str(tmp_path / "pairs.jsonl"), "reward": cmd(code), "max_steps": 1}
    rl.run(RlConfig(**{**SETTINGS, **changed}, out=tmp_path / "run"))
    assert len(log.read_text().split()) > 2 + 4


def test_the_program_gets_the_other_fields_of_the_draft(tmp_path: Path) -> None:
    """No pair has the field: only rows of --drafts are scored, after the two responses of the first pair."""
    drafts = [{"prompt": f"Write 5 colors {n}.", "response": "red", "answer": "yes"} for n in range(3)]
    write_rows(tmp_path / "drafts.jsonl", drafts)
    log = tmp_path / "log"
    score = f"print(json.loads(line).get('answer'), file=open({str(log)!r}, 'a')); print(1)"
    code = f"import json, sys\nfor line in sys.stdin: {score}"
    changed = {"drafts": str(tmp_path / "drafts.jsonl"), "curriculum_stages": "policy", "max_steps": 1}
    rl.run(RlConfig(**{**SETTINGS, **changed, "reward": cmd(code)}, out=tmp_path / "run"))
    answers = log.read_text().split()
    assert answers[:2] == ["None", "None"]
    assert len(answers) > 4 and set(answers[2:]) == {"yes"}


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {**SETTINGS, "out": tmp_path / "run", "save_every": 1}
    log = RunFolder.log

    def stop_at_2(self: RunFolder, step: int, metrics: dict[str, float]) -> None:
        log(self, step, metrics)
        if step == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(RunFolder, "log", stop_at_2)
        rl.run(RlConfig(**settings))
    with pytest.raises(SettingsError, match="--resume: reward was 'cmd:"):
        rl.run(RlConfig(**{**settings, "reward": "cmd:sed s/.*/5/"}, resume=True))
    rl.run(RlConfig(**settings, resume=True))
    saved = "improver/adapter_model.safetensors"
    assert (tmp_path / "run" / saved).read_bytes() == Path("runs/program", saved).read_bytes()


def test_a_dry_run_tries_the_program_and_shows_the_setting(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rl.run(RlConfig(**SETTINGS, out=tmp_path / "run", dry_run=True)) == 0
    out, err = capsys.readouterr()
    assert yaml.safe_load(out)["reward"] == WORDS
    assert ": scores of the first pair: chosen " in err
    assert not (tmp_path / "run").exists()


def test_a_program_that_fails_is_refused_before_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Base, "load", lambda *arguments: pytest.fail("the model was loaded"))
    with pytest.raises(RunError, match="cmd:echo 1: expected 2 scores, one per row, got 1"):
        rl.run(RlConfig(**{**SETTINGS, "reward": "cmd:echo 1"}, out=tmp_path / "run"))
    assert not (tmp_path / "run").exists()


def test_improve_needs_another_gap_model_or_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["improve", "--run", "runs/program", "--input", "drafts.jsonl", "--max-iters=1", "--max-new-tokens=8"]
    assert cli.main([*command, "--output", "no.jsonl"]) == 2
    assert "--reward: no gap model in runs/reward; create one with pit train-reward, or use --stop none" in (
        capsys.readouterr().err
    )
    assert cli.main([*command, "--output", "improved.jsonl", "--stop=none", "--overwrite"]) == 0
    assert json.loads(Path("improved.jsonl.manifest.json").read_text())["origin"]["reward_commands"] == [WORDS]


def test_its_reward_is_refused_as_its_judge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    improve = ["improve", "--run", "runs/program", "--input", "drafts.jsonl", "--output", "judged.jsonl"]
    assert cli.main([*improve, "--stop=none", "--max-iters=1", "--max-new-tokens=8", "--overwrite"]) == 0
    evaluate = [
        "evaluate",
        "--input",
        "judged.jsonl",
        "--out",
        str(tmp_path),
        "--bootstrap-draws=100",
        "--overwrite",
        "--judge",
        WORDS,
    ]
    assert cli.main(evaluate) == 2
    assert "was the reward of RL of judged; use another judge, or use --allow-reward-as-judge" in (
        capsys.readouterr().err
    )
    assert cli.main([*evaluate[:-1], "cmd:sed s/.*/5/"]) == 0
    assert cli.main([*evaluate, "--allow-reward-as-judge"]) == 0
    (judge,) = json.loads((tmp_path / "evaluation.json").read_text())["judges"]
    assert judge["independence"].startswith("NOT INDEPENDENT")
    assert judge["identity"] == {"kind": "program", "command": WORDS.removeprefix("cmd:")}


def test_verify_report_and_export_read_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", "runs/program"]) == 0
    assert cli.main(["report", "runs/program", "--out", str(tmp_path / "report.html")]) == 0
    export = ["export", "runs/program", "--adapter", "--base-name", "some/tiny", "--out", str(tmp_path / "exported")]
    assert cli.main(export) == 0
    assert cli.main([*export, "--role", "gap", "--overwrite"]) == 2
    assert "--role: expected improver, got gap, which runs/program does not contain" in capsys.readouterr().err

"""Ensembles of gap models, and the commands that use them, on the embedded model."""

import json
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch

from pitcli import cli
from pitcli.data.rows import Comparison, Message
from pitcli.engine.improving.scoring import GapModel
from pitcli.engine.models.opening import open_base
from pitcli.equations import bounded_gap
from pitcli.evaluation.load_judge import load_judge
from pitcli.runs.earlier import EarlierRun, gap_loss_of, gap_temperatures
from pitcli.runs.manifest import load_manifest
from pitcli.settings.base import GapBound
from pitcli.settings.generating import ImproveConfig
from pitcli.settings.judging import JudgeSettings
from pitcli.settings.training import RewardConfig, RlConfig
from pitcli.stages import improve, rl, train_reward
from tests.stages.training.conftest import RL_SMALL, SMALL, files_of, read_rows, run_files, write_rows

MEMBERS = ["gap", "gap-2", "gap-3"]
COMPARISONS = [
    Comparison((Message("user", "Write 3 foods."),), response, "pie") for response in ("pie jam ham", "cat", "jam jam")
]


@pytest.fixture(scope="module", autouse=True)
def ensembles(project: Path) -> None:
    """runs/three: three members; runs/rl-three: RL on runs/three."""
    common: dict[str, Any] = {"data": "pairs.jsonl", "max_steps": 3, "members": 3, **SMALL}
    with chdir(project):
        train_reward.run(RewardConfig(out=Path("runs/three"), **common))
        stages = {"curriculum_stages": "policy", "gap_bound": "lcb"}
        rl.run(RlConfig(reward=Path("runs/three"), out=Path("runs/rl-three"), max_steps=2, **stages, **RL_SMALL))


def open_run(name: str) -> EarlierRun:
    return EarlierRun(Path("runs", name), load_manifest(Path("runs", name), ""))


def load(name: str, bound: GapBound = GapBound.mean) -> GapModel:
    run = open_run(name)
    base = open_base(ImproveConfig(device="cpu"), [run])
    temperatures, loss = gap_temperatures(run.manifest), gap_loss_of(run.manifest)
    return GapModel(base.load(run.gap_models()), base.chat, temperatures, 8, loss, bound)


def test_an_ensemble_contains_exactly_these_files() -> None:
    assert files_of(Path("runs/three")) == run_files(*MEMBERS)
    assert files_of(Path("runs/rl-three")) == run_files("improver", *MEMBERS)


def test_the_first_member_is_the_single_gap_model_and_the_others_differ() -> None:
    weights = [Path("runs/three", role, "adapter_model.safetensors").read_bytes() for role in MEMBERS]
    assert weights[0] == Path("runs/reward/gap/adapter_model.safetensors").read_bytes()
    assert len(set(weights)) == 3
    rows = read_rows(Path("runs/three/metrics.jsonl"))
    assert [row["member"] for row in rows] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
    assert [row["learning_rate"] for row in rows[:3]] == [row["learning_rate"] for row in rows[3:6]]


def test_each_member_has_its_own_report_and_temperature() -> None:
    results = open_run("three").manifest.results
    single = open_run("reward").manifest.results
    assert results["gap_temperature_1"] == single["gap_temperature"]
    assert results["accuracy_1"] == single["accuracy"]
    assert {f"{name}_{number}" for name in ("accuracy", "log_loss", "gap_temperature") for number in (1, 2, 3)} <= set(
        results
    )
    temperatures = gap_temperatures(open_run("three").manifest)
    assert list(temperatures) == MEMBERS
    assert temperatures["gap-2"] == results["gap_temperature"] * results["gap_temperature_2"]  # type: ignore[operator]


def test_the_ensemble_of_the_rl_run_is_that_of_its_reward() -> None:
    for role in MEMBERS:
        name = f"{role}/adapter_model.safetensors"
        assert Path("runs/three", name).read_bytes() == Path("runs/rl-three", name).read_bytes()
    assert gap_temperatures(open_run("rl-three").manifest) == gap_temperatures(open_run("three").manifest)
    assert open_run("rl-three").manifest.inputs.keys() == {"improver", "policy", *MEMBERS}


@pytest.mark.parametrize("bound", GapBound)
def test_the_gap_of_an_ensemble_is_the_bound_on_those_of_its_members(bound: GapBound) -> None:
    together, run = load("three", bound), open_run("three")
    gaps_MB = together.member_gaps(COMPARISONS)
    for number, role in enumerate(MEMBERS):
        base = open_base(ImproveConfig(device="cpu"), [run])
        model, temperature = base.load({"gap": run.folder / role}), together.temperatures[role]
        alone = GapModel(model, base.chat, {"gap": temperature}, 8, together.loss)
        assert torch.equal(alone.gaps(COMPARISONS), gaps_MB[number])
        assert torch.equal(alone._replace(bound=bound).gaps(COMPARISONS), gaps_MB[number])
    assert torch.equal(together.gaps(COMPARISONS), bounded_gap(gaps_MB, bound))


def test_improve_reports_the_spread_of_an_ensemble(tmp_path: Path) -> None:
    write_rows(tmp_path / "plain.jsonl", [{"prompt": "Write 3 foods.", "response": "pie"}])
    rows = {}
    for name in ("rl-three", "rl"):
        common: dict[str, Any] = {"input": str(tmp_path / "plain.jsonl"), "max_iters": 2, "max_new_tokens": 10}
        output = tmp_path / f"{name}.jsonl"
        improve.run(ImproveConfig(run=Path("runs", name), output=str(output), stop="none", **common))
        (rows[name],) = read_rows(output)
    assert all(step["gap_std"] > 0 for step in rows["rl-three"]["iterations"])
    assert not any("gap_std" in step for step in rows["rl"]["iterations"])
    record = json.loads((tmp_path / "rl-three.jsonl.manifest.json").read_text())
    assert record["adapters"].keys() == {"improver", *MEMBERS}
    assert len(record["gap_temperature"]) == 3


def test_the_judge_is_the_mean_of_the_members() -> None:
    judge = load_judge("gap:runs/three", JudgeSettings(device="cpu"), {}, Path("unused.sqlite")).judge
    found = [verdict.p_better for verdict in judge.verdicts(COMPARISONS)]
    assert found == pytest.approx(torch.sigmoid(load("three").gaps(COMPARISONS)).tolist(), abs=1e-6)


@pytest.mark.parametrize("run", ["three", "rl-three"])
def test_verify(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["verify", f"runs/{run}", "--device", "cpu"]) == 0


def test_export_of_one_member(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["export", "runs/three", "--adapter", "--base-name", "a/b", "--device", "cpu", "--out"]
    assert cli.main([*line, str(tmp_path / "first")]) == 0
    assert "runs/three has 3 gap models: exporting the first; --member chooses another" in capsys.readouterr().err
    assert cli.main([*line, str(tmp_path / "second"), "--member", "2"]) == 0
    name = "adapter_model.safetensors"
    for role, out in (("gap", "first"), ("gap-2", "second")):
        assert (tmp_path / out / name).read_bytes() == Path("runs/three", role, name).read_bytes()
    temperature = open_run("three").manifest.results["gap_temperature_2"]
    assert f"divided by {temperature:.4g}"[:12] in (tmp_path / "second" / "README.md").read_text()
    assert cli.main([*line, str(tmp_path / "fourth"), "--member", "4"]) == 2
    assert "--member: expected at most 3" in capsys.readouterr().err


def test_the_report_and_the_dry_run_of_an_ensemble(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", "runs/three", "--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "accuracy_3" in page
    train_reward.run(RewardConfig(data="pairs.jsonl", dry_run=True, members=3, out=tmp_path / "never", **SMALL))
    assert not (tmp_path / "never").exists()
    rl.run(RlConfig(reward=Path("runs/three"), out=tmp_path / "never", dry_run=True, **RL_SMALL))

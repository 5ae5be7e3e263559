"""pit dpo on the embedded model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pitcli.cli import main
from pitcli.engine.models.loading import WEIGHTS
from pitcli.engine.models.roles import RoleModel
from pitcli.engine.training.preferences import kl_columns
from pitcli.equations import unchanged_preference_loss
from pitcli.errors import InputError, RunError, SettingsError
from pitcli.pages.trained_run import concerns, read_run
from pitcli.runs.manifest import load_manifest
from pitcli.settings.base import PreferenceLoss, Role
from pitcli.settings.dpo import DpoConfig
from pitcli.stages import dpo
from tests.stages.training.conftest import SMALL, read_rows

FAST = {"learning_rate": 3e-3, "batch_size": 4, "max_rows": 4, "epochs": 15, "warmup_share": 0.0}
START = {Role.improver: "runs/sft", Role.policy: "runs/policy"}


def trained(out: Path, **settings: Any) -> list[dict[str, Any]]:
    """The metrics of a run."""
    dpo.run(DpoConfig(out=out, **settings))
    return read_rows(out / "metrics.jsonl")


@pytest.mark.parametrize("loss", PreferenceLoss)
@pytest.mark.parametrize("role", Role)
def test_it_begins_at_its_start_and_learns_four_pairs(role: Role, loss: PreferenceLoss, tmp_path: Path) -> None:
    rows = trained(tmp_path / "run", role=role, loss=loss, **FAST)
    first, last = rows[0], rows[-1]
    assert first["loss"] == pytest.approx(unchanged_preference_loss(loss, 0.1), rel=1e-4)
    assert (first["reward_margin"], first["kl"]) == pytest.approx((0, 0), abs=1e-4)
    assert last["loss"] < 0.9 * first["loss"]
    assert last["accuracy"] == 1
    assert last["reward_margin"] == pytest.approx(last["reward_chosen"] - last["reward_rejected"])
    assert last["reward_margin"] > 0.2
    assert last["kl"] > 0.01
    assert last["chosen_tokens"] == first["chosen_tokens"] > 2
    manifest = load_manifest(tmp_path / "run", "")
    start = load_manifest(Path(START[role]), "")
    assert (manifest.kind, manifest.role) == ("dpo", role)
    assert manifest.inputs == {role: start.files[f"{role}/{WEIGHTS}"]}
    assert manifest.data.path == start.data.path
    assert manifest.config["lora_rank"] == SMALL["lora_rank"]


def test_ipo_stops_at_its_target(tmp_path: Path) -> None:
    """The margin of d is 1 / (2 beta), so the reward margin is 1/2 whatever beta is."""
    rows = trained(tmp_path / "run", loss=PreferenceLoss.ipo, beta=0.5, **{**FAST, "epochs": 60})
    assert rows[-1]["reward_margin"] == pytest.approx(0.5, abs=0.05)
    assert rows[-1]["loss"] < 0.05


@pytest.mark.parametrize("loss", [PreferenceLoss.dpo, PreferenceLoss.kto])
def test_micro_batches_change_nothing(loss: PreferenceLoss, tmp_path: Path) -> None:
    common = {"loss": loss, "max_steps": 3, "learning_rate": 1e-3, "batch_size": 8}
    whole, parts = (trained(tmp_path / str(size), micro_batch_size=size, **common) for size in (32, 4))
    for one, other in zip(whole, parts, strict=True):
        for row in (one, other):
            del row["padding_share"]
        assert one == pytest.approx(other, rel=2e-3, abs=1e-5)


def test_the_reference_is_the_start_and_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}
    train = dpo.train

    def watched(model: RoleModel, *rest: Any) -> Any:
        result = train(model, *rest)
        seen.update({name: tensor.detach().clone() for name, tensor in model.role_parameters("reference").items()})
        return result

    monkeypatch.setattr(dpo, "train", watched)
    trained(tmp_path / "run", max_steps=2, learning_rate=1e-2)
    start = load_file(Path("runs/sft/improver") / WEIGHTS)
    assert len(seen) == len(start)
    for name, tensor in seen.items():
        assert torch.equal(tensor, start[name.replace(".reference.", ".")])
    assert not torch.equal(
        load_file(tmp_path / "run" / "improver" / WEIGHTS)[next(iter(start))], next(iter(start.values()))
    )


def test_from_the_base(tmp_path: Path) -> None:
    rows = trained(tmp_path / "run", from_base=True, data="pairs.jsonl", max_steps=2, **SMALL)
    assert rows[0]["loss"] == pytest.approx(0.6931, abs=1e-3)
    assert load_manifest(tmp_path / "run", "").inputs == {}


def test_a_dpo_run_starts_from_a_dpo_run_and_improves_and_is_reported(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    trained(first, max_steps=2)
    trained(second, max_steps=2, sft=first)
    assert load_manifest(second, "").inputs["improver"] == load_manifest(first, "").files[f"improver/{WEIGHTS}"]
    assert main(["verify", str(second)]) == 0
    line = "improve --input drafts.jsonl --output out.jsonl --stop none --max-iters 1 --max-new-tokens 8 --overwrite"
    assert main([*line.split(), "--run", str(second)]) == 0
    assert main(["report", str(second), "--out", str(tmp_path / "report.html")]) == 0
    page = (tmp_path / "report.html").read_text()
    assert "Preference optimisation of the improver" in page
    assert "reward_margin" in page
    assert not any("training diverged" in text for text in concerns(read_run(second)))


def test_improve_finds_it_before_the_sft(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = Path(shutil.copytree(".", tmp_path / "work"))
    monkeypatch.chdir(folder)
    shutil.rmtree("runs/rl")
    assert main(["dpo", "--max-steps", "1"]) == 0
    assert "pit improve --run runs/dpo --input drafts.jsonl --stop none --max-iters 1" in capsys.readouterr().err
    line = "improve --input drafts.jsonl --output found.jsonl --stop none --max-iters 1 --max-new-tokens 8"
    assert main(line.split()) == 0
    adapters = json.loads(Path("found.jsonl.manifest.json").read_text())["adapters"]
    assert load_manifest(Path("runs/dpo"), "").files[f"improver/{WEIGHTS}"] in adapters.values()


@pytest.mark.parametrize(
    ("settings", "problem", "message"),
    [
        (
            {"sft": Path("runs/reward")},
            RunError,
            "expected a sft or dpo run of the improver, got a reward run of the gap",
        ),
        (
            {"sft": Path("runs/policy")},
            RunError,
            "expected a sft or dpo run of the improver, got a sft run of the policy",
        ),
        ({"lora_rank": 8}, SettingsError, "--lora-rank: expected 4, as in runs/sft, got 8"),
        ({"from_base": True, "model": "tiny"}, SettingsError, "--data: expected a file of preference pairs"),
    ],
)
def test_bad_starts(settings: dict[str, Any], problem: type[Exception], message: str, tmp_path: Path) -> None:
    with pytest.raises(problem, match=message):
        dpo.run(DpoConfig(out=tmp_path / "run", **settings))
    assert not (tmp_path / "run").exists()


def test_no_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for role, folder in START.items():
        with pytest.raises(
            InputError, match=f"--sft: no {role} in {folder}; create one with pit sft --role {role}, or use"
        ):
            dpo.run(DpoConfig(role=role))


def test_a_start_and_none(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["dpo", "--from-base", "--sft", "runs/sft"]) == 2
    assert "--from-base starts from no run: expected no --sft, got runs/sft" in capsys.readouterr().err


def test_a_diverged_run_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["dpo", "--learning-rate", "1", "--beta", "5", "--epochs", "3", "--out", str(tmp_path / "run")]
    assert main(line) == 3
    assert "training diverged: " in capsys.readouterr().err
    assert not (tmp_path / "run" / "improver").exists()


def test_the_tokens_from_which_the_kl_is_estimated() -> None:
    # the middle one of 5 counts for all 5; tokens 8 and 24 of 40 count for 20 each; the only one of 1 for itself
    columns, weights = kl_columns([5, 40, 1])
    assert columns == [2, 5 + 8, 5 + 24, 45]
    assert weights == [5, 20, 20, 1]

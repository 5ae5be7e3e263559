"""A training that diverges exits with 3 and is not finished; --keep-diverged finishes it."""

import json
import shutil
from pathlib import Path

import pytest

from pitcli.cli import main
from pitcli.pages.trained_run import concerns, read_run
from pitcli.runs.earlier import find_run
from pitcli.runs.manifest import read_manifest
from pitcli.settings.default_runs import SFT_RUN
from pitcli.settings.training import RlConfig, SftConfig
from pitcli.stages import rl

DATA = ["--data", "pairs.jsonl", "--model", "tiny", "--max-steps", "8"]
FAST = [*DATA, "--learning-rate", "0.3"]


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["sft"], "the loss per token was "),
        (["sft", "--role", "policy"], "the loss per token was "),
        (["train-reward"], "the loss per pair rose to "),
        (["train-reward", "--gap-loss", "pointwise"], "the loss per pair rose to "),
    ],
)
def test_it_is_said_with_the_remedy(command: list[str], said: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main([*command, *FAST, "--out", "run", "--overwrite"]) == 3
    (error,) = [line for line in capfd.readouterr().err.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: run: training diverged: {said}")
    assert error.endswith(
        "start over with --overwrite --learning-rate 0.03, or keep this model with --resume --keep-diverged"
    )
    assert main(["report", "run"]) == 0
    assert f"warning: run: training diverged: {said}" in capfd.readouterr().err


def test_no_later_command_uses_it_unless_it_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sft", *FAST, "--out", "exploded"]) == 3
    assert not Path("exploded/improver").exists()
    capfd.readouterr()
    assert main(["verify", "exploded"]) == 3
    assert "exploded: the run is not finished, because training diverged: the loss" in capfd.readouterr().err
    assert main(["sft", *FAST, "--out", "exploded", "--resume"]) == 3, "resuming does not hide it"
    assert main(["sft", *FAST, "--out", "exploded", "--resume", "--keep-diverged"]) == 0
    assert "warning: training diverged: the loss per token was" in capfd.readouterr().err
    manifest = read_manifest(Path("exploded"))
    assert manifest is not None
    assert manifest.complete
    assert str(manifest.results["diverged"]).startswith("the loss per token was")
    find_run(Path("exploded"), SFT_RUN)
    assert "warning: exploded: its training diverged: the loss" in capfd.readouterr().err
    assert concerns(read_run(Path("exploded")))[0].startswith("training diverged: ")


@pytest.mark.parametrize("command", [["sft"], ["sft", "--role", "policy"], ["train-reward"]])
def test_short_healthy_trainings_are_not_called_diverged(command: list[str]) -> None:
    """One step and eight, one row per step and sixteen, at the default learning rate."""
    for steps, batch in ((1, 16), (8, 16), (8, 1)):
        arguments = [*command, *DATA[:4], "--max-steps", str(steps), "--batch-size", str(batch)]
        assert main([*arguments, "--out", "healthy", "--overwrite"]) == 0
        assert not [line for line in concerns(read_run(Path("healthy"))) if "diverged" in line]


def test_rl_that_writes_nothing_any_more(capfd: pytest.CaptureFixture[str]) -> None:
    arguments = ["rl", "--force", "--batch-size", "4", "--rollout-max-new-tokens", "10", "--max-steps", "4"]
    assert main([*arguments, "--out", "calm"]) == 0
    capfd.readouterr()
    assert main([*arguments, "--learning-rate", "0.3", "--out", "wild"]) == 3
    assert "error: wild: training diverged: " in capfd.readouterr().err
    assert main([*arguments, "--learning-rate", "0.3", "--out", "wild", "--resume", "--keep-diverged"]) == 0


def test_the_report_compares_with_the_first_step(tmp_path: Path) -> None:
    """Also of a run that was killed: its first ten steps had exploded already, and the loss falls from there."""
    shutil.copytree("runs/sft", tmp_path / "run")
    losses = [1.9, 2.5, 8.0, 7.0, 6.5, 6.0, 5.5, 5.0, 4.5, 4.0, *[3.1] * 30]
    rows = [{"step": step, "loss": loss} for step, loss in enumerate(losses, 1)]
    (tmp_path / "run" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = concerns(read_run(tmp_path / "run"))
    assert "training diverged: the loss per token was 1.90 in the first step and is 3.10 at the end" in found[0]
    assert "train again with a lower --learning-rate than 0.001" in found[0]


def test_rl_does_not_start_from_an_sft_that_diverged(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The SFT that `pit rl` starts by itself stops it."""
    monkeypatch.setattr(
        RlConfig,
        "sft_settings",
        lambda self: SftConfig(data="pairs.jsonl", model="tiny", max_steps=8, learning_rate=0.3),
    )
    shutil.copytree("runs/reward", tmp_path / "runs" / "reward")
    shutil.copy("pairs.jsonl", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["rl", "--max-steps", "1"]) == 3
    assert rl.is_improver_missing(RlConfig())

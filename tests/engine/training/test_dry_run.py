"""--dry-run of the training commands: its output, that it writes nothing, and the accuracy of its estimate."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from pitcli.cli import main
from pitcli.engine.models.bases import resolve_base
from pitcli.engine.training.dry_run import duration
from pitcli.engine.training.footprint import _all_micro_batches, padded
from pitcli.engine.training.loop import PlannedRows
from pitcli.engine.training.model_shape import shape_of
from pitcli.engine.training.schedule import micro_batch_rows
from pitcli.settings.training import SftConfig

WORDS = {"prompt": "Write 4 words about sun.", "chosen": "sun is very hot", "rejected": "moon"}


@pytest.fixture
def data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = [{**WORDS, "prompt": f"{WORDS['prompt']} {'sun ' * number}"} for number in range(40)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.mark.parametrize("command", ["sft", "train-reward"])
def test_nothing_is_written_and_the_settings_are_printed(
    command: str, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--data", "pairs.jsonl", "--model", "tiny", "--max-steps", "3", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert sorted(path.name for path in data.iterdir()) == ["pairs.jsonl"]
    settings = yaml.safe_load(out)
    assert (settings["max_steps"], settings["learning_rate"]) == (3, 1e-3)
    assert "dry_run" not in settings
    assert "memory at the peak" in err
    assert "⟦" in err


def test_the_tokens_in_the_loss_are_marked(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sft", "--role", "policy", "--data", "pairs.jsonl", "--model", "tiny", "--dry-run"]) == 0
    err = capsys.readouterr().err
    marked = err[err.index("⟦") + 1 : err.index("⟧")]
    assert "sun is very hot" in marked
    assert "Write 4 words" in err[: err.index("⟦")]
    assert "Write 4 words" not in marked


def test_an_existing_run_folder_fails_here_too(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("runs/sft").mkdir(parents=True)
    Path("runs/sft/notes.txt").write_text("mine")
    assert main(["sft", "--data", "pairs.jsonl", "--model", "tiny", "--dry-run"]) == 2
    assert "runs/sft is not empty" in capsys.readouterr().err


def test_too_little_memory_is_an_error(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("pitcli.engine.training.dry_run.memory_available", lambda device: 50 * 2**20)
    assert main(["train-reward", "--data", "pairs.jsonl", "--model", "tiny", "--dry-run"]) == 3
    assert "GiB; 0.0 GiB available; use --gradient-checkpointing" in capsys.readouterr().err


@pytest.mark.parametrize("role", ["improver", "policy"])
def test_dpo_measures_its_trees(role: str, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["dpo", "--role", role, "--from-base", "--data", "pairs.jsonl", "--model", "tiny", "--max-steps", "3"]
    assert main([*line, "--loss", "kto", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert (yaml.safe_load(out)["loss"], yaml.safe_load(out)["max_steps"]) == ("kto", 3)
    assert "⟦sun is very hot" in err.replace("⟦ ", "⟦")
    in_largest = 8 // (4 if role == "improver" else 2)
    assert f"{in_largest} rows, the longest of" in err
    assert not Path("runs").exists()


def test_rl_shows_its_rollouts(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--data", "pairs.jsonl", "--model", "tiny", "--max-steps", "1", "--batch-size", "4"]
    assert main(["sft", *small]) == 0
    assert main(["train-reward", *small]) == 0
    capsys.readouterr()
    rl = ["rl", "--curriculum", "--max-steps", "6", "--rollout-max-new-tokens", "8", "--dry-run"]
    assert main(rl) == 0
    out, err = capsys.readouterr()
    assert yaml.safe_load(out)["curriculum_stages"] == ["dataset", "policy"]
    assert "⟦(up to 8 sampled tokens)⟧" in err
    assert not Path("runs/rl").exists()
    assert "sampling the reference responses of policy" in err
    capsys.readouterr()
    assert main([*rl[:1], "--reward", "cmd:sed s/.*/5/", *rl[2:]]) == 0
    assert re.search("not in this time +the program of --reward *\n", capsys.readouterr().err)


def test_work_outside_the_time_is_named(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Members of an ensemble are in it: they are steps. What follows training is not."""
    reward = ["train-reward", "--data", "pairs.jsonl", "--model", "tiny", "--max-steps", "2", "--dry-run"]
    assert main([*reward, "--members", "3", "--probe"]) == 0
    err = capsys.readouterr().err
    assert re.search(r"steps +6, ", err)
    assert re.search(
        r"not in this time +scoring \d pairs for the report, --probe: one forward pass over all pairs", err
    )
    assert main(reward) == 0
    assert "--probe" not in capsys.readouterr().err


def test_rl_without_an_sft_run_dry_runs_the_sft(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small = ["--data", "pairs.jsonl", "--model", "tiny", "--max-steps", "1", "--batch-size", "4"]
    assert main(["train-reward", *small]) == 0
    capsys.readouterr()
    assert main(["rl", "--curriculum", "--dry-run"]) == 0
    out, err = capsys.readouterr()
    assert "that was the dry run of the SFT" in err
    assert yaml.safe_load(out)["curriculum_stages"] == ["dataset", "policy"]
    assert not Path("runs/sft").exists()


def test_micro_batches_are_those_of_training_with_padding() -> None:
    lengths = [5, 5, 5, 30, 2, 2, 2, 2]
    config = SftConfig(batch_size=4)
    cpu = torch.device("cpu")
    chunks = _all_micro_batches(PlannedRows(lengths, 2, build=list), 4, config, cpu)  # type: ignore[arg-type]
    trained_on = [chunk for step in range(4) for chunk in micro_batch_rows(step, lengths, config, 2, cpu)]
    assert chunks == trained_on
    assert sorted(row for chunk in chunks for row in chunk) == sorted([*range(8)] * 2)
    assert padded([3, 0], lengths) == 60


def test_shape_of_counts_the_parameters_of_the_model() -> None:
    from pitcli.engine.models.loading import load_base, lora_config
    from pitcli.engine.models.roles import IMPROVER, RoleModel
    from pitcli.settings.base import LoraSettings

    shape = shape_of(resolve_base("tiny"), rank=4)
    model = RoleModel(load_base(resolve_base("tiny"), False, torch.device("cpu")), 0)
    assert shape.linear + shape.other == sum(p.numel() for p in model.base.parameters())
    model.add_role(IMPROVER, lora_config(LoraSettings(lora_rank=4)))
    assert shape.adapter == sum(p.numel() for p in model.role_parameters(IMPROVER).values())


def test_durations_are_formatted_for_people() -> None:
    assert [duration(seconds) for seconds in (40.2, 700, 12_000)] == ["40 s", "12 min", "3 h 20 min"]


PEAK = """
import resource, sys
from pitcli.cli import main
code = main(sys.argv[1:])
print(code, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
"""


def run_in_a_process(command: list[str]) -> tuple[int, int, str]:
    """(exit code, peak in bytes, stderr)."""
    ended = subprocess.run([sys.executable, "-c", PEAK, *command], capture_output=True, text=True, check=True)
    code, peak = ended.stdout.splitlines()[-1].split()
    return int(code), int(peak), ended.stderr


@pytest.mark.study
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in KiB on Linux")
@pytest.mark.parametrize("mapped", [True, False])
def test_the_estimate_is_within_15_percent_of_the_peak(
    mapped: bool, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With each large block mapped by itself, and with all blocks on one heap, which gets holes."""
    rows = [
        {**WORDS, "chosen": "sun " * 60, "rejected": "moon " * 60, "prompt": f"{n} {WORDS['prompt']}"}
        for n in range(300)
    ]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [
        "sft",
        "--data",
        "pairs.jsonl",
        "--model",
        "tiny",
        "--max-steps",
        "2",
        "--batch-size",
        "100",
        "--micro-batch-size",
        "32",
    ]
    if mapped:
        monkeypatch.setenv("MALLOC_MMAP_THRESHOLD_", str(2**20))
    code, _, shown = run_in_a_process([*command, "--dry-run"])
    assert code == 0
    found = re.search(r"memory at the peak +about ([\d.]+) GiB", shown)
    assert found
    code, peak, _ = run_in_a_process(command)
    assert code == 0
    assert float(found[1]) * 2**30 == pytest.approx(peak, rel=0.15)

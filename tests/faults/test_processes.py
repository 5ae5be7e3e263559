"""Two processes over gloo: they train and write the same as one, and a run that loses a process can be resumed."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import ADAPTER, IMPROVE, TRAIN, run_digests
from tests.faults.warm import Ended, Warm

TrainedByTwo = Callable[[str], tuple[Path, list[Ended]]]

# one process has as many rows per micro-batch as each of two has, so twice as many micro-batches
MICRO = {
    "sft": "--micro-batch-size 4",
    "reward": "--micro-batch-size 16",
    "rl": "--micro-batch-size 8",
    "dpo": "--micro-batch-size 16",
    "distill": "--micro-batch-size 8",
}


def line(kind: str, out: str) -> list[str]:
    return [*TRAIN[kind].replace("--out run", f"--out {out}").split(), *MICRO[kind].split()]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def by_two(project: Path, tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> TrainedByTwo:
    """A function from a kind to the run that two processes trained, once for all tests, and how they ended."""
    folder = Path(shutil.copytree(project, tmp_path_factory.mktemp("by_two") / "work"))

    @cache
    def train(kind: str) -> tuple[Path, list[Ended]]:
        return folder / kind, warm.together(folder, *line(kind, kind), "--track", "tensorboard")

    return train


@pytest.mark.parametrize("kind", TRAIN)
def test_two_processes_train_as_one_does(
    kind: str, project: Path, workspace: Path, by_two: TrainedByTwo, warm: Warm
) -> None:
    two, (first, second) = by_two(kind)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert second.out + second.err == ""  # rank 0 prints for both
    assert first.err.count("saved in") == 1
    alone, both = metrics(project / "runs" / kind), metrics(two)
    assert len(alone) == len(both) == 8
    for row in (*alone, *both):  # smaller micro-batches have less padding
        assert 0 <= row.pop("padding_share") < 0.2
    assert both[0] == pytest.approx(alone[0], rel=1e-5, abs=1e-6)
    for ours, theirs in zip(both, alone, strict=True):  # Adam's first steps are nearly signs, which rounding can flip
        assert ours == pytest.approx(theirs, rel=5e-3, abs=1e-4)
    assert any(row["grad_norm"] > 0 for row in both)
    assert warm.run(workspace, "verify", str(two)).code == 0


@pytest.mark.parametrize("kind", TRAIN)
def test_training_with_a_sharded_base_equals_training_without(kind: str, workspace: Path, warm: Warm) -> None:
    """In 4-bit, and with one micro-batch more in one process than in the other."""
    odd = {"sft": "3", "reward": "12", "rl": "6", "dpo": "12", "distill": "6"}[kind]
    for out, more in (("whole", []), ("sharded", ["--shard-base"])):
        for ended in warm.together(workspace, *line(kind, out), "--micro-batch-size", odd, "--max-steps", "4", *more):
            assert ended.code == 0, ended.err
    whole, sharded = metrics(workspace / "whole"), metrics(workspace / "sharded")
    assert len(whole) == 4
    for ours, theirs in zip(sharded, whole, strict=True):
        assert ours == pytest.approx(theirs, rel=5e-3, abs=1e-4)
    assert warm.run(workspace, "verify", "sharded").code == 0


def test_a_run_resumed_after_a_lost_process_equals_an_uninterrupted_one(
    workspace: Path, by_two: TrainedByTwo, warm: Warm
) -> None:
    uninterrupted, both = by_two("sft")
    assert [ended.code for ended in both] == [0, 0]
    # two micro-batches per step, one in each process: the second process dies in step 6
    first, second = warm.together(workspace, *line("sft", "resumed"), faults={1: {"kill_in_backward": 6}})
    assert (first.code, second.code) == (3, -9)
    assert "another process ended" in first.err
    assert "saved step 5" in first.err
    for ended in warm.together(workspace, *line("sft", "resumed"), "--resume"):
        assert ended.code == 0, ended.err
    whole, resumed = (run_digests(run) for run in (uninterrupted, workspace / "resumed"))
    adapter = f"{ADAPTER['sft']}/adapter_model.safetensors"
    assert whole[adapter] == resumed[adapter]
    assert whole["metrics.jsonl"] == resumed["metrics.jsonl"]


def test_rl_can_be_resumed_after_rank_0_was_killed(workspace: Path, by_two: TrainedByTwo, warm: Warm) -> None:
    uninterrupted, both = by_two("rl")
    assert [ended.code for ended in both] == [0, 0]
    first, second = warm.together(workspace, *line("rl", "resumed"), faults={0: {"kill_after_step": 5}})
    assert (first.code, second.code) == (-9, 3)
    assert "process 1: another process ended" in second.err
    for ended in warm.together(workspace, *line("rl", "resumed"), "--resume"):
        assert ended.code == 0, ended.err
    whole, resumed = (run_digests(run) for run in (uninterrupted, workspace / "resumed"))
    assert whole["improver/adapter_model.safetensors"] == resumed["improver/adapter_model.safetensors"]


def test_two_processes_share_the_drafts_and_write_them_in_order(workspace: Path, warm: Warm) -> None:
    with (workspace / "drafts.jsonl").open("a") as drafts:
        drafts.write("{broken\n")
    assert warm.run(workspace, *IMPROVE.split()).code == 1
    expected = (workspace / "improved.jsonl").read_text()
    assert expected.count("\n") == 11
    both = IMPROVE.replace("improved.jsonl", "both.jsonl").split()
    first, second = warm.together(workspace, *both)
    # a launcher ends all processes once one fails: only rank 0 may, because it is the last to finish its work
    assert (first.code, second.code) == (1, 0), first.err + second.err
    assert first.err.count("drafts.jsonl:12") == 1
    assert second.err == ""
    assert (workspace / "both.jsonl").read_text() == expected

    rows = expected.splitlines(keepends=True)
    (workspace / "both.jsonl").write_text("".join(rows[:5]) + rows[5][:20])
    first, second = warm.together(workspace, *both, "--resume")
    assert (first.code, second.code) == (1, 0), first.err + second.err
    assert (workspace / "both.jsonl").read_text() == expected


def test_an_error_is_printed_once(workspace: Path, warm: Warm) -> None:
    (workspace / "taken").mkdir()
    (workspace / "taken" / "file").touch()
    first, second = warm.together(workspace, *line("sft", "taken"))
    assert (first.code, second.code) == (2, 2)
    assert "taken is not empty" in first.err
    # there is no launcher here that would end it before it prints
    assert second.err == first.err.splitlines()[-1].replace("error: ", "error: process 1: ") + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("sft --model tiny --data - --out x", "one process can read it"),
        (
            "evaluate --input improved.jsonl --judge oracle",
            "pit evaluate: expected one process, got 2; only sft, train-reward",
        ),
    ],
)
def test_commands_for_a_single_process_are_refused(arguments: str, message: str, workspace: Path, warm: Warm) -> None:
    first, _ = warm.together(workspace, *arguments.split())
    assert first.code == 2
    assert message in first.err


def test_processes_with_other_data_are_refused(workspace: Path, warm: Warm) -> None:
    _, second = warm.together(workspace, *line("sft", "run"), second=["--seed", "5"])
    assert second.code == 3
    assert "process 1" in second.err
    assert "other data or settings than process 0" in second.err


def test_torchrun_starts_training(workspace: Path) -> None:
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "pitcli"]
    ended = subprocess.run(
        [*launcher, *line("sft", "launched"), "--max-steps", "2"],
        cwd=workspace,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.count("saved in launched") == 1
    assert "Traceback" not in ended.stderr

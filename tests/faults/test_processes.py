"""Two processes over gloo: what they train and write is what one does, and a run that loses one goes on."""

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

# one process takes as many rows a micro-batch as each of two does, so twice as many micro-batches
MICRO = {"sft": "--micro-batch-size 4", "reward": "--micro-batch-size 16", "rl": "--micro-batch-size 8"}


def line(kind: str, out: str) -> list[str]:
    return [*TRAIN[kind].replace("--out run", f"--out {out}").split(), *MICRO[kind].split()]


def metrics(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(row) for row in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def by_two(project: Path, tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> TrainedByTwo:
    """A kind to the run that two processes train, once for all tests, and how they ended."""
    folder = Path(shutil.copytree(project, tmp_path_factory.mktemp("by_two") / "work"))

    @cache
    def train(kind: str) -> tuple[Path, list[Ended]]:
        return folder / kind, warm.together(folder, *line(kind, kind))

    return train


@pytest.mark.parametrize("kind", TRAIN)
def test_two_processes_train_as_one_does(kind: str, workspace: Path, by_two: TrainedByTwo, warm: Warm) -> None:
    alone_ended = warm.run(workspace, *line(kind, "one"))
    assert alone_ended.code == 0, alone_ended.err
    two, (first, second) = by_two(kind)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert second.out + second.err == ""  # one speaks for both
    assert first.err.count("saved in") == 1
    alone, both = metrics(workspace / "one"), metrics(two)
    assert len(alone) == len(both) == 8
    for row in (*alone, *both):  # smaller micro-batches hold less padding
        assert 0 <= row.pop("padding_share") < 0.2
    assert both[0] == pytest.approx(alone[0], rel=1e-5, abs=1e-6)
    for ours, theirs in zip(both, alone, strict=True):  # Adam's first steps are signs, which rounding can turn
        assert ours == pytest.approx(theirs, rel=5e-3, abs=1e-4)
    assert any(row["grad_norm"] > 0 for row in both)
    assert warm.run(workspace, "verify", str(two)).code == 0


@pytest.mark.parametrize("kind", TRAIN)
def test_processes_that_share_a_base_train_what_those_do_that_have_it_whole(
    kind: str, workspace: Path, warm: Warm
) -> None:
    """In 4-bit, and if one process has a micro-batch more than the other."""
    odd = {"sft": "3", "reward": "12", "rl": "6"}[kind]
    for out, more in (("whole", []), ("shared", ["--shard-base"])):
        for ended in warm.together(workspace, *line(kind, out), "--micro-batch-size", odd, "--max-steps", "4", *more):
            assert ended.code == 0, ended.err
    whole, shared = metrics(workspace / "whole"), metrics(workspace / "shared")
    assert len(whole) == 4
    for ours, theirs in zip(shared, whole, strict=True):
        assert ours == pytest.approx(theirs, rel=5e-3, abs=1e-4)
    assert warm.run(workspace, "verify", "shared").code == 0


def test_a_run_that_loses_a_process_goes_on_to_what_it_would_have_come_to(
    workspace: Path, by_two: TrainedByTwo, warm: Warm
) -> None:
    uninterrupted, both = by_two("sft")
    assert [ended.code for ended in both] == [0, 0]
    # two micro-batches a step, one in each process: the second dies in its sixth step
    first, second = warm.together(workspace, *line("sft", "cut"), faults={1: {"kill_in_backward": 6}})
    assert (first.code, second.code) == (3, -9)
    assert "another process ended" in first.err
    assert "saved step 5" in first.err
    for ended in warm.together(workspace, *line("sft", "cut"), "--resume"):
        assert ended.code == 0, ended.err
    whole, cut = (run_digests(run) for run in (uninterrupted, workspace / "cut"))
    adapter = f"{ADAPTER['sft']}/adapter_model.safetensors"
    assert whole[adapter] == cut[adapter]
    assert whole["metrics.jsonl"] == cut["metrics.jsonl"]


def test_rl_goes_on_after_the_first_process_was_killed(workspace: Path, by_two: TrainedByTwo, warm: Warm) -> None:
    uninterrupted, both = by_two("rl")
    assert [ended.code for ended in both] == [0, 0]
    first, second = warm.together(workspace, *line("rl", "cut"), faults={0: {"kill_after_step": 5}})
    assert (first.code, second.code) == (-9, 3)
    assert "process 1: another process ended" in second.err
    for ended in warm.together(workspace, *line("rl", "cut"), "--resume"):
        assert ended.code == 0, ended.err
    whole, cut = (run_digests(run) for run in (uninterrupted, workspace / "cut"))
    assert whole["improver/adapter_model.safetensors"] == cut["improver/adapter_model.safetensors"]


def test_drafts_are_improved_in_parts_and_come_out_in_order(workspace: Path, warm: Warm) -> None:
    with (workspace / "drafts.jsonl").open("a") as drafts:
        drafts.write("{broken\n")
    assert warm.run(workspace, *IMPROVE.split()).code == 1
    expected = (workspace / "improved.jsonl").read_text()
    assert expected.count("\n") == 11
    both = IMPROVE.replace("improved.jsonl", "both.jsonl").split()
    first, second = warm.together(workspace, *both)
    # a launcher ends all processes once one has failed: the first alone may, and it is the last to have anything to do
    assert (first.code, second.code) == (1, 0), first.err + second.err
    assert first.err.count("drafts.jsonl:12") == 1
    assert second.err == ""
    assert (workspace / "both.jsonl").read_text() == expected

    rows = expected.splitlines(keepends=True)
    (workspace / "both.jsonl").write_text("".join(rows[:5]) + rows[5][:20])
    first, second = warm.together(workspace, *both, "--resume")
    assert (first.code, second.code) == (1, 0), first.err + second.err
    assert (workspace / "both.jsonl").read_text() == expected


def test_an_error_is_told_once(workspace: Path, warm: Warm) -> None:
    (workspace / "taken").mkdir()
    (workspace / "taken" / "file").touch()
    first, second = warm.together(workspace, *line("sft", "taken"))
    assert (first.code, second.code) == (2, 2)
    assert "taken is not empty" in first.err
    # nothing ended it here, as a launcher would
    assert second.err == first.err.splitlines()[-1].replace("error: ", "error: process 1: ") + "\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ("sft --model tiny --data - --out x", "one process can read it"),
        (
            "evaluate --input improved.jsonl --judge oracle",
            "pit evaluate: expected one process, got 2; only sft, train-reward",
        ),
    ],
)
def test_what_one_process_does_is_refused(arguments: str, said: str, workspace: Path, warm: Warm) -> None:
    first, _ = warm.together(workspace, *arguments.split())
    assert first.code == 2
    assert said in first.err


def test_processes_with_other_data_are_refused(workspace: Path, warm: Warm) -> None:
    _, second = warm.together(workspace, *line("sft", "run"), second=["--seed", "5"])
    assert second.code == 3
    assert "process 1" in second.err
    assert "other data or settings than the first" in second.err


def test_torchrun_starts_it(workspace: Path) -> None:
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

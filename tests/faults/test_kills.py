"""A command that was killed at any time can be resumed, and ends as if it had not been killed."""

import json
import random
import re
import shutil
import time
from pathlib import Path

import pytest

from tests.faults.conftest import FULL, IMPROVE, TRAIN, Record, run_digests
from tests.faults.warm import Warm

pytestmark = pytest.mark.faults

KILLS = 200 if FULL else 4
SAVE_EVERY = 2


@pytest.fixture(scope="module")
def whole(project: Path) -> dict[str, dict[str, str]]:
    """The digests of each uninterrupted run."""
    return {kind: run_digests(project / "runs" / kind) for kind in TRAIN}


def same_run(whole: dict[str, str], found: dict[str, str]) -> bool:
    """Whether all files are the same, except the settings, which have another --out."""
    return {**found, "config.yaml": ""} == {**whole, "config.yaml": ""}


def test_a_run_killed_at_any_file_event_of_a_save_can_be_resumed(
    whole: dict[str, dict[str, str]], project: Path, tmp_path: Path, warm: Warm, record: Record
) -> None:
    number, failed = 0, []
    while True:
        number += 1 if FULL else 7
        folder = Path(shutil.copytree(project, tmp_path / str(number)))
        ended = warm.run(folder, *TRAIN["sft"].split(), fault={"kill_at_event": number})
        if ended.code == 0:
            break
        assert ended.code == -9
        resumed = warm.run(folder, *TRAIN["sft"].split(), "--resume")
        if resumed.code or not same_run(whole["sft"], run_digests(folder / "run")):
            failed.append((number, resumed.err))
        shutil.rmtree(folder)
    record(
        "SIGKILL at every file event of a save",
        "all resumable, equal final hashes",
        f"{number - 1 - len(failed)} of {number - 1} resumed with equal hashes",
    )
    assert number > 12
    assert failed == []


@pytest.mark.parametrize("kind", TRAIN)
def test_a_run_killed_at_random_can_be_resumed(
    kind: str, whole: dict[str, dict[str, str]], project: Path, tmp_path: Path, warm: Warm, record: Record
) -> None:
    share = KILLS // 3 + 1
    draw = random.Random(kind)
    start = time.monotonic()
    shutil.copytree(project, tmp_path / "timed")
    warm.run(tmp_path / "timed", *TRAIN[kind].split())
    duration = time.monotonic() - start
    failed, killed, lost = [], 0, 0
    for trial in range(share):
        folder = Path(shutil.copytree(project, tmp_path / str(trial)))
        command = warm.start(folder, *TRAIN[kind].split())
        time.sleep(draw.uniform(0, duration))
        command.kill()
        code = command.wait().code
        assert code in (0, -9)
        killed += code == -9
        reached = last_step(folder / "run" / "metrics.jsonl")
        resumed = warm.run(folder, *TRAIN[kind].split(), "--resume")
        resumed_from = re.search(r"resuming from step (\d+)", resumed.err)
        if "is finished" not in resumed.err:
            lost = max(lost, reached - int(resumed_from[1] if resumed_from else 0))
        if resumed.code or not same_run(whole[kind], run_digests(folder / "run")):
            failed.append((trial, resumed.err))
        shutil.rmtree(folder)
    record(
        f"random SIGKILL x {share}, {kind}",
        "0 unresumable; at most one save interval lost",
        f"{len(failed)} failed, {killed} killed in time, at most {lost} steps lost of {SAVE_EVERY}",
    )
    assert failed == []
    assert lost <= SAVE_EVERY


def last_step(metrics: Path) -> int:
    lines = metrics.read_text().splitlines(keepends=True) if metrics.exists() else []
    return max((json.loads(line)["step"] for line in lines if line.endswith("\n")), default=0)


def test_rl_killed_in_its_initial_sft_can_be_resumed(project: Path, tmp_path: Path, warm: Warm) -> None:
    """`pit rl` trains an improver if there is none; the same command resumes that training too."""
    line = f"{TRAIN['rl']} --seed 1".replace("--max-steps 8", "--max-steps 4").split()
    for name in ("whole", "cut"):
        folder = Path(shutil.copytree(project, tmp_path / name))
        shutil.rmtree(folder / "runs" / "sft")
        if name == "cut":
            assert warm.run(folder, *line, fault={"kill_after_step": 3}).code == -9
            assert not (folder / "run").exists()
        ended = warm.run(folder, *line, "--resume")
        assert ended.code == 0, ended.err
    assert run_digests(tmp_path / "cut" / "run") == run_digests(tmp_path / "whole" / "run")


def test_improve_killed_at_random_can_be_resumed(project: Path, tmp_path: Path, warm: Warm, record: Record) -> None:
    folder = Path(shutil.copytree(project, tmp_path / "work"))
    start = time.monotonic()
    assert warm.run(folder, *IMPROVE.split()).code == 0
    duration = time.monotonic() - start
    output = folder / "improved.jsonl"
    whole = output.read_bytes()
    assert len(whole.splitlines()) == 11
    draw, different, killed, partial = random.Random(0), 0, 0, 0
    for _ in range(KILLS):
        output.unlink()
        command = warm.start(folder, *IMPROVE.split())
        time.sleep(draw.uniform(0.2, 1) * duration)
        command.kill()
        code = command.wait().code
        assert code in (0, -9)
        killed += code == -9
        if output.exists() and draw.random() < 0.5:  # the last row truncated, as if a block of it was not written
            output.write_bytes(output.read_bytes()[:-7])
        partial += output.exists() and 0 < len(output.read_bytes()) < len(whole)
        resumed = warm.run(folder, *IMPROVE.split(), "--resume")
        different += resumed.code != 0 or output.read_bytes() != whole
    record(
        f"SIGKILL of `improve` x {KILLS}",
        "resumed output byte-equal; nothing lost or doubled",
        f"{KILLS - different} of {KILLS} byte-equal, {killed} killed on the way, {partial} with part of the rows",
    )
    assert different == 0

"""Ctrl-C, SIGTERM, a second run in the same folder."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.conftest import FULL, IMPROVE, TRAIN, Record, run_digests
from tests.faults.warm import Command, Warm

pytestmark = pytest.mark.faults

RARELY_SAVED = {kind: re.sub(r"--save-every \d+", "--save-every 100", line) for kind, line in TRAIN.items()}


def until_step(command: Command, step: int) -> None:
    """Waits until the metrics contain a step."""
    metrics = command.folder / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not (metrics.exists() and f'"step": {step},' in metrics.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("kind", "number", "code"),
    [
        *((kind, signal.SIGTERM, 143) for kind in TRAIN),
        *((kind, signal.SIGINT, 130) for kind in (TRAIN if FULL else ["sft"])),
    ],
)
def test_a_signal_saves_a_checkpoint(
    kind: str, number: signal.Signals, code: int, workspace: Path, project: Path, warm: Warm, record: Record
) -> None:
    command = warm.start(workspace, *RARELY_SAVED[kind].split(), fault={"slow": 0.2})
    until_step(command, 3)
    start = time.monotonic()
    command.kill(number)
    ended = command.wait()
    seconds = time.monotonic() - start
    assert ended.code == code, ended.err
    saved = re.search(r"saved step (\d+); use --resume to continue from there", ended.err)
    assert saved
    # step 3 may be logged but not completed; and an RL rollout, which is used for two steps here, is repeated
    assert int(saved[1]) >= 2
    assert seconds < 10
    resumed = warm.run(workspace, *RARELY_SAVED[kind].split(), "--resume")
    assert resumed.code == 0, resumed.err
    adapter = {name: digest for name, digest in run_digests(workspace / "run").items() if "adapter" in name}
    whole = run_digests(project / "runs" / kind)
    assert adapter.items() <= whole.items()
    name = signal.Signals(number).name
    record(
        f"{name} once, {kind}",
        f"saves within 10 s, exit {code}",
        f"saved in {seconds:.1f} s, exit {code}, resumed equal",
    )


def test_a_second_interrupt_ends_at_once(workspace: Path, project: Path, warm: Warm, record: Record) -> None:
    command = warm.start(workspace, *RARELY_SAVED["sft"].split(), fault={"slow": 0.2, "slow_save": 30})
    until_step(command, 3)
    command.kill(signal.SIGINT)
    time.sleep(1)
    start = time.monotonic()
    command.kill(signal.SIGINT)
    ended = command.wait()
    seconds = time.monotonic() - start
    assert ended.code == 130
    assert "Traceback" not in ended.err
    assert seconds < 2
    resumed = warm.run(workspace, *RARELY_SAVED["sft"].split(), "--resume")
    assert resumed.code == 0, resumed.err
    assert run_digests(workspace / "run" / "improver") == run_digests(project / "runs" / "sft" / "improver")
    record("SIGINT twice", "at once, no damage", f"ended {seconds:.1f} s after the second, resumed equal")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_improve_keeps_the_rows_that_it_has_written(
    number: signal.Signals, code: int, workspace: Path, warm: Warm
) -> None:
    assert warm.run(workspace, *IMPROVE.split()).code == 0
    output = workspace / "improved.jsonl"
    whole = output.read_bytes()
    output.unlink()
    command = warm.start(workspace, *IMPROVE.split(), fault={"slow_generate": 0.5})
    deadline = time.monotonic() + 60
    while not (output.exists() and output.read_bytes()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    command.kill(number)
    ended = command.wait()
    assert ended.code == code
    assert "Traceback" not in ended.err
    written = output.read_bytes()
    assert written.endswith(b"\n")
    assert len(written) < len(whole)
    assert whole.startswith(written)


def test_a_second_run_in_the_same_folder_is_refused(workspace: Path, project: Path, warm: Warm, record: Record) -> None:
    first = warm.start(workspace, *TRAIN["sft"].split(), fault={"slow": 0.3})
    until_step(first, 1)
    start = time.monotonic()
    second = subprocess.run(
        [sys.executable, "-m", "pitcli", *TRAIN["sft"].split(), "--overwrite"],
        cwd=workspace,
        capture_output=True,
        text=True,
        check=False,
    )
    seconds = time.monotonic() - start
    assert second.returncode == 3
    assert second.stderr == f"error: run: in use by process {first.pid}\n"
    assert first.wait().code == 0
    assert run_digests(workspace / "run" / "improver") == run_digests(project / "runs" / "sft" / "improver")
    record(
        "two runs, one folder",
        "second exits 3 within a second and names the pid, first unharmed",
        f"second exits {second.returncode} after {seconds:.2f} s and names the pid, first equal",
    )


def test_a_second_improve_with_the_same_output_is_refused(workspace: Path, warm: Warm) -> None:
    first = warm.start(workspace, *IMPROVE.split(), fault={"slow_generate": 0.3})
    output = workspace / "improved.jsonl"
    deadline = time.monotonic() + 60
    while not (output.exists() and output.read_bytes()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    second = warm.run(workspace, *IMPROVE.split(), "--overwrite")
    assert second.code == 3
    assert "another command is writing to this file" in second.err
    assert first.wait().code == 0
    assert len(output.read_bytes().splitlines()) == 11

"""A full disk, damaged checkpoints, closed pipes: one error line, the right exit code, and no saved work lost."""

import json
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import FULL, IMPROVE, TRAIN, Record, run_digests
from tests.faults.warm import Ended, Warm

pytestmark = pytest.mark.faults

LINE = TRAIN["sft"].split()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A separate file system of 4 MiB, which is more than a whole run needs."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4096k", "tmpfs", str(disk)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def only_line(ended: Ended) -> str:
    """The single error line; notes may come before it."""
    assert "Traceback" not in ended.err
    lines = [line for line in ended.err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, ended.err
    return lines[0]


def test_training_on_a_full_disk_can_be_resumed(
    tiny_disk: Path, workspace: Path, project: Path, warm: Warm, record: Record
) -> None:
    line = " ".join(LINE).replace("--out run", f"--out {tiny_disk}/run").split()
    ballast = tiny_disk / "ballast"
    ballast.write_bytes(bytes(3260 * 1024))
    ended = warm.run(workspace, *line)
    assert ended.code == 3
    assert f"No space left on device: {tiny_disk}/run" in only_line(ended)
    saved = [path.name for path in (tiny_disk / "run" / "checkpoints").iterdir()]
    assert saved
    assert all(name.startswith("step-") for name in saved), "half-written files are removed, and their space is free"
    ballast.unlink()
    resumed = warm.run(workspace, *line, "--resume")
    assert resumed.code == 0, resumed.err
    assert "resuming from step" in resumed.err
    adapter = "improver/adapter_model.safetensors"
    same = run_digests(tiny_disk / "run")[adapter] == run_digests(project / "runs/sft")[adapter]
    record(
        "disk full (small tmpfs)",
        "exit 3, one line; previous checkpoint valid; resumes bit-exact once space is freed",
        f"exit {ended.code}, one line, resumed from a checkpoint, adapter equal: {same}",
    )
    assert same


def truncate(file: Path, draw: random.Random) -> None:
    os.truncate(file, draw.randrange(file.stat().st_size))


def flip(file: Path, draw: random.Random) -> None:
    data = bytearray(file.read_bytes())
    data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
    file.write_bytes(data)


def delete(file: Path, draw: random.Random) -> None:
    file.unlink()


def swap(file: Path, draw: random.Random) -> None:
    """Replaces a file by the file of the same name in the older checkpoint."""
    shutil.copy(file.parent.parent / "step-000006" / file.name, file)


@pytest.fixture(scope="module")
def unfinished(project: Path, tmp_path_factory: pytest.TempPathFactory, warm: Warm) -> Path:
    """A run with checkpoints after steps 6 and 8, killed before it was finished."""
    folder = Path(shutil.copytree(project, tmp_path_factory.mktemp("unfinished") / "work"))
    assert warm.run(folder, *LINE, fault={"kill_before_publishing": "improver"}).code == -9
    return folder


def test_damaged_checkpoints_are_detected_and_skipped(
    unfinished: Path, tmp_path: Path, warm: Warm, project: Path, record: Record
) -> None:
    names = ["parameters.safetensors", "optimizer.safetensors", "state.json", "digests.json"]
    damages: list[Callable[[Path, random.Random], None]] = [truncate, flip, delete, swap]
    cases = [(name, damage) for name in names for damage in damages]
    draw = random.Random(0)
    detected = 0
    for number, (name, damage) in enumerate(cases if FULL else draw.sample(cases, 4)):
        folder = Path(shutil.copytree(unfinished, tmp_path / str(number)))
        file = folder / "run" / "checkpoints" / "step-000008" / name
        damage(file, draw)
        resumed = warm.run(folder, *LINE, "--resume")
        warned = [text for text in resumed.err.splitlines() if text.startswith("warning: ")]
        assert len(warned) == 1, (name, damage, resumed.err)
        # a wrong list of digests is detected at the first file that differs from it
        assert ("step-000008/" in warned[0]) and (name in warned[0] or name == "digests.json")
        assert "resuming from step 6" in resumed.err
        assert run_digests(folder / "run" / "improver") == run_digests(project / "runs" / "sft" / "improver")
        detected += 1
    record(
        "each checkpoint file truncated, flipped, deleted, swapped",
        "100% detected, falls back, names the file",
        f"{detected} of {detected} detected and named, fell back, adapter equal",
    )


@pytest.mark.parametrize("damage", [truncate, flip, delete])
@pytest.mark.parametrize(
    "name", ["manifest.json", "improver/adapter_model.safetensors", "improver/adapter_config.json"]
)
def test_damaged_results_are_refused(
    name: str, damage: Callable[[Path, random.Random], None], workspace: Path, warm: Warm
) -> None:
    damage(workspace / "runs" / "sft" / name, random.Random(1))
    ended = warm.run(workspace, *IMPROVE.split(), "--run", "runs/sft")
    assert ended.code == 3
    assert f"runs/sft/{name}" in only_line(ended) or name == "manifest.json"
    assert not (workspace / "improved.jsonl").exists()


def test_writing_to_a_full_device_is_one_error_line(workspace: Path, warm: Warm, record: Record) -> None:
    line = IMPROVE.replace("improved.jsonl", "/dev/full").split()
    ended = warm.run(workspace, *line)
    assert ended.code == 3
    assert "No space left on device: /dev/full" in only_line(ended)
    record("`improve` into /dev/full", "exit 3, one line", f"exit {ended.code}, one line")


def test_a_closed_pipe_ends_improve_silently(workspace: Path, record: Record) -> None:
    """A real shell pipe into head -1: SIGPIPE's exit code, and nothing on stderr."""
    drafts = (workspace / "drafts.jsonl").read_text() * 40
    (workspace / "many.jsonl").write_text(drafts.replace('{"id":', '{"name":'))
    script = (
        f"{sys.executable} -m pitcli improve --input many.jsonl --max-iters 1 --max-new-tokens 4 "
        "--sample-batch-size 8 2>err | head -1 >first; exit ${PIPESTATUS[0]}"
    )
    ended = subprocess.run(["bash", "-c", script], cwd=workspace, check=False)
    assert ended.returncode == 141
    assert (workspace / "err").read_text() == ""
    assert "original_response" in json.loads((workspace / "first").read_text())
    record("`improve` into `head -1`", "141, empty stderr", f"{ended.returncode}, empty stderr")

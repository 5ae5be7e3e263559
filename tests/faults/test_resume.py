"""On CPU, a resumed run equals an uninterrupted one bit for bit, in interpreters with different hash seeds."""

import hashlib
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import FULL, TRAIN, Record, run_digests
from tests.faults.warm import Fault, Warm

pytestmark = pytest.mark.faults

# when each run is killed; 40 pairs give 6 sft steps (with identity pairs), 5 reward or dpo steps and 10 rollouts per
# epoch
CASES: dict[str, dict[str, tuple[int, Fault]]] = {
    "sft": {
        "step 1": (1, {"kill_after_step": 1}),
        "accumulation boundary": (2, {"kill_in_backward": 7}),
        "mid-epoch": (2, {"kill_after_step": 3}),
        "epoch edge": (3, {"kill_after_step": 6}),
        "stage edge": (3, {"kill_before_publishing": "improver"}),
    },
    "reward": {
        "step 1": (1, {"kill_after_step": 1}),
        "accumulation boundary": (2, {"kill_in_backward": 5}),
        "mid-epoch": (2, {"kill_after_step": 3}),
        "epoch edge": (2, {"kill_after_step": 5}),
        "stage edge": (3, {"kill_before_publishing": "gap"}),
    },
    "rl": {
        "step 1": (2, {"kill_after_step": 1}),
        "accumulation boundary": (2, {"kill_in_backward": 7}),
        "mid-epoch": (2, {"kill_after_step": 3}),
        "epoch edge": (2, {"kill_after_step": 8}),
        "stage edge": (2, {"kill_after_step": 4}),
    },
    "dpo": {
        "step 1": (1, {"kill_after_step": 1}),
        "accumulation boundary": (2, {"kill_in_backward": 5}),
        "mid-epoch": (2, {"kill_after_step": 3}),
        "epoch edge": (2, {"kill_after_step": 5}),
        "stage edge": (3, {"kill_before_publishing": "improver"}),
    },
    "distill": {
        "step 1": (2, {"kill_after_step": 1}),
        "accumulation boundary": (2, {"kill_in_backward": 7}),
        "mid-epoch": (2, {"kill_after_step": 3}),
        "epoch edge": (2, {"kill_after_step": 8}),
        "stage edge": (2, {"kill_before_publishing": "policy"}),
    },
}
if not FULL:  # SFT and RL stand for the others, which have the same loop
    for others in ("reward", "dpo", "distill"):
        CASES[others] = {moment: CASES[others][moment] for moment in ("accumulation boundary", "stage edge")}
EQUAL: list[str] = []


@pytest.fixture(scope="module")
def interpreters() -> Iterator[tuple[Warm, Warm]]:
    """Two more interpreters; the one that all tests share has hash seed 0."""
    pair = Warm(1), Warm(2)
    yield pair
    for interpreter in pair:
        interpreter.close()


@pytest.fixture(scope="module")
def uninterrupted(
    project: Path, tmp_path_factory: pytest.TempPathFactory, warm: Warm
) -> dict[tuple[str, int], dict[str, str]]:
    """The digests of uninterrupted runs, by kind and --save-every."""
    digests = {}
    for kind, cases in CASES.items():
        digests[kind, 2] = digests_as_run(project / "runs" / kind)
        for save_every in {every for every, _ in cases.values()} - {2}:
            folder = Path(shutil.copytree(project, tmp_path_factory.mktemp("whole") / "work"))
            ended = warm.run(folder, *line_of(kind, save_every))
            assert ended.code == 0, ended.err
            digests[kind, save_every] = run_digests(folder / "run")
    return digests


def digests_as_run(folder: Path) -> dict[str, str]:
    """The digests of a run of the project as if its --out had been `run`; its command differs only in that."""
    digests = run_digests(folder)
    config = (folder / "config.yaml").read_text().replace(f"out: runs/{folder.name}\n", "out: run\n")
    return {**digests, "config.yaml": hashlib.sha256(config.encode()).hexdigest()}


def line_of(kind: str, save_every: int) -> list[str]:
    return re.sub(r"--save-every \d+", f"--save-every {save_every}", TRAIN[kind]).split()


@pytest.mark.parametrize(("kind", "moment"), [(kind, moment) for kind, cases in CASES.items() for moment in cases])
def test_resumed_equals_uninterrupted(
    kind: str,
    moment: str,
    workspace: Path,
    uninterrupted: dict[tuple[str, int], dict[str, str]],
    interpreters: tuple[Warm, Warm],
    record: Record,
) -> None:
    """Compares weights, optimiser moments, position, metrics and manifest: every file, byte for byte."""
    save_every, fault = CASES[kind][moment]
    line = line_of(kind, save_every)
    assert interpreters[0].run(workspace, *line, fault=fault).code == -9
    resumed = interpreters[1].run(workspace, *line, "--resume")
    assert resumed.code == 0, resumed.err
    found = run_digests(workspace / "run")
    assert {"metrics.jsonl", "manifest.json"} < found.keys()
    assert sum("optimizer.safetensors" in name for name in found) >= 2
    assert found == uninterrupted[kind, save_every]
    EQUAL.append(f"{kind} {moment}")
    if len(EQUAL) == (count := sum(map(len, CASES.values()))):
        record(
            "bit-exact resume on CPU",
            f"{count} of {count} equal at tolerance 0",
            f"{len(EQUAL)} of {count} equal, every file of the run",
        )


@pytest.mark.parametrize("kind", CASES if FULL else ("reward", "rl"))
def test_resumed_equals_uninterrupted_in_bf16(kind: str, project: Path, tmp_path: Path, warm: Warm) -> None:
    digests = []
    line = [*line_of(kind, 2), "--dtype", "bf16"]
    for name in ("whole", "killed"):
        folder = Path(shutil.copytree(project, tmp_path / name))
        if name == "killed":
            assert warm.run(folder, *line, fault={"kill_after_step": 3}).code == -9
            refused = warm.run(folder, *line, "--dtype", "fp32", "--resume")
            assert (refused.code, "--resume: dtype was 'bf16'" in refused.err) == (2, True), refused.err
        ended = warm.run(folder, *line, *(["--resume"] if name == "killed" else []))
        assert ended.code == 0, ended.err
        digests.append(run_digests(folder / "run"))
    assert digests[0] == digests[1]


def test_an_ensemble_killed_in_its_second_member_resumes_there(project: Path, tmp_path: Path, warm: Warm) -> None:
    line = [*line_of("reward", 2), "--members", "2", "--max-steps", "3"]
    digests = []
    for name in ("whole", "killed"):
        folder = Path(shutil.copytree(project, tmp_path / name))
        if name == "killed":
            assert warm.run(folder, *line, fault={"kill_after_step": 5}).code == -9
        ended = warm.run(folder, *line, *(["--resume"] if name == "killed" else []))
        assert ended.code == 0, ended.err
        assert ("resuming from step 4" in ended.err) == (name == "killed"), ended.err
        digests.append(run_digests(folder / "run"))
    assert digests[0] == digests[1]
    assert {"gap/adapter_model.safetensors", "gap-2/adapter_model.safetensors"} < digests[0].keys()

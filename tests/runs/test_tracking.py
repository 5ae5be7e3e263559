"""Trackers get the metrics of metrics.jsonl, each step once, and do not change the run."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from accelerate import Accelerator
from accelerate.tracking import TensorBoardTracker
from tensorboardX import event_file_writer
from tensorboardX.proto.event_pb2 import Event

from pitcli.cli import main
from pitcli.data.synthetic import preference_rows
from pitcli.runs import tracking
from pitcli.runs.folder import RunFolder

SFT = [
    *("sft", "--data", "pairs.jsonl", "--model", "tiny", "--lora-rank", "4", "--batch-size", "4"),
    *("--max-steps", "6", "--save-every", "4", "--out", "run"),
]
TENSORBOARD = [*SFT, "--track", "tensorboard"]


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in preference_rows(40, seed=3)))


def events(folder: str = "run/trackers") -> list[Event]:
    """The events in TensorBoard's files: length (8 bytes), its checksum (4), the event, its checksum (4)."""
    found = []
    for path in sorted(Path(folder).rglob("events.out.*")):
        data = path.read_bytes()
        while data:
            length = int.from_bytes(data[:8], "little")
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def tracked() -> list[dict[str, float]]:
    """The tracked scalars as rows of metrics.jsonl, in the order of their steps; fails if a step was logged twice."""
    scalars = [(e.step, value.tag, value.simple_value) for e in events() for value in e.summary.value]
    logged = [(step, tag, value) for step, tag, value in scalars if not tag.startswith("_hparams_")]
    assert len({(step, tag) for step, tag, _ in logged}) == len(logged), "a step was logged twice"
    rows: dict[int, dict[str, float]] = {}
    for step, tag, value in sorted(logged):
        rows.setdefault(step, {"step": step})[tag] = pytest.approx(value, rel=1e-5)
    return list(rows.values())


def metrics() -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]


def hparams() -> list[dict[str, Any]]:
    import yaml

    return [yaml.safe_load(path.read_text()) for path in Path("run/trackers").rglob("hparams.yml")]


def die_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails after a step as in a crash: no checkpoint is saved on the way out."""
    log = RunFolder.log

    def dying(self: RunFolder, number: int, values: dict[str, float]) -> None:
        if number > step:
            raise OSError("the disk is gone")
        log(self, number, values)

    monkeypatch.setattr(RunFolder, "log", dying)


def test_a_tracker_gets_every_step_of_metrics_and_the_settings(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(TENSORBOARD) == 0
    assert [row["step"] for row in metrics()] == [1, 2, 3, 4, 5, 6]
    assert metrics() == tracked()
    (settings,) = hparams()
    assert (settings["batch_size"], settings["role"], settings["data"]) == (4, "improver", "pairs.jsonl")
    assert "track" not in settings
    assert capfd.readouterr().out == ""


def test_tracking_does_not_change_the_run() -> None:
    assert main(TENSORBOARD) == 0
    assert main([*SFT[:-1], "plain"]) == 0
    tracked_run, plain_run = (json.loads(Path(run, "manifest.json").read_text()) for run in ("run", "plain"))
    assert tracked_run == plain_run
    assert not Path("plain/trackers").exists()
    assert main(["verify", "run"]) == 0


def test_a_resumed_run_logs_no_step_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    second = float(int(time.time()))  # both runs in the same second, by which tensorboard names its files
    monkeypatch.setattr(event_file_writer, "time", SimpleNamespace(time=lambda: second))
    with monkeypatch.context() as patch:
        die_after(5, patch)
        assert main(TENSORBOARD) == 3
    assert main([*TENSORBOARD, "--resume"]) == 0  # from the checkpoint of step 4: step 5 is repeated
    assert [row["step"] for row in tracked()] == [1, 2, 3, 4, 5, 6]
    assert metrics() == tracked()
    assert len(hparams()) == 1


def test_a_tracker_that_is_added_later_gets_the_earlier_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        die_after(5, patch)
        assert main(SFT) == 3
    assert main([*TENSORBOARD, "--resume"]) == 0
    assert metrics() == tracked()
    assert len(tracked()) == 6


def test_overwrite_clears_the_trackers_and_the_report() -> None:
    assert main(TENSORBOARD) == 0
    assert main(["report", "run"]) == 0
    assert Path("run/report.html").exists()
    assert main([*SFT, "--overwrite"]) == 0
    assert not Path("run/trackers").exists()
    assert not Path("run/report.html").exists()


def test_trackers_that_are_not_installed_are_refused_before_anything_else(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tracking, "_is_installed", lambda _: False)
    assert main([*SFT, "--data", "missing.jsonl", "--track", "tensorboard,trackio"]) == 2
    err = capsys.readouterr().err
    assert "error: --track: tensorboard is not installed; pip install tensorboard\n" in err
    assert "error: --track: trackio is not installed; pip install trackio\n" in err
    assert "missing.jsonl" not in err
    assert not Path("run").exists()
    assert main([*SFT, "--track", "mlflow"]) == 2
    assert "--track: must be 'tensorboard', 'wandb' or 'trackio', got mlflow" in capsys.readouterr().err


def test_a_tracker_that_cannot_start_is_one_error_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusing(self: Accelerator, *_: Any, **__: Any) -> None:
        raise ValueError("no account\nlog in first")

    monkeypatch.setattr(Accelerator, "init_trackers", refusing)
    assert main(TENSORBOARD) == 3
    assert "error: --track: no account log in first\n" in capsys.readouterr().err


def test_what_trackers_print_does_not_go_to_stdout(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    started = Accelerator.init_trackers
    monkeypatch.setattr(Accelerator, "init_trackers", lambda *a, **b: (print("welcome"), started(*a, **b)))
    monkeypatch.setattr(TensorBoardTracker, "finish", lambda _: print("goodbye"))
    assert main(TENSORBOARD) == 0
    out, err = capsys.readouterr()
    assert out == ""
    assert "welcome\n" in err
    assert "goodbye\n" in err


def test_a_damaged_state_file_of_the_trackers_is_named(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        die_after(5, patch)
        assert main(TENSORBOARD) == 3
    Path("run/trackers/known.json").write_text("[")
    assert main([*TENSORBOARD, "--resume"]) == 3
    assert "run/trackers/known.json: damaged; delete run/trackers" in capsys.readouterr().err

"""pit rl trains the SFT improver first if there is none."""

from pathlib import Path
from typing import Any

import pytest

from pitcli.engine.training import rl_runs
from pitcli.errors import InputError, RunError, SettingsError
from pitcli.settings.base import Role
from pitcli.settings.training import RlConfig, SftConfig
from pitcli.stages import rl

Started = list[tuple[str, Any]]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Started:
    """The commands that pit rl starts in an empty folder; starting one only records it."""
    commands: Started = []

    def start(command: str, config: Any) -> int:
        commands.append((command, config))
        return 0

    monkeypatch.setattr(rl, "start", start)
    monkeypatch.chdir(tmp_path)
    return commands


def test_it_trains_the_improver_first_if_there_is_none(started: Started, capsys: pytest.CaptureFixture[str]) -> None:
    config = RlConfig(
        **{"data": "d.jsonl", "model": "tiny", "seed": 3, "max_steps": 9, "load_in_4bit": False},
        **{"tokens_per_batch": 300, "warmup_share": 0.2, "max_grad_norm": 2.0},
        learning_rate=1,
    )
    assert rl.train_missing_improver(config) == 0
    expected = SftConfig(
        **{"data": "d.jsonl", "model": "tiny", "seed": 3, "max_steps": 9, "load_in_4bit": False},
        **{"tokens_per_batch": 300, "warmup_share": 0.2, "max_grad_norm": 2.0},
        role=Role.improver,
    )
    assert started == [("sft", expected)], "rl's learning rate is not sft's"
    assert len(capsys.readouterr().err.splitlines()) == 1


@pytest.mark.parametrize(("settings", "finished"), [({"sft": Path("elsewhere")}, None), ({}, "runs/sft")])
def test_it_uses_an_existing_improver(
    settings: dict[str, Any], finished: str | None, started: Started, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rl_runs, "is_finished", lambda folder: str(folder) == finished)
    assert rl.train_missing_improver(RlConfig(**settings)) == 0
    assert started == []


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "--reward: no gap model in runs/reward"),
        ({"reward": Path("runs/typo")}, "runs/typo: no such run"),
        ({"reward": "cmd:true", "policy": Path("runs/typo")}, "runs/typo: no such run"),
        ({"reward": "cmd:true", "drafts": "typo.jsonl", "curriculum": True}, "typo.jsonl: no such file"),
        ({"reward": "cmd:true", "out": Path("used")}, "--out: used is not empty"),
    ],
)
def test_what_is_wrong_is_said_before_hours_of_sft(settings: dict[str, Any], message: str, started: Started) -> None:
    Path("used").mkdir()
    Path("used/metrics.jsonl").touch()
    with pytest.raises((InputError, RunError, SettingsError), match=message):
        rl.run(RlConfig(**settings))
    assert started == []


def test_it_resumes_an_unfinished_improver(started: Started) -> None:
    Path("runs/sft").mkdir(parents=True)
    with pytest.raises(RunError):  # because the recorded SFT trained nothing
        rl.run(RlConfig(resume=True, reward="cmd:true"))
    assert [(command, config.resume) for command, config in started] == [("sft", True)]


def test_it_stops_after_a_failed_sft(started: Started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rl, "start", lambda command, config: 3)
    assert rl.run(RlConfig(reward="cmd:true")) == 3


def test_plain_rlhf_needs_no_improver(started: Started) -> None:
    assert rl.train_missing_improver(RlConfig(role=Role.policy)) == 0
    assert started == []

"""pit sft on the embedded model."""

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pitcli.data.synthetic import preference_rows
from pitcli.errors import InputError, SettingsError
from pitcli.settings.training import SftConfig
from pitcli.stages import sft
from tests.faults.warm import Warm
from tests.stages.training.conftest import SMALL, SMALL_FLAGS, write_rows


def test_the_two_newest_checkpoints_and_the_best_are_kept() -> None:
    sft.run(SftConfig(data="pairs.jsonl", out=Path("kept"), max_steps=5, save_every=1, **SMALL))
    steps = {path.name for path in Path("kept/checkpoints").iterdir()}
    assert {"step-000004", "step-000005"} <= steps
    assert len(steps) <= 3


def test_resumed_sft_equals_an_uninterrupted_one(project: Path, tmp_path: Path, warm: Warm) -> None:
    """Killed by SIGKILL in the middle of an epoch, in a separate process; the tolerance is 0."""
    common = ["sft", *SMALL_FLAGS, "--data", "pairs.jsonl", "--epochs", "3", "--save-every", "2"]
    uninterrupted = warm.run(project, *common, "--out", str(tmp_path / "whole"))
    assert uninterrupted.code == 0, uninterrupted.err
    killed = warm.run(project, *common, "--out", str(tmp_path / "killed"), fault={"kill_after_step": 7})
    assert killed.code == -signal.SIGKILL
    assert not json.loads((tmp_path / "killed" / "manifest.json").read_text())["complete"]
    resumed = warm.run(project, *common, "--out", str(tmp_path / "killed"), "--resume")
    assert resumed.code == 0, resumed.err
    weights = [load_file(tmp_path / run / "improver" / "adapter_model.safetensors") for run in ("whole", "killed")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    metrics = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "killed")]
    assert metrics[0] == metrics[1]


def test_saved_settings_repeat_the_run(project: Path, tmp_path: Path, warm: Warm) -> None:
    sft.run(SftConfig(data="pairs.jsonl", out=tmp_path / "first", max_steps=3, **SMALL))
    again = warm.run(
        project, "sft", "--config", str(tmp_path / "first" / "config.yaml"), "--out", str(tmp_path / "again")
    )
    assert again.code == 0, again.err
    names = ("metrics.jsonl", "improver/adapter_model.safetensors")
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_target_best_trains_as_on_pairs_of_the_best_response(tmp_path: Path, capsys: Any) -> None:
    first, second = preference_rows(2, seed=1)
    prompt, best, others = first["prompt"], first["chosen"], [first["rejected"], second["rejected"]]
    ranked = [(best, others[0]), (best, others[1]), (others[1], others[0])]
    for target, pairs in {"best": ranked, "chosen": ranked[:2]}.items():
        rows = [{"prompt": prompt, "chosen": chosen, "rejected": rejected} for chosen, rejected in pairs]
        write_rows(Path(f"{target}.jsonl"), rows)
        settings = {"data": f"{target}.jsonl", "out": tmp_path / target, "target": target, "identity_share": 0}
        sft.run(SftConfig(**settings, max_steps=2, **SMALL))
    assert capsys.readouterr().err.count("--target best: 2 pairs") == 1
    weights = [load_file(tmp_path / name / "improver" / "adapter_model.safetensors") for name in ("best", "chosen")]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


@pytest.mark.parametrize(
    ("long_rows", "notes"),
    [("skip", "1 row longer than 1024 tokens skipped"), ("cut", "1 row cut to fit 1024 tokens")],
)
def test_long_rows_are_skipped_or_cut(long_rows: str, notes: str, tmp_path: Path, capsys: Any) -> None:
    rows = [*preference_rows(6, seed=5), {"prompt": "word " * 1500, "chosen": "a", "rejected": "b"}]
    write_rows(Path("mixed.jsonl"), rows)
    sft.run(SftConfig(data="mixed.jsonl", out=tmp_path / "run", max_steps=1, long_rows=long_rows, **SMALL))
    err = capsys.readouterr().err
    assert notes in err
    assert f"mixed.jsonl: {6 if long_rows == 'skip' else 7} pairs" in err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"model": "no such model"}, "--model"),
        ({"max_length": 5000}, "--max-length"),
    ],
)
def test_bad_settings_give_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((InputError, SettingsError)) as problem:
        sft.run(SftConfig(**{"data": "pairs.jsonl", "out": tmp_path / "run", **SMALL, **change}))
    assert message in problem.value.problems[0]

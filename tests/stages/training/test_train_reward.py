"""pit train-reward on the embedded model."""

import json
from pathlib import Path

import pytest

from pitcli.data.synthetic import preference_rows
from pitcli.errors import InputError
from pitcli.settings.training import RewardConfig
from pitcli.stages import train_reward
from tests.stages.training.conftest import SMALL, read_rows, write_rows


def test_reward_report_is_in_the_manifest() -> None:
    results = json.loads(Path("runs/reward/manifest.json").read_text())["results"]
    expected = "accuracy swap_residual swap_flip_rate length_correlation longer_wins_accuracy shorter_wins_accuracy"
    assert set(expected.split()) | {"gap_temperature"} <= results.keys()
    assert 0 <= results["accuracy_low"] <= results["accuracy"] <= results["accuracy_high"] <= 1


def test_eval_data_is_reported_next_to_the_held_out_pairs() -> None:
    write_rows(Path("other.jsonl"), list(preference_rows(12, seed=77)))
    config = RewardConfig(data="pairs.jsonl", eval_data="other.jsonl", out=Path("evaluated"), max_steps=1, **SMALL)
    train_reward.run(config)
    results = json.loads(Path("evaluated/manifest.json").read_text())["results"]
    assert results["eval_pairs"] == 12
    assert 0 <= results["eval_accuracy_low"] <= results["eval_accuracy"] <= results["eval_accuracy_high"] <= 1


def test_eval_data_that_was_trained_on_is_refused() -> None:
    rows = [*preference_rows(12, seed=77), read_rows(Path("pairs.jsonl"))[4]]
    write_rows(Path("overlapping.jsonl"), rows)
    with pytest.raises(
        InputError, match=r"overlapping.jsonl: 1 pairs have a prompt of --data, the first is overlapping.jsonl:13"
    ):
        train_reward.run(RewardConfig(data="pairs.jsonl", eval_data="overlapping.jsonl", out=Path("never"), **SMALL))
    assert not Path("never").exists()

"""pit train-reward on the embedded model."""

import json
from itertools import combinations
from pathlib import Path

import pytest
import torch

from pitcli.data.rows import Message, PreferencePair
from pitcli.data.synthetic import preference_rows
from pitcli.engine.training.reward_report import gap_report
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
        InputError, match=r"overlapping.jsonl: 1 pair with a prompt of --data, the first is overlapping.jsonl:13"
    ):
        train_reward.run(RewardConfig(data="pairs.jsonl", eval_data="overlapping.jsonl", out=Path("never"), **SMALL))
    assert not Path("never").exists()


def test_the_probe_and_the_kinds_are_reported_on_both_files(capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{**row, "kind": "b" if number % 3 else "a"} for number, row in enumerate(preference_rows(60, seed=5))]
    write_rows(Path("kinds.jsonl"), rows)
    write_rows(Path("other.jsonl"), [{**row, "kind": "c"} for row in preference_rows(12, seed=77)])
    settings = {"data": "kinds.jsonl", "eval_data": "other.jsonl", "held_out": 0.4, "max_steps": 1, **SMALL}
    train_reward.run(RewardConfig(out=Path("kinds"), probe=True, by="kind", **settings))
    results = json.loads(Path("kinds/manifest.json").read_text())["results"]
    assert results["pairs[a]"] + results["pairs[b]"] == results["pairs"]
    right = [results[f"pairs[{kind}]"] * results[f"accuracy[{kind}]"] for kind in "ab"]
    assert sum(right) == pytest.approx(results["pairs"] * results["accuracy"])
    assert (results["eval_pairs[c]"], results["eval_accuracy[c]"]) == (12, results["eval_accuracy"])
    for prefix in ("", "eval_"):
        low, probed, high = (results[f"{prefix}probe_accuracy{end}"] for end in ("_low", "", "_high"))
        assert 0 <= low <= probed <= high <= 1
        assert results[f"{prefix}gap_spread"] >= 0
    shown = capsys.readouterr().err
    assert "accuracy on the held-out pairs by kind" in shown
    assert "accuracy on the pairs of other.jsonl by kind" in shown


def test_a_field_that_no_row_has_is_refused() -> None:
    with pytest.raises(InputError, match=r"--by: expected a field of the rows, got sort; the fields .* are: "):
        train_reward.run(RewardConfig(data="pairs.jsonl", by="sort", out=Path("never"), **SMALL))
    assert not Path("never").exists()


def test_the_spread_of_the_gaps_is_in_units_of_the_temperature() -> None:
    # gaps 3 and -4, T = 2: sqrt((9 + 16) / 2) / 2
    scores_N2 = torch.tensor([[5.0, -1.0], [-3.0, 5.0]])
    pairs = [PreferencePair(str(n), (Message("user", "x"),), "a", "b c", {"kind": n}) for n in range(2)]
    report = gap_report(scores_N2, pairs, 0.7, 2.0, by="kind")
    assert report["gap_spread"] == pytest.approx((25 / 2) ** 0.5 / 2)
    assert (report["accuracy"], report["accuracy[0]"], report["accuracy[1]"], report["pairs[1]"]) == (0.5, 1, 0, 1)
    assert "accuracy[0]" not in gap_report(scores_N2, pairs, 0.7, 2.0)


def test_pairs_of_one_prompt_are_read_together_with_the_loss_that_they_have_alone() -> None:
    rows = [
        {"prompt": row["prompt"], "chosen": better, "rejected": worse}
        for row in preference_rows(12, seed=8)
        for better, worse in combinations((row["chosen"], row["rejected"], "egg fox", "hut"), 2)
    ]
    write_rows(Path("ranked.jsonl"), rows)
    for name, settings in {"alone": {"batch_size": 96}, "together": {"batch_size": 16, "pairs_together": 6}}.items():
        config = {**SMALL, **settings, "load_in_4bit": False, "max_steps": 2, "data": "ranked.jsonl"}
        train_reward.run(RewardConfig(out=Path(name), **config))
    alone, together = (read_rows(Path(name) / "metrics.jsonl") for name in ("alone", "together"))
    assert len(alone) == len(together) == 1, "all pairs are in one step"
    for name in ("loss", "accuracy", "grad_norm"):
        assert together[0][name] == pytest.approx(alone[0][name], rel=1e-3)
    config = {**SMALL, "batch_size": 4, "pairs_together": 4, "max_steps": 9, "data": "ranked.jsonl"}
    train_reward.run(RewardConfig(out=Path("parts"), **config))
    held_out = json.loads(Path("parts/manifest.json").read_text())["results"]["pairs"] // 6
    assert len(read_rows(Path("parts/metrics.jsonl"))) == min(9, -(-2 * (12 - held_out) // 4)), "two rows of a prompt"

"""pit rl on the embedded model."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pitcli.data.synthetic import preference_rows
from pitcli.errors import PitError, RunError, SettingsError
from pitcli.runs.manifest import load_manifest, read_manifest, write_manifest
from pitcli.settings.base import Precision, Role
from pitcli.settings.generating import SampleConfig
from pitcli.settings.training import RewardConfig, RlConfig, SftConfig
from pitcli.stages import rl, sample, sft, train_reward
from tests.stages.training.conftest import RL_SMALL, SMALL, files_of, read_rows, run_files, write_rows


def test_metrics_have_one_line_per_step() -> None:
    rows = read_rows(Path("runs/rl/metrics.jsonl"))
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["stage"] for row in rows] == [0, 0, 1, 1]
    expected = (
        "reward gap p_better kl entropy clip_ratio truncated_share length_ratio copy_rate repetition zero_spread_share"
        " grad_norm"
    )
    assert set(expected.split()) <= rows[0].keys()


def test_rl_starts_at_the_reference_policy() -> None:
    """Before the first update, the KL to the reference policy is 0 and every probability ratio is 1."""
    first = read_rows(Path("runs/rl/metrics.jsonl"))[0]
    assert abs(first["kl"]) < 1e-4
    assert first["clip_ratio"] == 0


@pytest.mark.parametrize(
    ("results", "problem"),
    [
        ({"accuracy": 0.5, "gap_temperature": 1.0}, "the gap model ranks 50% of its held-out pairs as labelled"),
        ({"accuracy": 0.6, "gap_temperature": 1e3}, "its temperature is at its bound"),
    ],
)
def test_a_gap_model_no_better_than_a_coin_is_refused(
    results: dict[str, float], problem: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    manifest = read_manifest(Path("runs/reward"))
    assert manifest is not None
    useless = shutil.copytree("runs/reward", tmp_path / "reward")
    write_manifest(Path(useless), manifest.model_copy(update={"results": {**manifest.results, **results}}))
    settings = {**RL_SMALL, "reward": Path(useless), "max_steps": 1, "out": tmp_path / "run"}
    with pytest.raises(RunError, match=problem):
        rl.run(RlConfig(**{**settings, "force": False}))
    assert not (tmp_path / "run").exists()
    rl.run(RlConfig(**settings))
    assert f"warning: {useless}: " in capsys.readouterr().err


def test_without_a_learning_rate_rl_takes_a_tenth_of_that_of_the_base(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rl.run(RlConfig(**{**RL_SMALL, "learning_rate": None, "max_steps": 1, "out": tmp_path / "run"}))
    assert "parameters, fp32, in 4-bit NF4; learning rate 0.0001, by its size" in capsys.readouterr().err
    assert "learning_rate: 0.0001" in (tmp_path / "run/config.yaml").read_text()


def test_rl_in_bf16_starts_at_the_reference_policy(tmp_path: Path) -> None:
    """Sampling and training round differently in bf16, so the log-probs of the samples are computed again."""
    rl.run(RlConfig(out=tmp_path / "run", dtype=Precision.bf16, max_steps=1, **RL_SMALL))
    (first,) = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert abs(first["kl"]) < 1e-4
    assert first["clip_ratio"] == 0
    assert json.loads((tmp_path / "run" / "manifest.json").read_text())["base"]["dtype"] == "bf16"


def test_rl_raises_its_reward_on_four_prompts(tmp_path: Path) -> None:
    """The update has the right sign: repeated on the same prompts, it raises the gap that it is trained on."""
    settings = {**RL_SMALL, "samples_per_prompt": 8, "learning_rate": 5e-3, "epochs": 12, "max_rows": 4} | {
        "micro_batch_size": 32
    }
    rl.run(RlConfig(data="pairs.jsonl", out=tmp_path / "run", kl_coef=0.0, **settings))
    gaps = [row["gap"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")]
    assert sum(gaps[-4:]) > sum(gaps[:4])


def test_rl_stops_early_if_the_kl_runs_away_and_keeps_a_checkpoint(tmp_path: Path, capsys: Any) -> None:
    settings = {**RL_SMALL, "learning_rate": 5e-2, "save_every": 1, "max_kl": 0.5, "runaway_patience": 2}
    rl.run(RlConfig(out=tmp_path / "run", max_steps=30, epochs=4, **settings))
    results = json.loads((tmp_path / "run" / "manifest.json").read_text())["results"]
    assert "KL" in results["stopped"]
    assert results["steps"] < 30
    assert "early stopping, kept the best checkpoint" in capsys.readouterr().err


def test_the_best_checkpoint_is_one_of_the_stage_that_ran_away(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    """The rewards of two stages are over different references: those of the first look better and say nothing."""
    roll_out = rl.roll_out

    def staged(config: RlConfig, curriculum: Any, reward: Any, index: int) -> Any:
        step = roll_out(config, curriculum, reward, index)
        second = step.metrics["stage"] == 1
        return step._replace(
            metrics={**step.metrics, "reward": 0.5 if second else 9.0, "kl": 99.0 if index == 3 else 0.0}
        )

    monkeypatch.setattr(rl, "roll_out", staged)
    settings = {**RL_SMALL, "curriculum_stages": "dataset,policy", "save_every": 1, "runaway_patience": 1}
    rl.run(RlConfig(out=tmp_path / "run", max_steps=4, epochs=4, **settings))
    assert "at step 4; early stopping, kept the best checkpoint, step 3" in capsys.readouterr().err


def test_rl_takes_drafts_and_the_self_stage(tmp_path: Path) -> None:
    stages = {"curriculum_stages": "policy,self", "drafts": "drafts.jsonl"}
    rl.run(RlConfig(out=tmp_path / "run", max_steps=2, **stages, **RL_SMALL))
    assert [row["stage"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")] == [0, 1]


def test_rl_reuses_a_rollout_for_several_updates(tmp_path: Path) -> None:
    rl.run(RlConfig(out=tmp_path / "run", max_steps=4, updates_per_rollout=2, **RL_SMALL))
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert rows[0]["reward"] == rows[1]["reward"] != rows[2]["reward"] == rows[3]["reward"]


def test_a_run_of_another_kind_or_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="expected a run with a gap model, got a sft run"):
        rl.run(RlConfig(reward=Path("runs/sft"), out=tmp_path / "run", **RL_SMALL))
    with pytest.raises(RunError, match="--load-in-4bit"):
        rl.run(RlConfig(load_in_4bit=False, out=tmp_path / "run", **RL_SMALL))


def test_rl_goes_on_from_an_rl_run_with_its_gap_model(tmp_path: Path) -> None:
    rl.run(RlConfig(out=tmp_path / "first", max_steps=1, **RL_SMALL))
    earlier = {"sft": tmp_path / "first", "reward": tmp_path / "first"}
    rl.run(RlConfig(out=tmp_path / "second", max_steps=1, **earlier, **RL_SMALL))
    assert read_rows(tmp_path / "second" / "metrics.jsonl")[0]["kl"] == pytest.approx(0.0, abs=1e-4)
    first, second = (tmp_path / run / "gap" / "adapter_model.safetensors" for run in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()


def test_a_dry_run_from_an_rl_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings: dict[str, Any] = {"sft": Path("runs/rl"), "max_steps": 2, "force": True, **RL_SMALL}
    rl.run(RlConfig(out=tmp_path / "again", dry_run=True, **settings))
    assert "memory" in capsys.readouterr().err
    assert not (tmp_path / "again").exists()


def test_a_run_knows_every_gap_model_and_program_behind_it(tmp_path: Path) -> None:
    """RL on A, then on B: pit evaluate must refuse both as judges."""
    write_rows(Path("b.jsonl"), preference_rows(12, seed=77))
    train_reward.run(RewardConfig(data="b.jsonl", max_steps=1, out=tmp_path / "b", **SMALL))
    rl.run(RlConfig(**{**RL_SMALL, "reward": "cmd:sed s/.*/5/"}, max_steps=1, out=tmp_path / "first"))
    rl.run(RlConfig(**{**RL_SMALL, "max_steps": 1, "sft": tmp_path / "first", "out": tmp_path / "second"}))
    last = {
        "sft": tmp_path / "second",
        "reward": tmp_path / "b",
        "force": True,
        "max_steps": 1,
        "out": tmp_path / "third",
    }
    rl.run(RlConfig(**{**RL_SMALL, **last}))
    manifests = [load_manifest(folder, "") for folder in (Path("runs/reward"), tmp_path / "b", tmp_path / "third")]
    of_a, of_b, seen = (set(manifest.gap_data.prompts) for manifest in manifests if manifest.gap_data)
    assert of_a - of_b
    assert of_b - of_a
    assert seen == of_a | of_b
    assert manifests[2].reward_commands == ["cmd:sed s/.*/5/"]


def test_rl_does_not_resume_with_another_gap_model(tmp_path: Path) -> None:
    rl.run(RlConfig(out=tmp_path / "run", max_steps=1, **RL_SMALL))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["inputs"].keys() == {"gap", "improver", "policy"}
    train_reward.run(RewardConfig(data="pairs.jsonl", max_steps=1, out=tmp_path / "other", **SMALL))
    with pytest.raises(SettingsError, match="--resume: inputs was"):
        rl.run(RlConfig(reward=tmp_path / "other", out=tmp_path / "run", resume=True, max_steps=1, **RL_SMALL))


def test_a_changed_adapter_is_refused(tmp_path: Path) -> None:
    sft.run(SftConfig(data="pairs.jsonl", out=tmp_path / "run", max_steps=1, **SMALL))
    weights = tmp_path / "run" / "improver" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(PitError, match=r"adapter_model\.safetensors: missing or changed"):
        rl.run(RlConfig(sft=tmp_path / "run", out=tmp_path / "rl", **RL_SMALL))


def test_rl_of_a_policy_changes_the_policy_adapter(tmp_path: Path) -> None:
    rl.run(RlConfig(role=Role.policy, max_steps=2, out=tmp_path / "rlhf", **RL_SMALL))
    assert files_of(tmp_path / "rlhf") >= run_files("policy", "gap")
    first = read_rows(tmp_path / "rlhf" / "metrics.jsonl")[0]
    assert abs(first["kl"]) < 1e-4
    assert first["clip_ratio"] == 0
    before, after = (
        load_file(folder / "policy" / "adapter_model.safetensors")
        for folder in (Path("runs/policy"), tmp_path / "rlhf")
    )
    assert any(not torch.equal(before[name], after[name]) for name in before)
    sample.run(
        SampleConfig(
            data="pairs.jsonl", max_rows=2, max_new_tokens=8, policy=tmp_path / "rlhf", output=str(tmp_path / "d.jsonl")
        )
    )
    assert len(read_rows(tmp_path / "d.jsonl")) == 2


@pytest.mark.parametrize("change", [{"curriculum": True}, {"sft": Path("runs/sft")}, {"drafts": "drafts.jsonl"}])
def test_rl_of_a_policy_refuses_references(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="--role policy uses no references"):
        RlConfig(role=Role.policy, **change)

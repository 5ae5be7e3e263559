"""--init: a stage starts from the adapter of another run, of any role, with the same base and rank."""

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pitcli.engine.models.adapters import SCORE_KEY
from pitcli.engine.models.loading import WEIGHTS
from pitcli.engine.models.roles import GAP, RoleModel, head_name
from pitcli.errors import RunError, SettingsError
from pitcli.runs.manifest import Manifest, load_manifest
from pitcli.settings.base import Role
from pitcli.settings.training import RewardConfig, SftConfig
from pitcli.stages import sft, train_reward
from tests.stages.training.conftest import SMALL

Tensors = dict[str, torch.Tensor]
ONE_STEP = {**SMALL, "data": "pairs.jsonl", "max_steps": 1}


def saved(run: str, role: str) -> Tensors:
    return load_file(Path("runs", run, role, WEIGHTS))


def manifest(run: str) -> Manifest:
    return load_manifest(Path("runs", run), "")


@pytest.fixture
def first_weights(monkeypatch: pytest.MonkeyPatch) -> Tensors:
    """The weights with which training starts, by the names of the files of adapters."""
    seen: Tensors = {}
    for stage in (sft, train_reward):

        def watched(model: RoleModel, task: Any, config: Any, folder: Any, train: Any = stage.train) -> Any:
            for name, parameter in model.role_parameters(task.role).items():
                key = SCORE_KEY if name == head_name(GAP) else name.replace(f".{task.role}.", ".")
                seen[key] = parameter.detach().clone()
            return train(model, task, config, folder)

        monkeypatch.setattr(stage, "train", watched)
    return seen


def assert_same(found: Tensors, expected: Tensors) -> None:
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_a_gap_model_starts_from_the_policy_and_with_a_head_of_zeros(
    first_weights: Tensors, capsys: pytest.CaptureFixture[str]
) -> None:
    train_reward.run(RewardConfig(out=Path("runs/from-policy"), init=Path("runs/policy"), **ONE_STEP))
    head = first_weights.pop(SCORE_KEY)
    assert not head.any()
    assert_same(first_weights, saved("policy", "policy"))
    weights = manifest("policy").files[f"policy/{WEIGHTS}"]
    assert manifest("from-policy").inputs == {"policy": weights}
    assert manifest("from-policy").config["init"] == "runs/policy"
    assert "warning: --init: runs/policy was trained on held-out prompts" in capsys.readouterr().err


def test_a_gap_model_that_starts_from_a_gap_model_has_its_head(
    first_weights: Tensors, capsys: pytest.CaptureFixture[str]
) -> None:
    train_reward.run(RewardConfig(out=Path("runs/from-gap"), init=Path("runs/reward"), **ONE_STEP))
    assert first_weights[SCORE_KEY].any()
    assert_same(first_weights, saved("reward", GAP))
    assert "warning: --init" not in capsys.readouterr().err


def test_a_gap_model_that_holds_out_other_prompts_than_its_start_warns(capsys: pytest.CaptureFixture[str]) -> None:
    settings = {**ONE_STEP, "init": Path("runs/reward"), "out": Path("runs/other-seed"), "overwrite": True}
    train_reward.run(RewardConfig(**settings, seed=5))
    assert "warning: --init: runs/reward was trained on held-out prompts" in capsys.readouterr().err


def test_its_data_include_the_prompts_that_its_start_has_seen() -> None:
    """Otherwise pit evaluate would call it an independent judge."""
    config = {**ONE_STEP, "max_rows": 12}
    train_reward.run(RewardConfig(out=Path("runs/few"), init=Path("runs/reward"), **config))
    train_reward.run(RewardConfig(out=Path("runs/fewer"), **config))
    assert set(manifest("few").data.prompts) == set(manifest("reward").data.prompts)
    assert set(manifest("fewer").data.prompts) < set(manifest("reward").data.prompts)


@pytest.mark.parametrize(("run", "role"), [("reward", "gap"), ("rl", "improver"), ("policy", "policy")])
def test_sft_starts_from_any_role_without_its_head(run: str, role: str, first_weights: Tensors) -> None:
    sft.run(SftConfig(role=Role.improver, out=Path("runs/again"), init=Path("runs", run), overwrite=True, **ONE_STEP))
    expected = saved(run, role)
    expected.pop(SCORE_KEY, None)
    assert_same(first_weights, expected)


def test_another_rank_or_base_is_refused() -> None:
    out, init = Path("runs/never"), Path("runs/policy")
    with pytest.raises(SettingsError, match=r"expected LoRA rank 8 and alpha 32, got 4 and 32; use --lora-rank 4 --lo"):
        train_reward.run(RewardConfig(out=out, init=init, **{**ONE_STEP, "lora_rank": 8}))
    with pytest.raises(SettingsError, match=r"expected LoRA rank 4 and alpha 64, got 4 and 32"):
        sft.run(SftConfig(out=out, init=init, **ONE_STEP, lora_alpha=64))
    with pytest.raises(RunError, match=r"runs/policy: trained with --load-in-4bit; use --load-in-4bit here too"):
        train_reward.run(RewardConfig(out=out, init=init, **{**ONE_STEP, "load_in_4bit": False}))
    with pytest.raises(SettingsError, match=r"runs/none: no such run; pit sft, train-reward, rl"):
        sft.run(SftConfig(out=out, init=Path("runs/none"), **ONE_STEP))
    assert not out.exists()


def test_the_base_is_that_of_the_run_if_none_is_named() -> None:
    settings = {name: value for name, value in ONE_STEP.items() if name not in ("model", "load_in_4bit")}
    train_reward.run(RewardConfig(out=Path("runs/inherits"), init=Path("runs/policy"), **settings))
    assert manifest("inherits").base == manifest("policy").base

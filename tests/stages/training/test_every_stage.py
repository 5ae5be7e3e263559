"""What the trainings have in common: which files they write, and which tensors they change."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from pitcli.engine.models.adapters import load_role
from pitcli.engine.models.opening import Base
from pitcli.engine.models.roles import RoleModel
from pitcli.engine.training import loop as training
from pitcli.errors import InputError
from pitcli.settings.dpo import DpoConfig
from pitcli.settings.training import RewardConfig, RlConfig, SftConfig
from pitcli.stages import dpo, rl, sft, train_reward
from tests.stages.training.conftest import RL_SMALL, SMALL, files_of, read_rows, run_files


@pytest.mark.parametrize(
    ("run", "roles"),
    [("policy", ["policy"]), ("sft", ["improver"]), ("reward", ["gap"]), ("rl", ["improver", "gap"])],
)
def test_a_run_contains_exactly_these_files(run: str, roles: list[str]) -> None:
    assert files_of(Path("runs") / run) == run_files(*roles)
    manifest = json.loads(Path("runs", run, "manifest.json").read_text())
    assert manifest["complete"]
    assert manifest["base"]["load_in_4bit"]


@pytest.fixture
def base_watch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RoleModel, dict[str, torch.Tensor]]]:
    """Each model that a stage loads, with a copy of its weights before training."""
    seen = []
    original = Base.load

    def load(self: Base, adapters: dict[str, Path] | None = None) -> RoleModel:
        model = original(self)
        seen.append((model, {name: tensor.clone() for name, tensor in model.base.state_dict().items()}))
        for role, folder in (adapters or {}).items():
            load_role(model, role, folder)
        return model

    monkeypatch.setattr(Base, "load", load)
    return seen


@pytest.mark.parametrize(
    ("role", "stage"),
    [
        ("improver", lambda out: sft.run(SftConfig(data="pairs.jsonl", out=out, max_steps=3, **SMALL))),
        ("gap", lambda out: train_reward.run(RewardConfig(data="pairs.jsonl", out=out, max_steps=3, **SMALL))),
        ("improver", lambda out: rl.run(RlConfig(out=out, max_steps=3, **RL_SMALL))),
        ("improver", lambda out: dpo.run(DpoConfig(out=out, max_steps=3, learning_rate=1e-3))),
    ],
    ids=["sft", "reward", "rl", "dpo"],
)
def test_every_adapter_tensor_moves_and_no_base_tensor_does(
    role: str,
    stage: Callable[[Path], None],
    base_watch: list[tuple[RoleModel, dict[str, torch.Tensor]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    starts: dict[str, torch.Tensor] = {}
    original = training.restore

    def restore(run: Any, parameters: dict[str, torch.Tensor], *rest: Any) -> Any:
        starts.update({name: tensor.detach().clone() for name, tensor in parameters.items()})
        return original(run, parameters, *rest)

    monkeypatch.setattr(training, "restore", restore)
    stage(tmp_path / "run")
    ((model, weights),) = base_watch
    moved = {name for name, tensor in model.role_parameters(role).items() if not torch.equal(tensor, starts[name])}
    assert moved == starts.keys()
    after = model.base.state_dict()
    # peft wraps the base's layers in its own: q_proj.weight becomes q_proj.base_layer.weight
    after = {name.replace(".base_layer.", "."): tensor for name, tensor in after.items() if ".lora_" not in name}
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("stage", "config"),
    [(sft.run, SftConfig), (train_reward.run, RewardConfig)],
    ids=["sft", "reward"],
)
def test_loss_falls_when_overfitting_four_rows(stage: Any, config: Any, tmp_path: Path) -> None:
    settings = {**SMALL, "learning_rate": 5e-3, "batch_size": 4, "epochs": 25, "max_rows": 5}
    if config is SftConfig:
        settings |= {"max_rows": 4, "identity_share": 0.0}
    stage(config(data="pairs.jsonl", out=tmp_path / "run", **settings))
    losses = [row["loss"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")]
    assert losses[-1] < 0.3 * losses[0]


BAD = [
    ('{"prompt": "p", "chosen": "a"}', "bad.jsonl:1:rejected: missing"),
    ('{"prompt": "p", "chosen": "a", "rejected": "a"}', "bad.jsonl:1:rejected: the same text as chosen"),
    ("", "bad.jsonl: no rows"),
    (
        '{"prompt": "' + "word " * 1500 + '", "chosen": "a", "rejected": "b"}',
        "bad.jsonl:1:prompt: expected a conversation",
    ),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=["no rejected", "same", "empty", "long"])
@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_bad_rows_end_in_one_line_before_a_model_is_loaded(
    line: str, message: str, stage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Base, "load", lambda self: pytest.fail("the model was loaded"))
    Path("bad.jsonl").write_text(line + "\n" if line else "")
    settings = {"data": "bad.jsonl", "out": tmp_path / "run", "long_rows": "error", **SMALL}
    with pytest.raises(InputError) as problem:
        sft.run(SftConfig(**settings)) if stage == "sft" else train_reward.run(RewardConfig(**settings))
    assert problem.value.problems[0].startswith(message)
    assert problem.value.exit_code == 2
    assert not (tmp_path / "run").exists()

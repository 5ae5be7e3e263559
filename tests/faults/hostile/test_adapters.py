"""Malicious adapter folders: no code is run, no file outside is read, no other network is built."""

import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedModel

from pitcli.engine.models.adapters import load_role, save_role
from pitcli.engine.models.loading import ADAPTER_CONFIG, WEIGHTS
from pitcli.engine.models.roles import GAP, IMPROVER, RoleModel
from pitcli.errors import RunError
from tests.faults.hostile.payloads import PAD, Change, MakesCanary, WithRoles, content, python_code, replaced, settings


@pytest.fixture
def adapter(small_llama: Callable[[], PreTrainedModel], with_roles: WithRoles, tmp_path: Path) -> Path:
    folder = tmp_path / "improver"
    save_role(with_roles(small_llama(), PAD, IMPROVER), IMPROVER, folder)
    return folder


HOSTILE_FIELDS: dict[str, object] = {
    "peft_type": "XLORA",
    "auto_mapping": {"base_model_class": "Evil", "parent_library": "modeling_evil"},
    "megatron_config": {"tensor_model_parallel_size": 1},
    "megatron_core": "modeling_evil",
    "runtime_config": {"ephemeral_gpu_offload": True},
    "init_lora_weights": "corda",
    "corda_config": {"cache_file": "/etc/passwd"},
    "eva_config": {"rho": 2.0},
    "loftq_config": {"loftq_bits": 4},
    "layer_replication": [[0, 2], [0, 2]],
    "trainable_token_indices": [0, 1],
    "target_parameters": ["q_proj.weight"],
    "rank_pattern": {"q_proj": 100000},
    "alpha_pattern": {".*": 1e9},
    "use_dora": True,
    "use_rslora": True,
    "bias": "all",
    "lora_dropout": 0.5,
    "exclude_modules": "(a+)+$",
    "some_field_of_tomorrow": "x",
}


@pytest.mark.parametrize(("field", "value"), HOSTILE_FIELDS.items(), ids=HOSTILE_FIELDS.keys())
def test_fields_that_pit_does_not_write_are_refused(
    field: str, value: object, adapter: Path, small_llama: Callable[[], PreTrainedModel], no_harm: None
) -> None:
    settings(ADAPTER_CONFIG, **{field: value})(adapter)
    with pytest.raises(RunError, match=f"{ADAPTER_CONFIG}: {field} .* is not supported"):
        load_role(RoleModel(small_llama(), PAD), IMPROVER, adapter)


BROKEN_ADAPTERS: dict[str, tuple[Change, str]] = {
    "an extra pickle": (content("adapter_model.bin", lambda _: pickle.dumps(MakesCanary())), "adapter_model.bin: no"),
    "extra code": (content("modeling_evil.py", lambda _: python_code().encode()), "modeling_evil.py: not part of"),
    "an extra folder": (lambda folder: (folder / "more").mkdir(), "more: not part of an adapter"),
    "weights linked outside": (
        replaced(WEIGHTS, lambda path: path.symlink_to(path.parents[1] / path.name)),
        f"{WEIGHTS}: a link that leads out of its folder",
    ),
    "a pipe": (replaced(WEIGHTS, os.mkfifo), f"{WEIGHTS}: neither a file nor a folder"),
    "no type": (content(ADAPTER_CONFIG, lambda _: b"{}"), "peft_type None is not supported"),
    "no rank": (content(ADAPTER_CONFIG, lambda _: b'{"peft_type": "LORA"}'), "not usable (KeyError: 'r')"),
    "a rank that needs all the memory": (settings(ADAPTER_CONFIG, r=10**9), "do not have the rank 1000000000"),
    "an invalid rank": (settings(ADAPTER_CONFIG, r=-1), "not usable (ValidationError"),
    "an invalid alpha": (settings(ADAPTER_CONFIG, lora_alpha="x"), "not usable (ValidationError"),
    "layers by a pattern": (settings(ADAPTER_CONFIG, target_modules="(a+)+$"), "not found in the base model"),
    "layers that do not exist": (settings(ADAPTER_CONFIG, target_modules=["evil"]), "not found in the base model"),
    "no layers": (settings(ADAPTER_CONFIG, target_modules=None), "not usable (TypeError"),
    "truncated settings": (content(ADAPTER_CONFIG, lambda old: old[:-9]), f"{ADAPTER_CONFIG}: not usable"),
    "truncated weights": (content(WEIGHTS, lambda old: old[:-9]), f"{WEIGHTS}: not usable (SafetensorError"),
    "weights that are a pickle": (content(WEIGHTS, lambda _: pickle.dumps(MakesCanary())), f"{WEIGHTS}: not usable"),
    "missing weights": (lambda folder: (folder / WEIGHTS).unlink(), f"{WEIGHTS}: not usable"),
}


@pytest.mark.parametrize(("change", "problem"), BROKEN_ADAPTERS.values(), ids=BROKEN_ADAPTERS.keys())
def test_a_hostile_adapter_is_refused(
    change: Change, problem: str, adapter: Path, small_llama: Callable[[], PreTrainedModel], no_harm: None
) -> None:
    change(adapter)
    with pytest.raises(RunError) as raised:
        load_role(RoleModel(small_llama(), PAD), IMPROVER, adapter)
    assert len(raised.value.problems) == 1
    assert problem in raised.value.problems[0]
    assert "\n" not in raised.value.problems[0]


def test_the_base_that_an_adapter_names_is_ignored(
    adapter: Path, small_llama: Callable[[], PreTrainedModel], no_harm: None
) -> None:
    settings(ADAPTER_CONFIG, base_model_name_or_path="evil/base")(adapter)
    (adapter / "README.md").write_text("notes")
    load_role(RoleModel(small_llama(), PAD), IMPROVER, adapter)


def test_a_head_of_another_shape_is_refused(
    small_llama: Callable[[], PreTrainedModel], with_roles: WithRoles, tmp_path: Path
) -> None:
    """A head of one number would fit every width if tensors were copied with broadcasting."""
    folder = tmp_path / "gap"
    save_role(with_roles(small_llama(), PAD, GAP), GAP, folder)
    tensors = load_file(folder / WEIGHTS)
    tensors["base_model.model.score.weight"] = torch.ones(1, 1)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(RunError, match="do not fit the base model"):
        load_role(RoleModel(small_llama(), PAD), GAP, folder)

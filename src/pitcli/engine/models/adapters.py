"""Adapters on disk, in peft's format; the gap adapter is one for AutoModelForSequenceClassification."""

from collections.abc import Mapping
from pathlib import Path

from peft import LoraConfig, TaskType, get_peft_model_state_dict
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file, save
from torch import Tensor

from pitcli.engine.models.bases import reading
from pitcli.engine.models.loading import saved_lora
from pitcli.engine.models.roles import RoleModel, is_gap
from pitcli.errors import RunError
from pitcli.runs.files import WEIGHTS

SCORE_KEY = "base_model.model.score.weight"


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write a safetensors file. Raises OSError if the disk is full, unlike safetensors' own writer."""
    path.write_bytes(save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, {"format": "pt"}))


def save_role(model: RoleModel, role: str, folder: Path) -> None:
    """Write the adapter of a role for peft; that of a gap role as one for AutoModelForSequenceClassification."""
    assert model.peft is not None
    config = LoraConfig(**{**model.peft.peft_config[role].to_dict(), "inference_mode": True})
    config.base_model_name_or_path = model.base.name_or_path
    config.target_modules = sorted(config.target_modules or [])  # a set: its order depends on the hash seed
    state = get_peft_model_state_dict(model.peft, adapter_name=role, save_embedding_layers=False)
    if is_gap(role):
        config.task_type = TaskType.SEQ_CLS
        config.modules_to_save = ["score"]
        state[SCORE_KEY] = model.head_weight(role)
    config.save_pretrained(str(folder))
    write_tensors(folder / WEIGHTS, state)


def load_role(model: RoleModel, role: str, folder: Path) -> None:
    """Add a role with the adapter saved in a folder; RunError if the adapter does not fit this base."""
    config = saved_lora(folder)
    with reading(folder):
        model.add_role(role, config)
        read_role(model, role, folder)


def read_role(model: RoleModel, role: str, folder: Path) -> None:
    """Load the weights of an existing role from a folder; RunError if they do not fit the role or the base."""
    state = load_file(folder / WEIGHTS)
    if (SCORE_KEY in state) != is_gap(role):
        kinds = ["a gap model", "an adapter without a gap head"]
        expected_kind, found_kind = kinds if is_gap(role) else kinds[::-1]
        raise RunError(f"{folder}: expected {expected_kind} for the role {role}, got {found_kind}")
    _set_weights(model, role, state, folder)


def start_from(model: RoleModel, role: str, folder: Path) -> None:
    """Give an existing role the weights of an adapter of any role, and a gap role also its head if it has one.

    Raises RunError if they do not fit the base.
    """
    state = load_file(folder / WEIGHTS)
    if not is_gap(role):
        state.pop(SCORE_KEY, None)
    _set_weights(model, role, state, folder)


def _set_weights(model: RoleModel, role: str, state: dict[str, Tensor], folder: Path) -> None:
    assert model.peft is not None
    score = state.pop(SCORE_KEY, None)
    expected = get_peft_model_state_dict(model.peft, adapter_name=role, save_embedding_layers=False)
    shapes = {name: tensor.shape for name, tensor in state.items()}
    fits = shapes == {name: tensor.shape for name, tensor in expected.items()}
    if not fits or (score is not None and score.shape != model.head_weight(role).shape):
        raise RunError(f"{folder}: the adapter's tensors do not fit the base model; it was trained on another base")
    set_peft_model_state_dict(model.peft, state, adapter_name=role)
    if score is not None:
        model.head_weight(role).data.copy_(score)


def clear_role(model: RoleModel, role: str) -> None:
    """Set the weights of a role to zero, so that a read that misses tensors is noticed."""
    for parameter in model.role_parameters(role).values():
        parameter.data.zero_()

"""The adapter of a role on disk: as peft reads it, and the gap model as one for AutoModelForSequenceClassification."""

from collections.abc import Mapping
from pathlib import Path

from peft import LoraConfig, TaskType, get_peft_model_state_dict
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file, save
from torch import Tensor

from pitcli.engine.models.bases import reading
from pitcli.engine.models.loading import WEIGHTS, saved_lora
from pitcli.engine.models.roles import GAP, RoleModel
from pitcli.errors import RunError

SCORE_KEY = "base_model.model.score.weight"


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file; if the disk is full this is an OSError, which safetensors' own writer does not raise."""
    path.write_bytes(save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, {"format": "pt"}))


def save_role(model: RoleModel, role: str, folder: Path) -> None:
    """Write an adapter as peft reads it; the gap adapter as one for AutoModelForSequenceClassification."""
    assert model.peft is not None
    config = LoraConfig(**{**model.peft.peft_config[role].to_dict(), "inference_mode": True})
    config.base_model_name_or_path = model.base.name_or_path
    config.target_modules = sorted(config.target_modules or [])  # a set: its order depends on the hash seed
    state = get_peft_model_state_dict(model.peft, adapter_name=role, save_embedding_layers=False)
    if role == GAP and model.gap_head is not None:
        config.task_type = TaskType.SEQ_CLS
        config.modules_to_save = ["score"]
        state[SCORE_KEY] = model.gap_head.weight
    config.save_pretrained(str(folder))
    write_tensors(folder / WEIGHTS, state)


def load_role(model: RoleModel, role: str, folder: Path) -> None:
    """Add the adapter saved in a folder under a role; RunError where it does not fit this base."""
    config = saved_lora(folder)
    with reading(folder):
        model.add_role(role, config)
        read_role(model, role, folder)


def read_role(model: RoleModel, role: str, folder: Path) -> None:
    """Take the weights of a role from the adapter saved in a folder."""
    assert model.peft is not None
    state = load_file(folder / WEIGHTS)
    score = state.pop(SCORE_KEY, None)
    if (score is not None) != (role == GAP):
        raise RunError(f"{folder}: {'no gap head' if role == GAP else 'a gap model'} found for role {role}")
    expected = get_peft_model_state_dict(model.peft, adapter_name=role, save_embedding_layers=False)
    shapes = {name: tensor.shape for name, tensor in state.items()}
    fits = shapes == {name: tensor.shape for name, tensor in expected.items()}
    if not fits or (score is not None and model.gap_head is not None and score.shape != model.gap_head.weight.shape):
        raise RunError(f"{folder}: the adapter's tensors do not fit the base model")
    set_peft_model_state_dict(model.peft, state, adapter_name=role)
    if score is not None and model.gap_head is not None:
        model.gap_head.weight.data.copy_(score)


def clear_role(model: RoleModel, role: str) -> None:
    """Set the weights of a role to zero, so that what is read next is seen to be all that it is."""
    for parameter in model.role_parameters(role).values():
        parameter.data.zero_()

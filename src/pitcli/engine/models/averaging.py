"""The average of an ensemble's weights as one gap model (WARM, arXiv 2401.12187)."""

from collections.abc import Sequence

import torch
from peft import LoraConfig, get_peft_model_state_dict
from peft.utils import set_peft_model_state_dict

from pitcli.engine.models.roles import GAP, RoleModel


def average_roles(model: RoleModel, roles: Sequence[str]) -> None:
    """Replace gap roles of the same rank by one role `gap` with the average of their weight deltas and of their heads.

    The average of n deltas (alpha / r) B A is one adapter of rank n r, without an approximation: the rows of all A, and
    the columns of all B / n. Averaging the A and the B apart would give another delta.
    """
    assert model.peft is not None
    states = [get_peft_model_state_dict(model.peft, adapter_name=role, save_embedding_layers=False) for role in roles]
    head = torch.stack([model.head_weight(role) for role in roles]).mean(0)
    averaged = {}
    for name in states[0]:
        parts = [state[name].detach() for state in states]
        is_a = name.endswith("lora_A.weight")
        averaged[name] = torch.cat(parts, dim=0) if is_a else torch.cat(parts, dim=1) / len(parts)
    first = model.peft.peft_config[roles[0]].to_dict()
    config = LoraConfig(**{**first, "r": first["r"] * len(roles), "lora_alpha": first["lora_alpha"] * len(roles)})
    for role in roles:
        model.remove_role(role)
    model.add_role(GAP, config)
    set_peft_model_state_dict(model.peft, averaged, adapter_name=GAP)
    model.head_weight(GAP).data.copy_(head)

"""The average of several gap roles is the base with the average of their weight deltas."""

from collections.abc import Callable

import torch
from transformers import PreTrainedModel

from pitcli.engine.models.averaging import average_roles
from pitcli.engine.models.forward import score_trees
from pitcli.engine.models.roles import GAP, gap_roles
from pitcli.engine.models.trees import Tree
from tests.conftest import WithRoles

TREES = [Tree([[3, 4, 5], [6, 7], [8, 9, 10]], [-1, 0, 0], [1, 2]), Tree([[11, 12, 13, 14]], [-1], [0])]


def test_the_average_scores_as_the_base_with_the_averaged_deltas(
    small_llama: Callable[[], PreTrainedModel], with_roles: WithRoles
) -> None:
    roles = gap_roles(3)
    model = with_roles(small_llama(), 0, *roles)
    assert model.peft is not None
    members = [torch.cat(score_trees(model, TREES, 8, role)) for role in roles]
    merged = with_roles(small_llama(), 0, GAP)
    for parameter in merged.role_parameters(GAP).values():
        parameter.data.zero_()
    merged.head_weight(GAP).data.copy_(torch.stack([model.head_weight(role) for role in roles]).mean(0))
    for name, layer in model.peft.named_modules():
        if hasattr(layer, "get_delta_weight"):
            delta = torch.stack([layer.get_delta_weight(role) for role in roles]).mean(0)
            assert merged.peft is not None
            merged.peft.get_submodule(name).base_layer.weight.data += delta
    average_roles(model, roles)
    averaged = torch.cat(score_trees(model, TREES, 8))
    assert (averaged - torch.cat(score_trees(merged, TREES, 8))).abs().max() < 1e-5 * averaged.abs().max().clamp(min=1)
    assert (averaged - torch.stack(members).mean(0)).abs().max() > 1e-3, "not the mean of the scores"
    assert list(model.peft.peft_config) == [GAP]
    assert model.peft.peft_config[GAP].r == 12

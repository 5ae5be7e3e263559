"""Packed weights: the same states and gaps up to rounding, in both types, and copies for small bases only."""

import gc

import pytest
import torch
from torch import nn

from pitcli.engine.models import packed_weights, roles
from pitcli.engine.models.fused_lora import FusedLoraLinear
from pitcli.engine.models.loading import load_base
from pitcli.engine.models.packed_weights import PackedLinear, packing_works
from pitcli.engine.models.roles import GAP, IMPROVER, RoleModel
from tests.conftest import WithRoles

TOKENS = torch.arange(5, 45).view(2, 20)
needs_bf16 = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU packs no bf16 weights; plain ones are used"
)
IN_BOTH_TYPES = pytest.mark.parametrize(
    ("dtype", "rounding"), [(torch.float32, 1e-5), pytest.param(torch.bfloat16, 2e-2, marks=needs_bf16)]
)


def model_in(dtype: torch.dtype, folder: str, with_roles: WithRoles) -> RoleModel:
    base = load_base(folder, False, torch.device("cpu"), dtype)  # type: ignore[arg-type]
    return with_roles(base, 0, IMPROVER, GAP)


def logits_of(model: RoleModel, role: str | None) -> torch.Tensor:
    with torch.no_grad(), model.role(role):
        logits: torch.Tensor = model.base(TOKENS).logits
    return logits.float()


@IN_BOTH_TYPES
def test_the_same_up_to_rounding(tiny_folder: str, with_roles: WithRoles, dtype: torch.dtype, rounding: float) -> None:
    assert packing_works(dtype)
    model = model_in(dtype, tiny_folder, with_roles)
    before = {role: logits_of(model, role) for role in (None, IMPROVER)}
    model.pack_weights()
    for role, logits in before.items():
        assert (logits_of(model, role) - logits).abs().max() <= rounding * logits.abs().max()
    assert not torch.equal(before[None], before[IMPROVER])


def test_every_layer_of_the_base_is_packed_and_its_weight_is_gone(tiny_folder: str, with_roles: WithRoles) -> None:
    model = model_in(torch.float32, tiny_folder, with_roles)
    plain = {name: child for name, child in model.base.named_modules() if type(child) is nn.Linear}
    of_base = {name for name in plain if "lora_" not in name}
    assert "lm_head" in of_base
    kept = sum(p.numel() for p in model.base.parameters())
    gone = sum(plain[name].weight.numel() for name in of_base - {"lm_head"})  # whose weight is the embedding's
    del plain
    model.pack_weights()
    gc.collect()
    packed = {name for name, child in model.base.named_modules() if isinstance(child, PackedLinear)}
    assert packed == of_base
    assert sum(p.numel() for p in model.base.parameters()) == kept - gone


def test_a_machine_without_these_operators_keeps_plain_weights(
    tiny_folder: str, with_roles: WithRoles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*arguments: object) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setattr(packed_weights.PackedLinear, "forward", missing)
    packing_works.cache_clear()
    try:
        model = model_in(torch.bfloat16, tiny_folder, with_roles)
        before = logits_of(model, IMPROVER)
        model.pack_weights()
        assert torch.equal(logits_of(model, IMPROVER), before)
    finally:
        packing_works.cache_clear()


@IN_BOTH_TYPES
def test_a_role_that_writes_reads_copies_with_its_adapter(
    tiny_folder: str, with_roles: WithRoles, dtype: torch.dtype, rounding: float
) -> None:
    model = model_in(dtype, tiny_folder, with_roles)
    before = {role: logits_of(model, role) for role in (None, IMPROVER)}
    with torch.autocast("cpu", torch.bfloat16):  # as in RL
        model.keep_merged(IMPROVER)
    found = {role: logits_of(model, role) for role in (None, IMPROVER)}
    change_improver(model)
    assert torch.equal(logits_of(model, IMPROVER), found[IMPROVER])  # the copies are older than this change
    assert (found[IMPROVER] - before[IMPROVER]).abs().max() <= rounding * before[IMPROVER].abs().max()
    assert torch.equal(found[None], before[None])


@pytest.mark.parametrize(("dtype", "copied"), [(torch.float32, True), (torch.bfloat16, False)])
def test_training_writes_with_copies_in_fp32_and_drops_them(
    tiny_folder: str, with_roles: WithRoles, dtype: torch.dtype, copied: bool
) -> None:
    model = model_in(dtype, tiny_folder, with_roles)
    with model.writing(IMPROVER):
        before = logits_of(model, IMPROVER)
        change_improver(model)
        assert torch.equal(logits_of(model, IMPROVER), before) == copied
    assert not torch.equal(logits_of(model, IMPROVER), before)


@IN_BOTH_TYPES
@pytest.mark.parametrize("rows", [3, 40])
def test_what_training_writes_with_is_the_model_up_to_rounding(
    tiny_folder: str, with_roles: WithRoles, dtype: torch.dtype, rounding: float, rows: int
) -> None:
    model = model_in(dtype, tiny_folder, with_roles)
    tokens = TOKENS.flatten()[None, :rows]
    with torch.no_grad(), model.role(IMPROVER):
        states = model.transformer(tokens).last_hidden_state
        before = model.output_layer(states)
        with model.writing(IMPROVER):
            written = model.output_layer(model.transformer(tokens).last_hidden_state)
            layers = [layer for layer in model.base.modules() if isinstance(layer, FusedLoraLinear)]
            assert all(len(layer.copies) == 1 for layer in layers) and type(model.output_layer) is PackedLinear
    assert (written - before).abs().max() <= rounding * before.abs().max()
    with model.role(IMPROVER, train=True):  # gradients need the plain weights
        model.base(tokens).logits.float().sum().backward()
    assert all(p.grad is not None for p in model.role_parameters(IMPROVER).values())


def change_improver(model: RoleModel) -> None:
    for parameter in model.role_parameters(IMPROVER).values():
        parameter.data.mul_(2)


def test_a_large_base_is_kept_once(tiny_folder: str, with_roles: WithRoles, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roles, "COPIES_UP_TO", 1000)
    model = model_in(torch.float32, tiny_folder, with_roles)
    model.keep_merged(IMPROVER)
    assert not any(layer.copies for layer in model.base.modules() if isinstance(layer, FusedLoraLinear))
    model.pack_weights()
    assert type(model.base.get_output_embeddings()) is nn.Linear


@pytest.mark.parametrize("writes", [True, False])
def test_what_only_scores_keeps_no_second_output_layer(tiny_folder: str, with_roles: WithRoles, writes: bool) -> None:
    model = model_in(torch.float32, tiny_folder, with_roles)
    model.pack_weights(writes=writes)
    assert (type(model.base.get_output_embeddings()) is PackedLinear) == (writes and packing_works(torch.float32))

"""The fused LoRA layer computes what peft's does, and leaves to it what is not plain."""

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from pitcli.engine.models.fused_lora import FEW_ROWS, FusedLoraLinear, fuse
from pitcli.engine.models.packed_weights import pack_weights, packing_works


def adapted(dtype: torch.dtype, bias: bool = True) -> PeftModel:
    """A linear layer with two random adapters, in fp32 whatever the layer's type."""
    torch.manual_seed(0)
    base = nn.Sequential(nn.Linear(24, 40, bias=bias)).to(dtype)
    model = get_peft_model(base, LoraConfig(r=4, lora_alpha=6, target_modules=["0"]), adapter_name="one")
    model.add_adapter("two", LoraConfig(r=4, lora_alpha=6, target_modules=["0"]))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape) * 0.2
    return model


def values_and_gradients(model: PeftModel, dtype: torch.dtype, role: str) -> list[Tensor]:
    model.set_adapter(role)
    x = torch.randn(2, 7, 24, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    slope = torch.randn(2, 7, 40, generator=torch.Generator().manual_seed(2)).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype is torch.bfloat16):
        output = model(x)
    trained = [p for name, p in model.named_parameters() if f".{role}." in name]
    return [output.detach(), *torch.autograd.grad(output, [x, *trained], slope)]


@pytest.mark.parametrize("role", ["one", "two"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 0.01)])
def test_the_values_and_gradients_are_those_of_peft(dtype: torch.dtype, error: float, bias: bool, role: str) -> None:
    model = adapted(dtype, bias)
    fused = copy.deepcopy(model)
    fuse(fused)
    assert [type(layer) for layer in fused.modules() if isinstance(layer, Linear)] == [FusedLoraLinear]
    expected, found = (values_and_gradients(each, dtype, role) for each in (model, fused))
    for exact, value in zip(expected, found, strict=True):
        assert value.dtype == exact.dtype
        assert exact.abs().max() > 0.1
        assert (value.float() - exact.float()).norm() < error * exact.float().norm()


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("rows", [1, FEW_ROWS - 1, FEW_ROWS])
@pytest.mark.parametrize(("dtype", "error"), [(torch.float32, 1e-6), (torch.bfloat16, 0.01)])
def test_without_gradients_few_and_many_rows_get_the_values_of_peft(
    dtype: torch.dtype, error: float, rows: int, packed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(dtype)
    fused = copy.deepcopy(model)
    fuse(fused)
    if packed:
        if not packing_works(dtype):
            pytest.skip(f"this CPU does not pack {dtype}")
        pack_weights(fused, tied_too=False)
    x = torch.randn(1, rows, 24, generator=torch.Generator().manual_seed(1)).to(dtype)
    for each in (model, fused):
        each.set_adapter("two", inference_mode=True)
    with torch.no_grad():
        expected = model(x)
        monkeypatch.setattr(Linear, "forward", None)  # peft's own is not called any more
        found = fused(x)
    assert found.dtype == expected.dtype
    assert (found.float() - expected.float()).norm() < error * expected.float().norm()


@pytest.mark.parametrize("change", ["none", "merge", "both"])
def test_peft_computes_what_is_not_plain(change: str) -> None:
    model = adapted(torch.float32)
    fused = copy.deepcopy(model)
    fuse(fused)
    x = torch.randn(3, 24)
    for each in (model, fused):
        each.set_adapter("one")
        if change == "none":
            each.base_model.disable_adapter_layers()
        elif change == "merge":
            each.merge_adapter(["one"])
        else:
            each.base_model.set_adapter(["one", "two"])
    assert torch.equal(model(x), fused(x))

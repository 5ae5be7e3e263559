"""LoRA on a linear layer with fewer passes over memory than peft's own, for the same result up to rounding.

peft computes x W^T, then x A^T B^T, scales that, and adds the two: four tensors of the size of the output, and as many
again in the backward pass. On a bf16 base it also converts x to fp32, the type of the adapters, and keeps a copy of it
for each layer. Here the second product is added in place, in the type of the base. Next to a few rows even that takes
as long as the base itself, so a role that only writes can have packed copies of the weights with its adapter in them.
"""

from collections.abc import Mapping
from typing import Any, cast

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn

from pitcli.engine.models.packed_weights import PackedLinear, can_pack

FEW_ROWS = 32  # with fewer, a CPU multiplies by adapters in fp32 faster than in bf16


class FusedLoraLinear(Linear):
    """Computes plain LoRA of one role, and leaves the rest to peft, which finds its layers by `Linear` in the name."""

    # packed copies of the base's weights; by role with its adapter in them, None: without any
    copies: Mapping[str | None, PackedLinear] = {}

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        base, active = self.base_layer, [name for name in self.active_adapters if name in self.lora_A]
        plain = type(base) in (nn.Linear, PackedLinear) and len(active) == 1
        plain = plain and not (args or options or self.lora_variant or self.disable_adapters or self.merged)
        if not plain or x.dtype != base.weight.dtype:
            output: Tensor = super().forward(x, *args, **options)
            return output
        trains = torch.is_grad_enabled()
        if active[0] in self.copies and not trains:
            merged: Tensor = self.copies[active[0]](x)
            return merged
        layer = base if trains else self.copies.get(None, base)
        a_RI, b_OR = (cast(Tensor, adapter[active[0]].weight) for adapter in (self.lora_A, self.lora_B))
        scaling = self.scaling[active[0]]
        rows_NI = x.flatten(0, -2)
        with torch.autocast(x.device.type, enabled=False):
            if trains:
                output_NO: Tensor = _Product.apply(rows_NI, layer, a_RI, b_OR, scaling)
            elif x.device.type == "cpu" and len(rows_NI) < FEW_ROWS:
                low_NR = rows_NI.to(a_RI.dtype) @ a_RI.T
                output_NO = layer(rows_NI).add_(low_NR @ b_OR.T, alpha=scaling)
            else:
                output_NO, *_ = _product(rows_NI, layer, a_RI, b_OR, scaling)
        return output_NO.unflatten(0, x.shape[:-1])


def fuse(model: nn.Module) -> None:
    """Let peft's LoRA layers on linear layers compute so, in place."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = FusedLoraLinear


@torch.no_grad()
def keep_merged(model: nn.Module, role: str) -> None:
    """Pack copies of the base's weights with a role's adapter in them; passes without gradients use them for the role.

    Weights must still be plain. A layer gets none if this torch or this CPU cannot pack its type.
    """
    for layer, base in _plain_layers(model):
        if role in layer.lora_A:
            with torch.autocast(base.weight.device.type, enabled=False):  # which would round the adapter
                merged_OI = (base.weight.float() + layer.get_delta_weight(role).float()).to(base.weight.dtype)
            layer.copies = {**layer.copies, role: PackedLinear(merged_OI, base.bias)}


def keep_packed(model: nn.Module) -> None:
    """Pack copies of the base's weights; passes without gradients use them, with the adapter apart."""
    for layer, base in _plain_layers(model):
        if None not in layer.copies:
            layer.copies = {**layer.copies, None: PackedLinear(base.weight, base.bias)}


def drop_merged(model: nn.Module, role: str) -> None:
    """Forget the copies of keep_merged, which a change of the adapter would make wrong."""
    for layer in _fused_layers(model):
        layer.copies = {name: copy for name, copy in layer.copies.items() if name != role}


def _plain_layers(model: nn.Module) -> list[tuple[FusedLoraLinear, nn.Linear]]:
    """Return the layers whose base can be copied, and their bases."""
    return [(layer, layer.base_layer) for layer in _fused_layers(model) if can_pack(layer.base_layer)]


def _fused_layers(model: nn.Module) -> list[FusedLoraLinear]:
    return [module for module in model.modules() if isinstance(module, FusedLoraLinear)]


def _product(
    rows_NI: Tensor, layer: nn.Module, a_RI: Tensor, b_OR: Tensor, scaling: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return x W^T + bias + scaling (x A^T) B^T, and A, B and scaling (x A^T) in the type of x.

    Shapes: x (N, I), W (O, I), A (R, I), B (O, R).
    """
    a_RI, b_OR = a_RI.to(rows_NI.dtype), b_OR.to(rows_NI.dtype)
    low_NR = (rows_NI @ a_RI.T).mul_(scaling)
    output_NO: Tensor = layer(rows_NI).addmm_(low_NR, b_OR.T)
    return output_NO, a_RI, b_OR, low_NR


class _Product(torch.autograd.Function):
    """_product with its gradients, of a frozen layer."""

    @staticmethod
    def forward(ctx: Any, rows_NI: Tensor, layer: nn.Linear, a_RI: Tensor, b_OR: Tensor, scaling: float) -> Tensor:
        output_NO, a_RI, b_OR, low_NR = _product(rows_NI, layer, a_RI, b_OR, scaling)
        ctx.save_for_backward(rows_NI, layer.weight, a_RI, b_OR, low_NR)
        ctx.scaling = scaling
        return output_NO

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        rows_NI, weight_OI, a_RI, b_OR, low_NR = ctx.saved_tensors
        slopes_NO = slopes[0]
        low_slopes_NR = (slopes_NO @ b_OR).mul_(ctx.scaling)
        x_slopes_NI = None
        if ctx.needs_input_grad[0]:
            x_slopes_NI = (slopes_NO @ weight_OI).addmm_(low_slopes_NR, a_RI)
        a_slopes_RI = (low_slopes_NR.T @ rows_NI).float() if ctx.needs_input_grad[2] else None
        b_slopes_OR = (slopes_NO.T @ low_NR).float() if ctx.needs_input_grad[3] else None
        return x_slopes_NI, None, a_slopes_RI, b_slopes_OR, None

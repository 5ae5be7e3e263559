"""LoRA on a linear layer with fewer passes over memory than peft's own, for the same result up to rounding.

peft computes x W^T, then x A^T B^T, scales that, and adds the two: four tensors of the size of the output, and as many
again in the backward pass. On a bf16 base it also converts x to fp32, the type of the adapters, and keeps a copy of it
for each layer. Here the second product is added in place, in the type of the base.
"""

from typing import Any

import torch
from peft.tuners.lora.layer import Linear
from torch import Tensor, nn


class FusedLoraLinear(Linear):
    """Computes plain LoRA of one role, and leaves the rest to peft, which finds its layers by `Linear` in the name."""

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        base, active = self.base_layer, [name for name in self.active_adapters if name in self.lora_A]
        plain = type(base) is nn.Linear and len(active) == 1 and not (args or options or self.lora_variant)
        if not plain or self.disable_adapters or self.merged or x.dtype != base.weight.dtype:
            output: Tensor = super().forward(x, *args, **options)
            return output
        a_RI, b_OR, scaling = self.lora_A[active[0]].weight, self.lora_B[active[0]].weight, self.scaling[active[0]]
        with torch.autocast(x.device.type, enabled=False):
            fused: Tensor = _Product.apply(x, base, a_RI, b_OR, scaling)
            return fused


def fuse(model: nn.Module) -> None:
    """Let peft's LoRA layers on linear layers compute so, in place."""
    for module in model.modules():
        if type(module) is Linear:
            module.__class__ = FusedLoraLinear


class _Product(torch.autograd.Function):
    """x W^T + bias + scaling (x A^T) B^T, of a frozen layer. Shapes: x (..., I), W (O, I), A (R, I), B (O, R)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Linear, a_RI: Tensor, b_OR: Tensor, scaling: float) -> Tensor:
        a_RI, b_OR = a_RI.to(x.dtype), b_OR.to(x.dtype)
        rows_NI = x.flatten(0, -2)
        low_NR = (rows_NI @ a_RI.T).mul_(scaling)
        output_NO: Tensor = layer(rows_NI).addmm_(low_NR, b_OR.T)
        ctx.save_for_backward(rows_NI, layer.weight, a_RI, b_OR, low_NR)
        ctx.scaling = scaling
        return output_NO.unflatten(0, x.shape[:-1])

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor | None, ...]:
        rows_NI, weight_OI, a_RI, b_OR, low_NR = ctx.saved_tensors
        slopes_NO = slopes[0].flatten(0, -2)
        low_slopes_NR = (slopes_NO @ b_OR).mul_(ctx.scaling)
        x_slopes = None
        if ctx.needs_input_grad[0]:
            x_slopes = (slopes_NO @ weight_OI).addmm_(low_slopes_NR, a_RI).unflatten(0, slopes[0].shape[:-1])
        a_slopes_RI = (low_slopes_NR.T @ rows_NI).float() if ctx.needs_input_grad[2] else None
        b_slopes_OR = (slopes_NO.T @ low_NR).float() if ctx.needs_input_grad[3] else None
        return x_slopes, None, a_slopes_RI, b_slopes_OR, None

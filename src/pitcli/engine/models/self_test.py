"""Tests of this device, one second each: the speed of bf16, the error of 4-bit layers, tree attention."""

import time
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from pitcli.engine.models.bases import resolve_base
from pitcli.engine.models.loading import compute_dtype, keep_unpacked, load_base
from pitcli.engine.models.roles import RoleModel
from pitcli.errors import RunError

_WIDTH = 256


def bf16_slowdown(device: torch.device) -> float:
    """Return the time of a matrix product in bf16 relative to fp32."""
    return _product_seconds(device, torch.bfloat16) / _product_seconds(device, torch.float32)


def _product_seconds(device: torch.device, dtype: torch.dtype) -> float:
    size = 2048 if device.type == "cuda" else 256
    factor_NN = torch.ones(size, size, dtype=dtype, device=device)
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        (factor_NN @ factor_NN)[0, 0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def four_bit_error(device: torch.device) -> float:
    """Return the largest relative error of a 4-bit layer: forward in training, forward in sampling, and backward.

    Raises RunError if bitsandbytes does not quantise on this device.
    """
    generator = torch.Generator().manual_seed(0)
    weight_OI, x_BI = (torch.randn(rows, _WIDTH, generator=generator) for rows in (_WIDTH, 8))
    dtype = compute_dtype(device)
    layer: Any = Linear4bit(_WIDTH, _WIDTH, bias=False, compute_dtype=dtype, quant_type="nf4", compress_statistics=True)
    keep_unpacked(layer)
    layer.load_state_dict({"weight": weight_OI})
    layer = layer.to(device).requires_grad_(False).eval()
    if getattr(layer.weight, "quant_state", None) is None:
        raise RunError(f"4-bit layers are not quantised on {device.type}; use --no-load-in-4bit")
    inputs_BI = x_BI.clone().to(device, dtype).requires_grad_()
    trained_BO: Tensor = layer(inputs_BI)
    (gradient_BI,) = torch.autograd.grad(trained_BO.sum(), inputs_BI)
    with torch.no_grad():
        sampled_BO = layer(x_BI.to(device, dtype))
    exact_BO = x_BI @ weight_OI.T
    return max(
        _relative_error(trained_BO, exact_BO),
        _relative_error(sampled_BO, exact_BO),
        _relative_error(gradient_BI, weight_OI.sum(0).expand_as(x_BI)),
    )


def _relative_error(found: Tensor, exact: Tensor) -> float:
    return float((found.detach().float().cpu() - exact).norm() / exact.norm())


def packs_trees(device: torch.device) -> bool:
    """Return whether packed trees get the hidden states of separate passes, tried on the embedded model."""
    disable_progress_bar()
    return RoleModel(load_base(resolve_base("tiny"), False, device), 0).packs_trees

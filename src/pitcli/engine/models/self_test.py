"""Experiments on this device, a second each: the speed of bf16, the error of 4-bit layers, tree attention."""

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
    """How many times longer a product takes in bf16 than in fp32."""
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
    """The greatest relative error of a 4-bit layer: forward in training and in sampling, and backward."""
    generator = torch.Generator().manual_seed(0)
    weight_OI, x_BI = (torch.randn(rows, _WIDTH, generator=generator) for rows in (_WIDTH, 8))
    dtype = compute_dtype(device)
    layer: Any = Linear4bit(_WIDTH, _WIDTH, bias=False, compute_dtype=dtype, quant_type="nf4", compress_statistics=True)
    keep_unpacked(layer)
    layer.load_state_dict({"weight": weight_OI})
    layer = layer.to(device).requires_grad_(False).eval()
    if getattr(layer.weight, "quant_state", None) is None:
        raise RunError(f"a 4-bit layer stays unquantised on {device.type}")
    inputs_BI = x_BI.clone().to(device, dtype).requires_grad_()
    trained_BO: Tensor = layer(inputs_BI)
    (gradient_BI,) = torch.autograd.grad(trained_BO.sum(), inputs_BI)
    with torch.no_grad():
        sampled_BO = layer(x_BI.to(device, dtype))
    exact_BO = x_BI @ weight_OI.T
    return max(
        _off(trained_BO, exact_BO), _off(sampled_BO, exact_BO), _off(gradient_BI, weight_OI.sum(0).expand_as(x_BI))
    )


def _off(found: Tensor, exact: Tensor) -> float:
    return float((found.detach().float().cpu() - exact).norm() / exact.norm())


def packs_trees(device: torch.device) -> bool:
    """Whether the embedded model scores packed trees as it scores separate passes."""
    disable_progress_bar()
    return RoleModel(load_base(resolve_base("tiny"), False, device), 0).packs_trees

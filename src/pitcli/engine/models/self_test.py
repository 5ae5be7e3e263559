"""Tests of this device, one second each: the error of 4-bit layers, tree attention."""

from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from torch import Tensor
from transformers.utils.logging import disable_progress_bar

from pitcli.engine.models.bases import resolve_base
from pitcli.engine.models.loading import keep_unpacked, load_base
from pitcli.engine.models.precision import best_dtype
from pitcli.engine.models.roles import RoleModel
from pitcli.errors import RunError

_WIDTH = 256


def four_bit_error(device: torch.device) -> float:
    """Return the largest relative error of a 4-bit layer: forward in training, forward in sampling, and backward.

    Raises RunError if bitsandbytes does not quantise on this device.
    """
    generator = torch.Generator().manual_seed(0)
    weight_OI, x_BI = (torch.randn(rows, _WIDTH, generator=generator) for rows in (_WIDTH, 8))
    dtype = best_dtype(device)
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
    return RoleModel(load_base(resolve_base("tiny"), False, device, best_dtype(device)), 0).packs_trees

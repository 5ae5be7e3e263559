"""Weights packed once for the CPU's matrix products, for commands that do not train.

torch packs the weights of a linear layer in every pass, or hands them to a slower library. With few rows, as when the
next tokens of some responses are generated, that takes longer than the product itself.
"""

from functools import cache
from typing import TypeGuard

import torch
from torch import Tensor, nn

ROWS = 16  # that the layout is chosen for; it serves any number


class PackedLinear(nn.Module):
    """A linear layer whose weight is stored in the layout that oneDNN multiplies fastest; it has no gradient."""

    def __init__(self, weight_OI: Tensor, bias_O: Tensor | None) -> None:
        super().__init__()
        self.bias = bias_O
        self.weight = torch.ops.mkldnn._reorder_linear_weight(weight_OI.detach(), ROWS)

    def forward(self, states: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(states, self.weight, self.bias, "none", [], "")
        return product


def pack_weights(model: nn.Module, tied_too: bool) -> None:
    """Replace the linear layers of a base by packed ones, in place; adapters stay.

    tied_too: also an output layer tied to the embedding, which keeps its own weights. A layer stays as it is if this
    torch or this CPU cannot pack its type.
    """
    embeddings = [] if tied_too else [module for module in model.modules() if isinstance(module, nn.Embedding)]
    tied = {id(embedding.weight) for embedding in embeddings}
    for name, module in list(model.named_modules()):
        for child_name, child in list(module.named_children()):
            if can_pack(child) and "lora_" not in f"{name}." and id(child.weight) not in tied:
                setattr(module, child_name, PackedLinear(child.weight, child.bias))


def can_pack(module: object) -> TypeGuard[nn.Linear]:
    """Return whether a module is a plain linear layer of a type that this torch and this CPU can pack."""
    return type(module) is nn.Linear and packing_works(module.weight.dtype)


@cache
def packing_works(dtype: torch.dtype) -> bool:
    """Return whether torch's private operators work as they are called here, by trying them.

    They need a CPU that computes in the type; plain layers are emulated on the others.
    """
    linear, states = nn.Linear(8, 4, bias=False, dtype=dtype), torch.ones(2, 3, 8, dtype=dtype)
    try:
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            return torch.allclose(
                PackedLinear(linear.weight, None)(states), linear(states), atol=8 * torch.finfo(dtype).eps
            )
    except (AttributeError, RuntimeError, TypeError):
        return False

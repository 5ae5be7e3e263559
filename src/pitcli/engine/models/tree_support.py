"""In which form a base takes trees, which is found by trying it, and its passes in each form."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pitcli.console import warn
from pitcli.engine.models.attention import BY_BRANCH, branches_mask, kernels_work, tree_mask
from pitcli.engine.models.batches import Batch
from pitcli.engine.models.trees import Tree, packed_batch, separate_batch

TREE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # relative, of hidden states
# as the base does by itself; with the branches that BY_BRANCH takes; under the mask that any other attention takes
Form = Literal["plain", "branches", "mask"]
# what is out of place, or seen by mistake, is so by many tokens
PROBE = Tree([[token % 7 for token in range(length)] for length in (4, 5, 24, 32)], [-1, 0, 1, 1], [2, 3])


def transformer_of(base: PreTrainedModel) -> nn.Module:
    """A base without its output layer: token ids to hidden states."""
    return getattr(base, base.base_model_prefix)


def base_states(base: PreTrainedModel, batch: Batch, form: Form) -> Tensor:
    """The selected last hidden states of a batch, shape (N, D)."""
    mask, positions_BT = None, batch.position_ids_BT
    if form == "branches":
        mask = branches_mask(batch.branches_BS2)
    elif form == "mask":
        mask = tree_mask(batch.branches_BS2, batch.input_ids_BT.shape[1], base.dtype, base.device)
    if positions_BT is None and mask is not None:  # or some models would count them from a mask of two axes
        positions_BT = torch.arange(batch.input_ids_BT.shape[1]).expand_as(batch.input_ids_BT)
    output = transformer_of(base)(
        input_ids=batch.input_ids_BT, attention_mask=mask, position_ids=positions_BT, use_cache=False
    )
    return output.last_hidden_state[batch.rows_N, batch.columns_N]


@torch.no_grad()
def attends_by_branch(base: PreTrainedModel, pad_id: int) -> bool:
    """Whether the base, on a CPU, takes the attention of attention.py; if it does, it keeps it from here on."""
    usual = base.config._attn_implementation
    if base.device.type != "cpu" or usual not in ("sdpa", BY_BRANCH) or not kernels_work():
        return False
    if not _attends_by_interface(base):
        return False
    separate, packed = separate_batch([PROBE], pad_id), packed_batch([PROBE], pad_id)
    wanted = base_states(base, separate, "plain")
    base.set_attn_implementation(BY_BRANCH)
    if _apart(base, wanted, [separate, packed], "branches") <= _tolerance(base):
        return True
    base.set_attn_implementation(usual)
    return False


@torch.no_grad()
def takes_tree_masks(base: PreTrainedModel, pad_id: int) -> bool:
    """Whether the base, under masks of ours, gives packed trees the states of separate passes; a warning if not."""
    why = "its attention is code of its own"
    if _attends_by_interface(base):
        separate, packed = (make([PROBE], pad_id).to(base.device) for make in (separate_batch, packed_batch))
        apart = _apart(base, base_states(base, separate, "plain"), [packed], "mask")
        if apart <= _tolerance(base):
            return True
        why = f"off by {apart:.1e}"
    warn(f"this base does not take tree attention ({why}); every ordering is read by itself")
    return False


def _attends_by_interface(base: PreTrainedModel) -> bool:
    """Whether nothing but the mask says who sees whom; GPT-Neo's own attention, say, hides what is far off in a row."""
    return base._supports_attention_backend


def _apart(base: PreTrainedModel, wanted: Tensor, batches: Sequence[Batch], form: Form) -> float:
    """How far the hidden states of batches are from others, relative; infinitely where the base cannot give them."""
    try:
        found = [base_states(base, batch, form).float() for batch in batches]
    except Exception:  # whatever the code of a model does with a mask that it does not know
        return math.inf
    return max(float((states - wanted).abs().max() / wanted.abs().max()) for states in found)


def _tolerance(base: PreTrainedModel) -> float:
    return TREE_TOLERANCE[base.dtype]

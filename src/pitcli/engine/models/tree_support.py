"""Which form of tree attention a base supports, found by trying it, and its forward passes in each form."""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from pitcli.console import warn
from pitcli.engine.models.attention import BY_BRANCH, branches_mask, tree_mask
from pitcli.engine.models.batches import Batch
from pitcli.engine.models.trees import Tree, packed_batch, separate_batch

TREE_TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 5e-2}  # relative, of the hidden state of a token
# the base's own attention; BY_BRANCH with branches; any other attention with an additive mask
Form = Literal["plain", "branches", "mask"]
# long enough that a wrong position, or a token seen by mistake, changes the states clearly
PROBE = Tree([[token % 7 for token in range(length)] for length in (4, 5, 24, 32)], [-1, 0, 1, 1], [2, 3])


def transformer_of(base: PreTrainedModel) -> nn.Module:
    """Return a base without its output layer: token ids to hidden states."""
    return getattr(base, base.base_model_prefix)


def base_states(base: PreTrainedModel, batch: Batch, form: Form) -> Tensor:
    """Return the selected last hidden states of a batch, shape (N, D)."""
    mask, positions_BT = None, batch.position_ids_BT
    if form == "branches":
        mask = branches_mask(batch.branches_BS2)
    elif form == "mask":
        mask = tree_mask(batch.branches_BS2, batch.input_ids_BT.shape[1], base.dtype, base.device)
    if positions_BT is None and mask is not None:  # or some models would derive them from a 2-D mask
        positions_BT = torch.arange(batch.input_ids_BT.shape[1]).expand_as(batch.input_ids_BT)
    output = transformer_of(base)(
        input_ids=batch.input_ids_BT, attention_mask=mask, position_ids=positions_BT, use_cache=False
    )
    return output.last_hidden_state[batch.rows_N, batch.columns_N]


@torch.no_grad()
def attends_by_branch(base: PreTrainedModel, pad_id: int) -> bool:
    """Return whether the base, on a CPU, works with the attention of attention.py; if so, switch it to that."""
    original = base.config._attn_implementation
    if base.device.type != "cpu" or original not in ("sdpa", BY_BRANCH) or not _attends_by_interface(base):
        return False
    separate, packed = separate_batch([PROBE], pad_id), packed_batch([PROBE], pad_id)
    expected = base_states(base, separate, "plain")
    base.set_attn_implementation(BY_BRANCH)
    if _difference(base, expected, [separate, packed], "branches") <= _tolerance(base):
        return True
    base.set_attn_implementation(original)
    return False


@torch.no_grad()
def takes_tree_masks(base: PreTrainedModel, pad_id: int) -> bool:
    """Return whether packed trees get the states of separate passes under pit's masks; warn if not."""
    why = "it has its own attention code"
    if _attends_by_interface(base):
        separate, packed = (make([PROBE], pad_id).to(base.device) for make in (separate_batch, packed_batch))
        difference = _difference(base, base_states(base, separate, "plain"), [packed], "mask")
        if difference <= _tolerance(base):
            return True
        why = f"off by {difference:.1e}"
    warn(f"this base does not support tree attention ({why}); each ordering is read separately, which is slower")
    return False


def _attends_by_interface(base: PreTrainedModel) -> bool:
    """Return whether only the mask decides which tokens see which; GPT-Neo's attention also hides far tokens."""
    return base._supports_attention_backend


def _difference(base: PreTrainedModel, expected: Tensor, batches: Sequence[Batch], form: Form) -> float:
    """Return the largest difference of a hidden state, relative to its size; infinite if the base raises."""
    try:
        found = [base_states(base, batch, form).float() for batch in batches]
    except Exception:  # a model's code can raise anything if it does not support the mask
        return math.inf
    return max(float(((states - expected).norm(dim=-1) / expected.norm(dim=-1)).max()) for states in found)


def _tolerance(base: PreTrainedModel) -> float:
    return TREE_TOLERANCE[base.dtype]

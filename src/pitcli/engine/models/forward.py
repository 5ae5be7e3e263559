"""Forward passes with the role in use: log-probs of completions, and scores of the gap model."""

from collections.abc import Sequence

import torch
from torch import Tensor

from pitcli.data.templates import Example
from pitcli.engine.models.batches import Batch, length_sorted_chunks
from pitcli.engine.models.logprobs import token_logprobs
from pitcli.engine.models.packing import packs, tokens_read, tree_batch
from pitcli.engine.models.roles import GAP, RoleModel, is_gap
from pitcli.engine.models.tree_support import Form, base_states
from pitcli.engine.models.trees import Tree, completion_batch, separate_batch

PROBE_TOKENS = 16


def hidden_states(model: RoleModel, batch: Batch) -> Tensor:
    """Return the selected last hidden states of a batch, shape (N, D), with the role in use."""
    are_trees, width = batch.position_ids_BT is not None, batch.input_ids_BT.shape[1]
    form: Form = "mask" if are_trees else "plain"
    if model.reads_branches and (are_trees or packs(model, width)):
        form = "branches"
    return base_states(model.base, batch, form)


def completion_logprobs(model: RoleModel, batch: Batch, temperature: float = 1.0) -> Tensor:
    """Return log p(target | the tokens before it) of each target of a batch, shape (N,), nats, fp32."""
    output_layer = model.base.get_output_embeddings()
    return token_logprobs(hidden_states(model, batch), output_layer, batch.targets_N, temperature)


def scores(model: RoleModel, batch: Batch) -> Tensor:
    """Return r_gap of each leaf, shape (N,), fp32: the head of the gap role in use on the leaf's last hidden state."""
    states_ND = hidden_states(model, batch).float()
    with torch.autocast(model.device.type, enabled=False):  # autocast would round the scores to bf16
        scores_N: Tensor = model.gap_head(states_ND).squeeze(-1)
        return scores_N


@torch.no_grad()
def score_trees(model: RoleModel, trees: Sequence[Tree], micro_batch_size: int, role: str = GAP) -> list[Tensor]:
    """Return r_gap of the leaves of each tree, shape (leaves,), on the CPU.

    micro_batch_size: leaves per pass, at least those of one tree. role: which gap model.
    """
    scores_of_tree: list[Tensor] = [torch.empty(0)] * len(trees)
    at_once = max(1, micro_batch_size // max((len(tree.leaves) for tree in trees), default=1))
    with model.role(role):
        for chunk in length_sorted_chunks([tokens_read(model, tree) for tree in trees], at_once, model.device):
            scores_N = scores(model, tree_batch(model, [trees[index] for index in chunk])).cpu()
            for index, part in zip(chunk, scores_N.split([len(trees[i].leaves) for i in chunk]), strict=True):
                scores_of_tree[index] = part
    return scores_of_tree


def probe_tokens(vocabulary: int) -> list[int]:
    """Return the fixed tokens of `probe`."""
    return [(7 * index + 3) % vocabulary for index in range(PROBE_TOKENS)]


@torch.no_grad()
def probe(model: RoleModel, role: str) -> list[float]:
    """Return a role's output on a few fixed tokens: the score of a gap model, the log-probs of other roles.

    Runs store these numbers, so that a later load can be checked against them.
    """
    ids = probe_tokens(model.base.config.get_text_config().vocab_size)
    with model.role(role):
        if is_gap(role):
            tree = Tree([ids], [-1], [0])
            return scores(model, separate_batch([tree], model.pad_id).to(model.device)).tolist()
        batch = completion_batch([Example(ids[:4], ids[4:])], model.pad_id)
        return completion_logprobs(model, batch.to(model.device)).tolist()

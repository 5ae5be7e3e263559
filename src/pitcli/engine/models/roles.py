"""One quantised base, LoRA adapters by role on it, and the gap head."""

from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model, get_peft_model_state_dict
from peft.utils import set_peft_model_state_dict
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from pitcli.data.templates import Example
from pitcli.engine.models.bases import reading
from pitcli.engine.models.batches import Batch, length_sorted_chunks
from pitcli.engine.models.forward import Form, attends_by_branch, hidden_states, takes_tree_masks, transformer_of
from pitcli.engine.models.loading import WEIGHTS, saved_lora
from pitcli.engine.models.logprobs import token_logprobs
from pitcli.engine.models.trees import Tree, completion_batch, packed_batch, separate_batch
from pitcli.errors import RunError
from pitcli.processes.ranks import process_count

GAP = "gap"
IMPROVER = "improver"
POLICY = "policy"
REFERENCE = "reference"

_SCORE_KEY = "base_model.model.score.weight"
PROBE_TOKENS = 16


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file; where the disk is full this is an OSError, which safetensors' own writer does not raise."""
    path.write_bytes(save({name: t.detach().cpu().contiguous() for name, t in tensors.items()}, {"format": "pt"}))


def fingerprint(tensors: Iterable[Tensor]) -> int:
    """A number that any change of the tensors changes (but for a chance of about 2^-64)."""
    parts: list[object] = []
    for tensor in tensors:
        bytes_N = tensor.detach().contiguous().view(-1).view(torch.uint8)
        whole = len(bytes_N) // 8 * 8
        parts += [
            torch.hash_tensor(bytes_N[:whole].view(torch.int64)).view(torch.int64).item(),
            *bytes_N[whole:].tolist(),
        ]
    return hash(tuple(parts))


class RoleModel(nn.Module):
    """A base that plays several roles: each is a LoRA adapter, and the gap role has a linear head besides.

    The role None is the base itself.
    """

    def __init__(self, base: PreTrainedModel, pad_id: int) -> None:
        super().__init__()
        self.base = base
        self.pad_id = pad_id
        self.peft: PeftModel | None = None
        self.gap_head: nn.Linear | None = None
        self._active: tuple[str | None, bool] | None = None
        self.sharded = False
        self._recomputed: list[nn.Module] = []
        self.reads_branches = attends_by_branch(base, pad_id)

    @property
    def device(self) -> torch.device:
        return self.base.device

    def add_role(self, role: str, config: LoraConfig) -> None:
        """A fresh adapter (it changes nothing until trained) and, for the gap role, its head."""
        if self.peft is None:
            self.peft = get_peft_model(self.base, config, adapter_name=role)
        else:
            self.peft.add_adapter(role, config)
        if role == GAP:
            hidden = self.base.config.get_text_config().hidden_size
            self.gap_head = nn.Linear(hidden, 1, bias=False, device=self.device, dtype=torch.float32)
            nn.init.normal_(self.gap_head.weight, std=hidden**-0.5)
        self._active = None

    @property
    def _tuner(self) -> Any:
        assert self.peft is not None
        return self.peft.base_model

    def use(self, role: str | None, train: bool = False) -> None:
        """Switch to a role; only a role that is used to train has gradients."""
        if self.peft is None or self._active == (role, train):
            return
        if role is None:
            self._tuner.disable_adapter_layers()
        else:
            self._tuner.enable_adapter_layers()
            self.peft.set_adapter(role, inference_mode=not train)
        if self.gap_head is not None:
            self.gap_head.requires_grad_(role == GAP and train)
        for layer in self._recomputed:
            layer.training = train  # of the layer alone: what is in it may have dropout
        self._active = (role, train)

    def role_parameters(self, role: str) -> dict[str, Tensor]:
        """The trainable tensors of a role by name."""
        assert self.peft is not None
        named: dict[str, Tensor] = {name: p for name, p in self.peft.named_parameters() if f".{role}." in name}
        if role == GAP and self.gap_head is not None:
            named["gap_head.weight"] = self.gap_head.weight
        return named

    def base_tensors(self) -> list[Tensor]:
        """The tensors of the base, which no training changes."""
        tensors = [p for name, p in self.base.named_parameters() if "lora_" not in name]
        return [p.to_local() if hasattr(p, "to_local") else p for p in tensors]  # this process's part of it

    def recompute_layers(self) -> None:
        """Of a training pass keep what enters each layer, and compute what is in it again on the way back."""
        if not self.base.supports_gradient_checkpointing:
            raise RunError("--gradient-checkpointing: transformers does not offer it for this base")
        self.base.gradient_checkpointing_enable({"use_reentrant": False})
        self._recomputed = [m for m in self.transformer.modules() if isinstance(m, GradientCheckpointingLayer)]
        self._active = None

    def shard_base(self) -> None:
        """Keep this process's part of every layer of the base; the other parts come when they are needed (FSDP2).

        All processes must run the same passes from now on, as many and in the same order.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        kinds = set(self.base._no_split_modules or ())
        layers = [layer for layer in self.transformer.modules() if type(layer).__name__ in kinds]
        if not layers:
            raise RunError("--shard-base: transformers does not say what the layers of this base are")
        mesh = init_device_mesh(self.device.type, (process_count(),))
        parts = {p for layer in layers for name, p in layer.named_parameters() if "lora_" not in name}
        whole = {p for p in self.transformer.parameters() if p not in parts}
        for layer in layers:
            fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
        fully_shard(self.transformer, mesh=mesh, ignored_params=whole)  # which fetches the next layer meanwhile
        self.sharded = True

    @property
    def transformer(self) -> nn.Module:
        return transformer_of(self.base)

    def hidden_states(self, batch: Batch) -> Tensor:
        """The last hidden states that are wanted of a batch, shape (N, D), under the role in use."""
        are_trees, width = batch.position_ids_BT is not None, batch.input_ids_BT.shape[1]
        form: Form = "mask" if are_trees else "plain"
        if self.reads_branches and (are_trees or self.packs(width)):
            form = "branches"
        return hidden_states(self.base, batch, form)

    def completion_logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """log p(target | everything before it) of every token that is wanted of a batch, shape (N,), fp32."""
        output_layer = self.base.get_output_embeddings()
        return token_logprobs(self.hidden_states(batch), output_layer, batch.targets_N, temperature)

    def scores(self, batch: Batch) -> Tensor:
        """r_gap of each leaf, shape (N,), fp32: the head on the hidden state of its last token."""
        assert self.gap_head is not None
        states_ND = self.hidden_states(batch).float()
        with torch.autocast(self.device.type, enabled=False):  # which would round the scores to bf16
            return self.gap_head(states_ND).squeeze(-1)

    def tree_batch(self, trees: Sequence[Tree], of_tokens: bool = False) -> Batch:
        """Trees as this model takes them, packed or every conversation by itself; wanted is as in separate_batch."""
        if self.packs(max(max(tree.lengths()) for tree in trees)):
            return packed_batch(trees, self.pad_id, of_tokens).to(self.device)
        return separate_batch(trees, self.pad_id, of_tokens).to(self.device)

    def tokens_read(self, tree: Tree) -> int:
        """Of a tree by itself: packed its own; if not, of each conversation as many as of the longest."""
        lengths = tree.lengths()
        return tree.tokens() if self.packs(max(lengths)) else len(lengths) * max(lengths)

    @torch.no_grad()
    def score_trees(self, trees: Sequence[Tree], micro_batch_size: int) -> list[Tensor]:
        """r_gap of the leaves of each tree, on the CPU; about micro_batch_size leaves are scored together."""
        self.use(GAP)
        scores: list[Tensor] = [torch.empty(0)] * len(trees)
        at_once = max(1, micro_batch_size // max((len(tree.leaves) for tree in trees), default=1))
        for chunk in length_sorted_chunks([self.tokens_read(tree) for tree in trees], at_once, self.device):
            of_chunk = self.scores(self.tree_batch([trees[index] for index in chunk])).cpu()
            of_trees = of_chunk.split([len(trees[index].leaves) for index in chunk])
            for index, of_tree in zip(chunk, of_trees, strict=True):
                scores[index] = of_tree
        return scores

    def packs(self, longest: int) -> bool:
        """Whether the base takes a mask of ours on conversations so long.

        That mask takes the place of a window, sliding or not, so it is right only where the window holds all.
        """
        config = self.base.config.get_text_config()
        windows = [getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size")]
        return self.packs_trees and all(window is None or longest <= window for window in windows)

    @cached_property
    def packs_trees(self) -> bool:
        """Whether the base gives packed trees the hidden states of separate passes."""
        return self.reads_branches or takes_tree_masks(self.base, self.pad_id)

    def save_role(self, role: str, folder: Path) -> None:
        """Write an adapter as peft reads it; the gap adapter as one for AutoModelForSequenceClassification."""
        assert self.peft is not None
        config = LoraConfig(**{**self.peft.peft_config[role].to_dict(), "inference_mode": True})
        config.base_model_name_or_path = self.base.name_or_path
        config.target_modules = sorted(config.target_modules or [])  # a set: its order depends on the hash seed
        state = get_peft_model_state_dict(self.peft, adapter_name=role, save_embedding_layers=False)
        if role == GAP and self.gap_head is not None:
            config.task_type = TaskType.SEQ_CLS
            config.modules_to_save = ["score"]
            state[_SCORE_KEY] = self.gap_head.weight
        config.save_pretrained(str(folder))
        write_tensors(folder / WEIGHTS, state)

    def load_role(self, role: str, folder: Path) -> None:
        """Add the adapter saved in a folder under a role; RunError where it does not fit this base."""
        config = saved_lora(folder)
        with reading(folder):
            self.add_role(role, config)
            self.read_role(role, folder)

    def read_role(self, role: str, folder: Path) -> None:
        """Take the weights of a role from the adapter saved in a folder."""
        assert self.peft is not None
        state = load_file(folder / WEIGHTS)
        score = state.pop(_SCORE_KEY, None)
        if (score is not None) != (role == GAP):
            raise RunError(f"{folder}: {'no gap head' if role == GAP else 'a gap model'} found for role {role}")
        expected = get_peft_model_state_dict(self.peft, adapter_name=role, save_embedding_layers=False)
        shapes = {name: tensor.shape for name, tensor in state.items()}
        fits = shapes == {name: tensor.shape for name, tensor in expected.items()}
        if not fits or (score is not None and self.gap_head is not None and score.shape != self.gap_head.weight.shape):
            raise RunError(f"{folder}: the adapter's tensors do not fit the base model")
        set_peft_model_state_dict(self.peft, state, adapter_name=role)
        if score is not None and self.gap_head is not None:
            self.gap_head.weight.data.copy_(score)

    def clear_role(self, role: str) -> None:
        """Set the weights of a role to zero, so that what is read next is seen to be all that it is."""
        for parameter in self.role_parameters(role).values():
            parameter.data.zero_()

    @torch.no_grad()
    def probe(self, role: str) -> list[float]:
        """What a role says of a few fixed tokens: the gap model their score, the others their log-probs."""
        self.use(role)
        vocabulary = self.base.config.get_text_config().vocab_size
        ids = [(7 * place + 3) % vocabulary for place in range(PROBE_TOKENS)]
        if role == GAP:
            return self.scores(separate_batch([Tree([ids], [-1], [0])], self.pad_id).to(self.device)).tolist()
        batch = completion_batch([Example(ids[:4], ids[4:])], self.pad_id).to(self.device)
        return self.completion_logprobs(batch).tolist()

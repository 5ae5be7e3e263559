"""A frozen base with one LoRA adapter per role and the gap head, and which role is in use."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from pitcli.engine.models.fused_lora import drop_merged, fuse, keep_merged, keep_packed
from pitcli.engine.models.packed_weights import PackedLinear, can_pack, pack_weights
from pitcli.engine.models.tree_support import attends_by_branch, takes_tree_masks, transformer_of
from pitcli.errors import RunError
from pitcli.processes.ranks import world_size

GAP = "gap"
IMPROVER = "improver"
POLICY = "policy"
REFERENCE = "reference"
COPIES_UP_TO = 500_000_000  # of a base whose weights may be kept in several layouts


def gap_roles(members: int) -> list[str]:
    """Return the roles of this many gap models: gap, gap-2, gap-3 ..."""
    return [GAP, *(f"{GAP}-{number}" for number in range(2, members + 1))]


def is_gap(role: str | None) -> bool:
    return role is not None and (role == GAP or role.startswith(f"{GAP}-"))


def head_name(role: str) -> str:
    """Return the name of the head among the parameters of a gap role."""
    return f"{role}_head.weight"


def fingerprint(tensors: Iterable[Tensor]) -> int:
    """Return a hash of the tensors' bytes; a change goes unnoticed with a probability of about 2^-64."""
    parts: list[object] = []
    for tensor in tensors:
        held = tensor.detach().cpu() if tensor.device.type == "mps" else tensor.detach()  # no kernel there
        bytes_N = held.contiguous().view(-1).view(torch.uint8)
        whole = len(bytes_N) // 8 * 8
        parts += [
            torch.hash_tensor(bytes_N[:whole].view(torch.int64)).view(torch.int64).item(),
            *bytes_N[whole:].tolist(),
        ]
    return hash(tuple(parts))


class RoleModel(nn.Module):
    """A base that plays several roles: each is a LoRA adapter, and a gap role also has a linear head, D to 1.

    The role None is the base itself. Forward passes are in forward.py, the layout of trees in packing.py, adapters on
    disk in adapters.py.
    """

    def __init__(self, base: PreTrainedModel, pad_id: int) -> None:
        super().__init__()
        self.base = base
        self.pad_id = pad_id
        self.peft: PeftModel | None = None
        self.gap_heads = nn.ModuleDict()  # by role
        self._active: tuple[str | None, bool] | None = None  # (role, whether it trains)
        self.sharded = False
        self._recomputed: list[nn.Module] = []
        self._packed_head: nn.Module | None = None
        self.reads_branches = attends_by_branch(base, pad_id)

    @property
    def _can_copy(self) -> bool:
        return self.device.type == "cpu" and self._affords_copies and not self.sharded

    @property
    def output_layer(self) -> nn.Module:
        """The layer from hidden states to logits, for passes without gradients."""
        return self._packed_head or self.base.get_output_embeddings()

    @cached_property
    def _affords_copies(self) -> bool:
        """Whether speed is worth the memory of further copies of the base's weights."""
        return sum(p.numel() for p in self.base_tensors()) <= COPIES_UP_TO

    @property
    def device(self) -> torch.device:
        return self.base.device

    def add_role(self, role: str, config: LoraConfig) -> None:
        """Add a fresh adapter, which changes nothing until it is trained, and for a gap role a head of zeros."""
        if self.peft is None:
            self.peft = get_peft_model(self.base, config, adapter_name=role)
            fuse(self.base)
        else:
            self.peft.add_adapter(role, config)
        if is_gap(role):
            hidden = self.base.config.get_text_config().hidden_size
            head = nn.Linear(hidden, 1, bias=False, device=self.device, dtype=torch.float32)
            nn.init.zeros_(head.weight)
            self.gap_heads[role] = head
        self._active = None

    @property
    def _tuner(self) -> Any:
        assert self.peft is not None
        return self.peft.base_model

    @contextmanager
    def role(self, role: str | None, train: bool = False) -> Iterator[None]:
        """Use a role within the context, then the previous one again. train: whether the role gets gradients."""
        before = self._active
        self.use(role, train)
        try:
            yield
        finally:
            if before is not None:
                self.use(*before)

    def use(self, role: str | None, train: bool = False) -> None:
        """Switch to a role until the next switch; a no-op if it is in use. train: whether the role gets gradients."""
        if self.peft is None or self._active == (role, train):
            return
        if role is None:
            self._tuner.disable_adapter_layers()
        else:
            self._tuner.enable_adapter_layers()
            self.peft.set_adapter(role, inference_mode=not train)
        for gap_role, head in self.gap_heads.items():
            head.requires_grad_(gap_role == role and train)
        for layer in self._recomputed:
            layer.training = train  # of the layer itself only: its submodules can have dropout
        self._active = (role, train)

    def merge(self, role: str) -> None:
        """Switch to a role for good and add its adapter to the base's weights, which saves a fifth of each pass.

        Only for a base in fp32 that is not quantised: other weights would be rounded, and the role would change.
        """
        assert self.peft is not None and self.base.dtype == torch.float32
        self.use(role)
        self.peft.merge_adapter([role])

    def keep_merged(self, role: str | None) -> None:
        """Let a role write with copies of the base's weights that have its adapter in them, on CPUs and small bases.

        Next to the products of few rows in a small base its adapters take as long as the base. The copies serve passes
        without gradients; callers must not change the weights of the role afterwards. In bf16 the sums are rounded.
        """
        if role and self._can_copy:
            keep_merged(self.base, role)

    @contextmanager
    def writing(self, role: str | None) -> Iterator[None]:
        """In training, let a role write faster within the context, if there is memory for copies of the base's weights.

        In fp32 they are those of keep_merged. In bf16 weights would swallow an adapter that has just begun to learn, so
        the copies are of the base alone.
        """
        try:
            head = self.output_layer
            if self._can_copy and can_pack(head):
                self._packed_head = PackedLinear(head.weight, head.bias)
            if self.base.dtype is torch.float32:
                self.keep_merged(role)
            elif self._can_copy:
                keep_packed(self.base)
            yield
        finally:
            if role:
                drop_merged(self.base, role)

    def pack_weights(self, writes: bool = True) -> None:
        """Store the base's weights as its CPU multiplies them fastest, for good: from now on nothing can be trained.

        writes: whether the output layer is needed too.
        """
        if self.device.type == "cpu":
            pack_weights(self.base, tied_too=writes and self._affords_copies)

    def role_parameters(self, role: str) -> dict[str, Tensor]:
        """Return the trainable tensors of a role by name."""
        assert self.peft is not None
        named: dict[str, Tensor] = {name: p for name, p in self.peft.named_parameters() if f".{role}." in name}
        if role in self.gap_heads:
            named[head_name(role)] = self.head_weight(role)
        return named

    def head_weight(self, role: str) -> Tensor:
        """Return the weight of the head of a gap role, shape (1, D)."""
        weight: Tensor = self.gap_heads[role].weight  # type: ignore[assignment]
        return weight

    @property
    def gap_head(self) -> nn.Module:
        """The head of the gap role in use."""
        assert self._active is not None
        return self.gap_heads[str(self._active[0])]

    def base_tensors(self) -> list[Tensor]:
        """Return the frozen tensors of the base; of a sharded base, this process's part."""
        tensors = [p for name, p in self.base.named_parameters() if "lora_" not in name]
        return [p.to_local() if hasattr(p, "to_local") else p for p in tensors]

    def recompute_layers(self) -> None:
        """Turn on gradient checkpointing: keep only the inputs of each layer, recompute its activations when needed.

        Raises RunError if transformers does not support it for this base.
        """
        if not self.base.supports_gradient_checkpointing:
            raise RunError("--gradient-checkpointing: transformers does not support it for this base")
        self.base.gradient_checkpointing_enable({"use_reentrant": False})
        self._recomputed = [m for m in self.transformer.modules() if isinstance(m, GradientCheckpointingLayer)]
        self._active = None

    def shard_base(self) -> None:
        """Shard every layer of the base over the processes (FSDP2); layers are gathered when they are needed.

        From now on all processes must run the same number of passes in the same order. Raises RunError if transformers
        does not name the layers of this base.
        """
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        kinds = set(self.base._no_split_modules or ())
        layers = [layer for layer in self.transformer.modules() if type(layer).__name__ in kinds]
        if not layers:
            raise RunError("--shard-base: transformers does not name the layers of this base; run without it")
        mesh = init_device_mesh(self.device.type, (world_size(),))
        parts = {p for layer in layers for name, p in layer.named_parameters() if "lora_" not in name}
        whole = {p for p in self.transformer.parameters() if p not in parts}
        for layer in layers:
            fully_shard(layer, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
        fully_shard(self.transformer, mesh=mesh, ignored_params=whole)  # so that the next layer is prefetched
        self.sharded = True

    @cached_property
    def packs_trees(self) -> bool:
        """Whether packed trees get the same hidden states as separate passes."""
        return self.reads_branches or takes_tree_masks(self.base, self.pad_id)

    @property
    def transformer(self) -> nn.Module:
        """The base without its output layer."""
        return transformer_of(self.base)

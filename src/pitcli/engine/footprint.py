"""What training will take: memory and time, told from one and from two layers of the model with random weights."""

import os
import platform
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import psutil
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from pitcli.engine.bases import reading
from pitcli.engine.batches import micro_batch_rows
from pitcli.engine.loading import compute_dtype, load_base, lora_config
from pitcli.engine.models import LOGIT_ROWS, RoleModel
from pitcli.sections import LoraSettings

VOCABULARY = 512  # words of the model that is measured; the output layer is reckoned apart
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a weight, its block's absmax, and that of the absmaxes
LOGIT_COPIES = 4  # logits, their logsumexp's exponentials, and a gradient of each
STATE_COPIES = 7  # of a trained adapter, fp32: weights, gradient, two of AdamW, and a snapshot of all but the gradient
# glibc keeps the aligned blocks that torch asks for apart by holes that the next ones do not fit into, so that what is
# held takes about twice its size (measured with glibc 2.36); not where every block is mapped by itself
GLIBC_HOLES = 1.9
MAPPED = "MALLOC_MMAP_THRESHOLD_"
CUDA_CONTEXT = 600 * 2**20
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class Shape(NamedTuple):
    """The size of a model: parameters in its linear layers and elsewhere, and what one adapter on it holds."""

    layers: int
    vocabulary: int
    linear: int
    other: int
    adapter: int


class Footprint(NamedTuple):
    """Bytes at the peak of training by what holds them; seconds of one pass over the micro-batch, there and back."""

    process: int
    base: int
    adapters: int
    activations: int
    logits: int
    seconds: float

    def parts(self) -> list[tuple[str, int]]:
        return [(name, size) for name, size in self._asdict().items() if name != "seconds"]

    def peak(self) -> int:
        return sum(size for _, size in self.parts())


class Held(NamedTuple):
    """What a process holds: the role that trains, so many roles in all, and one of so many parts of the layers."""

    role: str
    roles: int
    shards: int


class _Cost(NamedTuple):
    """Bytes held between the passes, seconds of both."""

    held: int
    seconds: float


def all_micro_batches(lengths: Sequence[int], steps: int, batch_size: int, at_once: int, seed: int) -> list[list[int]]:
    """The rows of every micro-batch of these steps."""
    return [chunk for step in range(steps) for chunk in micro_batch_rows(step, lengths, batch_size, at_once, seed)]


def padded(chunk: Sequence[int], lengths: Sequence[int]) -> int:
    """Tokens of a micro-batch with its padding."""
    return len(chunk) * max(lengths[row] for row in chunk)


def shape_of(folder: Path, rank: int) -> Shape:
    """The size of the model in a folder; nothing but its config is read."""
    with reading(folder), torch.device("meta"):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    head = model.get_output_embeddings()
    linears = [layer for layer in model.modules() if isinstance(layer, nn.Linear) and layer is not head]
    linear = sum(layer.weight.numel() for layer in linears)
    text = config.get_text_config()
    return Shape(
        layers=text.num_hidden_layers,
        vocabulary=text.vocab_size,
        linear=linear,
        other=sum(parameter.numel() for parameter in model.parameters()) - linear,
        adapter=rank * sum(layer.in_features + layer.out_features for layer in linears),
    )


def footprint(
    folder: Path,
    load_in_4bit: bool,
    device: torch.device,
    lora: LoraSettings,
    held: Held,
    logit_rows: int,
    run: Callable[[RoleModel], Tensor],
) -> Footprint:
    """What training a role takes.

    run: from a model to what is differentiated, on the largest micro-batch; logit_rows: its tokens that have logits.
    """
    shape, width = shape_of(folder, lora.lora_rank), compute_dtype(device).itemsize
    process = psutil.Process().memory_info().rss if device.type == "cpu" else CUDA_CONTEXT
    one, two = (_measured(folder, layers, load_in_4bit, device, lora, held.role, run) for layers in (1, 2))
    return Footprint(
        process=process,
        base=round(shape.linear * (NF4_BYTES if load_in_4bit else width) / held.shards) + shape.other * width,
        adapters=shape.adapter * 4 * (held.roles - 1 + STATE_COPIES),
        activations=round(_holes(device) * (one.held + (two.held - one.held) * (shape.layers - 1))),
        logits=min(logit_rows, LOGIT_ROWS) * shape.vocabulary * 4 * LOGIT_COPIES,
        seconds=one.seconds + (two.seconds - one.seconds) * (shape.layers - 1),
    )


def _holes(device: torch.device) -> float:
    glibc = device.type == "cpu" and platform.libc_ver()[0] == "glibc" and MAPPED not in os.environ
    return GLIBC_HOLES if glibc else 1.0


def memory_there(device: torch.device) -> int:
    """Bytes that a process may have: free ones of the GPU, or those of this machine or container and our own."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    there = psutil.virtual_memory().available + psutil.Process().memory_info().rss
    if CGROUP_LIMIT.is_file() and (limit := CGROUP_LIMIT.read_text().strip()).isdigit():
        return min(there, int(limit))
    return there


def _measured(
    folder: Path,
    layers: int,
    load_in_4bit: bool,
    device: torch.device,
    lora: LoraSettings,
    role: str,
    run: Callable[[RoleModel], Tensor],
) -> _Cost:
    """What both passes take in a model with so many layers."""
    with TemporaryDirectory() as shallow:
        _write_shallow(folder, layers, Path(shallow))
        model = RoleModel(load_base(Path(shallow), load_in_4bit, device), 0)
    model.add_role(role, lora_config(lora))
    model.use(role, train=True)
    _cost(lambda: run(model), model)  # the first pass warms up
    return _cost(lambda: run(model), model)


def _write_shallow(folder: Path, layers: int, target: Path) -> None:
    with reading(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    text.vocab_size = min(VOCABULARY, text.vocab_size)
    text.pad_token_id = text.bos_token_id = text.eos_token_id = None
    AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False).save_pretrained(target)


def _cost(run: Callable[[], Tensor], model: RoleModel) -> _Cost:
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    held: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: Tensor) -> Tensor:
        held[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    start = time.perf_counter()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out = run()
    size = sum(storage.nbytes() for place, storage in held.items() if place not in parameters)
    out.backward()
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return _Cost(size, time.perf_counter() - start)

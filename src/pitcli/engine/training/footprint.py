"""What training will take: memory and time, told from two sizes of the model with few layers and random weights."""

import ctypes
import multiprocessing
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

import psutil
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from pitcli.engine.models.bases import reading
from pitcli.engine.models.batches import micro_batch_rows
from pitcli.engine.models.loading import autocast, compute_dtype, load_base, lora_config
from pitcli.engine.models.logprobs import LOGIT_ROWS
from pitcli.engine.models.roles import RoleModel
from pitcli.errors import RunError
from pitcli.settings.base import LoraSettings, OptimSettings

VOCABULARY = 512  # words of the model that is measured; the output layer is reckoned apart
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a weight, its block's absmax, and that of the absmaxes
LOGIT_COPIES = 2  # logits, and the exponentials of their logsumexp
STATE_COPIES = 6  # of a trained adapter, fp32: weights, two of AdamW, a snapshot; the gradient is measured
PROBES = (2, 8)  # layers, or as many as there are
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
    passes: int
    logits: int
    seconds: float

    def parts(self) -> list[tuple[str, int]]:
        return [(name, size) for name, size in self._asdict().items() if name != "seconds"]

    def peak(self) -> int:
        return sum(size for _, size in self.parts())


class Held(NamedTuple):
    """What a process holds: the role that trains, so many roles in all, and one of so many parts of the layers.

    recompute: with --gradient-checkpointing.
    """

    role: str
    roles: int
    shards: int
    recompute: bool


class _Cost(NamedTuple):
    """Of both passes: bytes that they take at their peak, seconds."""

    taken: int
    seconds: float


def all_micro_batches(
    lengths: Sequence[int], steps: int, config: OptimSettings, at_once: int, device: torch.device
) -> list[list[int]]:
    """The rows of every micro-batch of these steps."""
    return [chunk for step in range(steps) for chunk in micro_batch_rows(step, lengths, config, at_once, device)]


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
    run: Callable[[RoleModel, int], Tensor],
) -> Footprint:
    """What training a role takes.

    run: from a model to what is differentiated, on the largest micro-batch (0) or one of another shape (1);
    logit_rows: tokens of the largest that have logits.
    """
    shape, width = shape_of(folder, lora.lora_rank), compute_dtype(device).itemsize
    process = psutil.Process().memory_info().rss if device.type == "cpu" else 0  # a GPU's free memory is beside it
    low, high = (1, 2) if device.type == "cuda" else PROBES  # a GPU's allocator counts exactly, a heap has holes
    low, high = min(low, max(1, shape.layers - 1)), min(high, max(2, shape.layers))

    def measured(layers: int) -> _Cost:
        return _measured(folder, layers, load_in_4bit, device, lora, held, run)

    few, more = (_by_itself(device, partial(measured, layers)) for layers in (low, high))
    share = (shape.layers - low) / (high - low)
    return Footprint(
        process=process,
        base=round(shape.linear * (NF4_BYTES if load_in_4bit else width) / held.shards) + shape.other * width,
        adapters=shape.adapter * 4 * (held.roles - 1 + STATE_COPIES),
        passes=round(few.taken + (more.taken - few.taken) * share),
        logits=min(logit_rows, LOGIT_ROWS) * shape.vocabulary * 4 * LOGIT_COPIES,
        seconds=few.seconds + (more.seconds - few.seconds) * share,
    )


def _by_itself(device: torch.device, measure: Callable[[], _Cost]) -> _Cost:
    """On Linux's CPUs in a process of its own: what the heap kept of passes before would be taken again, unseen."""
    if device.type != "cpu" or sys.platform != "linux":
        return measure()
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)

    def answer(place: Connection) -> None:
        try:
            place.send(measure())
        except Exception as problem:
            place.send(problem)

    process = fork.Process(target=answer, args=(theirs,))
    process.start()
    theirs.close()
    try:
        found = ours.recv()
    except EOFError:
        raise RunError("not even a few layers could be tried; is there memory for one micro-batch?") from None
    finally:
        process.join()
    if isinstance(found, Exception):
        raise found
    return found


def memory_there(device: torch.device) -> int:
    """Bytes that a process may have: free ones of the GPU, of this machine or of the container, and its own."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
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
    held: Held,
    run: Callable[[RoleModel, int], Tensor],
) -> _Cost:
    """What both passes take in a model with so many layers."""
    with TemporaryDirectory() as shallow:
        _write_shallow(folder, layers, Path(shallow))
        model = RoleModel(load_base(Path(shallow), load_in_4bit, device), 0)
    model.add_role(held.role, lora_config(lora))
    if held.recompute:
        model.recompute_layers()
    model.use(held.role, train=True)
    before = _resident(model.device, anew=True)

    def both_passes(other: int) -> float:
        start = time.perf_counter()
        with autocast(model.device):
            differentiated = run(model, other)
        differentiated.backward()
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        return time.perf_counter() - start

    both_passes(0)
    both_passes(1)  # of another shape, which leaves other holes in the heap
    seconds = both_passes(0)
    return _Cost(_resident(model.device) - before, seconds)


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


def _resident(device: torch.device, anew: bool = False) -> int:
    """The most bytes that were taken since it was last measured anew."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        if anew:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    if sys.platform != "linux":
        return psutil.Process().memory_info().rss
    if anew:
        with suppress(AttributeError):  # without glibc
            ctypes.CDLL(None).malloc_trim(0)  # of what building the model left, which the passes would take unseen
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

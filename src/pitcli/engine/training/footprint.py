"""What training will take, memory and time, measured on two sizes of the model with few layers and random weights."""

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
from typing import Any, NamedTuple

import psutil
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from pitcli.engine.models.bases import reading
from pitcli.engine.models.loading import autocast, compute_dtype, load_base, lora_config
from pitcli.engine.models.logprobs import LOGIT_ROWS
from pitcli.engine.models.roles import RoleModel
from pitcli.engine.training.loop import Besides, PlannedRows, Task
from pitcli.engine.training.schedule import micro_batch_rows
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


class Holding(NamedTuple):
    """How a process holds a base: with how many adapters, and one of how many parts of the layers.

    recompute: with --gradient-checkpointing.
    """

    folder: Path
    load_in_4bit: bool
    device: torch.device
    lora: LoraSettings
    roles: int
    shards: int
    recompute: bool


class Sizes(NamedTuple):
    """All the micro-batches of a task. longest, in_largest: tokens of the longest row of the largest, and its rows."""

    rows: int
    row_tokens: int
    steps: int
    tokens: int
    padded_tokens: int
    in_largest: int
    longest: int
    logit_rows: int  # tokens of the largest that have logits
    share: float
    besides: Besides | None


class Measured(NamedTuple):
    """Of both passes over the largest micro-batch: bytes that they take at their peak, seconds."""

    taken: int
    seconds: float
    sizes: Sizes


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


def footprint(holding: Holding, task_on: Callable[[RoleModel], Task], config: OptimSettings) -> tuple[Footprint, Sizes]:
    """What training takes, measured on the task itself, on models with few layers."""
    shape, width = shape_of(holding.folder, holding.lora.lora_rank), compute_dtype(holding.device).itemsize
    on_gpu = holding.device.type == "cuda"
    process = 0 if on_gpu else psutil.Process().memory_info().rss  # a GPU's free memory is beside it
    low, high = (1, 2) if on_gpu else PROBES  # a GPU's allocator counts exactly, a heap has holes
    low, high = min(low, max(1, shape.layers - 1)), min(high, max(2, shape.layers))
    few, more = (_by_itself(holding.device, partial(_measured, holding, n, task_on, config)) for n in (low, high))
    share = (shape.layers - low) / (high - low)
    bytes_a_weight = NF4_BYTES if holding.load_in_4bit else width
    found = Footprint(
        process=process,
        base=round(shape.linear * bytes_a_weight / holding.shards) + shape.other * width,
        adapters=shape.adapter * 4 * (holding.roles - 1 + STATE_COPIES),
        passes=round(few.taken + (more.taken - few.taken) * share),
        logits=min(few.sizes.logit_rows, LOGIT_ROWS) * shape.vocabulary * 4 * LOGIT_COPIES,
        seconds=few.seconds + (more.seconds - few.seconds) * share,
    )
    return found, few.sizes


def _by_itself(device: torch.device, measure: Callable[[], Measured]) -> Measured:
    """On Linux's CPUs in a process of its own: what the heap kept of passes before would be taken again, unseen."""
    if device.type != "cpu" or sys.platform != "linux":
        return measure()
    fork = multiprocessing.get_context("fork")
    ours, theirs = fork.Pipe(duplex=False)

    def answer(connection: Connection) -> None:
        try:
            connection.send(measure())
        except Exception as problem:
            connection.send(problem)

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


def memory_available(device: torch.device) -> int:
    """Bytes that a process may have: free ones of the GPU, of this machine or of the container, and its own."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    there = psutil.virtual_memory().available + psutil.Process().memory_info().rss
    if CGROUP_LIMIT.is_file() and (limit := CGROUP_LIMIT.read_text().strip()).isdigit():
        return min(there, int(limit))
    return there


def _measured(holding: Holding, layers: int, task_on: Callable[[RoleModel], Task], config: OptimSettings) -> Measured:
    """What both passes take in a model with so many layers, over the largest micro-batch of the task."""
    with TemporaryDirectory() as shallow:
        _write_shallow(holding.folder, layers, Path(shallow))
        model = RoleModel(load_base(Path(shallow), holding.load_in_4bit, holding.device), 0)
    task = task_on(model)
    model.add_role(task.role, lora_config(holding.lora))
    if holding.recompute:
        model.recompute_layers()
    rows = task.planned_rows()
    chunks = _all_micro_batches(rows, task.total_steps, config, model.device)
    by_size = sorted(chunks, key=lambda chunk: padded(chunk, rows.lengths))
    largest, middle = (_first_of(rows, chunk, model) for chunk in (by_size[-1], by_size[len(by_size) // 2]))
    with model.role(task.role, train=True):
        before = _resident(model.device, anew=True)
        _both_passes(model, task, largest)
        _both_passes(model, task, middle)  # of another shape, which leaves other holes in the heap
        seconds = _both_passes(model, task, largest)
        taken = _resident(model.device) - before
    sizes = Sizes(
        rows=len(rows.lengths),
        row_tokens=sum(rows.lengths),
        steps=task.total_steps,
        tokens=sum(rows.lengths[row] for chunk in chunks for row in chunk),
        padded_tokens=sum(padded(chunk, rows.lengths) for chunk in chunks),
        in_largest=len(by_size[-1]),
        longest=max(rows.lengths[row] for row in by_size[-1]),
        logit_rows=len(largest.batch.targets_N),
        share=rows.share,
        besides=rows.besides,
    )
    return Measured(taken, seconds, sizes)


def _all_micro_batches(rows: PlannedRows, steps: int, config: OptimSettings, device: torch.device) -> list[list[int]]:
    """The rows of every micro-batch of these steps."""
    return [c for step in range(steps) for c in micro_batch_rows(step, rows.lengths, config, rows.at_once, device)]


def _first_of(rows: PlannedRows, chunk: Sequence[int], model: RoleModel) -> Any:
    """The micro-batch of these rows, with token ids that a model of few words knows."""
    micro_batch = rows.build([chunk]).micro_batches[0]
    batch, words = micro_batch.batch, model.base.config.get_text_config().vocab_size
    known = batch._replace(input_ids_BT=batch.input_ids_BT % words, targets_N=batch.targets_N % words)
    return micro_batch._replace(batch=known)


def _both_passes(model: RoleModel, task: Task, micro_batch: Any) -> float:
    """Seconds of the forward and the backward pass."""
    start = time.perf_counter()
    with autocast(model.device):
        loss, _ = task.loss(micro_batch)
    loss.backward()
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return time.perf_counter() - start


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

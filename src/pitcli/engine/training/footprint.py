"""Estimates of training memory and time, measured on two shallow copies of the model with random weights."""

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
from transformers import AutoConfig, AutoModelForCausalLM

from pitcli.engine.models.bases import reading
from pitcli.engine.models.loading import load_base, lora_config
from pitcli.engine.models.logprobs import rows_at_once
from pitcli.engine.models.precision import autocast
from pitcli.engine.models.roles import COPIES_UP_TO, RoleModel
from pitcli.engine.training.loop import PlannedRows, RolloutCost, Task
from pitcli.engine.training.model_shape import Shape, shape_of
from pitcli.engine.training.schedule import micro_batch_rows
from pitcli.errors import RunError
from pitcli.settings.base import LoraSettings, OptimSettings

VOCABULARY = 512  # of the shallow copies; the logits of the real vocabulary are added by LOGIT_COPIES
NF4_BYTES = 0.5 + 1 / 64 + 4 / (64 * 256)  # a weight, the absmax of its block, and the absmax of a block of those
LOGIT_COPIES = 2  # the logits, and the exponentials in their logsumexp
STATE_COPIES = 6  # of a trained adapter, fp32: weights, two moments, a snapshot of these; the gradient is measured
PROBES = (2, 8)  # layers of the two shallow copies, at most as many as the model has
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")


class Footprint(NamedTuple):
    """Bytes at the peak of training, by part, and the seconds of one forward and backward pass.

    process: of the interpreter and its libraries (CPU only). base: frozen weights, and the copies of them that
    RoleModel.writing makes. adapters: with the optimiser state.
    passes: activations and gradients of the largest micro-batch. logits: of a chunk of its tokens.
    """

    process: int
    base: int
    adapters: int
    passes: int
    logits: int
    seconds: float

    def parts(self) -> list[tuple[str, int]]:
        """Return (name, bytes) of each part."""
        return [(name, size) for name, size in self._asdict().items() if name != "seconds"]

    def peak(self) -> int:
        """Return the bytes of all parts together."""
        return sum(size for _, size in self.parts())


class Setup(NamedTuple):
    """How a process loads a base.

    roles: adapters on it. trained: how many of them are trained. shards: processes that share its layers (1: not
    sharded). recompute: gradient checkpointing.
    """

    folder: Path
    load_in_4bit: bool
    dtype: torch.dtype
    device: torch.device
    lora: LoraSettings
    roles: int
    trained: int
    shards: int
    recompute: bool


class Sizes(NamedTuple):
    """The sizes of a task's micro-batches.

    rows, row_tokens: rows of the data and their tokens. tokens, padded_tokens: over all steps, without and with
    padding. in_largest, longest, logit_rows: of the largest micro-batch, its rows, the tokens of its longest row, and
    its tokens with logits. share: the part of a row that is in one micro-batch. rollout_cost: None without rollouts.
    """

    rows: int
    row_tokens: int
    steps: int
    tokens: int
    padded_tokens: int
    in_largest: int
    longest: int
    logit_rows: int
    share: float
    rollout_cost: RolloutCost | None


class Measured(NamedTuple):
    """The forward and backward pass over the largest micro-batch: bytes at their peak, and seconds."""

    peak_bytes: int
    seconds: float
    sizes: Sizes


def padded(chunk: Sequence[int], lengths: Sequence[int]) -> int:
    """Return the tokens of a micro-batch with its padding."""
    return len(chunk) * max(lengths[row] for row in chunk)


def footprint(setup: Setup, task_on: Callable[[RoleModel], Task], config: OptimSettings) -> tuple[Footprint, Sizes]:
    """Estimate what training needs by running the task's largest micro-batch on shallow copies of the model."""
    shape, width = shape_of(setup.folder, setup.lora.lora_rank), setup.dtype.itemsize
    on_gpu = setup.device.type != "cpu"
    process = 0 if on_gpu else psutil.Process().memory_info().rss  # it is not in a GPU's memory
    low, high = (1, 2) if on_gpu else PROBES  # a GPU's allocator counts exactly; a heap has holes
    low, high = min(low, max(1, shape.layers - 1)), min(high, max(2, shape.layers))
    few, more = (_in_a_fork(setup.device, partial(_measured, setup, n, task_on, config)) for n in (low, high))
    share = (shape.layers - low) / (high - low)
    bytes_per_weight = NF4_BYTES if setup.load_in_4bit else width
    copies = sampling_copies(setup, shape) if few.sizes.rollout_cost else 0
    logit_rows = min(few.sizes.logit_rows, rows_at_once(shape.vocabulary, setup.device))
    found = Footprint(
        process=process,
        base=round(shape.linear * bytes_per_weight / setup.shards) + shape.other * width + copies,
        adapters=shape.adapter * 4 * (setup.roles + setup.trained * (STATE_COPIES - 1)),
        passes=round(few.peak_bytes + (more.peak_bytes - few.peak_bytes) * share),
        logits=logit_rows * shape.vocabulary * 4 * LOGIT_COPIES,
        seconds=few.seconds + (more.seconds - few.seconds) * share,
    )
    return found, few.sizes


def sampling_copies(setup: Setup, shape: Shape) -> int:
    """Return the bytes of the copies with which training samples; in fp32 they are gone before the passes."""
    if setup.device.type != "cpu" or setup.shards > 1 or shape.linear + shape.other > COPIES_UP_TO:
        return 0
    layers = 0 if setup.load_in_4bit or setup.dtype is torch.float32 else shape.linear
    return (layers + shape.head) * setup.dtype.itemsize


def _in_a_fork(device: torch.device, measure: Callable[[], Measured]) -> Measured:
    """Measure; on Linux CPUs in a separate process, so that no memory that the heap kept from earlier passes is reused.

    Raises RunError if that process is killed.
    """
    if device.type != "cpu" or sys.platform != "linux":
        return measure()
    fork = multiprocessing.get_context("fork")
    receiver, sender = fork.Pipe(duplex=False)

    def answer(connection: Connection) -> None:
        try:
            connection.send(measure())
        except Exception as problem:
            connection.send(problem)

    process = fork.Process(target=answer, args=(sender,))
    process.start()
    sender.close()
    try:
        found = receiver.recv()
    except EOFError:
        raise RunError("not enough memory to measure one micro-batch; use a smaller --micro-batch-size") from None
    finally:
        process.join()
    if isinstance(found, Exception):
        raise found
    return found


def memory_available(device: torch.device) -> int:
    """Return the bytes that this process can use, its own included, on the GPU, or on this machine or container."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    available = psutil.virtual_memory().available + psutil.Process().memory_info().rss
    if CGROUP_LIMIT.is_file() and (limit := CGROUP_LIMIT.read_text().strip()).isdigit():
        return min(available, int(limit))
    return available


def _measured(setup: Setup, layers: int, task_on: Callable[[RoleModel], Task], config: OptimSettings) -> Measured:
    """Run both passes over the task's largest micro-batch in a model with this many layers."""
    with TemporaryDirectory() as shallow:
        _write_shallow(setup.folder, layers, Path(shallow))
        model = RoleModel(load_base(Path(shallow), setup.load_in_4bit, setup.device, setup.dtype), 0)
    task = task_on(model)
    model.add_role(task.role, lora_config(setup.lora))
    if setup.recompute:
        model.recompute_layers()
    rows = task.planned_rows()
    chunks = _all_micro_batches(rows, task.total_steps, config, model.device)
    by_size = sorted(chunks, key=lambda chunk: padded(chunk, rows.lengths))
    largest, middle = (_first_of(rows, chunk, model) for chunk in (by_size[-1], by_size[len(by_size) // 2]))
    with model.role(task.role, train=True):
        if model.device.type != "cpu":
            _both_passes(model, task, middle)  # allocates the workspaces of the libraries, whatever the layers
            model.zero_grad(set_to_none=True)
        before = _peak_bytes(model.device, reset=True)
        _both_passes(model, task, largest)
        _both_passes(model, task, middle)  # its different shape leaves different holes in the heap
        seconds = _both_passes(model, task, largest)
        peak_bytes = _peak_bytes(model.device) - before
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
        rollout_cost=rows.rollout_cost,
    )
    return Measured(peak_bytes, seconds, sizes)


def _all_micro_batches(rows: PlannedRows, steps: int, config: OptimSettings, device: torch.device) -> list[list[int]]:
    """Return the rows of every micro-batch of these steps."""
    return [c for step in range(steps) for c in micro_batch_rows(step, rows.lengths, config, rows.at_once, device)]


def _first_of(rows: PlannedRows, chunk: Sequence[int], model: RoleModel) -> Any:
    """Build the micro-batch of these rows, with token ids within the small vocabulary."""
    micro_batch = rows.build([chunk]).micro_batches[0]
    batch, size = micro_batch.batch, model.base.config.get_text_config().vocab_size
    small = batch._replace(input_ids_BT=batch.input_ids_BT % size, targets_N=batch.targets_N % size)
    return micro_batch._replace(batch=small)


def _both_passes(model: RoleModel, task: Task, micro_batch: Any) -> float:
    """Run the forward and the backward pass; return their seconds."""
    start = time.perf_counter()
    with autocast(model.base):
        loss, _ = task.loss(micro_batch)
    loss.backward()
    if model.device.type != "cpu":
        torch.accelerator.synchronize(model.device)
    return time.perf_counter() - start


def _write_shallow(folder: Path, layers: int, target: Path) -> None:
    """Save a model like the one in `folder` with few layers, a small vocabulary and random weights."""
    with reading(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    text = config.get_text_config()
    text.num_hidden_layers = layers
    if getattr(text, "layer_types", None):
        text.layer_types = text.layer_types[:layers]
    text.vocab_size = min(VOCABULARY, text.vocab_size)
    text.pad_token_id = text.bos_token_id = text.eos_token_id = None
    AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False).save_pretrained(target)


def _peak_bytes(device: torch.device, reset: bool = False) -> int:
    """Return the peak memory in bytes since the last reset (without Linux or a GPU: the present memory)."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        if reset:
            torch.cuda.reset_peak_memory_stats(device)
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":  # it has no peak: what its allocator keeps for the next pass comes near it
        torch.mps.synchronize()
        return torch.mps.driver_allocated_memory()
    if sys.platform != "linux":
        return psutil.Process().memory_info().rss
    if reset:
        with suppress(AttributeError):  # without glibc
            ctypes.CDLL(None).malloc_trim(0)  # or the passes would reuse, uncounted, what building the model left
        Path("/proc/self/clear_refs").write_text("5")
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))

"""Which number type a base computes in: --dtype, and a measurement of what the device does fast and right in bf16.

In bf16 are the base and its activations. Adapters, gap head, optimiser, log-softmax and losses stay in fp32.
"""

import hashlib
import json
import platform
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedModel

from pitcli.engine.models.bases import cache_folder
from pitcli.runs.files import write_file
from pitcli.settings.base import Precision

DTYPES = {Precision.fp32: torch.float32, Precision.bf16: torch.bfloat16}
FAST = 1.2  # times as fast as fp32, at least
RIGHT = 0.01  # relative error of a product, at most; rounding to bf16 alone gives 0.002
FP32_BELOW = 30_000_000  # parameters; products of smaller bases take less time than the calls around them
PRODUCT = {"cpu": (128, 576, 1536)}  # rows, inputs, outputs
PRODUCT_ON_GPU = (2048, 2048, 2048)
TRIES = (3, 12)  # of a product: at least, and at most until SECONDS have passed
SECONDS = 0.2
CPU_INFO = Path("/proc/cpuinfo")


class Bf16(NamedTuple):
    """What bf16 is like on a device. speedup: over fp32; error: of a product, relative to fp32."""

    speedup: float
    error: float

    @property
    def is_good(self) -> bool:
        return self.speedup >= FAST and self.error <= RIGHT


def compute_dtype(asked: Precision | None, device: torch.device, parameters: int) -> torch.dtype:
    """Return the number type of --dtype. auto or None: the best of the device, on CPUs fp32 for small bases."""
    if asked in DTYPES:
        return DTYPES[asked]
    return torch.float32 if device.type == "cpu" and parameters < FP32_BELOW else best_dtype(device)


def best_dtype(device: torch.device) -> torch.dtype:
    """Return bf16 on GPUs that compute in it and on CPUs that do so fast and right, otherwise fp32.

    Some CPUs emulate bf16, two hundred times slower than fp32.
    """
    if device.type == "cuda":
        good = torch.cuda.is_bf16_supported(including_emulation=False)
    elif device.type == "mps":
        good = torch.backends.mps.is_macos_or_newer(14, 0)
    else:
        good = bf16_of_this_cpu().is_good
    return torch.bfloat16 if good else torch.float32


def finest_dtype(device: torch.device) -> torch.dtype:
    """Return fp64 for sums that must not depend on rounding, or fp32 on Apple GPUs, which have nothing finer."""
    return torch.float32 if device.type == "mps" else torch.float64


def autocast(base: PreTrainedModel) -> torch.autocast:
    """Return the autocast of training passes: bf16 if the base is bf16. Adapters and gap head stay in fp32."""
    return torch.autocast(base.device.type, torch.bfloat16, enabled=base.dtype is torch.bfloat16)


def bf16_of_this_cpu() -> Bf16:
    """Measure bf16 once per machine and torch version: a noisy second measurement could choose another type."""
    path = cache_folder() / f"bf16-{_machine()}.json"
    with suppress(OSError, ValueError, TypeError):
        return Bf16(**json.loads(path.read_text()))
    found = measure_bf16(torch.device("cpu"))
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_file(path, json.dumps(found._asdict()))
    return found


def _machine() -> str:
    """Return a digest of the CPU's model and instructions, and of torch's version."""
    lines: set[str] = set()
    with suppress(OSError):
        lines = {line for line in CPU_INFO.read_text().splitlines() if line.startswith(("model name", "flags"))}
    known = [platform.machine(), platform.processor(), torch.__version__, *sorted(lines)]
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:12]


@torch.no_grad()
def measure_bf16(device: torch.device) -> Bf16:
    """Time the products of a linear layer, forward and backward, in both types; compare their results."""
    rows, inputs, outputs = PRODUCT.get(device.type, PRODUCT_ON_GPU)
    generator = torch.Generator().manual_seed(0)
    x_RI, weight_OI = (torch.randn(n, inputs, generator=generator).to(device) for n in (rows, outputs))
    exact_RI, seconds_fp32 = _products(x_RI, weight_OI)
    found_RI, seconds_bf16 = _products(x_RI.bfloat16(), weight_OI.bfloat16())
    error = float((found_RI.float() - exact_RI).norm() / exact_RI.norm())
    return Bf16(seconds_fp32 / seconds_bf16, error)


def _products(x_RI: Tensor, weight_OI: Tensor) -> tuple[Tensor, float]:
    """Return x W^T W / O, shape (R, I), and the least seconds of several tries after one that builds the kernels."""
    least, most = TRIES
    seconds: list[float] = []
    while len(seconds) <= least or (len(seconds) <= most and sum(seconds) < SECONDS):
        start = time.perf_counter()
        result_RI = x_RI @ weight_OI.T @ weight_OI / len(weight_OI)
        result_RI[0, 0].item()  # waits for a GPU
        seconds.append(time.perf_counter() - start)
    return result_RI, min(seconds[1:])

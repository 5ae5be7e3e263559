"""Time, peak memory and the distance between tensors, measured the same way by both sides and costs.py."""

import math
import re
import resource
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any


def now(device: str) -> float:
    """Return the seconds of a clock; on a GPU, wait for all queued work first."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


def peak_bytes(device: str) -> int:
    """Return the peak memory of this process: allocated on the GPU, or resident."""
    if device == "cuda":
        import torch

        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")  # on Linux ru_maxrss includes the process before the exec
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def reset_peak(device: str) -> int:
    """Reset the peak memory; return the memory in use."""
    if device == "cuda":
        import torch

        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes(device)


def distance(before: Iterable[Any], after: Iterable[Any]) -> float:
    """Return the Euclidean distance between two lists of tensors, over all elements."""
    squares = [float((new.detach() - old).float().square().sum()) for old, new in zip(before, after, strict=True)]
    return math.sqrt(sum(squares))

"""One side of a comparison, in a process of its own: `python worker.py SPEC SIDE`, told what to do line by line.

It loads, warms up and then runs when it is told to, so that of two sides one works while the other waits, and the
peak memory of each is its own.
"""

import json
import math
import os
import re
import resource
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Figures = dict[str, Any]


class Finished(Exception):
    """Nobody asks for more."""


class Gate:
    """Where a side waits between two runs; the time from its going to its coming back is what a run takes.

    figures: what the last steps came to. check: what is compared outside of any run.
    """

    def __init__(self, on_gpu: bool) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # whatever a library prints is no answer
        self._on_gpu = on_gpu
        self._started = 0.0
        self._steps = self._left = 0
        self.figures: Callable[[int], Figures] = lambda steps: {}
        self.check: Callable[[], Figures] = dict

    def arrive(self) -> None:
        """To be called at the beginning of every step."""
        if self._left > 1:
            self._left -= 1
            return
        if self._left == 1:
            seconds = self._now() - self._started
            self._answer({"seconds": seconds, "figures": self.figures(self._steps)})
        else:
            self._answer({"ready": True})
        self._wait()

    def begin(self) -> None:
        """The run begins only now; what came before was loading."""
        self._started = self._now()

    def _wait(self) -> None:
        while line := sys.stdin.readline():
            command = json.loads(line)
            if command["do"] == "check":
                self._answer({"figures": self.check()})
                continue
            self._steps = self._left = command["steps"]
            self.begin()
            return
        raise Finished

    def _now(self) -> float:
        if self._on_gpu:
            import torch

            torch.cuda.synchronize()
        return time.perf_counter()

    def _answer(self, answer: Figures) -> None:
        print(json.dumps({**answer, "peak_bytes": peak_bytes(self._on_gpu)}), file=self._answers, flush=True)


def distance(before: Iterable[Any], after: Iterable[Any]) -> float:
    """How far tensors have moved, all together (Euclidean)."""
    squares = [float((now.detach() - then).float().square().sum()) for then, now in zip(before, after, strict=True)]
    return math.sqrt(sum(squares))


def peak_bytes(on_gpu: bool) -> int:
    """The most memory that this process has held: of the GPU, or resident."""
    if on_gpu:
        import torch

        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")  # ru_maxrss of Linux counts in what was there before the exec
    if status.exists() and (found := re.search(r"VmHWM:\s*(\d+) kB", status.read_text())):
        return int(found[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def main() -> None:
    spec, side = json.loads(Path(sys.argv[1]).read_text()), sys.argv[2]
    gate = Gate(spec["device"] == "cuda")
    if side == "matmul":
        from flops import measure_matmul as run
    elif side in ("ours", "separate"):
        from ours import run
    else:
        from peers import run
    try:
        run(spec, side, gate)
    except Finished:
        sys.stderr.flush()
        os._exit(0)  # what a library does at its exit is not waited for


if __name__ == "__main__":
    main()

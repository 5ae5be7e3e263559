"""The machine's peak FLOP/s: torch.mm at several shapes."""

import time

import torch
from flops import llama_shape
from gate import Gate, Spec
from measuring import now

SECONDS_AT_PEAK = 2.0
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def run(spec: Spec, side: str, gate: Gate) -> None:
    """Measure the peak FLOP/s of torch.mm in each run: at the model's shapes and at 2048 cubed, in its dtype."""
    device, on_gpu = spec["device"], spec["device"] == "cuda"
    dtype = DTYPES[spec["dtype"]]
    shape = llama_shape(spec["config"], spec["lora_rank"])
    sizes = {(2048, 2048, 2048), *((1024, inputs, outputs) for inputs, outputs in shape.linear_in_out)}
    if on_gpu:
        sizes.add((8192, 8192, 8192))
    best: dict[str, float] = {}
    gate.figures = lambda steps: {"flops_per_second": max(best.values()), "by_size": dict(best)}
    while True:
        gate.arrive()
        for rows, inputs, outputs in sorted(sizes):
            left = torch.randn(rows, inputs, dtype=dtype, device=device)
            right = torch.randn(inputs, outputs, dtype=dtype, device=device)
            fastest, until = float("inf"), time.perf_counter() + SECONDS_AT_PEAK / len(sizes)
            while time.perf_counter() < until:
                start = time.perf_counter()
                for _ in range(repeats := 20 if on_gpu else 1):
                    torch.mm(left, right)
                fastest = min(fastest, (now(device) - start) / repeats)
            name = f"{rows}x{inputs}x{outputs}"
            best[name] = max(best.get(name, 0.0), 2 * rows * inputs * outputs / fastest)


def square_peak(device: str, dtype: str) -> float:
    """Return the peak FLOP/s of a square product."""
    size = 8192 if device == "cuda" else 2048
    left, right = (torch.randn(size, size, dtype=DTYPES[dtype], device=device) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        started = now(device)
        torch.mm(left, right)
        best = min(best, now(device) - started)
    return 2 * size**3 / best

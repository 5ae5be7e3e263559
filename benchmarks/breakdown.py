"""Breaks down the time of a step: by phase, or by kind of operation with torch's profiler."""

from collections import Counter
from collections.abc import Callable

from measuring import now
from torch.profiler import DeviceType, ProfilerActivity, profile

Step = Callable[[dict[str, float]], None]  # writes the seconds of its phases, if it has any, into the dict
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear"),
    "attention": ("flash_attention", "efficient_attention", "aten::_scaled_dot_product"),
    "4-bit": ("bitsandbytes", "quantize"),
    "copies and layout": ("copy", "cat", "clone", "fill", "zero", "index", "embedding"),
}


def timed(phases: dict[str, float], device: str) -> Callable[[str], None]:
    """Return a function to call at the end of each phase, which stores the phase's seconds."""
    started = now(device)

    def ended(phase: str) -> None:
        nonlocal started
        phases[phase] = now(device) - started
        started = now(device)

    return ended


def kinds_of(step: Step, device: str) -> dict[str, float]:
    """Profile a step; return its seconds by kind of operation. Time outside torch operations counts as python."""
    on_gpu = device == "cuda"
    started = now(device)
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]) as profiled:
        step({})
        seconds = now(device) - started
    kinds: Counter[str] = Counter()
    for event in profiled.key_averages():
        if event.device_type != DeviceType.CPU:  # a GPU kernel, whose time is also counted for its operation
            continue
        kind = next((kind for kind, names in KINDS.items() if any(name in event.key for name in names)), None)
        if kind is None and event.key.startswith("aten::"):
            kind = "elementwise"
        if kind:
            kinds[kind] += (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
    kinds["python"] = max(0.0, seconds - sum(kinds.values()))
    return dict(kinds)

"""The results of a workload: its entry in the output file, and the printed table."""

import argparse
import os
import platform
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from agreement import Check
from workloads import ALONE, GPU_PEAK_TARGET, LARGEST_PEAK_GB, RESPONSES, Workload, pairs_of

LIBRARIES = ("pitcli", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "trl")


class Measurement(NamedTuple):
    """The measurements of a workload, by side (ours, theirs) except for the checks.

    seconds: of each run after the warm-up. figures: of each run, the warm-up first. peaks: peak memory, in bytes.
    """

    seconds: dict[str, list[float]]
    figures: dict[str, list[dict[str, Any]]]
    peaks: dict[str, int | None]
    checks: list[Check]


def entry_of(
    workload: Workload, spec: dict[str, Any], measurement: Measurement, options: argparse.Namespace
) -> dict[str, Any]:
    """Return a workload's entry in the output file. Each run has its own rows, so rates are computed per run."""
    key = "flops" if workload.unit == "FLOP" else "units"
    seconds, checks = measurement.seconds, measurement.checks
    amounts = amounts_of(spec, key, len(seconds["ours"]))
    rates = {name: [n / s for n, s in zip(amounts, taken, strict=False)] for name, taken in seconds.items()}
    if workload.against == "matmul":
        best = measurement.figures["theirs"][-1]["flops_per_second"]
        rates["theirs"] = [best] * len(rates["ours"])
    ratios = [our / their for our, their in zip(rates["ours"], rates["theirs"], strict=False)]
    target = GPU_PEAK_TARGET if workload.against == "matmul" and options.device == "cuda" else workload.target
    agrees = all(check.agrees for check in checks)
    memory = memory_of(workload, measurement.peaks, options)
    return {
        "work": workload.name,
        "against": workload.against or None,
        "unit": f"{workload.unit}/s",
        "ours": median(rates["ours"]),
        "theirs": median(rates["theirs"]) if rates["theirs"] else None,
        "ratio": {"min": min(ratios), "median": median(ratios), "max": max(ratios)} if ratios else None,
        "target": target if ratios else None,
        "met": bool(agrees and median(ratios) >= target) if ratios else None,
        "results_agree": agrees,
        "agreement": [{**check._asdict(), "agrees": check.agrees} for check in checks],
        **memory,
        "seconds": seconds,
        "device": device_name(options.device),
        "threads": options.threads,
        "shape": options.shape,
        "load_in_4bit": options.load_in_4bit,
        "sizes": spec["sizes"],
        "versions": {name: version(name) for name in LIBRARIES},
    }


def amounts_of(spec: dict[str, Any], key: str, runs: int) -> list[float]:
    """Return the units of work of each run after the warm-up."""
    if spec["trains"] in ("improve", "endpoint"):
        return [spec["sizes"]["drafts"]] * runs
    if spec["trains"] in RESPONSES:
        return [spec["sizes"]["drafts"] * pairs_of(spec["trains"])] * runs
    per_run = spec["sizes"]["steps"]
    return [sum(step[key] for step in spec["steps"][run * per_run : (run + 1) * per_run]) for run in range(1, runs + 1)]


def memory_of(workload: Workload, peaks: dict[str, int | None], options: argparse.Namespace) -> dict[str, Any]:
    """Return the peak memory of both sides, compared with the target."""
    ours, theirs = peaks["ours"] or 0, peaks["theirs"] if workload.against != "matmul" else None
    ratio = ours / theirs if theirs else None
    entry: dict[str, Any] = {"peak_bytes": {"ours": ours, "theirs": theirs}, "memory_ratio": ratio}
    if options.shape in ALONE:
        return {**entry, "memory_target_bytes": LARGEST_PEAK_GB * 1e9, "memory_met": ours < LARGEST_PEAK_GB * 1e9}
    met = ratio <= workload.memory_target if ratio is not None and workload.memory_target is not None else None
    return {**entry, "memory_target": workload.memory_target, "memory_met": met}


def device_name(device: str) -> str:
    """Return the name of the GPU, or the count and name of the CPU cores."""
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    models = [line for line in read_text("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} x {models[0].split(':')[1].strip() if models else platform.processor()}"


def read_text(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def show(entries: Sequence[dict[str, Any]], stream: Any) -> None:
    """Print the table of results, and below it the checks."""
    columns = "{:<12} {:<14} {:>10} {:>10} {:>20} {:>7} {:>5} {:>14} {:>6} {:>5}"
    print(
        columns.format(
            "work", "against", "ours", "theirs", "ratio min med max", "target", "met", "GB ours/theirs", "ratio", "met"
        ),
        file=stream,
    )
    for entry in entries:
        print(columns.format(*row_of(entry)), file=stream)
    for entry in entries:
        for check in entry["agreement"]:
            verdict = "agrees" if check["agrees"] else "DIFFERS"
            values = (
                f"{check['ours']:.6g} and {check['theirs']:.6g}, {check['apart']:.1e} (at most {check['allowed']:.0e})"
            )
            print(f"{entry['work']}: {verdict}: {check['figure']}: {values}", file=stream)
    stream.flush()


def row_of(entry: dict[str, Any]) -> list[str]:
    """Return the cells of an entry's row."""

    def number(value: float | None) -> str:
        return "" if value is None else f"{value:.3g}"

    ratio, peaks = entry["ratio"], entry["peak_bytes"]
    spread = " ".join(f"{ratio[name]:.2f}" for name in ("min", "median", "max")) if ratio else ""
    met = {True: "yes", False: "no", None: ""}
    sizes = "/".join(f"{peaks[name] / 1e9:.2f}" for name in ("ours", "theirs") if peaks[name])
    return [
        entry["work"],
        entry["against"] or "",
        number(entry["ours"]),
        number(entry["theirs"]),
        spread if entry["results_agree"] else "results differ",
        number(entry["target"]),
        met[entry["met"]],
        sizes,
        number(entry["memory_ratio"]),
        met[entry["memory_met"]],
    ]

"""Measures where the time of a training step goes, how close it is to the machine's peak, and how it grows.

    python benchmarks/costs.py [--device cpu|cuda] [--dtype fp32|bf16] [--shape smollm2|1b] [--longest 4096]

Each step is measured in a separate process, so that its peak memory is its own. Rows are random tokens of one length,
and a step is one row (gap: a pair, which is four conversations; rl: one prompt with k samples of 48 tokens; improve: an
improvement of 48 tokens per row). A step is skipped if it would not fit in memory, judging by a shorter row. For each
step costs.py reports the seconds, the tokens, the share of the machine's peak FLOP/s (counted by flops.py) that it
reaches, the peak memory, and the parts of the time by kind of operation, or for rl and improve by phase.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
from workloads import SHAPES

STAGES = ("sft", "gap", "rl", "improve")
LENGTHS = (256, 512, 1024, 2048, 4096)
GROUPS = (2, 4, 8)
ROWS = (1, 4, 16)
TAIL = 2000  # characters shown of a failed process's stderr


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=list(SHAPES), default="smollm2")
    parser.add_argument("--longest", type=int, default=LENGTHS[-1], help="longest conversation to measure, in tokens")
    parser.add_argument("--load-in-4bit", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--dtype", choices=("fp32", "bf16"), help="default: bf16 on a GPU only")
    parser.add_argument("--out", type=Path, default=Path("costs.json"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.dtype = options.dtype or ("bf16" if options.device == "cuda" else "fp32")
    if options.one:
        from cost_steps import measure  # imports torch, which the parent process does not need

        print(json.dumps(measure(json.loads(options.one))))
        return
    measured: list[dict[str, Any]] = []
    for request in requests(options):
        if not fits(request, measured):
            print(f"{named(request)}: skipped, because it would not fit in memory", flush=True)
            continue
        done = subprocess.run(
            [sys.executable, __file__, "--one", json.dumps(request)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{named(request)}: failed with exit code {done.returncode}:\n{done.stderr[-TAIL:]}")
        measured.append({**request, **json.loads(done.stdout.splitlines()[-1])})
        options.out.write_text(json.dumps(measured, indent=1) + "\n")
        show(measured[-1], measured[0]["flops_per_second"])


def requests(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Return the steps to measure: the peak, each stage at each length, then recomputation, groups and rows."""
    lengths = [length for length in LENGTHS if length <= options.longest]
    shortest = lengths[0]
    settings: list[dict[str, Any]] = [
        {"stage": "peak"},
        *({"stage": stage, "length": length} for stage in STAGES for length in lengths),
        *({"stage": stage, "length": length, "recompute": True} for stage in ("sft", "gap") for length in lengths[2:]),
        *({"stage": "rl", "length": shortest, "k": k} for k in GROUPS),
        *({"stage": stage, "length": shortest, "rows": rows} for stage in ("sft", "gap", "improve") for rows in ROWS),
    ]
    common = {name: getattr(options, name) for name in ("device", "shape", "load_in_4bit", "dtype")}
    found: list[dict[str, Any]] = []
    for setting in settings:
        request = {"length": 0, "rows": 1, "k": 4, "recompute": False, **setting, **common}
        found += [request] if request not in found else []
    return found


def fits(request: dict[str, Any], measured: list[dict[str, Any]]) -> bool:
    """Return whether a step fits in memory, if the memory of its passes grows in proportion to the length."""
    names = ("stage", "rows", "k", "recompute")
    alike = [entry for entry in measured if all(entry[name] == request[name] for name in names)]
    if not alike or request["device"] != "cpu":
        return True
    last = alike[-1]
    needed = last["peak_bytes"] + last["passes_bytes"] * (request["length"] / last["length"] - 1)
    return bool(needed < psutil.virtual_memory().available)


def named(entry: dict[str, Any]) -> str:
    """Return the label of a step."""
    name = f"{entry['stage']:<7} length {entry['length']:>5} rows {entry['rows']:>3}"
    return name + (f" k {entry['k']}" if entry["stage"] == "rl" else "") + " recomputed" * entry["recompute"]


def show(entry: dict[str, Any], peak: float) -> None:
    """Print the line of a step. peak: FLOP/s."""
    if entry["stage"] == "peak":
        print(f"matrix-product peak: {peak / 1e9:.1f} GFLOP/s", flush=True)
        return
    share = entry["flops"] / entry["seconds"] / peak
    parts = ", ".join(f"{name} {part:.0%}" for name, part in entry["parts"].items())
    memory = f"{entry['peak_bytes'] / 2**30:.2f} GiB, {entry['passes_bytes'] / 2**30:.2f} of them for the passes"
    print(
        f"{named(entry)}: {entry['seconds']:.2f} s, {entry['tokens']} tokens, {share:.0%} of peak, {memory}; {parts}",
        flush=True,
    )


if __name__ == "__main__":
    main()

"""Compares pit with TRL, transformers and the machine's peak: `python benchmarks/run.py --data hh.jsonl.gz`.

Each side is a separate process that loads and warms up once. Then the two alternate (ours, theirs, theirs, ours, ...),
and never run at the same time. A ratio is reported as the minimum, median and maximum over the pairs of runs, and only
if both sides computed the same results.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from agreement import Check, checks_of
from results import Measurement, entry_of, show
from worker_client import WorkerClient, WorkerFailed
from workloads import ALONE, ALONE_WORKLOADS, SHAPES, WORKLOADS, Workload, sizes_of

HERE = Path(__file__).parent
LEARNING_RATES = {"sft": 2e-4, "gap": 2e-4, "rl": 1e-5, "dpo-improver": 2e-5, "dpo-policy": 2e-5}
# settings to try for each of the peers; --no-tune uses the first
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "SFTTrainer": [
        {},
        {"per_device_train_batch_size": 4},
        {"per_device_train_batch_size": 16},
        {"padding_free": True},
        {"gradient_checkpointing": True},
    ],
    "RewardTrainer": [{}, {"per_device_train_batch_size": 2}, {"per_device_train_batch_size": 10}],
    "DPOTrainer": [{}, {"per_device_train_batch_size": 2}, {"per_device_train_batch_size": 8}],
    "RLOOTrainer": [{"per_device_train_batch_size": 4}, {}],
    "classifier": [{}, {"batch_size": 8}, {"batch_size": 8, "similar_length": True}],
}
TUNING_PASSES = 2  # runs per setting after its warm-up


def main() -> None:
    options = parse_options()
    scratch = options.scratch.resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    if options.threads:
        environment["OMP_NUM_THREADS"] = str(options.threads)
    workloads = chosen_workloads(options)
    prepared = prepare(options, workloads, scratch, environment)
    entries: list[dict[str, Any]] = []
    for workload in workloads:
        folder = scratch / workload.name
        folder.mkdir(exist_ok=True)
        spec = {
            **prepared,
            "trains": workload.trains,
            "peer_settings": SETTINGS.get(workload.against, [{}])[0],
            "scratch": str(folder),
            "learning_rate": LEARNING_RATES.get(workload.trains),
            "steps": prepared["steps"].get(workload.trains, []),
        }
        entries.append(measured(workload, spec, options, environment))
        show([entries[-1]], sys.stderr)
        options.out.write_text(json.dumps(entries, indent=1) + "\n")
    show(entries, sys.stdout)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ",".join(workload.name for workload in WORKLOADS)
    parser.add_argument("--data", type=Path, required=True, help="preference pairs, in any format that pit reads")
    parser.add_argument("--only", help=f"comma-separated workloads out of {names}; default: all")
    parser.add_argument("--runs", type=int, default=5, help="runs per side")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument(
        "--shape", choices=list(SHAPES), default="smollm2", help="shape of the model; tiny: to try this program"
    )
    parser.add_argument("--scale", type=float, default=1.0, help="factor for the rows of a run")
    parser.add_argument("--max-length", type=int, help="longest conversation in tokens")
    parser.add_argument(
        "--load-in-4bit",
        action=argparse.BooleanOptionalAction,
        help="load the base of both sides in 4-bit; default: only on a GPU",
    )
    parser.add_argument("--dtype", choices=("fp32", "bf16"), help="of both sides; default: bf16 on a GPU only")
    parser.add_argument("--at-once", type=int, help="drafts improved at the same time, and slots of llama.cpp")
    parser.add_argument(
        "--llama-cpp",
        default="",
        help="further options of llama_server.py for endpoint, such as '--type q8_0 --cache fp16'",
    )
    parser.add_argument("--threads", type=int, help="threads per process; default: torch's choice")
    parser.add_argument(
        "--tune",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="try several settings of the peers first and use the fastest",
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks.json"))
    parser.add_argument("--scratch", type=Path, default=Path("runs/benchmarks"), help="folder for adapters and logs")
    options = parser.parse_args()
    if options.load_in_4bit is None:
        options.load_in_4bit = options.device == "cuda"
    options.dtype = options.dtype or ("bf16" if options.device == "cuda" else "fp32")
    return options


def chosen_workloads(options: argparse.Namespace) -> list[Workload]:
    """Return the workloads of --only that exist for --shape."""
    known = {workload.name: workload for workload in WORKLOADS}
    names = options.only.split(",") if options.only else list(known)
    if unknown := set(names) - known.keys() - {"peak"}:
        sys.exit(f"--only: expected some of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    if "peak" in names:
        names += [name for name in known if name.startswith("peak-")]
    chosen = [workload for workload in WORKLOADS if workload.name in names]
    if options.shape in ALONE:
        without_peer = {
            workload: workload._replace(against="", memory_target=None)
            for workload in chosen
            if workload.name in ALONE_WORKLOADS
        }
        chosen = [
            without_peer.get(workload, workload)
            for workload in chosen
            if workload in without_peer or workload.against == "matmul"
        ]
    return chosen


def prepare(
    options: argparse.Namespace, workloads: Sequence[Workload], scratch: Path, environment: dict[str, str]
) -> dict[str, Any]:
    """Make rows, tokens and adapters in a separate process; return their spec."""
    sizes = sizes_of(options.shape, options.device).scaled(options.scale)
    if options.max_length:
        sizes = sizes._replace(max_length=options.max_length)
    if options.at_once:
        sizes = sizes._replace(drafts_at_once=options.at_once)
    request = {
        "data": str(options.data.resolve()),
        "shape": options.shape,
        "device": options.device,
        "load_in_4bit": options.load_in_4bit,
        "dtype": options.dtype,
        "llama_cpp": options.llama_cpp.split(),
        "sizes": sizes._asdict(),
        "runs": max(options.runs, TUNING_PASSES),
        "trains": [workload.trains for workload in workloads],
        "scratch": str(scratch),
        "prepared": str(scratch / "prepared.json"),
    }
    request_file = scratch / "request.json"
    request_file.write_text(json.dumps(request))
    subprocess.run([sys.executable, str(HERE / "prepare.py"), str(request_file)], check=True, env=environment)
    prepared = json.loads(Path(request["prepared"]).read_text())
    return {**request, **prepared}


def measured(
    workload: Workload, spec: dict[str, Any], options: argparse.Namespace, environment: dict[str, str]
) -> dict[str, Any]:
    """Measure one workload: load and warm up both sides, run them in pairs, check their results; return its entry."""
    path = Path(spec["scratch"], "spec.json")
    steps = spec["sizes"]["steps"] if spec["steps"] else 1
    path.write_text(json.dumps(spec))
    ours = WorkerClient(path, "ours", environment)  # first, because it saves the adapter that both start from
    tried = tuned(workload, spec, path, environment, steps) if options.tune and workload.against in SETTINGS else []
    theirs = WorkerClient(path, workload.against, environment) if workload.against else None
    sides = {"ours": ours} | ({"theirs": theirs} if theirs else {})
    answers = run_in_turns(sides, steps, options.runs)
    figures = {name: [answer["figures"] for answer in given] for name, given in answers.items()}
    checks: list[Check] = []
    if theirs and workload.against != "matmul":
        checked = [ours.check(), theirs.check()]
        in_bf16 = options.dtype == "bf16" or options.load_in_4bit
        checks = checks_of(workload, spec["sizes"], figures["ours"], figures["theirs"], checked, in_bf16)
    for side in sides.values():
        side.close()
    seconds = {name: [answer["seconds"] for answer in given[1:]] for name, given in answers.items()}
    peaks = {"ours": ours.peak_bytes, "theirs": theirs.peak_bytes if theirs else None}
    entry = entry_of(workload, spec, Measurement(seconds, figures, peaks, checks), options)
    return {**entry, "settings_tried": tried, "settings_theirs": spec["peer_settings"]}


def run_in_turns(sides: dict[str, WorkerClient], steps: int, runs: int) -> dict[str, list[dict[str, Any]]]:
    """Run the sides alternately; return the answers of each, its warm-up first. A missing side has no answers."""
    answers: dict[str, list[dict[str, Any]]] = {"ours": [], "theirs": []}
    names = list(sides)
    for turn in (names, *(names[::-1] if pair % 2 else names for pair in range(runs))):
        for name in turn:
            answers[name].append(sides[name].run(steps))
    return answers


def tuned(
    workload: Workload, spec: dict[str, Any], path: Path, environment: dict[str, str], steps: int
) -> list[dict[str, Any]]:
    """Try the trainers' settings and put the fastest in the spec; return all that were tried."""
    tried: list[dict[str, Any]] = []
    for settings in SETTINGS[workload.against]:
        path.write_text(json.dumps({**spec, "peer_settings": settings}))
        try:
            side = WorkerClient(path, workload.against, environment)
            side.run(steps)
            seconds = min(side.run(steps)["seconds"] for _ in range(TUNING_PASSES))
        except WorkerFailed as failure:  # a setting that this device does not support, or too large a batch
            tried.append({"settings": settings, "seconds": None, "failure": str(failure)})
            continue
        side.close()
        tried.append({"settings": settings, "seconds": seconds, "peak_bytes": side.peak_bytes})
    worked = [entry for entry in tried if entry["seconds"]]
    spec["peer_settings"] = min(worked, key=lambda entry: entry["seconds"])["settings"]
    path.write_text(json.dumps(spec))
    return tried


if __name__ == "__main__":
    try:
        main()
    except WorkerFailed as failure:
        sys.exit(str(failure))

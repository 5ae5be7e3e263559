"""Speed and memory of pit against TRL, transformers and the machine: `python benchmarks/run.py --data hh.jsonl.gz`.

Each side is a process of its own that is loaded and warmed up once; then the two run by turns (ours, theirs, theirs,
ours, ...), never at once. A ratio is given as the least, the median and the largest of the pairs, and only where both
sides were seen to do the same thing.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from agreement import Check, checks_of
from works import (
    ALONE,
    ALONE_WORKS,
    GPU_PEAK_TARGET,
    LARGEST_PEAK_GB,
    SHAPES,
    WORKS,
    Work,
    sizes_of,
)

HERE = Path(__file__).parent
LIBRARIES = ("pitcli", "torch", "transformers", "peft", "accelerate", "bitsandbytes", "trl")
LEARNING_RATES = {"sft": 2e-4, "gap": 2e-4, "rl": 1e-5}
# what is tried of the trainers' settings; with --no-tune the first is taken
SETTINGS: dict[str, list[dict[str, Any]]] = {
    "SFTTrainer": [
        {},
        {"per_device_train_batch_size": 4},
        {"per_device_train_batch_size": 16},
        {"padding_free": True},
        {"gradient_checkpointing": True},
    ],
    "RewardTrainer": [{}, {"per_device_train_batch_size": 2}, {"per_device_train_batch_size": 10}],
    "RLOOTrainer": [{}, {"per_device_train_batch_size": 4}],
}
TUNING_PASSES = 2  # runs of each setting after its warm-up
TAIL = 2000  # characters of a log that are shown where a side fails


class SideFailed(Exception):
    """A process ended before it was told to; its message holds the end of its log."""


class Side:
    """A worker process and what it answers."""

    def __init__(self, spec: Path, side: str, environment: dict[str, str]) -> None:
        self.side, self.log = side, spec.with_name(f"{side}.log")
        self.peak_bytes = 0
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(HERE / "worker.py"), str(spec), side],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        self._answer()

    def run(self, steps: int) -> dict[str, Any]:
        return self._ask({"do": "run", "steps": steps})

    def check(self) -> dict[str, Any]:
        figures: dict[str, Any] = self._ask({"do": "check"})["figures"]
        return figures

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _ask(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise SideFailed(f"{self.side} failed, see {self.log}:\n{self.log.read_text()[-TAIL:]}")
        answer: dict[str, Any] = json.loads(line)
        self.peak_bytes = answer["peak_bytes"]
        return answer


def main() -> None:
    options = parse_options()
    scratch = options.scratch.resolve()
    scratch.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
    if options.threads:
        environment["OMP_NUM_THREADS"] = str(options.threads)
    works = chosen_works(options)
    prepared = prepare(options, works, scratch, environment)
    entries: list[dict[str, Any]] = []
    for work in works:
        folder = scratch / work.name
        folder.mkdir(exist_ok=True)
        spec = {**prepared, **asdict_of(work), "scratch": str(folder), "learning_rate": LEARNING_RATES.get(work.trains)}
        spec["steps"] = prepared["steps"].get(work.trains, [])
        entries.append(measured(work, spec, options, environment))
        show([entries[-1]], sys.stderr)
        options.out.write_text(json.dumps(entries, indent=1) + "\n")
    show(entries, sys.stdout)


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    names = ",".join(work.name for work in WORKS)
    parser.add_argument("--data", type=Path, required=True, help="preference pairs, in any format that pit takes")
    parser.add_argument("--only", help=f"some of {names}, with commas between; default: all")
    parser.add_argument("--runs", type=int, default=5, help="of each side, in pairs")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=list(SHAPES), default="smollm2", help="tiny: to try this program out")
    parser.add_argument("--scale", type=float, default=1.0, help="times the rows of a run")
    parser.add_argument("--max-length", type=int, help="longest conversation in tokens")
    parser.add_argument(
        "--load-in-4bit", action=argparse.BooleanOptionalAction, help="the base of both sides; default: on a GPU"
    )
    parser.add_argument("--threads", type=int, help="of each process; default: as torch finds best")
    parser.add_argument(
        "--tune",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="try the trainers' settings first and take the fastest",
    )
    parser.add_argument("--out", type=Path, default=Path("benchmarks.json"))
    parser.add_argument("--scratch", type=Path, default=Path("runs/benchmarks"), help="adapters and logs are kept here")
    options = parser.parse_args()
    if options.load_in_4bit is None:
        options.load_in_4bit = options.device == "cuda"
    return options


def chosen_works(options: argparse.Namespace) -> list[Work]:
    known = {work.name: work for work in WORKS}
    names = options.only.split(",") if options.only else list(known)
    if unknown := set(names) - known.keys() - {"peak"}:
        sys.exit(f"--only: {', '.join(sorted(unknown))} unknown; there are {', '.join(known)}")
    wanted = [work for work in WORKS if work.name in names or (work.name.split("-")[0] == "peak" and "peak" in names)]
    if options.shape in ALONE:
        alone = {work: work._replace(against="", memory_target=None) for work in wanted if work.name in ALONE_WORKS}
        wanted = [alone.get(work, work) for work in wanted if work in alone or work.against == "matmul"]
    return wanted


def prepare(
    options: argparse.Namespace, works: Sequence[Work], scratch: Path, environment: dict[str, str]
) -> dict[str, Any]:
    """Rows, tokens and adapters, made in a process of its own."""
    sizes = sizes_of(options.shape, options.device).scaled(options.scale)
    if options.max_length:
        sizes = sizes._replace(max_length=options.max_length)
    request = {
        "data": str(options.data.resolve()),
        "shape": options.shape,
        "device": options.device,
        "load_in_4bit": options.load_in_4bit,
        "sizes": sizes._asdict(),
        "runs": max(options.runs, TUNING_PASSES),
        "trains": [work.trains for work in works],
        "scratch": str(scratch),
        "prepared": str(scratch / "prepared.json"),
    }
    asked = scratch / "request.json"
    asked.write_text(json.dumps(request))
    subprocess.run([sys.executable, str(HERE / "prepare.py"), str(asked)], check=True, env=environment)
    prepared = json.loads(Path(request["prepared"]).read_text())
    return {**request, **prepared}


def asdict_of(work: Work) -> dict[str, Any]:
    return {"trains": work.trains, "peer_settings": SETTINGS.get(work.against, [{}])[0]}


def measured(
    work: Work, spec: dict[str, Any], options: argparse.Namespace, environment: dict[str, str]
) -> dict[str, Any]:
    """One work: both sides loaded, warmed up, compared, and run in pairs."""
    path = Path(spec["scratch"], "spec.json")
    steps = spec["sizes"]["steps"] if spec["steps"] else 1
    path.write_text(json.dumps(spec))
    ours = Side(path, "ours", environment)  # first: it writes down the adapter that both start from
    tried = tuned(work, spec, path, environment, ours, steps) if options.tune and work.against in SETTINGS else []
    theirs = Side(path, work.against, environment) if work.against else None
    answers: dict[str, list[dict[str, Any]]] = {
        "ours": [ours.run(steps)],
        "theirs": [theirs.run(steps)] if theirs else [],
    }
    for pair in range(options.runs):
        turns = [("ours", ours), ("theirs", theirs)]
        for name, side in turns if pair % 2 == 0 else reversed(turns):
            if side:
                answers[name].append(side.run(steps))
    figures = {name: [answer["figures"] for answer in given] for name, given in answers.items()}
    checks: list[Check] = []
    if theirs and work.against != "matmul":
        checked = [ours.check(), theirs.check()]
        in_bf16 = options.device == "cuda" or options.load_in_4bit
        checks = checks_of(work, spec["sizes"], figures["ours"], figures["theirs"], checked, in_bf16)
    for side in (ours, theirs):
        if side:
            side.close()
    seconds = {name: [answer["seconds"] for answer in given[1:]] for name, given in answers.items()}
    peaks = {"ours": ours.peak_bytes, "theirs": theirs.peak_bytes if theirs else None}
    entry = entry_of(work, spec, seconds, figures, peaks, checks, options)
    return {**entry, "settings_tried": tried, "settings_theirs": spec["peer_settings"]}


def tuned(
    work: Work, spec: dict[str, Any], path: Path, environment: dict[str, str], ours: Side, steps: int
) -> list[dict[str, Any]]:
    """Tries the trainers' settings, and leaves the fastest in the spec; our side waits meanwhile."""
    tried: list[dict[str, Any]] = []
    for settings in SETTINGS[work.against]:
        path.write_text(json.dumps({**spec, "peer_settings": settings}))
        try:
            side = Side(path, work.against, environment)
            side.run(steps)
            seconds = min(side.run(steps)["seconds"] for _ in range(TUNING_PASSES))
        except SideFailed as failure:  # a setting that this device does not take, or too large a batch
            tried.append({"settings": settings, "seconds": None, "failure": str(failure)})
            continue
        side.close()
        tried.append({"settings": settings, "seconds": seconds, "peak_bytes": side.peak_bytes})
    worked = [one for one in tried if one["seconds"]]
    spec["peer_settings"] = min(worked, key=lambda one: one["seconds"])["settings"]
    path.write_text(json.dumps(spec))
    return tried


def entry_of(
    work: Work,
    spec: dict[str, Any],
    seconds: dict[str, list[float]],
    figures: dict[str, list[dict[str, Any]]],
    peaks: dict[str, int | None],
    checks: Sequence[Check],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """What is written of a work. Every run has its own rows, so rates are taken run by run."""
    key = "flops" if work.unit == "FLOP" else "units"
    amounts = amounts_of(spec, key, len(seconds["ours"]))
    rates = {name: [n / s for n, s in zip(amounts, taken, strict=False)] for name, taken in seconds.items()}
    if work.against == "matmul":
        best = figures["theirs"][-1]["flops_per_second"]
        rates["theirs"] = [best] * len(rates["ours"])
    ratios = [mine / other for mine, other in zip(rates["ours"], rates["theirs"], strict=False)]
    target = GPU_PEAK_TARGET if work.against == "matmul" and options.device == "cuda" else work.target
    agrees = all(check.agrees for check in checks)
    memory = memory_of(work, peaks, options)
    return {
        "work": work.name,
        "against": work.against or None,
        "unit": f"{work.unit}/s",
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
    """Of each run after the warm-up: how many units it is."""
    if spec["trains"] == "improve":
        return [spec["sizes"]["drafts"]] * runs
    per_run = spec["sizes"]["steps"]
    return [sum(step[key] for step in spec["steps"][run * per_run : (run + 1) * per_run]) for run in range(1, runs + 1)]


def memory_of(work: Work, peaks: dict[str, int | None], options: argparse.Namespace) -> dict[str, Any]:
    ours, theirs = peaks["ours"] or 0, peaks["theirs"] if work.against != "matmul" else None
    ratio = ours / theirs if theirs else None
    entry: dict[str, Any] = {"peak_bytes": {"ours": ours, "theirs": theirs}, "memory_ratio": ratio}
    if options.shape in ALONE:
        return {**entry, "memory_target_bytes": LARGEST_PEAK_GB * 1e9, "memory_met": ours < LARGEST_PEAK_GB * 1e9}
    met = ratio <= work.memory_target if ratio is not None and work.memory_target is not None else None
    return {**entry, "memory_target": work.memory_target, "memory_met": met}


def device_name(device: str) -> str:
    if device == "cuda":
        import torch

        return torch.cuda.get_device_name()
    models = [line for line in read_text("/proc/cpuinfo").splitlines() if line.startswith("model name")]
    return f"{len(os.sched_getaffinity(0))} x {models[0].split(':')[1].strip() if models else platform.processor()}"


def read_text(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def show(entries: Sequence[dict[str, Any]], stream: Any) -> None:
    """A table, and below it what was compared."""
    columns = "{:<9} {:<14} {:>10} {:>10} {:>20} {:>7} {:>5} {:>14} {:>6} {:>5}"
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


if __name__ == "__main__":
    try:
        main()
    except SideFailed as failure:
        sys.exit(str(failure))

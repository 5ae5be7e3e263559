"""Everything about pit on a GPU that a quarter of an hour can show, most important first (see README.md).

    python examples/gpu/kit.py [--device cpu --quick]    # --quick: tiny sizes, to prove the kit without a GPU

Each part is a process with a time limit of its own. What it prints is written to $OUT as it comes: NAME.log, and its
JSON lines to results.jsonl. A part that fails or is too slow does not stop the others. At the end a table is printed.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
OUT = Path(os.environ.get("OUT", "runs/gpu-kit"))
TOTAL_SECONDS = 540


class Part(NamedTuple):
    name: str
    seconds: int  # at most
    command: list[str]


def parts(device: str, quick: bool, base: Path | None, data: Path | None) -> Iterator[Part]:
    """Yield the parts in their order. base: SmolLM2's folder; data: a file of preference pairs."""
    python = sys.executable
    pit, shapes = [python, "-m", "pitcli"], ["tiny"] if quick else ["smollm2", "1b"]
    steps = [python, str(Path(__file__).with_name("steps.py")), "--device", device]
    yield Part("doctor", 40, [*pit, "doctor", "--model", "tiny"])
    yield Part("tests", 120, [python, "-m", "pytest", "-q", "-x", str(ROOT / "tests/gpu"), "-m", "gpu"])
    for shape in shapes:
        yield Part(f"steps-{shape}-bf16", 60, [*steps, "--shape", shape])
    if not quick:
        yield Part("steps-8b-4bit", 100, [*steps, "--shape", "8b", "--load-in-4bit"])
        yield Part("steps-8b-bf16", 80, [*steps, "--shape", "8b"])
    yield Part(f"steps-{shapes[-1]}-4bit", 60, [*steps, "--shape", shapes[-1], "--load-in-4bit"])
    if base and data and not quick:
        yield from on_real_pairs(pit, device, base, data)


def on_real_pairs(pit: list[str], device: str, base: Path, data: Path) -> Iterator[Part]:
    """Yield a gap model, SFT, RL and improvements on real pairs."""
    common = ["--data", str(data), "--model", str(base), "--device", device, "--max-length", "512", "--overwrite"]
    runs = OUT / "runs"
    sft, gap, rl, drafts = runs / "sft", runs / "reward", runs / "rl", OUT / "drafts.jsonl"
    rows = ["--micro-batch-size", "64"]
    yield Part("train-reward", 150, [*pit, "train-reward", *common, *rows, "--max-rows", "4000", "--out", str(gap)])
    yield Part("sft", 80, [*pit, "sft", *common, *rows, "--max-rows", "2000", "--out", str(sft)])
    rl_settings = ["--curriculum", "--sft", str(sft), "--reward", str(gap), "--max-steps", "20", "--force"]
    yield Part("rl", 120, [*pit, "rl", *common, *rl_settings, "--out", str(rl)])
    sample = ["--data", str(data), "--model", str(base), "--device", device, "--max-rows", "64"]
    yield Part("sample", 40, [*pit, "sample", *sample, "--temperature", "0.5", "--output", str(drafts)])
    improve = ["--run", str(rl), "--input", str(drafts), "--output", str(OUT / "improved.jsonl"), "--device", device]
    yield Part("improve", 60, [*pit, "improve", *improve, "--max-iters", "3", "--overwrite"])


def run(part: Part, left: float) -> dict[str, Any]:
    """Run a part within its limit and the time that is left; return its record."""
    start, limit = time.monotonic(), min(part.seconds, left)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    with (OUT / f"{part.name}.log").open("w") as log:
        try:
            code: int | str = subprocess.run(
                part.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                timeout=limit,
                check=False,
                env=environment,
                cwd=ROOT,
            ).returncode
        except subprocess.TimeoutExpired:
            code = f"stopped after {limit:.0f} s"
    return {"part": part.name, "code": code, "seconds": round(time.monotonic() - start, 1)}


def json_lines(log: Path) -> list[dict[str, Any]]:
    found = []
    for line in log.read_text(errors="replace").splitlines():
        if line.startswith("{") and line.endswith("}"):
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
    return found


def show(records: list[dict[str, Any]]) -> None:
    """Print the parts, then the steps."""
    print(f"\n{'part':22} {'code':>20} {'seconds':>8}")
    for record in records:
        print(f"{record['part']:22} {record['code']!s:>20} {record['seconds']:8.1f}")
    print(f"\n{'shape':8} {'type':10} {'step':8} {'tokens/s':>10} {'of peak':>8} {'GiB':>6}")
    for record in records:
        for line in record["lines"]:
            if "tokens_per_second" in line:
                kind = f"{line['dtype']}{' 4-bit' if line['4bit'] else ''}"
                speed, share, memory = (line[name] for name in ("tokens_per_second", "share_of_peak", "peak_gib"))
                print(f"{line['shape']:8} {kind:10} {line['step']:8} {speed:10,.0f} {share:8.1%} {memory:6.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--base", type=Path, help="folder of SmolLM2, for the parts on real pairs")
    parser.add_argument("--data", type=Path, help="preference pairs, for the parts on real pairs")
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    os.environ["PIT_TEST_DEVICE"] = options.device
    start, records = time.monotonic(), []
    for part in parts(options.device, options.quick, options.base, options.data):
        left = TOTAL_SECONDS - (time.monotonic() - start)
        if left < 5:
            print(f"{part.name}: no time left", flush=True)
            continue
        record = run(part, left)
        record["lines"] = json_lines(OUT / f"{part.name}.log")
        records.append(record)
        print(f"{record['part']}: code {record['code']}, {record['seconds']} s", flush=True)
        with (OUT / "results.jsonl").open("a") as results:
            results.write(json.dumps(record) + "\n")
    show(records)


if __name__ == "__main__":
    main()

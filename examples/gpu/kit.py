"""Everything about pit on a GPU that a quarter of an hour can show, most important first (see README.md).

    python examples/gpu/kit.py [--device cpu --quick]    # --quick: tiny sizes, to prove the kit without a GPU

Each part is a process with a time limit of its own. A part that fails or is too slow does not stop the others. After
each, $OUT has results.jsonl, one record per part, and logs.tgz, all that the parts printed: two files, as a machine may
return only a few. At the end a table is printed.
"""

import argparse
import json
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
OUT = Path(os.environ.get("OUT", "runs/gpu-kit"))
TOTAL_SECONDS = 540
SHOWN_LINES = 15  # of the log of a part that failed


class Part(NamedTuple):
    name: str
    seconds: int  # at most
    command: list[str]


def parts(options: argparse.Namespace, work: Path) -> Iterator[Part]:
    """Yield the parts in their order; their runs are in the folder `work`."""
    python, device, quick = sys.executable, options.device, options.quick
    pit = [python, "-m", "pitcli"]
    yield Part("doctor", 40, [*pit, "doctor", "--model", "tiny"])
    yield Part("tests", 110, [python, "-m", "pytest", "-q", str(ROOT / "tests/gpu"), "-m", "gpu"])
    if options.base and options.data:
        yield from on_real_pairs(pit, options, work)
    steps = [python, str(Path(__file__).with_name("random_shapes.py")), "--device", device]
    shapes = ["tiny"] if quick else ["smollm2", "1b"]
    if not quick:
        yield Part("steps-8b-4bit", 70, [*steps, "--shape", "8b", "--load-in-4bit", "--profile"])
        yield Part("steps-8b-bf16", 60, [*steps, "--shape", "8b"])
    for shape in shapes:
        yield Part(f"steps-{shape}-bf16", 40, [*steps, "--shape", shape, "--profile"])
    yield Part(f"steps-{shapes[-1]}-4bit", 50, [*steps, "--shape", shapes[-1], "--load-in-4bit"])
    if not quick:
        yield Part("steps-1b-cudnn", 40, [*steps, "--shape", "1b", "--cudnn"])


def on_real_pairs(pit: list[str], options: argparse.Namespace, work: Path) -> Iterator[Part]:
    """Yield a gap model, SFT, improvements and RL on real pairs."""
    device, of_base = options.device, ["--data", str(options.data), "--model", str(options.base)]
    pairs, drafted, written = (40, 8, "16") if options.quick else (3000, 256, "256")
    common = [*of_base, "--device", device, "--overwrite", "--json-progress"]
    sft, gap, drafts = work / "sft", work / "reward", work / "drafts.jsonl"
    rows = ["--micro-batch-size", "64", "--max-length", "512"]
    yield Part("train-reward", 100, [*pit, "train-reward", *common, *rows, "--max-rows", str(pairs), "--out", str(gap)])
    yield Part("sft", 60, [*pit, "sft", *common, *rows, "--max-rows", str(pairs // 2), "--out", str(sft)])
    tokens = ["--max-new-tokens", written]
    slots = ["--sample-batch-size", "256", "--json-progress", "--device", device, *tokens]
    sample = [*of_base, "--max-rows", str(drafted), "--output", str(drafts)]
    yield Part("sample", 40, [*pit, "sample", *sample, *slots])
    made = ["--run", str(sft), "--reward", str(gap)]
    improve = [*made, "--input", str(drafts), "--output", str(work / "improved.jsonl")]
    yield Part("improve", 60, [*pit, "improve", *improve, *slots, "--max-iters", "3", "--overwrite"])
    short = ["--max-steps", "6", "--rollout-max-new-tokens", "16" if options.quick else "64", "--force"]
    runs = ["--sft", str(sft), "--reward", str(gap), "--out", str(work / "rl")]
    yield Part("rl", 70, [*pit, "rl", *common, *rows, "--curriculum", *runs, *short])


def run(part: Part, left: float, log: Path) -> dict[str, Any]:
    """Run a part within its limit and the time that is left; return its record."""
    start, limit = time.monotonic(), min(part.seconds, left)
    paths = [str(ROOT / "src"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    with log.open("w") as output:
        try:
            code: int | str = subprocess.run(
                part.command,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=limit,
                check=False,
                env=environment,
                cwd=ROOT,
            ).returncode
        except subprocess.TimeoutExpired:
            code = f"stopped after {limit:.0f} s"
    return {"part": part.name, "code": code, "seconds": round(time.monotonic() - start, 1), "lines": json_lines(log)}


def json_lines(log: Path) -> list[dict[str, Any]]:
    """The JSON lines of a log, of the progress of each task only the last one."""
    found: dict[Any, dict[str, Any]] = {}
    for number, line in enumerate(log.read_text(errors="replace").splitlines()):
        if line.startswith("{") and line.endswith("}"):
            try:
                value = json.loads(line)
            except ValueError:
                continue
            key = (value["task"], value.get("total")) if value.get("event") == "progress" else number
            found[key] = value
    return [*found.values()]


def keep(record: dict[str, Any], logs: Path) -> None:
    """Write the record and all logs until now to $OUT; print how the part ended."""
    with (OUT / "results.jsonl").open("a") as results:
        results.write(json.dumps(record) + "\n")
    with tarfile.open(OUT / "logs.tgz", "w:gz") as archive:
        archive.add(logs, "logs")
    print(f"{record['part']}: code {record['code']}, {record['seconds']} s", flush=True)
    if record["code"] != 0:
        last = (logs / f"{record['part']}.log").read_text(errors="replace").splitlines()[-SHOWN_LINES:]
        print("\n".join(f"    {line[:300]}" for line in last), flush=True)


def show(records: list[dict[str, Any]]) -> None:
    """Print the parts with the speed of their last task, then the steps."""
    print(f"\n{'part':18} {'code':>20} {'seconds':>8}  last task")
    for record in records:
        tasks = [line for line in record["lines"] if line.get("event") == "progress" and line.get("seconds")]
        last = tasks[-1] if tasks else None
        speed = f"{last['task']}: {last['done']} in {last['seconds']:.1f} s" if last else ""
        print(f"{record['part']:18} {record['code']!s:>20} {record['seconds']:8.1f}  {speed}")
    print(f"\n{'shape':8} {'type':16} {'step':8} {'tokens/s':>10} {'of peak':>8} {'GiB':>6}")
    for record in records:
        for line in record["lines"]:
            if "tokens_per_second" in line:
                kind = f"{line['dtype']}{' 4-bit' if line['4bit'] else ''}{' cudnn' if line['cudnn'] else ''}"
                speed, share, memory = (line[name] for name in ("tokens_per_second", "share_of_peak", "peak_gib"))
                print(f"{line['shape']:8} {kind:16} {line['step']:8} {speed:10,.0f} {share:8.1%} {memory:6.1f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--quick", action="store_true", help="tiny sizes")
    parser.add_argument("--base", type=Path, help="SmolLM2, for the parts on real pairs")
    parser.add_argument("--data", type=Path, help="preference pairs, for the parts on real pairs")
    options = parser.parse_args()
    OUT.mkdir(parents=True, exist_ok=True)
    os.environ["PIT_TEST_DEVICE"] = options.device
    start, records = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder, "logs")
        logs.mkdir()
        for part in parts(options, Path(folder)):
            left = TOTAL_SECONDS - (time.monotonic() - start)
            if left < 5:
                print(f"{part.name}: no time left", flush=True)
                continue
            records.append(run(part, left, logs / f"{part.name}.log"))
            keep(records[-1], logs)
    show(records)


if __name__ == "__main__":
    main()

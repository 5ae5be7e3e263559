"""`make demo`: the whole method on the embedded model, judged by the oracle on held-out prompts.

Every step is a `pit` command, printed before it runs; the last one judges what the others wrote.
"""

import argparse
import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pitcli.cli import main as pit

ROWS = 8000
FOLDS = "sft=1,reward=2,rl=1,test=0.4"
HELD_OUT_PROMPTS = 500
SFT = "--batch-size 32 --micro-batch-size 64 --learning-rate 5e-4"
REWARD = "--batch-size 16 --micro-batch-size 64 --learning-rate 1e-3"
RL = (
    "--max-steps 120 --updates-per-rollout 2 --batch-size 32 --micro-batch-size 128 --learning-rate 2e-3"
    " --rollout-temperature 0.6 --rollout-max-new-tokens 16"
)
TINY = "--max-new-tokens 16"
STEPS = [
    f"pit prepare --synthetic {ROWS} --out data --folds {FOLDS}",
    f"pit sft --role policy --data data/sft.jsonl --model tiny {SFT}",
    f"pit sft --role improver --data data/sft.jsonl --model tiny {SFT}",
    f"pit train-reward --data data/reward.jsonl --model tiny {REWARD}",
    f"pit sample --data data/test.jsonl --max-rows {HELD_OUT_PROMPTS} --output drafts.jsonl {TINY}",
    f"pit rl --curriculum --data data/rl.jsonl {RL}",
    f"pit improve --run runs/sft --input drafts.jsonl --output sft_only.jsonl --stop none --max-iters 1 {TINY}",
    f"pit improve --input drafts.jsonl --output improved.jsonl --stop none --max-iters 1 {TINY}",
    f"pit improve --input drafts.jsonl --output stopped.jsonl --max-iters 5 {TINY}",
    "pit evaluate --input pit=improved.jsonl,sft-only=sft_only.jsonl,learned-stop=stopped.jsonl --judge oracle"
    " --out evaluation",
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    out = parser.parse_args().out.resolve()
    start = time.time()
    shutil.rmtree(out, ignore_errors=True)
    run_in(out, STEPS)
    figures = summary(out, time.time() - start)
    (out / "summary.json").write_text(json.dumps(figures, indent=1) + "\n")
    low, high = figures["improver_less_sft_only_ci"]
    print(
        f"PIT after RL less SFT-only, mean quality: {figures['improver_less_sft_only']:+.4f} [{low:+.4f}, {high:+.4f}]"
    )
    print(
        f"{figures['seconds']:.0f} s; figures in {out / 'summary.json'}, a report in {out / 'evaluation/report.html'}"
    )


def run_in(folder: Path, commands: Sequence[str]) -> None:
    """Run commands in a folder, in this process: what a shell would do, without importing torch each time."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    start = time.time()
    for command in commands:
        print(f"\n[{time.time() - start:4.0f} s] $ {command}", flush=True)
        if code := pit(shlex.split(command)[1:]):
            sys.exit(f"this step ended with exit code {code}")


def summary(out: Path, seconds: float) -> dict[str, Any]:
    """The figures of summary.json, from what `pit evaluate` found."""
    found = json.loads((out / "evaluation" / "evaluation.json").read_text())["comparisons"]
    lines = {(one["system"], one["baseline"]): one for one in found}
    over_originals, over_sft = lines["pit", "original"], lines["pit", "sft-only"]
    return {
        "originals": over_originals["grades"][1],
        "sft_only": lines["sft-only", "original"]["grades"][0],
        "improver": over_originals["grades"][0],
        **{name: over_originals[name] for name in ("wins", "ties", "losses", "delta", "delta_ci", "rows")},
        "seconds": round(seconds, 1),
        "improver_less_sft_only": over_sft["grades"][0] - over_sft["grades"][1],
        "improver_less_sft_only_ci": over_sft["grade_difference_ci"],
        "learned_stop": lines["learned-stop", "original"]["grades"][0],
    }


if __name__ == "__main__":
    main()

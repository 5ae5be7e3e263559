"""`make demo`: the whole method on the embedded model, judged by the oracle on held-out prompts.

Every step is a `pit` command, printed before it runs; the figures at the end are computed from its output rows.
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
from statistics import fmean
from typing import Any

from pitcli.cli import main as pit
from pitcli.console import samples, table
from pitcli.data.synthetic import quality
from pitcli.evaluation.statistics import compare, mean_interval

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
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"))
    out = parser.parse_args().out.resolve()
    start = time.time()
    shutil.rmtree(out, ignore_errors=True)
    run_in(out, STEPS)
    summary = judge(out, time.time() - start)
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
    print(f"\n{summary['seconds']:.0f} s; figures in {out / 'summary.json'}, runs in {out / 'runs'}")


def run_in(folder: Path, commands: Sequence[str]) -> None:
    """Run commands in a folder, in this process: what a shell would do, without importing torch each time."""
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    start = time.time()
    for command in commands:
        print(f"\n[{time.time() - start:4.0f} s] $ {command}", flush=True)
        if code := pit(shlex.split(command)[1:]):
            sys.exit(f"this step ended with exit code {code}")


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def grades(rows: Sequence[dict[str, Any]], field: str = "response") -> list[float]:
    return [quality(row["prompt"], row[field]) for row in rows]


def judge(out: Path, seconds: float) -> dict[str, Any]:
    """The table and the figures of summary.json, from the rows that the commands wrote."""
    systems = {
        "SFT-only improver": read(out / "sft_only.jsonl"),
        "PIT, one iteration": read(out / "improved.jsonl"),
        "PIT, learned stop": read(out / "stopped.jsonl"),
    }
    rows = systems["PIT, one iteration"]
    prompts = [row["prompt"] for row in rows]
    originals = grades(rows, "original_response")
    lines: list[list[Any]] = [["originals", fmean(originals), "", "", ""]]
    compared = {}
    for name, improved in systems.items():
        compared[name] = result = compare(grades(improved), originals, prompts)
        interval = f"{result.delta:+.1f} [{result.delta_ci[0]:+.1f}, {result.delta_ci[1]:+.1f}]"
        outcome = f"{result.wins}/{result.ties}/{result.losses}"
        lines.append([name, fmean(grades(improved)), outcome, interval, calls(improved)])
    table(
        f"Judged by the oracle on {len(rows)} held-out prompts",
        ["system", "mean quality", "W/T/L against the originals", "delta, points [95%]", "calls a draft"],
        lines,
    )
    gains = [after - before for after, before in zip(grades(rows), grades(systems["SFT-only improver"]), strict=True)]
    low, high = mean_interval(gains)
    print(f"PIT after RL less SFT-only, mean quality: {fmean(gains):+.4f} [{low:+.4f}, {high:+.4f}]\n", flush=True)
    changed = [row for row in rows if row["response"] != row["original_response"]]
    samples([(row["prompt"], row["original_response"], row["response"]) for row in changed[:4]])
    pit = compared["PIT, one iteration"]
    return {
        "originals": fmean(originals),
        "sft_only": fmean(grades(systems["SFT-only improver"])),
        "improver": fmean(grades(rows)),
        "wins": pit.wins,
        "ties": pit.ties,
        "losses": pit.losses,
        "delta": pit.delta,
        "delta_ci": list(pit.delta_ci),
        "rows": len(rows),
        "seconds": round(seconds, 1),
        "improver_less_sft_only": fmean(gains),
        "improver_less_sft_only_ci": [low, high],
        "learned_stop": fmean(grades(systems["PIT, learned stop"])),
    }


def calls(rows: Sequence[dict[str, Any]]) -> float:
    return fmean(len(row["iterations"]) for row in rows)


if __name__ == "__main__":
    main()

"""The curriculum ablation on the tiny task: neither stage, each, and both, at the same number of RL steps.

`make studies` runs three seeds. Each seed makes its own data, SFT, gap model and drafts; the four improvers share
them. The oracle judges one improvement of each held-out draft, and two (the second starts from the first).
"""

import argparse
import json
import os
from pathlib import Path
from statistics import fmean
from typing import Any

from demo import FOLDS, HELD_OUT_PROMPTS, REWARD, RL, ROWS, SFT, TINY, grades, read, run_in

from pitcli.console import table
from pitcli.evaluation.statistics import compare

STAGES = {"neither (SFT only)": "", "stage 1 (data)": "dataset", "stage 2 (policy)": "policy", "both": "dataset,policy"}


def file_name(stages: str) -> str:
    return f"rl-{stages.replace(',', '+')}" if stages else "sft"


def commands(seed: int) -> list[str]:
    lines = [
        f"pit prepare --synthetic {ROWS} --seed {seed} --out data --folds {FOLDS}",
        f"pit sft --role policy --data data/sft.jsonl --model tiny --seed {seed} {SFT}",
        f"pit sft --role improver --data data/sft.jsonl --model tiny --seed {seed} {SFT}",
        f"pit train-reward --data data/reward.jsonl --model tiny --seed {seed} {REWARD}",
        f"pit sample --data data/test.jsonl --max-rows {HELD_OUT_PROMPTS} --output drafts.jsonl --seed {seed} {TINY}",
    ]
    for stages in STAGES.values():
        name = file_name(stages)
        if stages:
            lines.append(
                f"pit rl --data data/rl.jsonl --curriculum-stages {stages} --out runs/{name} --seed {seed} {RL}"
            )
        improve = f"pit improve --run runs/{name} --input drafts.jsonl --stop none --seed {seed} {TINY}"
        lines += [f"{improve} --max-iters {count} --output {name}-{count}.jsonl" for count in (1, 2)]
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/ablation"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    out = args.out.resolve()
    for seed in args.seeds:
        folder = out / f"seed-{seed}"
        if not (folder / "done").exists():
            run_in(folder, commands(seed))
            (folder / "done").touch()
    os.chdir(out)
    lines: list[list[Any]] = []
    report: dict[str, Any] = {}
    for label, stages in STAGES.items():
        name = file_name(stages)
        for count in (1, 2):
            lines.append([label, count, *figures(out, name, count, args.seeds, report)])
    table(
        "Curriculum ablation, judged by the oracle",
        ["RL", "iterations", "quality by seed", "mean", "delta [95%]"],
        lines,
    )
    (out / "ablation.json").write_text(json.dumps(report, indent=1) + "\n")


def figures(out: Path, name: str, count: int, seeds: list[int], report: dict[str, Any]) -> list[Any]:
    """Quality by seed, its mean, and delta against the originals over all seeds, clustered by prompt."""
    files = [read(out / f"seed-{seed}" / f"{name}-{count}.jsonl") for seed in seeds]
    rows = [row for file in files for row in file]
    result = compare(grades(rows), grades(rows, "original_response"), [row["prompt"] for row in rows])
    by_seed = [fmean(grades(file)) for file in files]
    report[f"{name}-{count}"] = {"quality_by_seed": by_seed, "quality": fmean(by_seed), **result._asdict()}
    interval = f"{result.delta:+.1f} [{result.delta_ci[0]:+.1f}, {result.delta_ci[1]:+.1f}]"
    return [" ".join(f"{value:.3f}" for value in by_seed), fmean(by_seed), interval]


if __name__ == "__main__":
    main()

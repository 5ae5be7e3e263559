"""Shared code of the studies: one folder per seed with the data, the runs and the improved rows, each made once.

Every step is a `pit` command. A study names the systems to compare, and this module makes their rows. Finished steps
are skipped, so studies with the same --out share their runs.
"""

import argparse
import json
import multiprocessing
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from scales import ENGLISH, TINY, StudyScale, real
from steps import base_steps
from systems import system_steps

# with a gap model on shuffled labels, RL must not beat the SFT improver, and best-of-n must not beat the drafts
CONTROLS = "--control=shuffled/sft-only,shuffled-best-of-n/original"
COSTS = Path("costs.jsonl")
MAXRSS_PER_MIB = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in KiB, on macOS in bytes


def make(scale: StudyScale, folder: Path, seed: int, systems: Iterable[str]) -> None:
    """Make the rows of the systems for one seed in its folder, in this process."""
    steps = [*base_steps(scale, seed), *(step for name in systems for step in system_steps(scale, seed, name))]
    run_steps(folder, seed, steps)


def run_steps(folder: Path, seed: int, steps: Iterable[str]) -> None:
    """Run the unfinished steps of one seed in its folder, each in a child process; costs.jsonl says what it took.

    A child, because only then is the peak memory that of the step; by fork, which keeps what a study has patched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    done = Path("done.txt")
    start = time.time()
    for step in dict.fromkeys(steps):
        if done.exists() and step in done.read_text().splitlines():
            continue
        print(f"\n[seed {seed}, {time.time() - start:4.0f} s] $ {step}", flush=True)
        resumable = step.split()[1] in ("sft", "train-reward", "rl", "dpo", "distill", "improve", "explain")
        code, cost = in_child([*shlex.split(step)[1:], *(["--resume"] if resumable else [])])
        with COSTS.open("a") as file:
            file.write(json.dumps({"step": step, **cost._asdict()}) + "\n")
        if code:
            sys.exit(f"pit {step.split()[1]} failed with exit code {code}; run the same command again to resume")
        with done.open("a") as file:
            file.write(f"{step}\n")


class Cost(NamedTuple):
    """What a step took: seconds of wall-clock time, and the peak of its process's memory in MiB."""

    seconds: float
    peak_mib: float


def in_child(words: list[str]) -> tuple[int, Cost]:
    """Run a pit command in a forked child. Returns its exit code and what it took."""
    from pitcli.cli import main as pit

    start = time.time()
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        code = 1
        try:
            code = pit(words)
        finally:
            sys.stdout.flush()
            os._exit(code)
    _, status, usage = os.wait4(child, 0)
    return os.waitstatus_to_exitcode(status), Cost(time.time() - start, usage.ru_maxrss / MAXRSS_PER_MIB)


def costs_of(folder: Path, steps: Iterable[str]) -> Cost:
    """Return what these steps took in all: their seconds, and the largest peak. A step that was resumed has several."""
    these = set(steps)
    lines = [json.loads(line) for line in (folder / COSTS).read_text().splitlines()]
    found = [line for line in lines if line["step"] in these]
    return Cost(sum(line["seconds"] for line in found), max(line["peak_mib"] for line in found))


def run_study(
    description: str,
    systems: list[str],
    evaluations: list[str],
    report: Callable[[Path, list[int], StudyScale], None] | None = None,
    real_only: tuple[str, ...] = (),
    english_only: tuple[str, ...] = (),
) -> None:
    """Make the rows of the systems for every seed, then run the evaluations, whose --input and --control name systems.

    report: prints more results from the folder, the seeds and the scale, if the oracle can grade them.
    real_only: systems that need a model that follows instructions, which the tiny model does not. english_only: systems
    that need the grades of the English task.
    """
    args = study_parser(description).parse_args()
    if (args.model == "tiny") != (args.data is None):
        sys.exit("--data: required unless --model is tiny, which uses synthetic pairs only")
    scale = ENGLISH if args.english else TINY if args.model == "tiny" else real(args)
    if scale is not TINY:
        more = (*real_only, *(english_only if scale is ENGLISH else ()))
        systems = [*systems, *more]
        evaluations = [re.sub(r"--input=\S+", lambda found: ",".join((found[0], *more)), line) for line in evaluations]
    out = args.out.resolve()
    start = time.time()
    folders = {seed: out / f"seed-{seed}" for seed in args.seeds}
    if args.only != "evaluate":
        in_processes(partial(make, scale, systems=systems), folders, args.jobs)
    print(f"\nrows of all systems made in {time.time() - start:.0f} s", flush=True)
    if args.only != "make":
        first = f"seed-{args.seeds[0]}"
        independent = f"--judge=gap:{first}/runs/judge --validate-on={first}/data/test.jsonl"
        evaluate(out, folders, evaluations, "--judge=oracle" if scale.judge is None else independent)
        if report and scale.judge is None:
            report(out, args.seeds, scale)
    print(f"total time: {time.time() - start:.0f} s")


def study_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path("runs/studies"), help="output folder, shared by the studies")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds to run")
    parser.add_argument("--jobs", type=int, default=2, help="number of seeds to run in parallel")
    parser.add_argument("--only", choices=["make", "evaluate"], help="only make the rows, or only evaluate them")
    parser.add_argument("--model", default="tiny", help="tiny (synthetic task), or another base model (needs --data)")
    parser.add_argument("--english", action="store_true", help="smollm2 on instructions that code can check (hours)")
    real_text = parser.add_argument_group("real text")
    real_text.add_argument("--data", help="file of preference pairs")
    real_text.add_argument("--steps", type=int, help="maximum number of optimiser steps, except for the judge")
    real_text.add_argument("--max-length", type=int, help="longest conversation in tokens")
    real_text.add_argument("--max-new-tokens", type=int, default=128, help="longest response in tokens")
    real_text.add_argument("--rows", type=int, default=500, help="number of drafts to improve")
    return parser


def in_processes(work: Callable[[Path, int], None], folders: dict[int, Path], jobs: int) -> None:
    """Do the work of each seed, given its folder, in a process of its own."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        for process in [pool.submit(work, folder, seed) for seed, folder in folders.items()]:
            process.result()


def with_files(word: str, folders: dict[int, Path]) -> str:
    """Expand `--input=pit,...` to the files of every seed: `--input=pit=seed-0/pit.jsonl,pit=seed-1/pit.jsonl,...`."""
    option, _, names = word.partition("=")
    if option not in ("--input", "--control"):
        return word
    files = [
        f"{name}={folder.name}/{name.partition('/')[0]}.jsonl"
        for name in names.split(",")
        for folder in folders.values()
    ]
    return f"{option}={','.join(files)}"


def evaluate(out: Path, folders: dict[int, Path], evaluations: list[str], judge: str) -> None:
    from pitcli.cli import main as pit

    os.chdir(out)
    for line in evaluations:
        command = ["evaluate", *(with_files(word, folders) for word in shlex.split(f"{line} {judge}"))]
        print(f"\n$ pit {shlex.join(command)}", flush=True)
        if code := pit(command):
            sys.exit(f"pit evaluate failed with exit code {code}")

"""Shared code of the studies: one folder per seed with the data, the runs and the improved rows, each made once.

Every step is a `pit` command, run as a recipe of one stage: a finished step is skipped unless its settings or inputs
changed. A study names the systems to compare, and this module makes their rows. Studies with the same --out share
their runs.
"""

import argparse
import json
import multiprocessing
import os
import shlex
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path
from typing import NamedTuple

from scales import ENGLISH, TINY, StudyScale, real
from steps import base_steps
from systems import system_steps

from pitcli.errors import PitError
from pitcli.recipes.journal import Journal
from pitcli.recipes.planning import plan
from pitcli.settings.tools import PipelineConfig
from pitcli.stages.run import decide

# with a gap model on shuffled labels, RL must not beat the SFT improver, and best-of-n must not beat the drafts
CONTROLS = "--control=shuffled/sft-only,shuffled-best-of-n/original"
COSTS = Path("costs.jsonl")
FINE = (0, 1)  # all rows, or some rows failed
CRASHED = 70
MAXRSS_PER_MIB = 2**20 if sys.platform == "darwin" else 2**10  # ru_maxrss is in KiB, on macOS in bytes


def make(scale: StudyScale, folder: Path, seed: int, systems: Iterable[str]) -> None:
    """Make the rows of the systems for one seed in its folder, in this process."""
    steps = [*base_steps(scale, seed), *(step for name in systems for step in system_steps(scale, seed, name))]
    run_steps(folder, seed, steps)


def run_steps(folder: Path, seed: int, steps: Iterable[str]) -> None:
    """Run the steps of one seed that need it in its folder, each in a child process; costs.jsonl says what it took.

    A child, because only then is the peak memory that of the step; by fork, which keeps what a study has patched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    recipe, start = Path(f"step-{os.getpid()}.yaml"), time.time()
    for step in dict.fromkeys(steps):
        recipe.write_text(json.dumps({"stages": [as_stage(step)]}))
        try:
            [stage] = plan(PipelineConfig(recipe=recipe, out=Path())).stages
            action = decide(stage, Journal(), {}).action
        except PitError as error:
            sys.exit(f"{step}\n{error}")
        if action == "skip":
            continue
        print(f"\n[seed {seed}, {time.time() - start:4.0f} s] $ {step}", flush=True)
        code = in_child(["run", str(recipe), "--out", "."], {"step": step, "action": action})
        if code not in FINE:
            sys.exit(f"pit {step.split()[1]} failed with exit code {code}; run the same command again to resume")
    recipe.unlink(missing_ok=True)


def as_stage(step: str) -> dict[str, dict[str, object]]:
    """A command line as the stage of a recipe."""
    _, command, *words = shlex.split(step)
    settings: dict[str, object] = {}
    while words:
        flag, equals, value = words.pop(0).partition("=")
        if not equals and words and not words[0].startswith("--"):
            equals, value = "=", words.pop(0)
        settings[flag.removeprefix("--").replace("-", "_")] = value if equals else True
    return {command: settings}


class Cost(NamedTuple):
    """What a step took: seconds of wall-clock time, and the peak of its process's memory in MiB."""

    seconds: float
    peak_mib: float


def in_child(words: list[str], line: dict[str, str]) -> int:
    """Run a pit command in a forked child, and return its exit code. line: what costs.jsonl says of it besides."""
    from pitcli.cli import main as pit

    start, peak = time.time(), 0.0  # of a child that was interrupted with its study, the peak is not known
    sys.stdout.flush()
    if (child := os.fork()) == 0:
        code = CRASHED
        try:
            code = pit(words)
        except BaseException:  # the child must not go on as if it were the parent
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(code)
    try:
        _, status, usage = os.wait4(child, 0)
        peak = usage.ru_maxrss / MAXRSS_PER_MIB
    finally:
        with COSTS.open("a") as file:
            file.write(json.dumps({**line, **Cost(time.time() - start, peak)._asdict()}) + "\n")
    return os.waitstatus_to_exitcode(status)


def costs_of(folder: Path, steps: Iterable[str]) -> Cost:
    """Return what these steps took in all: their seconds, and the largest peak. A step that was resumed has several."""
    parts: dict[str, list[Cost]] = {step: [] for step in steps}
    for line in map(json.loads, (folder / COSTS).read_text().splitlines()):
        if line["step"] in parts:
            before = parts[line["step"]] if line["action"] == "resume" else []
            parts[line["step"]] = [*before, Cost(line["seconds"], line["peak_mib"])]
    if missing := [step for step, costs in parts.items() if not costs]:
        raise ValueError(f"{folder / COSTS}: expected the cost of {missing[0]}, got none")
    costs = [cost for of_step in parts.values() for cost in of_step]
    return Cost(sum(cost.seconds for cost in costs), max(cost.peak_mib for cost in costs))


class Study(NamedTuple):
    """The systems whose rows a study needs, and the evaluations, whose --input and --control name systems.

    more: makes more than rows of systems, in the folder of a seed. report: prints more results from the folder, the
    seeds and the scale, if the oracle can grade them.
    """

    systems: Sequence[str] = ()
    evaluations: Sequence[str] = ()
    more: Callable[[Path, int, StudyScale], None] | None = None
    report: Callable[[Path, list[int], StudyScale], None] | None = None


def run_study(description: str, study_at: Callable[[StudyScale], Study]) -> None:
    """Make the rows of the systems for every seed, then run the evaluations and print the report."""
    args = study_parser(description).parse_args()
    if (args.model == "tiny") != (args.data is None):
        sys.exit("--data: required unless --model is tiny, which uses synthetic pairs only")
    scale = ENGLISH if args.english else TINY if args.model == "tiny" else real(args)
    study = study_at(scale)
    if scale.judge is not None and not study.evaluations:
        sys.exit("this study needs the true grades of a task; expected --model tiny or --english")
    args.jobs = min(args.jobs, len(args.seeds))
    out = (args.out or Path("runs", "studies" if scale is TINY else f"studies-{scale.name}")).resolve()
    start = time.time()
    folders = {seed: out / f"seed-{seed}" for seed in args.seeds}
    if args.only != "evaluate":
        in_processes(partial(make, scale, systems=study.systems), folders, args.jobs)
        if study.more:
            in_processes(partial(study.more, scale=scale), folders, args.jobs)
    print(f"\nrows of all systems made in {time.time() - start:.0f} s", flush=True)
    if args.only != "make":
        first = f"seed-{args.seeds[0]}"
        independent = f"--judge=gap:{first}/runs/judge --validate-on={first}/data/test.jsonl"
        evaluate(out, folders, study.evaluations, "--judge=oracle" if scale.judge is None else independent)
        if study.report and scale.judge is None:
            study.report(out, args.seeds, scale)
    print(f"total time: {time.time() - start:.0f} s")


def study_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument(
        "--out", type=Path, help="output folder, shared by the studies of one scale (default: runs/studies…)"
    )
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


def evaluate(out: Path, folders: dict[int, Path], evaluations: Iterable[str], judge: str) -> None:
    from pitcli.cli import main as pit

    os.chdir(out)
    for line in evaluations:
        command = ["evaluate", "--overwrite", *(with_files(word, folders) for word in shlex.split(f"{line} {judge}"))]
        print(f"\n$ pit {shlex.join(command)}", flush=True)
        if (code := pit(command)) not in FINE:
            sys.exit(f"pit evaluate failed with exit code {code}")

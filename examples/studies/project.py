"""Shared code of the studies: one folder per seed with the data, the runs and the improved rows, each made once.

Every step is a `pit` command. A study names the systems to compare, and this module makes their rows. Finished steps
are skipped, so studies with the same --out share their runs.
"""

import argparse
import multiprocessing
import os
import re
import shlex
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import NamedTuple


class StudyScale(NamedTuple):
    """Size and settings of a study: the tiny model on the synthetic task, or a real model on real pairs."""

    model: str
    prepare: str
    drafts: str
    sft: str
    reward: str
    rl: str
    far: str  # extra RL settings of the over-optimisation study, which train long enough to show it
    decoding: str
    temperature: float = 0.5  # of drafts, references in RL, and every method: otherwise the gain is mostly temperature
    judge: str = ""  # real pairs only: settings of the judge, which is trained on its whole fold


TINY = StudyScale(
    model="tiny",
    prepare="--synthetic 8000 --folds sft=1,reward=2,rl=1,test=0.4",
    drafts="--max-rows 500",
    sft="--batch-size 32 --micro-batch-size 64 --learning-rate 5e-4",
    reward="--batch-size 64 --micro-batch-size 64 --learning-rate 2e-3 --epochs 3",
    rl="--max-steps 120 --updates-per-rollout 2 --batch-size 32 --micro-batch-size 128 --learning-rate 2e-3"
    " --rollout-temperature 0.6 --rollout-max-new-tokens 16",
    far="--max-steps 240 --learning-rate 4e-3",
    decoding="--max-new-tokens 16",
)


def real(args: argparse.Namespace) -> StudyScale:
    """Default settings for real pairs; the judge is trained on a separate fold."""
    judge = f"--max-length {args.max_length}" if args.max_length else ""
    limits = judge + (f" --max-steps {args.steps}" if args.steps else "")
    return StudyScale(
        model=args.model,
        prepare=f"--data {shlex.quote(str(Path(args.data).resolve()))} --folds sft=1,reward=1,rl=1,judge=1,test=0.4",
        drafts=f"--max-rows {args.rows}",
        sft=limits,
        reward=limits,
        rl=f"{limits} --rollout-max-new-tokens {args.max_new_tokens}",
        far="",  # --steps sets the number of steps
        decoding=f"--max-new-tokens {args.max_new_tokens}",
        judge=judge,
    )


def base_steps(scale: StudyScale, seed: int) -> list[str]:
    """The commands that make the data, the policy, the SFT improver, the gap model, and drafts of held-out prompts."""
    model = f"--model {scale.model} --seed {seed}"
    # real pairs are split with the same seed for all: no gap model of any seed may have seen the judge's fold
    steps = [
        f"pit prepare {scale.prepare} --seed {seed if scale.model == 'tiny' else 0} --out data",
        f"pit sft --role policy --data data/sft.jsonl {model} {scale.sft}",
        f"pit sft --role improver --data data/sft.jsonl {model} {scale.sft}",
        f"pit train-reward --data data/reward.jsonl {model} {scale.reward}",
        sample(scale, seed, "drafts", scale.temperature),
    ]
    if scale.model != "tiny":
        # the judge's seed and rows differ from those of the gap model that RL and the stop rule use
        steps.append(
            f"pit train-reward --data data/judge.jsonl --model {scale.model} --seed {seed + 1000} --out runs/judge"
            f" {scale.judge}"
        )
    return steps


def sample(scale: StudyScale, seed: int, name: str, temperature: float | str) -> str:
    shared = f"--seed {seed} {scale.decoding} --temperature {temperature}"
    return f"pit sample --data data/test.jsonl {scale.drafts} --output {name}.jsonl {shared}"


def rl(scale: StudyScale, seed: int, name: str, settings: str) -> str:
    references = f"--reference-temperature {scale.temperature}"
    return f"pit rl --data data/rl.jsonl --out runs/{name} --seed {seed} {scale.rl} {references} {settings}"


def improve(scale: StudyScale, seed: int, name: str, settings: str, drafts: str = "drafts") -> str:
    temperature = "" if "--temperature" in settings else f"--temperature {scale.temperature} "
    shared = f"--seed {seed} {scale.decoding} {temperature}{settings}"
    return f"pit improve --input {drafts}.jsonl --output {name}.jsonl {shared}"


ONCE = "--stop none --max-iters 1"
BEST_OF_4 = "--method best-of-n --max-iters 4"


def system_steps(scale: StudyScale, seed: int, name: str) -> list[str]:
    """The commands that make NAME.jsonl, the rows of one system."""
    kind, _, value = name.partition("@")
    if kind in ("stage", "loss", "beta"):
        return variant_steps(scale, seed, kind, value)
    if value:
        return steps_at(scale, seed, kind, value)
    trained = rl(scale, seed, "rl", "--curriculum")
    pit = [trained, improve(scale, seed, "pit", f"--run runs/rl {ONCE}")]
    pit_stop = [trained, improve(scale, seed, "pit-stop", "--run runs/rl --max-iters 5")]
    steps = {
        "pit": pit,
        "sft-only": [improve(scale, seed, name, f"--run runs/sft {ONCE}")],
        "resample": [improve(scale, seed, name, f"--method resample {ONCE}")],
        "best-of-n": [*pit, improve(scale, seed, name, "--method best-of-n --equal-tokens pit.jsonl")],
        "self-refine": [improve(scale, seed, name, f"--method self-refine {ONCE}")],
        "rlhf": [
            rl(scale, seed, "rlhf", "--role policy"),
            improve(scale, seed, name, f"--method resample --policy runs/rlhf {ONCE}"),
        ],
        "pit-stop": pit_stop,
        "pit-5": [trained, improve(scale, seed, name, "--run runs/rl --stop none --max-iters 5")],
        "best-of-n-stop": [*pit_stop, improve(scale, seed, name, "--method best-of-n --equal-tokens pit-stop.jsonl")],
        "shuffled": [
            *shuffled_reward(scale, seed),
            rl(scale, seed, "rl-shuffled", "--curriculum --reward runs/reward-shuffled"),
            improve(scale, seed, name, f"--run runs/rl-shuffled {ONCE}"),
        ],
        "shuffled-best-of-n": [
            *shuffled_reward(scale, seed),
            improve(scale, seed, name, f"--reward runs/reward-shuffled {BEST_OF_4}"),
        ],
        "best-of-4": [improve(scale, seed, name, BEST_OF_4)],
    }
    return steps[kind]


def shuffled_reward(scale: StudyScale, seed: int) -> list[str]:
    """The commands that train a gap model on shuffled labels."""
    return [
        f"pit prepare --data data/reward.jsonl --shuffle-labels --seed {seed} --out data-shuffled --folds reward=1",
        f"pit train-reward --data data-shuffled/reward.jsonl --model {scale.model} --seed {seed}"
        f" --out runs/reward-shuffled {scale.reward}",
    ]


def variant_steps(scale: StudyScale, seed: int, kind: str, value: str) -> list[str]:
    """The commands that make the rows of a system named KIND@VALUE, which differs from `pit` in one setting."""
    name = f"{kind}@{value}"
    if kind == "stage":
        run = f"rl-{value}"
        steps = [rl(scale, seed, run, f"--curriculum-stages {value.replace('+', ',')}")]
    elif kind == "loss":
        run = f"rl-{value}"
        steps = [
            f"pit train-reward --data data/reward.jsonl --model {scale.model} --seed {seed} --gap-loss {value}"
            f" --out runs/reward-{value} {scale.reward}",
            rl(scale, seed, run, f"--curriculum --reward runs/reward-{value}"),
        ]
    else:
        run = f"rl-beta-{value}"
        steps = [rl(scale, seed, run, f"--curriculum --kl-coef {value} {scale.far}")]
    return [*steps, improve(scale, seed, name, f"--run runs/{run} {ONCE}")]


def steps_at(scale: StudyScale, seed: int, kind: str, temperature: str) -> list[str]:
    """The commands that make the rows of KIND@TEMPERATURE: drafts and method at this temperature."""
    drafts = f"drafts@{temperature}"
    settings = {
        "pit": f"--run runs/rl {ONCE}",
        "resample": f"--method resample {ONCE}",
        "best-of-n": f"--method best-of-n --equal-tokens pit@{temperature}.jsonl",
    }
    kinds = ["pit"] if kind == "pit" else ["pit", kind]  # best-of-n reads the rows of pit
    return [
        rl(scale, seed, "rl", "--curriculum"),
        sample(scale, seed, drafts, temperature),
        *(
            improve(scale, seed, f"{k}@{temperature}", f"{settings[k]} --temperature {temperature}", drafts)
            for k in kinds
        ),
    ]


# with a gap model on shuffled labels, RL must not beat the SFT improver, and best-of-n must not beat the drafts
CONTROLS = "--control=shuffled/sft-only,shuffled-best-of-n/original"


def make(scale: StudyScale, folder: Path, seed: int, systems: Iterable[str]) -> None:
    """Run the unfinished steps of one seed in its folder, in this process."""
    from pitcli.cli import main as pit

    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    steps = [*base_steps(scale, seed), *(step for name in systems for step in system_steps(scale, seed, name))]
    done = Path("done.txt")
    start = time.time()
    for step in dict.fromkeys(steps):
        if done.exists() and step in done.read_text().splitlines():
            continue
        print(f"\n[seed {seed}, {time.time() - start:4.0f} s] $ {step}", flush=True)
        resumable = step.split()[1] in ("sft", "train-reward", "rl", "improve")
        if code := pit([*shlex.split(step)[1:], *(["--resume"] if resumable else [])]):
            sys.exit(f"pit {step.split()[1]} failed with exit code {code}; run the same command again to resume")
        with done.open("a") as file:
            file.write(f"{step}\n")


def run_study(
    description: str,
    systems: list[str],
    evaluations: list[str],
    report: Callable[[Path, list[int]], None] | None = None,
    real_only: tuple[str, ...] = (),
) -> None:
    """Make the rows of the systems for every seed, then run the evaluations, whose --input and --control name systems.

    report: prints more results from the folder and the seeds; only on the synthetic task, because it uses the oracle.
    real_only: systems that need a model that follows instructions, which the tiny model does not.
    """
    args = study_parser(description).parse_args()
    if (args.model == "tiny") != (args.data is None):
        sys.exit("--data: required unless --model is tiny, which uses synthetic pairs only")
    scale = TINY if args.model == "tiny" else real(args)
    if args.model != "tiny":
        systems = [*systems, *real_only]
        evaluations = [
            re.sub(r"--input=\S+", lambda found: ",".join((found[0], *real_only)), line) for line in evaluations
        ]
    out = args.out.resolve()
    start = time.time()
    folders = {seed: out / f"seed-{seed}" for seed in args.seeds}
    if args.only != "evaluate":
        in_processes(scale, folders, systems, args.jobs)
    print(f"\nrows of all systems made in {time.time() - start:.0f} s", flush=True)
    if args.only != "make":
        independent = "--judge=gap:seed-0/runs/judge --validate-on=seed-0/data/test.jsonl"
        evaluate(out, folders, evaluations, "--judge=oracle" if args.model == "tiny" else independent)
        if report and args.model == "tiny":
            report(out, args.seeds)
    print(f"total time: {time.time() - start:.0f} s")


def study_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path("runs/studies"), help="output folder, shared by the studies")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="seeds to run")
    parser.add_argument("--jobs", type=int, default=2, help="number of seeds to run in parallel")
    parser.add_argument("--only", choices=["make", "evaluate"], help="only make the rows, or only evaluate them")
    parser.add_argument("--model", default="tiny", help="tiny (synthetic task), or another base model (needs --data)")
    real_text = parser.add_argument_group("real text")
    real_text.add_argument("--data", help="file of preference pairs")
    real_text.add_argument("--steps", type=int, help="maximum number of optimiser steps, except for the judge")
    real_text.add_argument("--max-length", type=int, help="longest conversation in tokens")
    real_text.add_argument("--max-new-tokens", type=int, default=128, help="longest response in tokens")
    real_text.add_argument("--rows", type=int, default=500, help="number of drafts to improve")
    return parser


def in_processes(scale: StudyScale, folders: dict[int, Path], systems: list[str], jobs: int) -> None:
    """Make the rows with one process per seed, each in a separate working folder."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        for process in [pool.submit(make, scale, folder, seed, systems) for seed, folder in folders.items()]:
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

"""What the studies share: one folder a seed with the data, the runs and the improved rows; each is made once.

Every step is a `pit` command. A study names the systems that it compares, and this module makes their rows. Finished
steps are skipped, so that studies under one --out share their runs.
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
    """How large and with which settings: the tiny model on the synthetic task, or a real one on real pairs."""

    model: str
    prepare: str
    drafts: str
    sft: str
    reward: str
    rl: str
    far: str  # further settings of RL in the study of over-optimisation: far enough to see it
    decoding: str
    judge: str = ""  # real pairs only: trained on its whole fold, whatever bounds the other trainings


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
    """Default settings on real pairs; a judge is trained on a fold of its own."""
    judge = "--skip-long" + (f" --max-length {args.max_length}" if args.max_length else "")
    bounds = judge + (f" --max-steps {args.steps}" if args.steps else "")
    return StudyScale(
        model=args.model,
        prepare=f"--data {shlex.quote(str(Path(args.data).resolve()))} --folds sft=1,reward=1,rl=1,judge=1,test=0.4",
        drafts=f"--max-rows {args.rows}",
        sft=bounds,
        reward=bounds,
        rl=f"{bounds} --rollout-max-new-tokens {args.max_new_tokens}",
        far="",  # --steps sets how far
        decoding=f"--max-new-tokens {args.max_new_tokens}",
        judge=judge,
    )


def base_steps(scale: StudyScale, seed: int) -> list[str]:
    """The data, the policy, the SFT improver, the gap model, and drafts for held-out prompts."""
    model = f"--model {scale.model} --seed {seed}"
    # real pairs fall into the same folds whatever the seed: the judge's fold must be new to the gap models of all seeds
    steps = [
        f"pit prepare {scale.prepare} --seed {seed if scale.model == 'tiny' else 0} --out data",
        f"pit sft --role policy --data data/sft.jsonl {model} {scale.sft}",
        f"pit sft --role improver --data data/sft.jsonl {model} {scale.sft}",
        f"pit train-reward --data data/reward.jsonl {model} {scale.reward}",
        f"pit sample --data data/test.jsonl {scale.drafts} --output drafts.jsonl --seed {seed} {scale.decoding}",
    ]
    if scale.model != "tiny":
        # not the seed and the rows of the gap model that RL and the stop rule use
        steps.append(
            f"pit train-reward --data data/judge.jsonl --model {scale.model} --seed {seed + 1000} --out runs/judge"
            f" {scale.judge}"
        )
    return steps


def rl(scale: StudyScale, seed: int, name: str, settings: str) -> str:
    return f"pit rl --data data/rl.jsonl --out runs/{name} --seed {seed} {scale.rl} {settings}"


def improve(scale: StudyScale, seed: int, name: str, settings: str) -> str:
    return f"pit improve --input drafts.jsonl --output {name}.jsonl --seed {seed} {scale.decoding} {settings}"


ONCE = "--stop none --max-iters 1"
BEST_OF_4 = "--method best-of-n --max-iters 4 --temperature 1.0"


def system_steps(scale: StudyScale, seed: int, name: str) -> list[str]:
    """The commands that make NAME.jsonl, the rows of one system."""
    kind, _, value = name.partition("@")
    if kind in ("stage", "loss", "temperature", "beta"):
        return variant_steps(scale, seed, kind, value)
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
        # drafts and draws at one temperature: any gain comes from the gap model
        "shuffled-best-of-n": [
            *shuffled_reward(scale, seed),
            improve(scale, seed, name, f"--reward runs/reward-shuffled {BEST_OF_4}"),
        ],
        "best-of-4": [improve(scale, seed, name, BEST_OF_4)],
    }
    return steps[kind]


def shuffled_reward(scale: StudyScale, seed: int) -> list[str]:
    """A gap model on shuffled labels."""
    return [
        f"pit prepare --data data/reward.jsonl --shuffle-labels --seed {seed} --out data-shuffled --folds reward=1",
        f"pit train-reward --data data-shuffled/reward.jsonl --model {scale.model} --seed {seed}"
        f" --out runs/reward-shuffled {scale.reward}",
    ]


def variant_steps(scale: StudyScale, seed: int, kind: str, value: str) -> list[str]:
    """The commands of a system that differs from `pit` in one setting, named KIND@VALUE."""
    name = f"{kind}@{value}"
    if kind == "temperature":
        trained = rl(scale, seed, "rl", "--curriculum")
        return [trained, improve(scale, seed, name, f"--run runs/rl {ONCE} --temperature {value}")]
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


# a gap model on shuffled labels: RL on it must not gain over the SFT improver, nor its choice of draws over the drafts
CONTROLS = "--control=shuffled/sft-only,shuffled-best-of-n/original"


def make(scale: StudyScale, folder: Path, seed: int, systems: Iterable[str]) -> None:
    """Run the missing steps of one seed in its folder, in this process."""
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
            sys.exit(f"this step ended with exit code {code}")
        with done.open("a") as file:
            file.write(f"{step}\n")


def run_study(
    description: str,
    systems: list[str],
    evaluations: list[str],
    report: Callable[[Path, list[int]], None] | None = None,
    real_only: tuple[str, ...] = (),
) -> None:
    """Make the systems for every seed, then run the evaluations, whose --input and --control name systems.

    report: prints more, given the folder and the seeds; on the synthetic task only, because it asks its oracle.
    real_only: systems that need a model which follows instructions, as the tiny one does not.
    """
    args = study_parser(description).parse_args()
    if (args.model == "tiny") != (args.data is None):
        sys.exit("--model tiny makes its own data; any other takes --data")
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
    print(f"\nmade in {time.time() - start:.0f} s", flush=True)
    if args.only != "make":
        independent = "--judge=gap:seed-0/runs/judge --validate-on=seed-0/data/test.jsonl"
        evaluate(out, folders, evaluations, "--judge=oracle" if args.model == "tiny" else independent)
        if report and args.model == "tiny":
            report(out, args.seeds)
    print(f"{time.time() - start:.0f} s in all")


def study_parser(description: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--out", type=Path, default=Path("runs/studies"), help="folder that the studies share")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=2, help="seeds made at the same time")
    parser.add_argument("--only", choices=["make", "evaluate"], help="only one half")
    parser.add_argument("--model", default="tiny", help="tiny: the synthetic task; any other takes --data")
    real_text = parser.add_argument_group("real text")
    real_text.add_argument("--data", help="preference pairs")
    real_text.add_argument("--steps", type=int, help="bound of each training but the judge's")
    real_text.add_argument("--max-length", type=int, help="longest conversation in tokens")
    real_text.add_argument("--max-new-tokens", type=int, default=128, help="longest response in tokens")
    real_text.add_argument("--rows", type=int, default=500, help="drafts to improve")
    return parser


def in_processes(scale: StudyScale, folders: dict[int, Path], systems: list[str], jobs: int) -> None:
    """One process a seed: each has a working folder of its own."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        for made in [pool.submit(make, scale, folder, seed, systems) for seed, folder in folders.items()]:
            made.result()


def with_files(word: str, folders: dict[int, Path]) -> str:
    """`--input=pit,sft-only` with the files of every seed: `--input=pit=seed-0/pit.jsonl,pit=seed-1/pit.jsonl,...`."""
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
            sys.exit(f"this step ended with exit code {code}")

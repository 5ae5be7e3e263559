"""What the studies share: one folder a seed with the data, the runs and the improved rows; each is made once.

Every step is a `pit` command. A study names the systems that it compares, and asks here for their rows; what is there
already is not made again, so that studies under one --out share their runs.
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


class Recipe(NamedTuple):
    """How large and with which settings: the tiny model on the synthetic task, or a real one on real pairs."""

    model: str
    prepare: str
    drafts: str
    sft: str
    reward: str
    rl: str
    far: str  # what RL takes besides for the study of over-optimisation: far enough to see it
    decoding: str
    judge: str = ""  # real pairs only: as good as its fold makes it, whatever bounds the rest


TINY = Recipe(
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


def real(args: argparse.Namespace) -> Recipe:
    """Default settings on real pairs; a judge is trained on a fold of its own."""
    judge = "--skip-long" + (f" --max-length {args.max_length}" if args.max_length else "")
    bounds = judge + (f" --max-steps {args.steps}" if args.steps else "")
    return Recipe(
        model=args.model,
        prepare=f"--data {shlex.quote(str(Path(args.data).resolve()))} --folds sft=1,reward=1,rl=1,judge=1,test=0.4",
        drafts=f"--max-rows {args.rows}",
        sft=bounds,
        reward=bounds,
        rl=f"{bounds} --rollout-max-new-tokens {args.max_new_tokens}",
        far="",  # --steps says how far
        decoding=f"--max-new-tokens {args.max_new_tokens}",
        judge=judge,
    )


def base_steps(recipe: Recipe, seed: int) -> list[str]:
    """The data, the policy, the SFT improver, the gap model, and drafts for held-out prompts."""
    model = f"--model {recipe.model} --seed {seed}"
    # real pairs fall into the same folds whatever the seed: the judge's fold must be new to the gap models of all seeds
    steps = [
        f"pit prepare {recipe.prepare} --seed {seed if recipe.model == 'tiny' else 0} --out data",
        f"pit sft --role policy --data data/sft.jsonl {model} {recipe.sft}",
        f"pit sft --role improver --data data/sft.jsonl {model} {recipe.sft}",
        f"pit train-reward --data data/reward.jsonl {model} {recipe.reward}",
        f"pit sample --data data/test.jsonl {recipe.drafts} --output drafts.jsonl --seed {seed} {recipe.decoding}",
    ]
    if recipe.model != "tiny":
        # another seed and other rows than the gap model that RL and the stop rule use
        steps.append(
            f"pit train-reward --data data/judge.jsonl --model {recipe.model} --seed {seed + 1000} --out runs/judge"
            f" {recipe.judge}"
        )
    return steps


def rl(recipe: Recipe, seed: int, name: str, settings: str) -> str:
    return f"pit rl --data data/rl.jsonl --out runs/{name} --seed {seed} {recipe.rl} {settings}"


def improve(recipe: Recipe, seed: int, name: str, settings: str) -> str:
    return f"pit improve --input drafts.jsonl --output {name}.jsonl --seed {seed} {recipe.decoding} {settings}"


ONCE = "--stop none --max-iters 1"
BEST_OF_4 = "--method best-of-n --max-iters 4 --temperature 1.0"


def system_steps(recipe: Recipe, seed: int, name: str) -> list[str]:
    """The commands that make NAME.jsonl, the rows of one system."""
    kind, _, value = name.partition("@")
    both = rl(recipe, seed, "rl", "--curriculum")
    pit = [both, improve(recipe, seed, "pit", f"--run runs/rl {ONCE}")]
    shuffled = [
        f"pit prepare --data data/reward.jsonl --shuffle-labels --seed {seed} --out data-shuffled --folds reward=1",
        f"pit train-reward --data data-shuffled/reward.jsonl --model {recipe.model} --seed {seed}"
        f" --out runs/reward-shuffled {recipe.reward}",
    ]
    steps = {
        "pit": pit,
        "sft-only": [improve(recipe, seed, name, f"--run runs/sft {ONCE}")],
        "resample": [improve(recipe, seed, name, f"--method resample {ONCE}")],
        "best-of-n": [*pit, improve(recipe, seed, name, "--method best-of-n --equal-tokens pit.jsonl")],
        "self-refine": [improve(recipe, seed, name, f"--method self-refine {ONCE}")],
        "rlhf": [
            rl(recipe, seed, "rlhf", "--role policy"),
            improve(recipe, seed, name, f"--method resample --policy runs/rlhf {ONCE}"),
        ],
        "pit-stop": [both, improve(recipe, seed, name, "--run runs/rl --max-iters 5")],
        "pit-5": [both, improve(recipe, seed, name, "--run runs/rl --stop none --max-iters 5")],
        "best-of-n-stop": [
            both,
            improve(recipe, seed, "pit-stop", "--run runs/rl --max-iters 5"),
            improve(recipe, seed, name, "--method best-of-n --equal-tokens pit-stop.jsonl"),
        ],
        "shuffled": [
            *shuffled,
            rl(recipe, seed, "rl-shuffled", "--curriculum --reward runs/reward-shuffled"),
            improve(recipe, seed, name, f"--run runs/rl-shuffled {ONCE}"),
        ],
        # drafts and draws at one temperature: whatever is gained is the gap model's
        "shuffled-best-of-n": [
            *shuffled,
            improve(recipe, seed, name, f"--reward runs/reward-shuffled {BEST_OF_4}"),
        ],
        "best-of-4": [improve(recipe, seed, name, BEST_OF_4)],
        "stage": [
            rl(recipe, seed, f"rl-{value}", f"--curriculum-stages {value.replace('+', ',')}"),
            improve(recipe, seed, name, f"--run runs/rl-{value} {ONCE}"),
        ],
        "loss": [
            f"pit train-reward --data data/reward.jsonl --model {recipe.model} --seed {seed} --gap-loss {value}"
            f" --out runs/reward-{value} {recipe.reward}",
            rl(recipe, seed, f"rl-{value}", f"--curriculum --reward runs/reward-{value}"),
            improve(recipe, seed, name, f"--run runs/rl-{value} {ONCE}"),
        ],
        "temperature": [both, improve(recipe, seed, name, f"--run runs/rl {ONCE} --temperature {value}")],
        "beta": [
            rl(recipe, seed, f"rl-beta-{value}", f"--curriculum --kl-coef {value} {recipe.far}"),
            improve(recipe, seed, name, f"--run runs/rl-beta-{value} {ONCE}"),
        ],
    }
    return steps[kind]


# a gap model on shuffled labels: RL on it may not add to the SFT improver, nor its choice among draws to the drafts
CONTROLS = "--control=shuffled/sft-only,shuffled-best-of-n/original"


def make(recipe: Recipe, folder: Path, seed: int, systems: Iterable[str]) -> None:
    """Run what is missing in the folder of one seed, in this process."""
    from pitcli.cli import main as pit

    folder.mkdir(parents=True, exist_ok=True)
    os.chdir(folder)
    wanted = [*base_steps(recipe, seed), *(step for name in systems for step in system_steps(recipe, seed, name))]
    done = Path("done.txt")
    start = time.time()
    for step in dict.fromkeys(wanted):
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

    report: what is printed besides, from the folder and the seeds; on the synthetic task only, whose oracle it asks.
    real_only: systems that the tiny model cannot be, because it does not follow instructions.
    """
    args = study_parser(description).parse_args()
    if (args.model == "tiny") != (args.data is None):
        sys.exit("--model tiny makes its own data; any other takes --data")
    recipe = TINY if args.model == "tiny" else real(args)
    if args.model != "tiny":
        systems = [*systems, *real_only]
        evaluations = [
            re.sub(r"--input=\S+", lambda found: ",".join((found[0], *real_only)), one) for one in evaluations
        ]
    out = args.out.resolve()
    start = time.time()
    folders = {seed: out / f"seed-{seed}" for seed in args.seeds}
    if args.only != "evaluate":
        in_processes(recipe, folders, systems, args.jobs)
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


def in_processes(recipe: Recipe, folders: dict[int, Path], systems: list[str], jobs: int) -> None:
    """One process a seed: each has a working folder of its own."""
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // jobs)))
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=spawn, max_tasks_per_child=1) as pool:
        for made in [pool.submit(make, recipe, folder, seed, systems) for seed, folder in folders.items()]:
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

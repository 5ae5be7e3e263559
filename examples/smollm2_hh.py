"""The whole method on real text: `python examples/smollm2_hh.py --train hh_train.jsonl.gz --test hh_test.jsonl.gz`.

Trains the gap model (also reported on the test file), then the improver by SFT and RL, all on the train file; samples
drafts from the base model for prompts of the test file, and improves them. At the end it prints a table with the
wall-clock time and peak memory of each command. By default it uses all rows, which needs a GPU; `--small` is for a CPU:
short conversations and a few RL steps. If it is stopped, run it again to resume.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

SMALL = ["--max-length", "256", "--max-rows", "600"]
# the gap model of so few pairs may be no better than a coin, which pit rl refuses
SMALL_RL = ["--rollout-max-new-tokens", "48", "--max-steps", "6", "--force"]
DRAFTS = 1000
SMALL_DRAFTS = 24
TOKENS = {True: "48", False: "256"}  # longest draft in tokens, by --small


def timed(arguments: list[str], folder: Path) -> tuple[str, float, float]:
    """Run a pit command; return the command line, seconds and peak memory in GiB."""
    command = " ".join(["pit", *arguments])
    print(f"\n$ {command}", file=sys.stderr, flush=True)
    start = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "pitcli", *arguments], cwd=folder)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{command}: exit status {os.waitstatus_to_exitcode(status)}")
    unit = 1 if sys.platform == "darwin" else 1024
    return command, time.monotonic() - start, usage.ru_maxrss * unit / 2**30


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--train", type=Path, required=True, help="preference pairs to train on: HH-RLHF transcripts, as published"
    )
    parser.add_argument(
        "--test", type=Path, required=True, help="preference pairs with other prompts, in the same format"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/smollm2-hh"), help="output folder")
    parser.add_argument(
        "--small", action="store_true", help="few rows, short conversations and few RL steps, for a CPU"
    )
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    train, test = str(arguments.train.resolve()), str(arguments.test.resolve())
    small, small_rl = (SMALL, SMALL_RL) if arguments.small else ([], [])
    drafts = str(SMALL_DRAFTS if arguments.small else DRAFTS)
    tokens = ["--max-new-tokens", TOKENS[arguments.small]]
    commands = [
        ["train-reward", "--data", train, "--eval-data", test, "--resume", *small],
        ["rl", "--curriculum", "--resume", *small, *small_rl],
        ["sample", "--data", test, "--max-rows", drafts, "--output", "drafts.jsonl", "--resume", *tokens],
        ["improve", "--input", "drafts.jsonl", "--output", "improved.jsonl", "--resume", "--max-iters", "5", *tokens],
    ]
    rows = [timed(command, arguments.out) for command in commands]
    results = json.loads((arguments.out / "runs/reward/manifest.json").read_text())["results"]
    print("| command | time | peak memory |\n|---|---|---|")
    for command, seconds, gibibytes in rows:
        shown = command.replace(train, arguments.train.name).replace(test, arguments.test.name)
        print(f"| `{shown}` | {seconds:,.0f} s | {gibibytes:.1f} GiB |")
    for name in ("accuracy", "accuracy_low", "accuracy_high", "longer_wins_accuracy", "shorter_wins_accuracy"):
        print(f"{name} of the gap model: {results[name]:.3f} held out, {results[f'eval_{name}']:.3f} on the test file")


if __name__ == "__main__":
    main()

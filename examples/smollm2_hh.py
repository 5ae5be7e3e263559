"""The whole path on real text: `python examples/smollm2_hh.py --train hh_train.jsonl.gz --test hh_test.jsonl.gz`.

Reward model (reported on the test file too), SFT and RL of the improver on the train file, drafts of the base for
prompts of the test file, and their improvement. It ends with a table of wall-clock time and peak memory of each
command. By default it uses all rows, which takes a GPU; `--small` is for a CPU: short conversations and a few RL steps.
Started again, it resumes.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path

SMALL = ["--max-length", "256", "--skip-long", "--max-rows", "600"]
SMALL_RL = ["--rollout-max-new-tokens", "48", "--max-steps", "6"]
DRAFTS = 1000
SMALL_DRAFTS = 24
TOKENS = {True: "48", False: "256"}  # longest draft, by --small


def timed(arguments: list[str], folder: Path) -> tuple[str, float, float]:
    """Run a command of pit; (command, seconds, peak memory in GiB)."""
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
    parser.add_argument("--train", type=Path, required=True, help="HH transcripts, as published")
    parser.add_argument("--test", type=Path, required=True, help="the same, with other prompts")
    parser.add_argument("--out", type=Path, default=Path("runs/smollm2-hh"))
    parser.add_argument("--small", action="store_true", help="a size for CPUs")
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    train, test = str(arguments.train.resolve()), str(arguments.test.resolve())
    small, small_rl = (SMALL, SMALL_RL) if arguments.small else (["--skip-long"], [])
    drafts = str(SMALL_DRAFTS if arguments.small else DRAFTS)
    tokens = ["--max-new-tokens", TOKENS[arguments.small]]
    commands = [
        ["train-reward", "--data", train, "--eval-data", test, "--resume", *small],
        ["rl", "--curriculum", "--resume", *small, *small_rl],
        ["sample", "--data", test, "--max-rows", drafts, "--output", "drafts.jsonl", *tokens],
        ["improve", "--input", "drafts.jsonl", "--output", "improved.jsonl", "--resume", "--max-iters", "5", *tokens],
    ]
    rows = [timed(command, arguments.out) for command in commands]
    results = json.loads((arguments.out / "runs/reward/manifest.json").read_text())["results"]
    print("| command | time | peak memory |\n|---|---|---|")
    for command, seconds, gigabytes in rows:
        shown = command.replace(train, arguments.train.name).replace(test, arguments.test.name)
        print(f"| `{shown}` | {seconds:,.0f} s | {gigabytes:.1f} GiB |")
    for name in ("accuracy", "accuracy_low", "accuracy_high", "longer_wins_accuracy", "shorter_wins_accuracy"):
        print(f"{name}: held out {results[name]:.3f}, test file {results[f'eval_{name}']:.3f}")


if __name__ == "__main__":
    main()

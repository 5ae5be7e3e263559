"""Fixtures of the fault suite: a folder with small runs, and the table of results.

`make test` runs each fault a few times; with PIT_FAULTS=full (`make faults`) the counts are those of the table.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from pitcli.data.synthetic import preference_rows
from pitcli.runs.files import file_digest
from tests.conftest import Share
from tests.faults.warm import Warm

FULL = os.environ.get("PIT_FAULTS") == "full"
SEEN: list[tuple[str, str, str]] = []

Record = Callable[[str, str, str], None]

SMALL = "--model tiny --load-in-4bit --lora-rank 4 --batch-size 8 --learning-rate 1e-3 --data pairs.jsonl"
TRAIN = {  # two micro-batches per step
    "sft": f"sft {SMALL} --micro-batch-size 4 --epochs 2 --max-steps 8 --save-every 2 --out run",
    "reward": f"train-reward {SMALL} --micro-batch-size 16 --epochs 2 --max-steps 8 --save-every 2 --out run",
    "rl": "rl --force --curriculum --data pairs.jsonl --batch-size 4 --micro-batch-size 8 --learning-rate 1e-3 "
    "--max-steps 8 --updates-per-rollout 2 --rollout-max-new-tokens 8 --save-every 2 --out run",
    "dpo": "dpo --loss kto --sft runs/sft --data pairs.jsonl --batch-size 8 --micro-batch-size 16 --learning-rate 1e-3 "
    "--epochs 2 --max-steps 8 --save-every 2 --out run",
    "distill": "distill --method on-policy --sample-drafts --run runs/sft --data pairs.jsonl --batch-size 4 "
    "--micro-batch-size 8 --learning-rate 1e-3 --max-steps 8 --updates-per-rollout 2 --rollout-max-new-tokens 8 "
    "--lora-rank 4 --save-every 2 --out run",
}
IMPROVE = "improve --input drafts.jsonl --output improved.jsonl --max-iters 2 --max-new-tokens 8 --sample-batch-size 4"
ADAPTER = {"sft": "improver", "reward": "gap", "rl": "improver", "dpo": "improver", "distill": "policy"}


def run_digests(folder: Path) -> dict[str, str]:
    """The digest of every file in a run folder except the lock, by relative path."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != ".lock")
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


@pytest.fixture(scope="session")
def project(share: Share, warm: Warm) -> Path:
    """A folder with 40 pairs, 11 drafts, and one small run of each training."""

    def fill(folder: Path) -> None:
        pairs = list(preference_rows(40, seed=3))
        drafts = [
            {"id": str(index), "prompt": row["prompt"], "response": row["rejected"]}
            for index, row in enumerate(pairs[:11])
        ]
        for name, rows in (("pairs", pairs), ("drafts", drafts)):
            (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        for kind, line in TRAIN.items():
            ended = warm.run(folder, *line.replace("--out run", f"--out runs/{kind}").split())
            assert ended.code == 0, ended.err

    return share("faults", fill)


@pytest.fixture
def workspace(project: Path, tmp_path: Path) -> Path:
    """A copy of the project that a test may change."""
    return Path(shutil.copytree(project, tmp_path / "work"))


@pytest.fixture(scope="session")
def record() -> Record:
    """Adds a line to the table that `make faults` prints: the fault, the expected result, the result."""
    return lambda fault, passes, seen: SEEN.append((fault, passes, seen))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if SEEN and FULL:
        terminalreporter.write_line("\n| fault | pass | seen |\n|---|---|---|")
        for line in SEEN:
            terminalreporter.write_line(f"| {' | '.join(line)} |")

"""Small whole runs on the embedded model, and what pit export writes of them, made once for all workers."""

import json
import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from pitcli import cli
from pitcli.data.synthetic import preference_rows
from pitcli.endpoints import client
from tests.conftest import Share

SMALL = "--data pairs.jsonl --model tiny --no-load-in-4bit --lora-rank 4 --batch-size 8 --max-steps 6"
ROWS = 12


def pit(line: str, code: int = 0) -> None:
    assert cli.main(line.split()) == code


def write_rows(path: str, rows: list[dict[str, Any]]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_rows(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture(scope="session")
def trained(share: Share) -> Path:
    """runs/sft and runs/reward, exported to improver and gap; pairs.jsonl and drafts.jsonl."""

    def fill(folder: Path) -> None:
        with chdir(folder):
            pairs = list(preference_rows(40, seed=3))
            write_rows("pairs.jsonl", pairs)
            drafts = [{"id": str(n), "prompt": r["prompt"], "response": r["rejected"]} for n, r in enumerate(pairs)]
            write_rows("drafts.jsonl", drafts[:ROWS])
            pit(f"sft {SMALL} --learning-rate 3e-3")
            pit(f"train-reward {SMALL} --learning-rate 1e-2")
            pit("export runs/sft --dtype fp32 --out improver")
            pit("export runs/reward --dtype fp32 --out gap")

    return share("endpoints", fill)


@pytest.fixture
def project(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of its own, which the commands of a test run in."""
    folder = Path(shutil.copytree(trained, tmp_path / "work"))
    monkeypatch.chdir(folder)
    monkeypatch.delenv("PIT_DEBUG", raising=False)
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(client, "FIRST_WAIT_S", 0.01)
    return folder

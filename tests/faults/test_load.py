"""Many rows: bounded memory, and the first rows written before the input ends. The model is a stub."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.conftest import FULL, Record
from tests.faults.warm import Warm

pytestmark = pytest.mark.faults

ROWS = 1_000_000 if FULL else 10_000
STUB = Path(__file__).with_name("stub_model.py")


def test_many_rows_need_little_memory(workspace: Path, record: Record) -> None:
    """Runs in a separate process: a fork would count the pages of libraries that it maps again."""
    with (workspace / "many.jsonl").open("w") as stream:
        for number in range(ROWS):
            stream.write(
                f'{{"id": "row-{number}", "prompt": "Write 3 foods.", "response": "pie {number}", "x": 1.5}}\n'
            )
    line = "figures.json improve --max-iters 1 --input many.jsonl --output many-improved.jsonl"
    subprocess.run([sys.executable, STUB, *line.split()], cwd=workspace, check=True, capture_output=True)
    figures = json.loads((workspace / "figures.json").read_text())
    count = 0
    with (workspace / "many-improved.jsonl").open() as stream:
        for count, text in enumerate(stream, start=1):
            if count % 1000 == 1:
                row = json.loads(text)
                assert (row["id"], row["x"]) == (f"row-{count - 1}", 1.5)
    assert count == ROWS
    record(
        f"{ROWS:,} drafts through `improve` with a stub model",
        "at most 60 s, at most 100 MiB above start",
        f"{figures['seconds']:.0f} s, {figures['mib_above_start']:.0f} MiB above start",
    )
    assert figures["mib_above_start"] < 100
    if FULL:
        assert figures["seconds"] < 60


def test_the_first_row_is_written_before_the_third_is_read(workspace: Path, warm: Warm, record: Record) -> None:
    rows = [json.dumps({"id": str(number), "prompt": "p", "response": "r"}) + "\n" for number in range(4)]
    os.mkfifo(workspace / "pipe")
    command = warm.start(
        workspace, "improve", "--max-iters", "1", fault={"stub_model": True}, stdin=str(workspace / "pipe")
    )
    with (workspace / "pipe").open("w") as pipe:
        pipe.write(rows[0] + rows[1])
        pipe.flush()
        deadline = time.monotonic() + 60
        while "\n" not in command.written():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert json.loads(command.written().splitlines()[0])["id"] == "0"
        pipe.write(rows[2] + rows[3])
    ended = command.wait()
    assert ended.code == 0, ended.err
    assert [json.loads(text)["id"] for text in ended.out.splitlines()] == ["0", "1", "2", "3"]
    record("the first row of a pipe", "row 1 written before row 3 is sent", "row 1 written before row 3 was sent")

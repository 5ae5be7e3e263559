"""Many rows: bounded memory, and the first rows written before the input ends. The model is a stub."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

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


ROW = {"id": "#", "prompt": "p", "response": "r"}
CHAT = {"id": "#", "messages": [{"role": "user", "content": "p"}, {"role": "assistant", "content": "r"}]}
BATCH = {"custom_id": "#", "body": {"messages": CHAT["messages"][:1]}, "response": "r"}  # type: ignore[index]


@pytest.mark.parametrize(
    ("row", "flags"),
    [
        (ROW, ""),
        (CHAT, ""),
        (CHAT, "--output-format same"),
        (BATCH, "--output-format messages --only-changed"),
        (BATCH, "--output-format same --diff"),
        ("#,p,r", "--output-format same --input pipe.csv"),
    ],
    ids=str,
)
def test_the_first_row_is_written_before_the_third_is_read(
    workspace: Path, warm: Warm, record: Record, row: Any, flags: str
) -> None:
    text = row if isinstance(row, str) else json.dumps(row)
    rows = [text.replace("#", f"n{number}") + "\n" for number in range(4)]
    header = "id,prompt,response\n" if isinstance(row, str) else ""
    pipe_name = "pipe.csv" if header else "pipe"
    os.mkfifo(workspace / pipe_name)
    stdin = {} if header else {"stdin": str(workspace / pipe_name)}
    command = warm.start(workspace, "improve", "--max-iters", "1", *flags.split(), fault={"stub_model": True}, **stdin)
    with (workspace / pipe_name).open("w") as pipe:
        pipe.write(header + rows[0] + rows[1])
        pipe.flush()
        deadline = time.monotonic() + 60
        while command.written().count("\n") < (2 if header else 1):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert "n0" in command.written()
        pipe.write(rows[2] + rows[3])
    ended = command.wait()
    assert ended.code == 0, ended.err
    lines = ended.out.removeprefix(header).splitlines()
    assert [number in line for number, line in zip(("n0", "n1", "n2", "n3"), lines, strict=True)] == [True] * 4
    record("the first row of a pipe", "row 1 written before row 3 is sent", "row 1 written before row 3 was sent")

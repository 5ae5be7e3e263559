"""Rows for both commands, changes of the middle row, and a function that runs a command on a file of rows."""

import re
import tempfile
from collections.abc import Callable
from pathlib import Path

from pitcli import cli

Change = Callable[[bytes], bytes]
COMMANDS = ("improve", "train-reward")
TEXT = {"improve": "response", "train-reward": "rejected"}  # the field that contains `cat dog`
MIDDLE = {
    "improve": b'{"id": 2, "prompt": "Write 3 animals.", "response": "cat dog"}',
    "train-reward": b'{"id": 2, "prompt": "Write 3 animals.", "chosen": "ant cow fox", "rejected": "cat dog"}',
}
FIRST = {
    "improve": b'{"id": 1, "prompt": "Write 3 foods.", "response": "pie jam"}',
    "train-reward": b'{"id": 1, "prompt": "Write 3 foods.", "chosen": "pie jam egg", "rejected": "pie jam"}',
}
LAST = {
    "improve": b'{"id": 3, "prompt": "Write 4 tools.", "response": "saw axe"}',
    "train-reward": b'{"id": 3, "prompt": "Write 4 tools.", "chosen": "saw axe nail pump", "rejected": "saw axe"}',
}
ADDED = {"original_response", "gap", "p_better", "iterations", "stop_reason", "finished", "generated_tokens"}


class Loaded(AssertionError):
    """The model was loaded, so the rows were accepted."""


def pit(command: str, file: Path | str, *flags: str) -> int:
    """The exit code of one command on a file; raises `Loaded` if training accepts the rows."""
    if command == "improve":
        return cli.main(["improve", "--input", str(file), "--max-iters", "0", "--max-new-tokens", "4", *flags])
    out = tempfile.mkdtemp(dir=".")
    return cli.main([command, "--data", str(file), "--model", "tiny", "--out", out, *flags])


def swap(pattern: bytes, new: bytes) -> Change:
    """A change that replaces one part of the row."""

    def change(row: bytes) -> bytes:
        changed, count = re.subn(pattern, lambda found: new, row, count=1)
        assert count, f"{pattern!r} is not in {row!r}"
        return changed

    return change


def replaced(line: bytes) -> Change:
    return lambda row: line


ID = rb'"id": 2'
PROMPT = rb'"Write 3 animals\."'
CAT_DOG = rb'"cat dog"'

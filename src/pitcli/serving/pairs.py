"""The file of preference pairs that the page collects, one row per choice; pit prepare reads it."""

import errno
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pitcli.data.conversations import written_prompt
from pitcli.data.rows import Prompt
from pitcli.data.strict_json import encode
from pitcli.errors import SettingsError
from pitcli.serving.errors import RequestError
from pitcli.serving.requests import PairRequest


class PairFile:
    """Appends rows to a file; a row that a crash cut is ended, so that it does not damage the next one."""

    def __init__(self, path: str) -> None:
        self.path = path
        if not Path(path).parent.is_dir():
            raise SettingsError(f"--collect: {Path(path).parent} is not an existing folder; create it first")
        try:
            with open(path, "a+b") as file:
                if file.tell():
                    file.seek(-1, os.SEEK_END)
                    if file.read(1) != b"\n":
                        file.write(b"\n")
        except OSError as problem:
            raise SettingsError(f"--collect: {path}: {problem.strerror}") from None

    def append(self, pair: PairRequest, prompt: Prompt) -> None:
        """Append one row, and wait until it is on disk; RequestError 507 if it cannot be written."""
        row: dict[str, Any] = {
            "prompt": written_prompt(prompt),
            "chosen": pair.chosen,
            "rejected": pair.rejected,
            **pair.model_dump(include={"kept", "model"}, exclude_none=True),
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        line = f"{encode(row)}\n".encode()
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                written = os.write(descriptor, line)
                if written < len(line):
                    os.ftruncate(descriptor, os.fstat(descriptor).st_size - written)
                    raise OSError(errno.ENOSPC, "no space left on the device")
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as problem:
            message = f"the pair was not saved: {problem.strerror}; try again once it can be written"
            raise RequestError(507, message, "not_saved") from None

"""The parent's end of a worker process: starts it, sends commands and reads answers."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

WORKER = Path(__file__).with_name("worker.py")
TAIL = 2000  # characters shown of the log of a failed worker


class WorkerFailed(Exception):
    """A worker ended before its stdin was closed; the message contains the end of its log."""


class WorkerClient:
    """A worker process and its answers."""

    def __init__(self, spec: Path, side: str, environment: dict[str, str]) -> None:
        self.side, self.log = side, spec.with_name(f"{side}.log")
        self.peak_bytes = 0
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, str(WORKER), str(spec), side],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=environment,
            )
        self._answer()

    def run(self, steps: int) -> dict[str, Any]:
        """Run this many steps; return their seconds and figures."""
        return self._send({"do": "run", "steps": steps})

    def check(self) -> dict[str, Any]:
        """Return the figures that are compared outside the runs."""
        figures: dict[str, Any] = self._send({"do": "check"})["figures"]
        return figures

    def close(self) -> None:
        """End the worker."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()

    def _send(self, command: dict[str, Any]) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            self.process.wait()
            raise WorkerFailed(f"worker {self.side} failed; see {self.log}:\n{self.log.read_text()[-TAIL:]}")
        answer: dict[str, Any] = json.loads(line)
        self.peak_bytes = answer["peak_bytes"]
        return answer

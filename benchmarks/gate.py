"""The gate before every step of a side: it starts, times and stops runs as the parent process commands."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from measuring import now, peak_bytes

Spec = dict[str, Any]
Figures = dict[str, Any]


class Finished(Exception):
    """The parent process has closed stdin: no more runs."""


class Gate:
    """Where a side waits between two runs; a run's time is from its leaving the gate to its return.

    figures: what the last steps came to. check: what is compared outside of any run.
    """

    def __init__(self, device: str) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # what a library prints must not mix with the answers
        self._device = device
        self._started = 0.0
        self._steps = self._left = 0
        self.figures: Callable[[int], Figures] = lambda steps: {}
        self.check: Callable[[], Figures] = dict

    def arrive(self) -> None:
        """To be called at the beginning of every step."""
        if self._left > 1:
            self._left -= 1
            return
        if self._left == 1:
            seconds = now(self._device) - self._started
            self._answer({"seconds": seconds, "figures": self.figures(self._steps)})
        else:
            self._answer({"ready": True})
        self._wait()

    def begin(self) -> None:
        """The run begins only now; what came before was loading."""
        self._started = now(self._device)

    def _wait(self) -> None:
        while line := sys.stdin.readline():
            command = json.loads(line)
            if command["do"] == "check":
                self._answer({"figures": self.check()})
                continue
            self._steps = self._left = command["steps"]
            self.begin()
            return
        raise Finished

    def _answer(self, answer: Figures) -> None:
        print(json.dumps({**answer, "peak_bytes": peak_bytes(self._device)}), file=self._answers, flush=True)

"""The gate before every step of a side, which starts, times and stops runs on the parent process's commands."""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

from measuring import now, peak_bytes

Spec = dict[str, Any]
Figures = dict[str, Any]


class Finished(Exception):
    """The parent process has closed stdin, so there are no more runs."""


class Gate:
    """Makes a side wait between runs; the time of a run is from leaving the gate to the next arrival.

    figures(steps): returns the results of the last steps. check: returns figures that are compared outside the runs.
    """

    def __init__(self, device: str) -> None:
        self._answers = os.fdopen(os.dup(1), "w")
        os.dup2(2, 1)  # keeps the prints of libraries out of the answers
        self._device = device
        self._started = 0.0
        self._steps = self._left = 0
        self.figures: Callable[[int], Figures] = lambda steps: {}
        self.check: Callable[[], Figures] = dict

    def arrive(self) -> None:
        """Wait for a command if the run is over; call this at the beginning of every step."""
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
        """Start the clock of the run now, because what came before was loading."""
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

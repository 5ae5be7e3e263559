"""The calibration of a run: the threshold of the stop rule that pit calibrate certified, sealed against changes."""

from pathlib import Path
from typing import Any

from pitcli import __version__
from pitcli.console import counted
from pitcli.runs.manifest import Strict
from pitcli.runs.sealed import read_sealed, write_sealed

CALIBRATION = "calibration.json"


class Calibration(Strict):
    """With this confidence, the harm rate of the process at the threshold is at most max_harm.

    harm, bound: the harm rate of the rows at the threshold, and its upper bound as if the threshold had been chosen
    before. process: the settings of pit improve that the certificate is for. adapters: digests of the improver and of
    the gap models, by role.
    """

    pit_version: str = __version__
    threshold: float
    harm: float
    bound: float
    rows: int
    max_harm: float
    confidence: float
    judge: str
    process: dict[str, Any]
    adapters: dict[str, str]
    input: str
    input_digest: str

    def certificate(self) -> str:
        return (
            f"threshold {self.threshold:g}: at most {self.max_harm:.1%} of the drafts are made worse, by {self.judge}, "
            f"with {self.confidence:.0%} confidence from {counted(self.rows, 'rows')}"
        )

    def differences(self, process: dict[str, Any], adapters: dict[str, str]) -> list[str]:
        """What is other than in the certified process, for people; empty if the certificate applies."""
        changed = [f"{name} {value}" for name, value in self.process.items() if process.get(name) != value]
        return changed + ([] if adapters == self.adapters else ["other adapters"])


def write_calibration(folder: Path, calibration: Calibration) -> None:
    write_sealed(folder / CALIBRATION, calibration)


def read_calibration(folder: Path) -> Calibration | None:
    """The calibration of a run, None if it has none; RunError if the file was changed."""
    remedy = "; run pit calibrate --overwrite"
    return read_sealed(folder / CALIBRATION, Calibration, damaged=remedy, remedy=remedy)

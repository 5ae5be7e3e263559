"""The calibration of a run: the threshold of the stop rule that pit calibrate certified, sealed against changes."""

import json
from pathlib import Path
from typing import Any

from pitcli import __version__
from pitcli.errors import RunError
from pitcli.runs.files import write_file
from pitcli.runs.manifest import Strict, seal

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
            f"with {self.confidence:.0%} confidence from {self.rows} rows"
        )

    def differences(self, process: dict[str, Any], adapters: dict[str, str]) -> list[str]:
        """What is other than in the certified process, for people; empty if the certificate applies."""
        changed = [f"{name} {value}" for name, value in self.process.items() if process.get(name) != value]
        return changed + ([] if adapters == self.adapters else ["other adapters"])


def write_calibration(folder: Path, calibration: Calibration) -> None:
    sealed = {**calibration.model_dump(mode="json"), "seal": seal(calibration)}
    write_file(folder / CALIBRATION, json.dumps(sealed, indent=1))


def read_calibration(folder: Path) -> Calibration | None:
    """The calibration of a run, None if it has none; RunError if the file was changed."""
    path = folder / CALIBRATION
    if not path.is_file():
        return None
    try:
        sealed = json.loads(path.read_bytes())
        found = sealed.pop("seal")
        calibration = Calibration.model_validate(sealed)
    # ValueError: not UTF-8, not JSON, not valid; RecursionError: endless nesting
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise RunError(f"{path}: damaged; run pit calibrate again") from error
    if found != seal(calibration):
        raise RunError(f"{path}: changed since it was written; run pit calibrate again")
    return calibration

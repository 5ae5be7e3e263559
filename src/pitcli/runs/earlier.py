"""Finished runs that a command builds on: found by its flag or in their default folders, and checked."""

import math
from pathlib import Path
from typing import NamedTuple

from pitcli.errors import RunError
from pitcli.runs.manifest import Manifest, load_manifest
from pitcli.settings.base import LoraSettings
from pitcli.settings.default_runs import DefaultRun


class EarlierRun(NamedTuple):
    """A finished run that this stage builds on."""

    folder: Path
    manifest: Manifest

    @property
    def adapter(self) -> Path:
        return self.folder / self.manifest.role

    def lora(self) -> LoraSettings:
        """The rank that the run was trained with."""
        config = self.manifest.config
        return LoraSettings(lora_rank=config["lora_rank"], lora_alpha=config["lora_alpha"])


def find_run(named: Path | None, run: DefaultRun) -> EarlierRun | None:
    """The run that a flag names, else the one in the first default folder that exists, if there is any.

    RunError if it is not finished, or not of the right kind and role.
    """
    folder = named or next((Path(folder) for folder in run.folders if Path(folder).exists()), None)
    if folder is None:
        return None
    manifest = load_manifest(folder, run.remedy)
    if manifest.kind not in run.kinds or manifest.role != run.role:
        wanted = f"a {' or '.join(run.kinds)} run of the {run.role} is wanted"
        raise RunError(f"{folder}: a {manifest.kind} run of the {manifest.role}; {wanted}; {run.remedy}")
    return EarlierRun(folder, manifest)


def gap_temperature(manifest: Manifest) -> float:
    """The calibration that a reward run fitted and an rl run handed on."""
    fitted = manifest.results.get("gap_temperature")
    if not isinstance(fitted, float) or not 0 < fitted < math.inf:
        raise RunError("the gap model's run has no gap_temperature; train it again")
    return fitted

"""Finished runs that a command builds on: found by its flag or in their default folders, and checked."""

import math
from pathlib import Path
from typing import NamedTuple

from pitcli.console import counted, warn
from pitcli.errors import RunError, SettingsError
from pitcli.runs.divergence import DIVERGED
from pitcli.runs.manifest import Manifest, load_manifest
from pitcli.runs.shipped import folder_of
from pitcli.settings.base import GapLoss
from pitcli.settings.default_runs import GAP_MODELS_RUN, GAP_RUN, DefaultRun

TEMPERATURE = "gap_temperature"
NOT_CALIBRATED = "not_calibrated"  # the result of a gap model's run that says why P(better) says little
FEW_PAIRS = 30  # held-out pairs, below which a temperature is a guess


class EarlierRun(NamedTuple):
    """A finished run that this stage builds on."""

    folder: Path
    manifest: Manifest

    @property
    def adapter(self) -> Path:
        return self.folder / self.manifest.role

    def gap_models(self) -> dict[str, Path]:
        """The adapter folders of the run's gap models, by role."""
        return {role: self.folder / role for role in self.manifest.gap_roles()}

    def gap_digests(self) -> dict[str, str]:
        """The digests of their weights, by role."""
        return {role: self.manifest.adapter_digest(role) for role in self.manifest.gap_roles()}


def find_run(named: Path | None, run: DefaultRun) -> EarlierRun | None:
    """The run that a flag names, otherwise the one in the first default folder that exists; None if there is none.

    A flag names a folder, or a run that pit ships (pit:NAME). Raises SettingsError if there is no folder of
    that name, RunError if it has no finished run, or if the run's kind or role is another.
    """
    default = next((Path(folder) for folder in run.folders if Path(folder).exists()), None)
    folder = folder_of(named) if named else default
    if folder is None:
        return None
    manifest = load_manifest(folder, run.remedy)
    if manifest.kind not in run.kinds or manifest.role != run.role:
        expected = f"expected a {' or '.join(run.kinds)} run of the {run.role}"
        raise RunError(f"{folder}: {expected}, got a {manifest.kind} run of the {manifest.role}; {run.remedy}")
    _warn_if_diverged(folder, manifest)
    return EarlierRun(folder, manifest)


def required_run(named: Path | None, run: DefaultRun) -> EarlierRun:
    """The run that find_run finds; SettingsError if there is none."""
    found = find_run(named, run)
    if found is None:
        raise SettingsError(run.missing)
    return found


def any_run(named: Path) -> EarlierRun:
    """The finished run of any kind that a flag names; see find_run for the errors."""
    folder = folder_of(named)
    return EarlierRun(folder, load_manifest(folder, "pit sft, train-reward, rl, dpo and distill make runs"))


def _warn_if_diverged(folder: Path, manifest: Manifest) -> None:
    if problem := manifest.results.get(DIVERGED):  # kept by --keep-diverged
        warn(f"{folder}: its training diverged: {problem}")


def find_gap_models(named: Path | None) -> EarlierRun:
    """The run with the gap models that --reward names, of training them or of RL; otherwise runs/reward or runs/rl.

    Raises SettingsError if there is none, RunError if it is not finished, or if it contains no gap model.
    """
    folders = [Path(folder) for folder in GAP_MODELS_RUN.folders]
    folder = folder_of(named) if named else next((folder for folder in folders if folder.exists()), None)
    if folder is None:
        raise SettingsError(GAP_MODELS_RUN.missing)
    manifest = load_manifest(folder, GAP_MODELS_RUN.remedy)
    if not manifest.gap_roles():
        raise RunError(f"{folder}: expected a run with a gap model, got a {manifest.kind} run; {GAP_MODELS_RUN.remedy}")
    _warn_if_diverged(folder, manifest)
    return EarlierRun(folder, manifest)


def find_reward(named: Path | None) -> EarlierRun | None:
    """The run with gap models that --reward names, otherwise runs/reward; None if there is none."""
    return find_gap_models(named) if named else find_run(None, GAP_RUN)


def gap_loss_of(manifest: Manifest) -> GapLoss:
    """The loss that the gap model of a run was trained with, which decides what it reads; an RL run passes it on."""
    return GapLoss(str(manifest.config.get("gap_loss") or manifest.results.get("gap_loss")))


def gap_temperatures(manifest: Manifest) -> dict[str, float]:
    """T of each gap model by role: the calibration that a reward run fitted, and that an RL run passes on.

    In an ensemble each member has its own T, and the mean of their gaps / T has another one.
    """
    temperature, roles = gap_temperature(manifest), manifest.gap_roles()
    if len(roles) == 1:
        return {roles[0]: temperature}
    return {
        role: temperature * _temperature(manifest, f"{TEMPERATURE}_{number}") for number, role in enumerate(roles, 1)
    }


def gap_temperature(manifest: Manifest) -> float:
    """T of the gap model, or of the ensemble in units of its members' T."""
    return _temperature(manifest, TEMPERATURE)


def calibration_problem(pairs: int) -> str | None:
    """What is wrong with a temperature that was fitted on this many held-out pairs; None if they are enough."""
    return None if pairs >= FEW_PAIRS else f"its temperature was fitted on {counted(pairs, 'held-out pairs')}"


def warn_if_not_calibrated(run: EarlierRun) -> None:
    if problem := run.manifest.results.get(NOT_CALIBRATED):
        warn(f"{run.folder}: P(better) is not calibrated: {problem}; train the gap model on more pairs")


def gap_results(manifest: Manifest) -> dict[str, float | int | str | None]:
    """What later commands read of a reward run, for the results of the RL run that it rewards."""
    kept = (TEMPERATURE, NOT_CALIBRATED)
    temperatures = {name: value for name, value in manifest.results.items() if name.startswith(kept)}
    return {**temperatures, "gap_loss": gap_loss_of(manifest).value}


def _temperature(manifest: Manifest, name: str) -> float:
    fitted = manifest.results.get(name)
    if not isinstance(fitted, float) or not 0 < fitted < math.inf:
        raise RunError(f"the gap model's run has no {name}; train the gap model again")
    return fitted

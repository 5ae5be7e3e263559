"""pit verify: checks that a run is what was saved, down to the scores of its adapters."""

from pathlib import Path

from pitcli.console import counted, note, table
from pitcli.engine.models.adapters import load_role
from pitcli.engine.models.forward import probe
from pitcli.engine.models.opening import open_base
from pitcli.engine.models.precision import DTYPES
from pitcli.engine.models.tree_support import TREE_TOLERANCE
from pitcli.errors import RunError
from pitcli.runs.calibration import read_calibration
from pitcli.runs.earlier import any_run
from pitcli.runs.files import verify_dir
from pitcli.runs.folder import CHECKPOINTS
from pitcli.runs.manifest import Manifest
from pitcli.settings.base import ModelSettings, Precision
from pitcli.settings.tools import VerifyConfig


def run(config: VerifyConfig) -> None:
    """Check digests, manifest, calibration, base and checkpoints, then load each adapter and compare its probe scores.

    Raise RunError with all damaged checkpoints, or all adapters whose scores differ, or the first other problem.
    """
    run = any_run(config.run)
    folder, manifest = run
    checkpoints = verified_checkpoints(folder)
    read_calibration(folder)
    base = open_base(ModelSettings(device=config.device), [run])
    model = base.load()
    differences = []
    for role in manifest.probes:
        load_role(model, role, folder / role)
        differences.append((role, relative_difference(manifest, role, probe(model, role))))
    most = max(TREE_TOLERANCE[model.base.dtype], TREE_TOLERANCE[DTYPES[Precision(manifest.base.dtype)]])
    if wrong := [
        f"{folder / role}: expected scores within {most:.1e} of the saved ones (relative), got {found:.1e}; "
        "its files are intact, so compare the library versions in its manifest with those installed"
        for role, found in differences
        if found > most
    ]:
        raise RunError(wrong)
    columns = ["adapter", "largest relative difference from the saved scores"]
    table(f"{config.run}: {manifest.kind} run on {manifest.base.name}", columns, differences)
    unchanged = f"{counted(len(manifest.files), 'files')} and {counted(checkpoints, 'checkpoints')}"
    note(f"{unchanged} are unchanged since they were saved")


def verified_checkpoints(folder: Path) -> int:
    """Return the number of checkpoints; raise RunError with those that are damaged."""
    problems = []
    checkpoints = sorted((folder / CHECKPOINTS).glob("step-*"))
    for checkpoint in checkpoints:
        try:
            verify_dir(checkpoint)
        except RunError as error:
            problems += error.problems
    if problems:
        raise RunError(problems)
    return len(checkpoints)


def relative_difference(manifest: Manifest, role: str, probe: list[float]) -> float:
    """Return the largest difference from the scores at saving time, relative to the largest saved score."""
    saved = manifest.probes[role]
    if len(saved) != len(probe):
        found = f"expected {len(probe)} probe scores in the manifest, got {len(saved)}"
        raise RunError(f"{role}: {found}; train the run again")
    return max(abs(a - b) for a, b in zip(saved, probe, strict=True)) / (max(map(abs, saved)) or 1.0)

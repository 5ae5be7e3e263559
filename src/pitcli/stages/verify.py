"""pit verify: is a run what was saved, down to what its adapters say?"""

from pathlib import Path

from pitcli.console import note, table
from pitcli.engine.models.adapters import load_role
from pitcli.engine.models.forward import probe
from pitcli.engine.models.opening import open_base
from pitcli.engine.models.tree_support import TREE_TOLERANCE
from pitcli.errors import RunError
from pitcli.runs.earlier import EarlierRun
from pitcli.runs.files import verify_dir
from pitcli.runs.folder import CHECKPOINTS
from pitcli.runs.manifest import AdapterRole, Manifest, load_manifest
from pitcli.settings.base import ModelSettings
from pitcli.settings.tools import VerifyConfig


def run(config: VerifyConfig) -> None:
    """Check digests, manifest, base and checkpoints, then load each adapter and compare its probe.

    RunError lists every checkpoint that is damaged, or the first other thing that is not as it was saved.
    """
    manifest = load_manifest(config.run, "pit sft, pit train-reward and pit rl make runs")
    checkpoints = verified_checkpoints(config.run)
    base = open_base(ModelSettings(device=config.device), [EarlierRun(config.run, manifest)])
    model = base.load()
    rows = []
    for role in manifest.probes:
        load_role(model, role, config.run / role)
        rows.append((role, difference(manifest, role, probe(model, role))))
    tolerance = TREE_TOLERANCE[model.base.dtype]
    if wrong := [
        f"{config.run / role}: scores off by {off:.1e} from what was saved" for role, off in rows if off > tolerance
    ]:
        raise RunError(wrong)
    table(f"{config.run}: {manifest.kind}", ["adapter", "greatest relative difference from the saved score"], rows)
    note(f"{len(manifest.files)} files and {checkpoints} checkpoints are as they were saved, on {manifest.base.name}")


def verified_checkpoints(folder: Path) -> int:
    """How many checkpoints there are; RunError lists those that are damaged."""
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


def difference(manifest: Manifest, role: AdapterRole, probe: list[float]) -> float:
    """The greatest difference from what the adapter said when it was saved, relative to its greatest value."""
    saved = manifest.probes[role]
    if len(saved) != len(probe):
        raise RunError(f"the manifest holds {len(saved)} values for {role}, and {len(probe)} were expected")
    return max(abs(a - b) for a, b in zip(saved, probe, strict=True)) / (max(map(abs, saved)) or 1.0)

"""Trained runs that pit ships: pit:NAME instead of a run folder."""

from importlib.resources import files
from pathlib import Path

from pitcli.errors import SettingsError

SHIPPED = "pit:"


def folder_of(named: Path) -> Path:
    """The folder of a run; of pit:NAME the one in the package. SettingsError if pit ships no run of that name."""
    name = str(named)
    if not name.startswith(SHIPPED):
        return named
    folder = Path(str(files("pitcli") / "assets" / "runs"))
    names = sorted(f"{SHIPPED}{run.name}" for run in folder.glob("*/"))
    if name not in names:
        raise SettingsError(f"expected a run folder or {' or '.join(names)}, got {name}")
    return folder / name.removeprefix(SHIPPED)

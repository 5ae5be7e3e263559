"""Experiment trackers, through accelerate: they get the metrics of metrics.jsonl, each step once."""

import json
import os
import secrets
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pitcli.errors import RunError, SettingsError
from pitcli.processes.ranks import is_rank_0
from pitcli.runs.files import write_file
from pitcli.runs.folder import TRACKERS, RunFolder
from pitcli.settings.base import Tracker

if TYPE_CHECKING:
    from accelerate import Accelerator

PROJECT = "pit"
STATE = "known.json"  # the id of the run, and the trackers that already have it
ALTERNATIVES = {Tracker.tensorboard: "tensorboardx"}  # a package that writes the same files


def refuse_missing(trackers: Sequence[Tracker]) -> None:
    """Raises SettingsError, with a pip command, for every tracker that is not installed."""
    # by distribution: wandb creates folders named wandb, which can be imported as packages
    packages = {tracker: {tracker.value, ALTERNATIVES.get(tracker, tracker.value)} for tracker in trackers}
    if missing := [tracker for tracker, names in packages.items() if not any(map(_is_installed, names))]:
        raise SettingsError([f"--track: {tracker} is not installed; pip install {tracker}" for tracker in missing])


def _is_installed(package: str) -> bool:
    try:
        return bool(version(package))
    except PackageNotFoundError:
        return False


@contextmanager
def tracking(
    trackers: Sequence[Tracker], device: str, run: RunFolder, rows: Sequence[dict[str, float]], sent: int
) -> Iterator[Callable[[int, dict[str, float]], None]]:
    """Starts the trackers; yields log(step, values). device: the kind that the training is on.

    rows: the metrics of earlier steps, for a tracker that does not have the run yet. sent: the last step that was
    logged before; a resumed run repeats some of those steps, but a tracker gets each step once.
    """
    if not trackers or not is_rank_0():
        yield lambda step, values: None
        return
    from accelerate import Accelerator

    folder = run.path / TRACKERS
    folder.mkdir(exist_ok=True)
    names = [tracker.value for tracker in trackers]
    accelerator = Accelerator(mixed_precision="no", cpu=device == "cpu", log_with=names, project_dir=folder)
    known = _read_state(folder / STATE)
    with redirect_stdout(sys.stderr):  # trackers print a greeting on stdout
        try:
            accelerator.init_trackers(PROJECT, init_kwargs=_settings(run.path.name, known["id"], folder))
        except _failures() as error:
            raise RunError(f"--track: {' '.join(str(error).split())}") from error
        sent_steps = {
            tracker.name: sent if tracker.name in known["trackers"] else 0 for tracker in accelerator.trackers
        }
        for tracker in accelerator.trackers:
            if tracker.name not in known["trackers"]:
                tracker.store_init_configuration(_flat(run.manifest.config))
                for row in rows:
                    tracker.log({name: row[name] for name in row if name != "step"}, step=int(row["step"]))
    known["trackers"] = sorted({*known["trackers"], *sent_steps})
    write_file(folder / STATE, json.dumps(known))

    def log(step: int, values: dict[str, float]) -> None:
        for tracker in accelerator.trackers:
            if step > sent_steps[tracker.name]:
                tracker.log(values, step=step)

    try:
        yield log
    finally:
        _finish(accelerator)


def _finish(accelerator: "Accelerator") -> None:
    with redirect_stdout(sys.stderr):
        for tracker in accelerator.trackers:  # end_training would also end the process group, on this rank alone
            tracker.finish()
            if tracker.name == Tracker.trackio:
                import trackio

                trackio.finish()  # accelerate only ends the run; otherwise trackio prints on stdout at exit


def _read_state(path: Path) -> dict[str, Any]:
    try:
        known = json.loads(path.read_bytes())
        return {"id": str(known["id"]), "trackers": [str(name) for name in known["trackers"]]}
    except FileNotFoundError:
        return {"id": secrets.token_hex(4), "trackers": []}
    except (ValueError, KeyError, TypeError) as error:
        raise RunError(f"{path}: damaged; delete {path.parent} to start the trackers from scratch") from error


def _settings(name: str, id_: str, folder: Path) -> dict[str, dict[str, Any]]:
    """The start-up settings of each tracker: its files go to the run folder, and it continues a resumed run."""
    os.environ.setdefault("TRACKIO_DIR", str((folder / "trackio").resolve()))  # trackio has no setting for its folder
    return {
        # tensorboard names its files by the second, and overwrites a file of the same name
        "tensorboard": {"filename_suffix": f".{secrets.token_hex(4)}"},
        "wandb": {"name": name, "id": id_, "resume": "allow", "dir": str(folder), "settings": {"console": "off"}},
        "trackio": {"name": f"{name}-{id_}", "resume": "allow"},
    }


def _failures() -> tuple[type[Exception], ...]:
    """The errors of a tracker that is not set up: no account, no network, a folder that is not writable."""
    wandb = sys.modules.get("wandb")
    return (OSError, ValueError, ImportError, *([wandb.Error] if wandb else []))


def _flat(config: Mapping[str, Any]) -> dict[str, bool | int | float | str]:
    """Settings as hyperparameters: trackers accept neither lists nor None."""
    known = {name: value for name, value in config.items() if value is not None}
    return {name: v if isinstance(v, bool | int | float | str) else json.dumps(v) for name, v in known.items()}

"""Run folders: atomic and verified checkpoints, metrics, the lock, and what a run may overwrite."""

import fcntl
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TextIO, TypeVar, cast

from pitcli.console import warn
from pitcli.errors import NothingToDo, RunError, SettingsError, naming
from pitcli.processes.collectives import on_rank_0
from pitcli.processes.ranks import is_rank_0
from pitcli.runs.calibration import CALIBRATION
from pitcli.runs.files import folder_digests, publish_dir, remove_dir, sweep, verify_dir, write_file
from pitcli.runs.manifest import GAP_ROLE, MANIFEST, Manifest, read_manifest, write_manifest
from pitcli.runs.metrics import METRICS
from pitcli.settings.training import CONFIG

LOCK = ".lock"
CHECKPOINTS = "checkpoints"
TRACKERS = "trackers"
REPORT = "report.html"
KEPT_CHECKPOINTS = 2


Method = TypeVar("Method", bound=Callable[..., None])


def _on_rank_0(method: Method) -> Method:
    """Makes a method a no-op on every rank but 0: the others read what rank 0 writes."""

    @wraps(method)
    def guarded(*arguments: Any, **keywords: Any) -> None:
        if is_rank_0():
            method(*arguments, **keywords)

    return cast(Method, guarded)


class RunFolder:
    """A folder that one training run owns while it is open; only rank 0 writes to it."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @_on_rank_0
    def keep_settings(self, text: str) -> None:
        """Writes the settings file that --config reads back."""
        write_file(self.path / CONFIG, text)

    @_on_rank_0
    def log(self, step: int, values: dict[str, float]) -> None:
        """Appends one line of metrics."""
        path = self.path / METRICS
        with naming(path), path.open("a") as stream:
            stream.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")

    @_on_rank_0
    def cut_metrics(self, last_step: int) -> None:
        """Removes the lines of steps that a resumed run repeats."""
        path = self.path / METRICS
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= last_step]
        write_file(path, "".join(kept))

    @_on_rank_0
    def save_checkpoint(self, step: int, write: Callable[[Path], None], keep: int | None = None) -> None:
        """Publishes checkpoints/step-N; keeps only the newest few checkpoints and that of step `keep`."""
        publish_dir(self.checkpoint(step), write)
        self.prune(keep)

    @_on_rank_0
    def prune(self, *keep: int | None) -> None:
        """Deletes all checkpoints except the newest few and those of the steps `keep`."""
        for folder in self._checkpoints()[KEPT_CHECKPOINTS:]:
            if _step(folder) not in keep:
                remove_dir(folder)

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / CHECKPOINTS).glob("step-*"), key=_step, reverse=True)

    def checkpoint(self, step: int) -> Path:
        return self.path / CHECKPOINTS / f"step-{step:06d}"

    def latest_checkpoint(self) -> Path | None:
        """The newest checkpoint whose digests verify; damaged ones are reported on stderr and skipped."""
        for folder in self._checkpoints():
            try:
                verify_dir(folder)
            except RunError as error:
                warn(f"{error}; falling back to an older checkpoint")
                continue
            return folder
        return None

    @_on_rank_0
    def publish(self, role: str, write: Callable[[Path], None]) -> None:
        """Publishes the final folder of an adapter."""
        publish_dir(self.path / role, write)

    @_on_rank_0
    def complete(self, results: dict[str, Any], roles: Sequence[str], probes: dict[str, list[float]]) -> None:
        """Writes the manifest that marks the run complete, with the digests of the published files."""
        files = {
            f"{role}/{file}": digest for role in roles for file, digest in folder_digests(self.path / role).items()
        }
        done = {"complete": True, "results": results, "files": files, "probes": probes}
        self.manifest = self.manifest.model_copy(update=done)
        write_manifest(self.path, self.manifest)

    @_on_rank_0
    def keep_unfinished(self, results: dict[str, Any]) -> None:
        """Writes results to the manifest of a run that is not to be used, such as why it diverged."""
        write_manifest(self.path, self.manifest.model_copy(update={"results": results}))


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


@contextmanager
def open_run(path: Path, manifest: Manifest, resume: bool, overwrite: bool) -> Iterator[RunFolder]:
    """Locks a run folder, checks that it is empty or contains the run to resume, and writes the manifest.

    Rank 0 does so for all processes. Raises RunError on a rank that has other data or settings than rank 0.
    """
    with ExitStack() as stack:

        def lock_and_begin() -> Manifest:
            stack.enter_context(_locked(path, manifest, resume, overwrite))
            return manifest

        if on_rank_0(lock_and_begin) != manifest:
            remedy = "give all processes the same files and flags"
            raise RunError(f"{path}: this process has other data or settings than process 0; {remedy}")
        yield RunFolder(path, manifest)


@contextmanager
def _locked(path: Path, manifest: Manifest, resume: bool, overwrite: bool) -> Iterator[None]:
    path.mkdir(parents=True, exist_ok=True)
    with naming(path), (path / LOCK).open("a+") as lock:
        _acquire(lock, path)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        sweep(path)
        sweep(path / CHECKPOINTS)
        if not _resumes(path, manifest, resume):
            _clear(path, overwrite)
            write_manifest(path, manifest)
        yield


def check_out(path: Path, manifest: Manifest, resume: bool, overwrite: bool) -> None:
    """Raises what open_run would raise, without writing anything."""
    refuse_busy(path)
    if not _resumes(path, manifest, resume):
        refuse_used(path, overwrite)


def refuse_used(path: Path, overwrite: bool) -> None:
    """Raises SettingsError if a new run cannot be in the folder, without writing anything."""
    if path.is_dir():
        _entries_to_delete(path, overwrite)


def _resumes(path: Path, manifest: Manifest, resume: bool) -> bool:
    """Whether there is a run to resume; raises SettingsError if it is another run, NothingToDo if it is finished."""
    started = read_manifest(path) if resume else None
    if started:
        _refuse_changes(path, started, manifest)
        if started.complete:
            raise NothingToDo(f"the run in {path} is finished; use --overwrite to train it again from scratch")
    return started is not None


def refuse_busy(path: Path) -> None:
    """Raises RunError if another process uses the run folder: an early check, before open_run takes the lock."""
    if (path / LOCK).exists():
        with (path / LOCK).open("a+") as lock:
            _acquire(lock, path)


def is_busy(path: Path) -> bool:
    """Whether a process uses the run folder; does not take the exclusive lock to find out."""
    if not (path / LOCK).is_file():
        return False
    with (path / LOCK).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def is_finished(path: Path) -> bool:
    """Whether a folder contains a complete run."""
    manifest = read_manifest(path)
    return manifest is not None and manifest.complete


def _acquire(lock: TextIO, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        raise RunError(f"{path}: in use by process {lock.read().strip() or '?'}") from error


def _clear(path: Path, overwrite: bool) -> None:
    for entry in _entries_to_delete(path, overwrite):
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _entries_to_delete(path: Path, overwrite: bool) -> list[Path]:
    """What --overwrite deletes; raises SettingsError if it was not given, or if a file does not belong to a run."""
    present = [entry for entry in path.iterdir() if not entry.name.startswith(".")]
    if present and not overwrite:
        raise SettingsError(
            f"--out: {path} is not empty; use --resume to continue it, --overwrite to replace it, or another folder"
        )
    ours = {MANIFEST, METRICS, CONFIG, CHECKPOINTS, TRACKERS, REPORT, CALIBRATION, "policy", "improver"}
    names = [entry.name for entry in present if not re.fullmatch(GAP_ROLE, entry.name)]
    if foreign := [name for name in names if name not in ours]:
        listed = ", ".join(sorted(foreign))
        raise SettingsError(f"--overwrite: {path} contains files that do not belong to a run: {listed}; move them away")
    return present


def _refuse_changes(path: Path, started: Manifest, now: Manifest) -> None:
    """Raises SettingsError, which lists every difference, if this is not the run that was started."""
    before, after = (m.model_dump(include={"kind", "role", "base", "data", "inputs", "config"}) for m in (started, now))
    for manifest, values in ((started, before), (now, after)):
        values.update(values.pop("config"))
        values["base"].pop("dtype", None)
        data = manifest.data  # its rows, however they are read
        values["data"] = f"{data.path} ({data.rows} rows, digest {data.digest[:16]})"
        values["dtype"] = manifest.base.dtype  # a line of its own: --dtype remedies it
    if before["data"] == after["data"]:  # then what would happen to longer rows does not matter
        before["long_rows"] = after["long_rows"] = None
    changed = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    if changed:
        raise SettingsError(
            [f"--resume: {key} was {before.get(key)!r} in {path} and is now {after.get(key)!r}" for key in changed]
        )

"""Run folders: atomic and verified checkpoints, metrics, the lock, and what a run may write over."""

import fcntl
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, TextIO, TypeVar, cast

from pitcli.console import warn
from pitcli.errors import NothingToDo, RunError, SettingsError
from pitcli.processes.collectives import on_rank_0
from pitcli.processes.ranks import is_rank_0
from pitcli.runs.files import folder_digests, publish_dir, remove_dir, sweep, verify_dir, write_file
from pitcli.runs.manifest import MANIFEST, Manifest, read_manifest, write_manifest
from pitcli.runs.metrics import METRICS
from pitcli.settings.training import CONFIG

LOCK = ".lock"
CHECKPOINTS = "checkpoints"
TRACKERS = "trackers"
REPORT = "report.html"
KEPT_CHECKPOINTS = 2


Writing = TypeVar("Writing", bound=Callable[..., None])


def _on_rank_0(method: Writing) -> Writing:
    """On every other rank a no-op: those read what rank 0 writes."""

    @wraps(method)
    def guarded(*arguments: Any, **more: Any) -> None:
        if is_rank_0():
            method(*arguments, **more)

    return cast(Writing, guarded)


class RunFolder:
    """A folder that one training run owns while it is open; of several ranks only rank 0 writes."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    @_on_rank_0
    def keep_settings(self, text: str) -> None:
        """Write what --config reads back."""
        write_file(self.path / CONFIG, text)

    @_on_rank_0
    def log(self, step: int, values: dict[str, float]) -> None:
        """Append one line of metrics."""
        with (self.path / METRICS).open("a") as stream:
            stream.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")

    @_on_rank_0
    def cut_metrics(self, last_step: int) -> None:
        """Drop the lines of steps that a resumed run takes again."""
        path = self.path / METRICS
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= last_step]
        write_file(path, "".join(kept))

    @_on_rank_0
    def save_checkpoint(self, step: int, write: Callable[[Path], None], keep: int | None = None) -> None:
        """Publish checkpoints/step-N; of the older ones the newest few stay, and the step `keep`."""
        publish_dir(self.checkpoint(step), write)
        self.prune(keep)

    @_on_rank_0
    def prune(self, *keep: int | None) -> None:
        """Delete the checkpoints but the newest few and the steps `keep`."""
        for folder in self._checkpoints()[KEPT_CHECKPOINTS:]:
            if _step(folder) not in keep:
                remove_dir(folder)

    def _checkpoints(self) -> list[Path]:
        return sorted((self.path / CHECKPOINTS).glob("step-*"), key=_step, reverse=True)

    def checkpoint(self, step: int) -> Path:
        return self.path / CHECKPOINTS / f"step-{step:06d}"

    def latest_checkpoint(self) -> Path | None:
        """The newest checkpoint whose digests verify; damaged ones are named on stderr and passed over."""
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
        """The final folder of an adapter."""
        publish_dir(self.path / role, write)

    @_on_rank_0
    def complete(self, results: dict[str, Any], roles: Sequence[str], probes: dict[str, list[float]]) -> None:
        """Write the manifest that makes the run complete, with the digests of what was published."""
        files = {
            f"{role}/{file}": digest for role in roles for file, digest in folder_digests(self.path / role).items()
        }
        done = {"complete": True, "results": results, "files": files, "probes": probes}
        self.manifest = self.manifest.model_copy(update=done)
        write_manifest(self.path, self.manifest)


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


@contextmanager
def open_run(path: Path, manifest: Manifest, resume: bool, overwrite: bool) -> Iterator[RunFolder]:
    """Lock a run folder, check that it is free or is the run to go on with, and write what the run will be.

    Of several processes the first does that for all. RunError where one of them would train something else.
    """
    with ExitStack() as stack:

        def own() -> Manifest:
            stack.enter_context(_owned(path, manifest, resume, overwrite))
            return manifest

        if on_rank_0(own) != manifest:
            raise RunError(f"{path}: this process has other data or settings than the first; it must see the same")
        yield RunFolder(path, manifest)


@contextmanager
def _owned(path: Path, manifest: Manifest, resume: bool, overwrite: bool) -> Iterator[None]:
    path.mkdir(parents=True, exist_ok=True)
    with (path / LOCK).open("a+") as lock:
        _take(lock, path)
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        sweep(path)
        sweep(path / CHECKPOINTS)
        if not _goes_on(path, manifest, resume):
            _clear(path, overwrite)
            write_manifest(path, manifest)
        yield


def check_out(path: Path, manifest: Manifest, resume: bool, overwrite: bool) -> None:
    """What open_run would refuse, without writing anything."""
    refuse_busy(path)
    if not _goes_on(path, manifest, resume) and path.is_dir():
        _to_clear(path, overwrite)


def _goes_on(path: Path, manifest: Manifest, resume: bool) -> bool:
    """Whether there is a run to go on with; it must be the same one, and NothingToDo where it is finished."""
    started = read_manifest(path) if resume else None
    if started:
        _refuse_changes(path, started, manifest)
        if started.complete:
            raise NothingToDo(f"the run in {path} is finished; --overwrite would start it anew")
    return started is not None


def refuse_busy(path: Path) -> None:
    """RunError where another process has the run folder; open_run makes sure of it, this says so at once."""
    if (path / LOCK).exists():
        with (path / LOCK).open("a+") as lock:
            _take(lock, path)


def is_busy(path: Path) -> bool:
    """Whether a process has the run folder; asked without taking it."""
    if not (path / LOCK).is_file():
        return False
    with (path / LOCK).open() as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def is_finished(path: Path) -> bool:
    """Whether a complete run is in a folder."""
    manifest = read_manifest(path)
    return manifest is not None and manifest.complete


def _take(lock: TextIO, path: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        lock.seek(0)
        raise RunError(f"{path}: in use by process {lock.read().strip() or '?'}") from error


def _clear(path: Path, overwrite: bool) -> None:
    for entry in _to_clear(path, overwrite):
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


def _to_clear(path: Path, overwrite: bool) -> list[Path]:
    """What --overwrite deletes; SettingsError where it was not given, or would delete what is not of a run."""
    present = [entry for entry in path.iterdir() if entry.name != LOCK]
    if present and not overwrite:
        raise SettingsError(
            f"--out: {path} is not empty; --resume goes on with it, --overwrite replaces it, or name another"
        )
    ours = {MANIFEST, METRICS, CONFIG, CHECKPOINTS, TRACKERS, REPORT, "policy", "improver", "gap"}
    if foreign := [entry.name for entry in present if entry.name not in ours and not entry.name.startswith(".")]:
        raise SettingsError(f"--overwrite: {path} holds files that are not of a run: {', '.join(sorted(foreign))}")
    return present


def _refuse_changes(path: Path, started: Manifest, now: Manifest) -> None:
    """A resumed run must be the run that was started; every difference is listed."""
    before, after = (m.model_dump(include={"kind", "role", "base", "data", "inputs", "config"}) for m in (started, now))
    before.update(before.pop("config"))
    after.update(after.pop("config"))
    changed = [key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)]
    if changed:
        raise SettingsError(
            [f"--resume: {key} was {before.get(key)!r} in {path} and is now {after.get(key)!r}" for key in changed]
        )

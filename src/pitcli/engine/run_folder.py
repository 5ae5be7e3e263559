"""Run folders: manifest, atomic and verified checkpoints, metrics, lock."""

import fcntl
import hashlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from pitcli import __version__
from pitcli.config import Kind
from pitcli.console import warn
from pitcli.errors import RunError, SettingsError

MANIFEST = "manifest.json"
METRICS = "metrics.jsonl"
CONFIG = "config.yaml"
LOCK = ".lock"
CHECKPOINTS = "checkpoints"
DIGESTS = "digests.json"
KEPT_CHECKPOINTS = 2


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class BaseIdentity(_Strict):
    """The base model: what the user called it, and what its files and its template hash to."""

    name: str
    digest: str
    template: str
    load_in_4bit: bool


class DataIdentity(_Strict):
    """The training data: where it was and what the rows used hash to."""

    path: str
    digest: str
    rows: int


class Manifest(_Strict):
    """What a run is; `files` and `results` are there once it is complete."""

    kind: Kind
    role: Literal["policy", "improver", "gap"]
    pit_version: str = __version__
    versions: dict[str, str] = {}
    config: dict[str, Any]
    base: BaseIdentity
    data: DataIdentity
    inputs: dict[str, str] = {}  # the adapters that the run started from: role -> digest
    complete: bool = False
    results: dict[str, float | int | str | None] = {}
    files: dict[str, str] = {}


def library_versions() -> dict[str, str]:
    names = ("torch", "transformers", "peft", "bitsandbytes", "accelerate")
    return {"python": platform.python_version(), **{name: version(name) for name in names}}


def file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder but its own list of digests, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / DIGESTS)
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_dir(target: Path, write: Callable[[Path], None]) -> None:
    """Write a folder so that a kill at any moment leaves the old one, the new one, or none; never a part.

    `write` fills a folder beside the target; it is digested, synced and renamed into place.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".tmp-{os.getpid()}-{target.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    write(temporary)
    (temporary / DIGESTS).write_text(json.dumps(folder_digests(temporary), indent=1))
    for path in temporary.rglob("*"):
        _fsync(path)
    _fsync(temporary)
    remove_dir(target)
    temporary.rename(target)
    _fsync(target.parent)


def remove_dir(target: Path) -> None:
    """Delete a folder by renaming it first, so that no reader ever meets half of it."""
    if target.exists():
        trash = target.parent / f".trash-{os.getpid()}-{target.name}"
        target.rename(trash)
        shutil.rmtree(trash)


def write_file(target: Path, text: str) -> None:
    """Replace a file atomically."""
    temporary = target.with_name(f".tmp-{os.getpid()}-{target.name}")
    temporary.write_text(text)
    _fsync(temporary)
    temporary.replace(target)
    _fsync(target.parent)


def verify_dir(folder: Path) -> None:
    """RunError that names the file where a published folder is not what was written."""
    try:
        expected = json.loads((folder / DIGESTS).read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{folder / DIGESTS}: missing or unreadable; this folder was not fully written") from error
    found = folder_digests(folder)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            state = "missing" if name not in found else "unexpected" if name not in expected else "changed"
            raise RunError(f"{folder / name}: {state} since it was written")


def load_manifest(folder: Path, remedy: str) -> Manifest:
    """The manifest of a finished run, its files verified; RunError says what to do where there is none."""
    path = folder / MANIFEST
    if not path.is_file():
        raise RunError(f"{folder}: no finished run there; {remedy}")
    try:
        manifest = Manifest.model_validate_json(path.read_text())
    except ValidationError as error:
        raise RunError(f"{path}: not a manifest of this version of pit ({error.error_count()} problems)") from error
    if not manifest.complete:
        raise RunError(f"{folder}: the run there is not finished; go on with the same command and --resume")
    for name, digest in manifest.files.items():
        if not (folder / name).is_file() or file_digest(folder / name) != digest:
            raise RunError(f"{folder / name}: missing or changed since it was written")
    return manifest


class RunFolder:
    """A folder that one training run owns while it is open."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.manifest = manifest

    def log(self, step: int, values: dict[str, float]) -> None:
        """Append one line of metrics."""
        with (self.path / METRICS).open("a") as stream:
            stream.write(json.dumps({"step": step, **values}, allow_nan=False) + "\n")

    def cut_metrics(self, last_step: int) -> None:
        """Drop the lines of steps that a resumed run takes again."""
        path = self.path / METRICS
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= last_step]
        write_file(path, "".join(kept))

    def save_checkpoint(self, step: int, write: Callable[[Path], None], keep: int | None = None) -> None:
        """Publish checkpoints/step-N; of the older ones the newest few stay, and the step `keep`."""
        publish_dir(self.path / CHECKPOINTS / f"step-{step:06d}", write)
        for folder in self._checkpoints()[KEPT_CHECKPOINTS:]:
            if _step(folder) != keep:
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

    def finish(self, results: dict[str, Any], writers: dict[str, Callable[[Path], None]]) -> None:
        """Publish the final folders, then the manifest that makes the run complete."""
        for name, write in writers.items():
            publish_dir(self.path / name, write)
        files = {
            f"{name}/{file}": digest for name in writers for file, digest in folder_digests(self.path / name).items()
        }
        self.manifest = self.manifest.model_copy(update={"complete": True, "results": results, "files": files})
        write_file(self.path / MANIFEST, self.manifest.model_dump_json(indent=1))


def _step(folder: Path) -> int:
    return int(folder.name.removeprefix("step-"))


@contextmanager
def open_run(path: Path, manifest: Manifest, resume: bool, overwrite: bool) -> Iterator[RunFolder]:
    """Lock a run folder, check that it is free or is the run to go on with, and write what the run will be."""
    path.mkdir(parents=True, exist_ok=True)
    with (path / LOCK).open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            lock.seek(0)
            raise RunError(f"{path}: in use by process {lock.read().strip() or '?'}") from error
        lock.truncate(0)
        lock.write(str(os.getpid()))
        lock.flush()
        started = _started_manifest(path)
        if resume and started:
            _refuse_changes(path, started, manifest)
            if started.complete:
                raise SettingsError(f"--resume: the run in {path} is finished")
        else:
            _clear(path, overwrite)
            write_file(path / MANIFEST, manifest.model_dump_json(indent=1))
        yield RunFolder(path, manifest)


def _started_manifest(path: Path) -> Manifest | None:
    if not (path / MANIFEST).exists():
        return None
    try:
        return Manifest.model_validate_json((path / MANIFEST).read_text())
    except ValidationError as error:
        raise RunError(f"{path / MANIFEST}: not a manifest of this version of pit") from error


def _clear(path: Path, overwrite: bool) -> None:
    present = [entry for entry in path.iterdir() if entry.name != LOCK]
    if present and not overwrite:
        raise SettingsError(
            f"--out: {path} is not empty; --resume goes on with it, --overwrite replaces it, or name another"
        )
    ours = {MANIFEST, METRICS, CONFIG, CHECKPOINTS, "policy", "improver", "gap"}
    if foreign := [entry.name for entry in present if entry.name not in ours and not entry.name.startswith(".")]:
        raise SettingsError(f"--overwrite: {path} holds files that are not of a run: {', '.join(sorted(foreign))}")
    for entry in present:
        shutil.rmtree(entry) if entry.is_dir() else entry.unlink()


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

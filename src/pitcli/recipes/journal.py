"""The records of pit run in a folder: pipeline.json, with digests of everything that its stages read and wrote."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from pitcli.engine.models.base_names import source_of
from pitcli.engine.models.bases import HUB_FILES, base_digest, resolve_base
from pitcli.errors import RunError
from pitcli.recipes.paths import PlannedStage
from pitcli.runs.calibration import CALIBRATION
from pitcli.runs.files import file_digest, folder_digests, write_file
from pitcli.runs.growing_rows import manifest_of
from pitcli.runs.manifest import MANIFEST, load_manifest

STATE = "pipeline.json"
LOCK = ".pipeline.lock"

Digests = dict[str, str | None]  # by path, or for bases by name


class Record(BaseModel):
    """A stage as it was run. replaced: digest of the output that it replaces; outputs: None until it has finished.

    asked_again: whether a second try at the rows that had failed has changed nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    command: str
    settings: dict[str, Any]
    pit_version: str
    inputs: Digests
    writes: tuple[str, ...]
    replaced: str | None
    outputs: Digests | None = None
    code: int = 0
    asked_again: bool = False


class Journal:
    """The records of the current folder, by the first output of each stage."""

    def __init__(self) -> None:
        self.records = _read()
        self._bases: dict[Path, str] = {}  # digests, by folder or file

    def of(self, stage: PlannedStage) -> Record | None:
        return self.records.get(stage.writes[0])

    def save(self, stage: PlannedStage, record: Record) -> None:
        self.records[stage.writes[0]] = record
        content = {name: item.model_dump(mode="json") for name, item in self.records.items()}
        write_file(Path(STATE), json.dumps(content, indent=1))

    def inputs(self, stage: PlannedStage, fetch: bool = False) -> Digests:
        """Digests of everything that a stage reads. fetch: download its bases first, as the stage itself would."""
        bases = {name: self._base(name, fetch) for name in stage.bases}
        # the manifest that pit improve writes next to its rows is read with them, and the calibration of a run
        beside = [path for read in stage.reads for path in (str(manifest_of(read)), f"{read}/{CALIBRATION}")]
        found = {path: digest(path) for path in (*stage.reads, *filter(os.path.isfile, beside))}
        return found | {f"base {name}": identity for name, identity in bases.items()}

    def _base(self, name: str, fetch: bool) -> str | None:
        source = source_of(name)
        if fetch and source.hub:
            resolve_base(name)
        path = source.path or _downloaded(source.hub)
        if path is not None and path not in self._bases:
            self._bases[path] = file_digest(path) if path.is_file() else base_digest(path)
        return self._bases[path] if path else None


def _read() -> dict[str, Record]:
    try:
        content = json.loads(Path(STATE).read_bytes())
        return {name: Record.model_validate(record) for name, record in content.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        remedy = "move it away, with the outputs of the stages"
        raise RunError(f"{Path.cwd() / STATE}: damaged, or not of this version of pit; {remedy}") from error


def existing_output(stage: PlannedStage) -> str | None:
    """The digest of a stage's existing output, complete or not: of a file, or of the manifest of a run."""
    path = Path(stage.writes[0])
    path = path / MANIFEST if path.is_dir() else path
    return file_digest(path) if path.is_file() else None


def digest(path: str) -> str | None:
    """The digest of a file, a complete run or a data folder; None if it is missing or damaged."""
    location = Path(path)
    if (location / MANIFEST).is_file():
        try:
            load_manifest(location, "")
        except RunError:
            return None
        return file_digest(location / MANIFEST)
    if location.is_dir():
        return hashlib.sha256(json.dumps(folder_digests(location)).encode()).hexdigest()
    return file_digest(location) if location.is_file() else None


def _downloaded(hub: str) -> Path | None:
    """The folder of a base of the hub on this machine, if it has been downloaded."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(snapshot_download(hub, allow_patterns=HUB_FILES, local_files_only=True))
    except LocalEntryNotFoundError:
        return None


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Locks the folder; raises RunError if another pit run is working in it."""
    with Path(LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"{out}: another pit run is working in this folder; wait until it ends") from error
        yield

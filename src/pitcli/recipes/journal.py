"""What pit run has done in a folder: pipeline.json, and digests of all that its stages read and wrote."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from pitcli.engine.models.bases import HUB_FILES, SMOLLM2_HUB_NAME, base_digest, packaged_smollm2, resolve_base
from pitcli.errors import RunError
from pitcli.recipes.planning import PlannedStage
from pitcli.runs.files import file_digest, folder_digests, write_file
from pitcli.runs.manifest import MANIFEST, load_manifest

STATE = "pipeline.json"
LOCK = ".pipeline.lock"

Digests = dict[str, str | None]  # by path, and of bases by name


class Record(BaseModel):
    """A stage as it was run. replaced: what was in its place when it began; outputs: None until it is finished."""

    model_config = ConfigDict(extra="forbid", frozen=True, defer_build=True)

    command: str
    settings: dict[str, Any]
    pit_version: str
    inputs: Digests
    writes: tuple[str, ...]
    replaced: str | None
    outputs: Digests | None = None
    code: int = 0


class Journal:
    """The records in the current folder, by the first of the things that each stage writes."""

    def __init__(self) -> None:
        self.records = _read()
        self._bases: Digests = {}

    def of(self, stage: PlannedStage) -> Record | None:
        return self.records.get(stage.writes[0])

    def save(self, stage: PlannedStage, record: Record) -> None:
        self.records[stage.writes[0]] = record
        content = {name: one.model_dump(mode="json") for name, one in self.records.items()}
        write_file(Path(STATE), json.dumps(content, indent=1))

    def inputs(self, stage: PlannedStage, fetch: bool = False) -> Digests:
        """Of all that a stage reads. fetch: have its bases here first, as new as the stage will find them."""
        for name in stage.bases:
            if fetch and _on_hub(name):
                self._bases[name] = base_digest(resolve_base(name))
            if name not in self._bases:
                self._bases[name] = _base_identity(name)
        # what pit improve wrote beside its rows is read with them
        beside = [path for read in stage.reads if os.path.isfile(path := f"{read}.{MANIFEST}")]
        found = {path: digest(path) for path in (*stage.reads, *beside)}
        return found | {f"base {name}": self._bases[name] for name in stage.bases}


def _read() -> dict[str, Record]:
    try:
        return {name: Record.model_validate(one) for name, one in json.loads(Path(STATE).read_bytes()).items()}
    except FileNotFoundError:
        return {}
    except (ValueError, AttributeError) as error:
        where = Path.cwd() / STATE
        raise RunError(f"{where}: damaged, or not of this version of pit; move it and what the stages made") from error


def standing(stage: PlannedStage) -> str | None:
    """What is in the place of a stage's output, whole or not: a file, or the manifest of a run."""
    path = Path(stage.writes[0])
    path = path / MANIFEST if path.is_dir() else path
    return file_digest(path) if path.is_file() else None


def digest(path: str) -> str | None:
    """Of a file, of a run that is whole, or of a folder of data; None where it is not."""
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


def _local_base(name: str) -> Path:
    """Where a base is, if it is not one of the hub."""
    if name == "tiny":
        return Path(str(files("pitcli") / "assets" / "tiny"))
    return (packaged_smollm2() if name == "smollm2" else None) or Path(os.path.expanduser(name))


def _on_hub(name: str) -> bool:
    return not _local_base(name).exists()


def _base_identity(name: str) -> str | None:
    """The digest of a base that is on this machine; nothing is fetched, converted or loaded."""
    if not _on_hub(name):
        path = _local_base(name)
        return file_digest(path) if path.is_file() else base_digest(path)
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    hub = SMOLLM2_HUB_NAME if name == "smollm2" else name
    try:
        return base_digest(Path(snapshot_download(hub, allow_patterns=HUB_FILES, local_files_only=True)))
    except LocalEntryNotFoundError:
        return None


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """RunError where another pit run works in the folder."""
    with Path(LOCK).open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise RunError(f"{out}: another pit run is at work there") from error
        yield

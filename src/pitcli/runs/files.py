"""Writes files and folders atomically, and verifies them by their digests."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from pitcli.errors import RunError, naming

DIGESTS = "digests.json"
WEIGHTS = "adapter_model.safetensors"  # of an adapter folder, as peft names them


def file_digest(path: Path) -> str:
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def folder_digests(folder: Path) -> dict[str, str]:
    """The SHA-256 of every file below a folder except its own list of digests, by relative path."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / DIGESTS)
    return {path.relative_to(folder).as_posix(): file_digest(path) for path in files}


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def publish_dir(target: Path, write: Callable[[Path], None]) -> None:
    """Writes a folder so that a kill at any time leaves the old one, the new one, or none; never a part of one.

    `write` fills a folder next to the target, which is then digested, synced and renamed into place.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f".tmp-{os.getpid()}-{target.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir()
    try:
        with naming(target.parent):
            write(temporary)
            (temporary / DIGESTS).write_text(json.dumps(folder_digests(temporary), indent=1))
            for path in temporary.rglob("*"):
                _fsync(path)
            _fsync(temporary)
        remove_dir(target)
        temporary.rename(target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    _fsync(target.parent)


def remove_dir(target: Path) -> None:
    """Deletes a folder, which is renamed first, so that no reader ever sees half of it."""
    if target.exists():
        trash = target.parent / f".trash-{os.getpid()}-{target.name}"
        target.rename(trash)
        shutil.rmtree(trash)


def write_file(target: Path, text: str) -> None:
    """Replaces a file atomically."""
    write_files({target: text})


def write_files(texts: Mapping[Path, str]) -> None:
    """Replaces files, each atomically, once all of their texts are on the disk."""
    temporaries = {target: target.with_name(f".tmp-{os.getpid()}-{target.name}") for target in texts}
    try:
        for target, temporary in temporaries.items():
            with naming(target):
                temporary.write_text(texts[target], encoding="utf-8", newline="\n")
                _fsync(temporary)
        for target, temporary in temporaries.items():
            temporary.replace(target)
    finally:
        for temporary in temporaries.values():
            temporary.unlink(missing_ok=True)
    for folder in {target.parent for target in texts}:
        _fsync(folder)


def sweep(folder: Path) -> None:
    """Removes what a killed process left half-written or half-deleted."""
    for pattern in (".tmp-*", ".trash-*"):
        for path in folder.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()


def verify_dir(folder: Path) -> None:
    """Raises RunError, which names the file, if a published folder is not as it was written."""
    try:
        expected = json.loads((folder / DIGESTS).read_text())
    except (OSError, ValueError) as error:
        raise RunError(f"{folder / DIGESTS}: missing or unreadable; this folder was not fully written") from error
    found = folder_digests(folder)
    for name in sorted(expected.keys() | found.keys()):
        if expected.get(name) != found.get(name):
            problem = "missing" if name not in found else "changed since it was written"
            raise RunError(f"{folder / name}: {problem if name in expected else 'unexpected file'}")

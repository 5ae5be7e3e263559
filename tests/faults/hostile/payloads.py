"""Payloads that create a canary folder, changes that put them into a folder, and the result of a command on it."""

import hashlib
import json
import os
import pickle
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import load_file, save_file

from pitcli import cli
from pitcli.engine.models.bases import resolve_base
from pitcli.engine.models.roles import RoleModel

PAD = 0
CANARY = Path(tempfile.gettempdir(), f"pit-canary-{os.getpid()}")
Change = Callable[[Path], object]
WithRoles = Callable[..., RoleModel]
SPOKEN = "y\nyes\n1\n"  # what a prompt on stdin would accept as consent


class Ended(NamedTuple):
    code: int
    out: str
    err: str


class MakesCanary:
    """Creates the canary when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(CANARY),)


def python_code() -> str:
    return f"""
import os
os.makedirs({str(CANARY)!r}, exist_ok=True)
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
class EvilConfig(LlamaConfig):
    model_type = "evil"
class EvilModel(LlamaForCausalLM):
    config_class = EvilConfig
class EvilTokenizer(PreTrainedTokenizerFast):
    pass
"""


def template_code() -> str:
    return f"{{{{ cycler.__init__.__globals__.os.mkdir({str(CANARY)!r}) }}}}"


def digests(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def pit(capfd: Any, *arguments: object) -> Ended:
    code = cli.main([str(argument) for argument in arguments])
    return Ended(code, *capfd.readouterr())


def assert_one_line(ended: Ended, *parts: str) -> None:
    lines = ended.err.splitlines()
    assert len(lines) == 1, ended.err
    assert lines[0].startswith("error: ")
    assert all(part in lines[0] for part in parts), ended.err
    assert ended.out == ""


def base_with(parent: Path, *changes: Change) -> Path:
    folder = parent / "base"
    shutil.copytree(resolve_base("tiny"), folder)
    for change in changes:
        change(folder)
    return folder


def settings(name: str, **values: object) -> Change:
    def change(folder: Path) -> None:
        path = folder / name
        path.write_text(json.dumps({**(json.loads(path.read_bytes()) if path.exists() else {}), **values}))

    return change


def content(name: str, change_bytes: Callable[[bytes], bytes]) -> Change:
    """Replaces the content of a file, or of an empty one if there is none, by what `change_bytes` returns."""

    def change(folder: Path) -> None:
        path = folder / name
        path.write_bytes(change_bytes(path.read_bytes() if path.exists() else b""))

    return change


def replaced(name: str, make: Callable[[Path], object]) -> Change:
    """Replaces a file by a link or a pipe; the file is moved next to the folder."""

    def change(folder: Path) -> None:
        if (folder / name).exists():
            (folder / name).rename(folder.parent / name)
        make(folder / name)

    return change


def own_code(model_type: str) -> Change:
    def change(folder: Path) -> None:
        (folder / "modeling_evil.py").write_text(python_code())
        classes = {"AutoConfig": "modeling_evil.EvilConfig", "AutoModelForCausalLM": "modeling_evil.EvilModel"}
        settings("config.json", model_type=model_type, auto_map=classes)(folder)

    return change


def own_tokenizer(name: str) -> Change:
    def change(folder: Path) -> None:
        (folder / "tokenization_evil.py").write_text(python_code())
        classes = {"AutoTokenizer": ["tokenization_evil.EvilTokenizer", "tokenization_evil.EvilTokenizer"]}
        settings("tokenizer_config.json", tokenizer_class=name, auto_map=classes)(folder)

    return change


def pickles(folder: Path) -> None:
    for name in ("pytorch_model.bin", "model.pt", "training_args.bin", "rng_state.pkl"):
        (folder / name).write_bytes(pickle.dumps(MakesCanary()))


def sharded(*shards: str) -> Change:
    """Splits the weights into shards; the index assigns the tensors to these names in turn."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
        tensors = load_file(folder.parent / "outside.safetensors")
        weight_map = {name: shards[index % len(shards)] for index, name in enumerate(tensors)}
        for shard in set(shards):
            if "/" not in shard:
                ours = {name: tensors[name] for name in tensors if weight_map[name] == shard}
                save_file(ours, folder / shard, metadata={"format": "pt"})
        settings("model.safetensors.index.json", metadata={}, weight_map=weight_map)(folder)

    return change


def without_shards(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    settings("model.safetensors.index.json", metadata={}, weight_map={})(folder)


def only_pickles(folder: Path) -> None:
    pickles(folder)
    (folder / "model.safetensors").unlink()


def without_a_tensor(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.2.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def template(text: str) -> Change:
    return content("chat_template.jinja", lambda _: text.encode())


def injected_template(folder: Path) -> None:
    template(template_code())(folder)

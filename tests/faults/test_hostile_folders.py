"""Model, adapter and run folders that were made to do harm: no code run, no file touched, no stdin eaten, no network.

Every hostile payload makes the canary, and the first tests show that each payload would, if only it were run.
"""

import hashlib
import json
import os
import pickle
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jinja2
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from pitcli import cli
from pitcli.data.synthetic import preference_rows
from pitcli.engine.models.adapters import load_role, save_role
from pitcli.engine.models.bases import base_digest, check_base, resolve_base
from pitcli.engine.models.loading import ADAPTER_CONFIG, WEIGHTS
from pitcli.engine.models.roles import GAP, IMPROVER, RoleModel
from pitcli.errors import RunError
from pitcli.runs.folder import RunFolder
from pitcli.runs.manifest import load_manifest

PAD = 0
CANARY = Path(tempfile.gettempdir(), f"pit-canary-{os.getpid()}")
Change = Callable[[Path], object]
WithRoles = Callable[..., RoleModel]
SPOKEN = "y\nyes\n1\n"  # what a prompt on stdin would take for consent


class Ended(NamedTuple):
    code: int
    out: str
    err: str


class MakesCanary:
    """Unpickled, it makes the canary."""

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


@pytest.fixture
def no_harm(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Fails a test that makes the canary, connects a socket, reads a byte of stdin, or waits on a pipe."""
    reached: list[object] = []
    signal.signal(signal.SIGALRM, lambda number, frame: pytest.fail("still waiting after a minute"))
    signal.alarm(60)
    monkeypatch.setattr(socket.socket, "connect", lambda self, address: reached.append(address))
    reader, writer = os.pipe()
    os.write(writer, SPOKEN.encode())
    os.close(writer)
    before = os.dup(0)
    os.dup2(reader, 0)
    os.close(reader)
    monkeypatch.setattr(sys, "stdin", open(0, closefd=False))  # noqa: SIM115
    yield
    signal.alarm(0)
    left = os.read(0, 100)
    os.dup2(before, 0)
    os.close(before)
    assert left.decode() == SPOKEN
    assert reached == []
    assert not CANARY.exists()


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


# --- what the payloads are worth


def test_the_payloads_work(tmp_path: Path) -> None:
    payloads = {
        "pickle": lambda: pickle.loads(pickle.dumps(MakesCanary())),
        "python": lambda: exec(python_code(), {"__name__": "evil"}),
        "template": lambda: jinja2.Environment().from_string(template_code()).render(),
    }
    for name, run in payloads.items():
        run()
        assert CANARY.exists(), name
        CANARY.rmdir()


def test_transformers_would_run_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = base_with(tmp_path, own_code("evil"))
    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert CANARY.exists()
    CANARY.rmdir()


# --- bases


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


def content(name: str, made: Callable[[bytes], bytes]) -> Change:
    """Replace a file by what `made` makes of it; where there is none, of nothing."""

    def change(folder: Path) -> None:
        path = folder / name
        path.write_bytes(made(path.read_bytes() if path.exists() else b""))

    return change


def replaced(name: str, make: Callable[[Path], object]) -> Change:
    """Put a link or a pipe in the place of a file, which is kept beside the folder."""

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
    """The weights in shards, of which the index names these for the first tensors."""

    def change(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder.parent / "outside.safetensors")
        tensors = load_file(folder.parent / "outside.safetensors")
        weight_map = {name: shards[place % len(shards)] for place, name in enumerate(tensors)}
        for shard in set(shards):
            if "/" not in shard:
                ours = {name: tensors[name] for name in tensors if weight_map[name] == shard}
                save_file(ours, folder / shard, metadata={"format": "pt"})
        settings("model.safetensors.index.json", metadata={}, weight_map=weight_map)(folder)

    return change


def sharded_as_nothing(folder: Path) -> None:
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


REFUSED: dict[str, tuple[Change, str]] = {
    "pickles alone": (only_pickles, "no model.safetensors; model.pt may be a pickle"),
    "unknown type with code": (own_code("evil"), "'evil' is no language model that transformers knows; its own code"),
    "known type, no language model": (settings("config.json", model_type="clip"), "'clip' is no language model"),
    "type that is no text": (settings("config.json", model_type=["llama"]), "['llama'] is no language model"),
    "unknown tokenizer with code": (own_tokenizer("EvilTokenizer"), "needs code of its own (auto_map)"),
    "code map that is no map": (settings("config.json", auto_map=3), "base: not usable (TypeError"),
    "index to the folder above": (sharded("../outside.safetensors"), "'../outside.safetensors' is not the name of"),
    "index to the root": (sharded("/etc/x.safetensors"), "'/etc/x.safetensors' is not the name of"),
    "index that holds no names": (settings("model.safetensors.index.json", weight_map={"a": {}}), "{} is not the name"),
    "index to a pickle": (
        lambda folder: (sharded("pytorch_model.bin")(folder), pickles(folder)),
        "'pytorch_model.bin' is not the name of",
    ),
    "index without shards": (sharded_as_nothing, "base: "),
    "index that holds nothing": (content("model.safetensors.index.json", lambda _: b"{}"), "None is not the name"),
    "index to a shard that is not there": (
        lambda folder: (sharded("a.safetensors")(folder), (folder / "a.safetensors").unlink()),
        "base: no a.safetensors",
    ),
    "weights by another name": (settings("config.json", transformers_weights="../x.safetensors"), "is not supported"),
    "weights linked outside": (
        replaced("model.safetensors", lambda path: path.symlink_to(path.parents[1] / path.name)),
        "model.safetensors: a link that leads out of its folder",
    ),
    "settings linked outside": (
        replaced("tokenizer.json", lambda path: path.symlink_to(Path("..", path.name))),
        "tokenizer.json: a link that leads out of its folder",
    ),
    "folder linked outside": (
        lambda folder: (folder / "additional_chat_templates").symlink_to("/etc"),
        "additional_chat_templates: a link that leads out of its folder",
    ),
    "link in a circle": (lambda folder: (folder / "a").symlink_to("a"), "a: neither a file nor a folder"),
    "pipe": (replaced("tokenizer.json", os.mkfifo), "tokenizer.json: neither a file nor a folder"),
    "adapter inside": (
        settings("adapter_config.json", peft_type="LORA", base_model_name_or_path="evil/base"),
        "holds an adapter (adapter_config.json)",
    ),
    "attention from the hub": (settings("config.json", attn_implementation="evil/kernel"), "'evil/kernel' is not"),
    "attention from the hub, deep": (
        settings("config.json", text_config={"_attn_implementation": "evil/kernel:f"}),
        "_attn_implementation 'evil/kernel:f' is not supported",
    ),
    "quantiser from the hub": (
        settings("config.json", quantization_config={"quant_method": "mxfp4"}),
        "quantization_config {'quant_method': 'mxfp4'} is not supported",
    ),
    "tokenizer from the folder above": (
        settings("tokenizer_config.json", fast_tokenizer_files=["../tokenizer.4.0.0.json"]),
        "fast_tokenizer_files ['../tokenizer.4.0.0.json'] is not supported",
    ),
    "arguments for the tokenizer": (
        settings("tokenizer_config.json", init_inputs=["/etc/passwd"]),
        "init_inputs ['/etc/passwd'] is not supported",
    ),
    "weights cut short": (content("model.safetensors", lambda old: old[:-100]), "model.safetensors: not usable"),
    "weights that are none": (content("model.safetensors", lambda _: b"\xff" * 99), "model.safetensors: not usable"),
    "weights that are empty": (content("model.safetensors", lambda _: b""), "model.safetensors: not usable"),
    "header of a terabyte": (
        content("model.safetensors", lambda _: (2**40).to_bytes(8, "little") + b"{}"),
        "model.safetensors: not usable",
    ),
    "weights with a hole": (
        without_a_tensor,
        "1 of the model's tensors are not there, the first model.layers.2.mlp.up_proj.weight",
    ),
    "weights of other shapes": (
        settings("config.json", intermediate_size=96),
        "do not have the shape that config.json says",
    ),
    "no heads": (settings("config.json", num_attention_heads=0), "base: not usable (ZeroDivisionError"),
    "a context that is no number": (settings("config.json", max_position_embeddings="long"), "base: not usable"),
    "settings that are a list": (content("config.json", lambda _: b"[]"), "config.json: not a JSON object"),
    "settings that are no text": (content("config.json", lambda _: b"\xff\xfe{}"), "config.json: not usable"),
    "settings without end": (
        content("config.json", lambda _: b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}"),
        "config.json: not usable (RecursionError",
    ),
    "tokenizer cut short": (content("tokenizer.json", lambda old: old[:-100]), "base: not usable"),
    "template with an injection": (injected_template, "access to attribute '__init__' of 'type' object is unsafe"),
    "template that looks into classes": (template("{{ ''.__class__.__mro__ }}"), "attribute '__class__'"),
    "template that is none": (template("{% for m in messages %}{{"), "chat template"),
    "template with an unknown name": (template("{{ nowhere.to.be.found }}"), "'nowhere' is undefined"),
    "template that imports": (template("{% import 'os' as os %}"), "no loader for this environment"),
    "template that divides by zero": (template("{{ 1 / 0 }}"), "division by zero"),
    "template that calls itself": (
        template("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"),
        "maximum recursion depth exceeded",
    ),
    "template that counts on": (template("{% for i in range(10 ** 12) %}x{% endfor %}"), "Range too big"),
    "template that hides the prompt": (template("{{ 'hello' }}"), "does not show a message of role user"),
}


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.jsonl"
    path.write_text(json.dumps({"prompt": "Write 3 foods."}) + "\n")
    return path


@pytest.mark.parametrize(("change", "problem"), REFUSED.values(), ids=REFUSED.keys())
def test_a_hostile_base_is_refused(
    change: Change, problem: str, prompts: Path, tmp_path: Path, capfd: Any, no_harm: None
) -> None:
    folder = base_with(tmp_path, change)
    before = digests(tmp_path)
    ended = pit(capfd, "sample", "--model", folder, "--data", prompts, "--max-new-tokens", 2)
    assert ended.code == (2 if "chat template" in ended.err else 3), ended.err
    assert_one_line(ended, problem, str(folder))
    assert digests(tmp_path) == before


HARMLESS: dict[str, tuple[Change, ...]] = {
    "pickles beside": (pickles,),
    "known type with code": (own_code("llama"),),
    "known tokenizer with code": (own_tokenizer("TokenizersBackend"),),
    "old map of tokenizers": (settings("tokenizer_config.json", auto_map=["tokenization_evil.EvilTokenizer", None]),),
    "shards": (sharded("a.safetensors", "b.safetensors"), pickles),
    "link inside": (replaced("LICENSE", lambda path: path.symlink_to("config.json")),),
    "a name that is elsewhere": (settings("config.json", _name_or_path="evil/base", name_or_path="evil/base"),),
    "generation by code": (settings("generation_config.json", custom_generate="evil/code"),),
}


@pytest.mark.parametrize("changes", HARMLESS.values(), ids=HARMLESS.keys())
def test_what_only_lies_there_does_nothing(
    changes: tuple[Change, ...], prompts: Path, tmp_path: Path, capfd: Any, no_harm: None
) -> None:
    folder = base_with(tmp_path, *changes)
    before = digests(tmp_path)
    ended = pit(capfd, "sample", "--model", folder, "--data", prompts, "--max-new-tokens", 2)
    assert ended.code == 0, ended.err
    assert len(ended.out.splitlines()) == 1
    assert digests(tmp_path) == before


def test_links_within_a_repository_of_the_hub_cache_are_followed(tmp_path: Path) -> None:
    repository = tmp_path / "models--someone--tiny"
    (repository / "blobs").mkdir(parents=True)
    snapshot = repository / "snapshots" / "0123"
    snapshot.mkdir(parents=True)
    for number, path in enumerate(resolve_base("tiny").iterdir()):
        shutil.copy(path, repository / "blobs" / str(number))
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", str(number)))
    assert resolve_base(str(snapshot)) == snapshot
    assert base_digest(snapshot) == base_digest(resolve_base("tiny"))
    (tmp_path / "other").write_text("{}")
    (snapshot / "vocab.json").symlink_to(Path("..", "..", "..", "other"))
    with pytest.raises(RunError, match=r"vocab\.json: a link that leads out of its folder"):
        check_base(snapshot)


@pytest.mark.parametrize(
    "name",
    ["../../nowhere", "../nowhere", "a/..", "file://etc/passwd", "file:/etc", "/nowhere", "~nobody/x", "a//b"],
)
def test_a_name_that_is_no_hub_name_goes_nowhere(
    name: str, prompts: Path, tmp_path: Path, capfd: Any, no_harm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = pit(capfd, "sample", "--model", name, "--data", prompts)
    assert ended.code == 2
    assert_one_line(ended, "neither a folder, a .gguf file, tiny, smollm2 nor a hub name")


def test_what_lies_beside_a_gguf_file_has_no_say(
    tmp_path: Path, capfd: Any, prompts: Path, no_harm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = []
    read = AutoTokenizer.from_pretrained
    monkeypatch.setattr(
        AutoTokenizer, "from_pretrained", lambda *at, **how: (seen.extend(os.listdir(at[0])), read(*at, **how))
    )
    monkeypatch.setenv("PIT_CACHE", str(tmp_path / "cache"))
    folder = base_with(tmp_path, own_code("evil"), own_tokenizer("EvilTokenizer"))
    (folder / "a.gguf").write_bytes(b"GGUF" + b"\xff" * 100)
    ended = pit(capfd, "sample", "--model", folder / "a.gguf", "--data", prompts)
    assert ended.code == 3
    assert "a.gguf: not usable" in ended.err.splitlines()[-1]
    assert seen == ["a.gguf"]
    assert list((tmp_path / "cache" / "models").iterdir()) == []


# --- adapters


@pytest.fixture
def adapter(small_llama: Callable[[], PreTrainedModel], with_roles: WithRoles, tmp_path: Path) -> Path:
    folder = tmp_path / "improver"
    save_role(with_roles(small_llama(), PAD, IMPROVER), IMPROVER, folder)
    return folder


HOSTILE_FIELDS: dict[str, object] = {
    "peft_type": "XLORA",
    "auto_mapping": {"base_model_class": "Evil", "parent_library": "modeling_evil"},
    "megatron_config": {"tensor_model_parallel_size": 1},
    "megatron_core": "modeling_evil",
    "runtime_config": {"ephemeral_gpu_offload": True},
    "init_lora_weights": "corda",
    "corda_config": {"cache_file": "/etc/passwd"},
    "eva_config": {"rho": 2.0},
    "loftq_config": {"loftq_bits": 4},
    "layer_replication": [[0, 2], [0, 2]],
    "trainable_token_indices": [0, 1],
    "target_parameters": ["q_proj.weight"],
    "rank_pattern": {"q_proj": 100000},
    "alpha_pattern": {".*": 1e9},
    "use_dora": True,
    "use_rslora": True,
    "bias": "all",
    "lora_dropout": 0.5,
    "exclude_modules": "(a+)+$",
    "some_field_of_tomorrow": "x",
}


@pytest.mark.parametrize(("field", "value"), HOSTILE_FIELDS.items(), ids=HOSTILE_FIELDS.keys())
def test_fields_that_pit_does_not_write_are_refused(
    field: str, value: object, adapter: Path, small_llama: Callable[[], PreTrainedModel], no_harm: None
) -> None:
    settings(ADAPTER_CONFIG, **{field: value})(adapter)
    with pytest.raises(RunError, match=f"{ADAPTER_CONFIG}: {field} .* is not supported"):
        load_role(RoleModel(small_llama(), PAD), IMPROVER, adapter)


BROKEN_ADAPTERS: dict[str, tuple[Change, str]] = {
    "a pickle beside": (content("adapter_model.bin", lambda _: pickle.dumps(MakesCanary())), "adapter_model.bin: no"),
    "code beside": (content("modeling_evil.py", lambda _: python_code().encode()), "modeling_evil.py: no part of"),
    "a folder beside": (lambda folder: (folder / "more").mkdir(), "more: no part of an adapter"),
    "weights linked outside": (
        replaced(WEIGHTS, lambda path: path.symlink_to(path.parents[1] / path.name)),
        f"{WEIGHTS}: a link that leads out of its folder",
    ),
    "a pipe": (replaced(WEIGHTS, os.mkfifo), f"{WEIGHTS}: neither a file nor a folder"),
    "no type": (content(ADAPTER_CONFIG, lambda _: b"{}"), "peft_type None is not supported"),
    "no rank": (content(ADAPTER_CONFIG, lambda _: b'{"peft_type": "LORA"}'), "not usable (KeyError: 'r')"),
    "a rank for all the memory": (settings(ADAPTER_CONFIG, r=10**9), "do not have the rank 1000000000"),
    "a rank that is none": (settings(ADAPTER_CONFIG, r=-1), "not usable (ValidationError"),
    "an alpha that is none": (settings(ADAPTER_CONFIG, lora_alpha="x"), "not usable (ValidationError"),
    "layers by a pattern": (settings(ADAPTER_CONFIG, target_modules="(a+)+$"), "not found in the base model"),
    "layers that are not there": (settings(ADAPTER_CONFIG, target_modules=["evil"]), "not found in the base model"),
    "layers that are none": (settings(ADAPTER_CONFIG, target_modules=None), "not usable (TypeError"),
    "settings cut short": (content(ADAPTER_CONFIG, lambda old: old[:-9]), f"{ADAPTER_CONFIG}: not usable"),
    "weights cut short": (content(WEIGHTS, lambda old: old[:-9]), f"{WEIGHTS}: not usable (SafetensorError"),
    "weights that are a pickle": (content(WEIGHTS, lambda _: pickle.dumps(MakesCanary())), f"{WEIGHTS}: not usable"),
    "weights that are not there": (lambda folder: (folder / WEIGHTS).unlink(), f"{WEIGHTS}: not usable"),
}


@pytest.mark.parametrize(("change", "problem"), BROKEN_ADAPTERS.values(), ids=BROKEN_ADAPTERS.keys())
def test_a_hostile_adapter_is_refused(
    change: Change, problem: str, adapter: Path, small_llama: Callable[[], PreTrainedModel], no_harm: None
) -> None:
    change(adapter)
    with pytest.raises(RunError) as raised:
        load_role(RoleModel(small_llama(), PAD), IMPROVER, adapter)
    assert len(raised.value.problems) == 1
    assert problem in raised.value.problems[0]
    assert "\n" not in raised.value.problems[0]


def test_the_base_that_an_adapter_names_is_not_looked_for(
    adapter: Path, small_llama: Callable[[], PreTrainedModel], no_harm: None
) -> None:
    settings(ADAPTER_CONFIG, base_model_name_or_path="evil/base")(adapter)
    (adapter / "README.md").write_text("notes")
    load_role(RoleModel(small_llama(), PAD), IMPROVER, adapter)


def test_a_head_of_another_shape_is_refused(
    small_llama: Callable[[], PreTrainedModel], with_roles: WithRoles, tmp_path: Path
) -> None:
    """A head of one number would fit every width, if it were copied as tensors are."""
    folder = tmp_path / "gap"
    save_role(with_roles(small_llama(), PAD, GAP), GAP, folder)
    tensors = load_file(folder / WEIGHTS)
    tensors["base_model.model.score.weight"] = torch.ones(1, 1)
    save_file(tensors, folder / WEIGHTS)
    with pytest.raises(RunError, match="do not fit the base model"):
        load_role(RoleModel(small_llama(), PAD), GAP, folder)


# --- runs


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on a base that has pickles and code beside its weights, as small as they can be, and drafts."""
    folder = tmp_path_factory.mktemp("project")
    base_with(folder, own_code("llama"), own_tokenizer("TokenizersBackend"), pickles)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in preference_rows(8, seed=3)))
    (folder / "drafts.jsonl").write_text(json.dumps({"prompt": "Write 3 foods.", "response": "pie"}) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        small = ("--model", "base", "--data", "pairs.jsonl", "--max-steps", "1", "--lora-rank", "2")
        for command in ("sft", "train-reward"):
            assert cli.main([command, *small]) == 0
    assert not CANARY.exists()
    return folder


@pytest.fixture
def runs(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the project to do harm in."""
    folder = tmp_path / "project"
    shutil.copytree(project, folder)
    monkeypatch.chdir(folder)
    return folder / "runs"


IMPROVE = ("improve", "--input", "drafts.jsonl", "--max-iters", "1", "--max-new-tokens", "2")


def resealed(run: Path, role: str, *changes: Change) -> None:
    """Change an adapter and make the manifest fit it, as someone would who wants to be believed."""
    manifest = load_manifest(run, "")
    for change in changes:
        change(run / role)
    RunFolder(run, manifest).complete(dict(manifest.results), [role], manifest.probes)


def without_head(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["base_model.model.score.weight"]
    save_file(tensors, folder / WEIGHTS)


def other_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][5, 7] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_run_on_a_hostile_base_improves(runs: Path, capfd: Any, no_harm: None) -> None:
    ended = pit(capfd, *IMPROVE)
    assert ended.code == 0, ended.err
    assert len(ended.out.splitlines()) == 1


BROKEN_RUNS: dict[str, tuple[Change, str]] = {
    "no manifest": (lambda runs: (runs / "sft/manifest.json").unlink(), "runs/sft: no finished run there"),
    "a changed manifest": (
        content("sft/manifest.json", lambda old: old.replace(b'"rows": 8', b'"rows": 9')),
        "manifest.json: changed since it was written",
    ),
    "a manifest that is no text": (content("sft/manifest.json", lambda _: b"\xff"), "runs/sft/manifest.json"),
    "a manifest that is a list": (content("sft/manifest.json", lambda _: b"[]"), "runs/sft/manifest.json"),
    "a changed adapter": (
        content(f"sft/improver/{WEIGHTS}", lambda old: old[:-1] + bytes([old[-1] ^ 1])),
        f"runs/sft/improver/{WEIGHTS}: missing or changed",
    ),
    "a pickle in an adapter": (
        content("sft/improver/adapter_model.bin", lambda _: pickle.dumps(MakesCanary())),
        "runs/sft/improver/adapter_model.bin: no part of an adapter",
    ),
    "code in an adapter": (
        content("reward/gap/modeling_evil.py", lambda _: python_code().encode()),
        "runs/reward/gap/modeling_evil.py: no part of an adapter",
    ),
    "a field of another kind of adapter, resealed": (
        lambda runs: resealed(runs / "sft", IMPROVER, settings(ADAPTER_CONFIG, init_lora_weights="corda")),
        "init_lora_weights 'corda' is not supported",
    ),
    "an adapter cut short, resealed": (
        lambda runs: resealed(runs / "sft", IMPROVER, content(WEIGHTS, lambda old: old[:-9])),
        f"runs/sft/improver/{WEIGHTS}: not usable",
    ),
    "no head, resealed": (
        lambda runs: resealed(runs / "reward", GAP, without_head),
        "runs/reward/gap: no gap head found for role gap",
    ),
    "a base that needs its code": (lambda runs: own_code("evil")(runs.parent / "base"), "its own code (auto_map)"),
    "a tokenizer that needs its code": (
        lambda runs: own_tokenizer("EvilTokenizer")(runs.parent / "base"),
        "project/base: needs code of its own (auto_map)",
    ),
    "other weights in the base": (lambda runs: other_weights(runs.parent / "base"), "trained on the base base"),
}


@pytest.mark.parametrize(("change", "problem"), BROKEN_RUNS.values(), ids=BROKEN_RUNS.keys())
def test_a_hostile_run_is_refused(change: Change, problem: str, runs: Path, capfd: Any, no_harm: None) -> None:
    change(runs)
    before = digests(runs.parent)
    ended = pit(capfd, *IMPROVE)
    assert ended.code == 3
    lines = ended.err.splitlines()
    assert problem in lines[0], ended.err
    assert all(line.startswith("error: ") for line in lines)  # a base may be wrong for several runs
    assert len(lines) == (2 if "trained on" in problem else 1)
    assert ended.out == ""
    assert digests(runs.parent) == before


# --- stdin, in a process of its own


def test_rows_that_say_yes_are_only_rows(runs: Path) -> None:
    """The base has code beside it, and the first row is what a prompt for consent would read."""
    rows = [json.dumps({"id": f"row {number}", "prompt": "Write 3 foods.", "response": "pie"}) for number in range(2)]
    lines = [*SPOKEN.splitlines(), *rows]
    command = [sys.executable, "-m", "pitcli", "improve", "--max-iters", "1", "--max-new-tokens", "2"]
    ended = subprocess.run(
        command, input="\n".join(lines), capture_output=True, text=True, cwd=runs.parent, check=False, timeout=300
    )
    assert ended.returncode == 1
    assert [json.loads(line)["id"] for line in ended.stdout.splitlines()] == ["row 0", "row 1"]
    for number in range(1, 4):
        assert f"error: <stdin>:{number}: " in ended.stderr
    assert "Traceback" not in ended.stderr
    assert not CANARY.exists()

"""Malicious model folders: no code is run, no file is changed, stdin is not read, the network is not used.

Every payload creates the canary if it is run, which the first tests show.
"""

import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest
import transformers
from transformers import AutoModelForCausalLM, AutoTokenizer

from pitcli.engine.models.bases import base_digest, check_base, resolve_base
from pitcli.errors import RunError
from tests.faults.hostile.payloads import (
    CANARY,
    Change,
    MakesCanary,
    assert_one_line,
    base_with,
    content,
    digests,
    injected_template,
    only_pickles,
    own_code,
    own_tokenizer,
    pickles,
    pit,
    python_code,
    replaced,
    settings,
    sharded,
    template,
    template_code,
    without_a_tensor,
    without_shards,
)


def test_every_payload_creates_the_canary(tmp_path: Path) -> None:
    payloads = {
        "pickle": lambda: pickle.loads(pickle.dumps(MakesCanary())),
        "python": lambda: exec(python_code(), {"__name__": "evil"}),
        "template": lambda: jinja2.Environment().from_string(template_code()).render(),
    }
    for name, run in payloads.items():
        run()
        assert CANARY.exists(), name
        CANARY.rmdir()


def test_transformers_would_run_the_code_of_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers.dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", [*sys.path])
    folder = base_with(tmp_path, own_code("evil"))
    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert CANARY.exists()
    CANARY.rmdir()


REFUSED: dict[str, tuple[Change, str]] = {
    "pickles alone": (only_pickles, "model.safetensors is missing; model.pt may be a pickle"),
    "unknown type with code": (
        own_code("evil"),
        "'evil' is not a causal language model of transformers; pit never runs",
    ),
    "known type, not a language model": (
        settings("config.json", model_type="clip"),
        "'clip' is not a causal language model",
    ),
    "type that is not text": (
        settings("config.json", model_type=["llama"]),
        "['llama'] is not a causal language model",
    ),
    "unknown tokenizer with code": (own_tokenizer("EvilTokenizer"), "needs its own code (auto_map)"),
    "code map that is not a map": (settings("config.json", auto_map=3), "base: not usable (TypeError"),
    "index to the folder above": (sharded("../outside.safetensors"), "got '../outside.safetensors'"),
    "index to the root": (sharded("/etc/x.safetensors"), "got '/etc/x.safetensors'"),
    "index of objects": (settings("model.safetensors.index.json", weight_map={"a": {}}), "got {}"),
    "index to a pickle": (
        lambda folder: (sharded("pytorch_model.bin")(folder), pickles(folder)),
        "got 'pytorch_model.bin'",
    ),
    "index without shards": (without_shards, "base: "),
    "empty index": (content("model.safetensors.index.json", lambda _: b"{}"), "got None"),
    "index to a missing shard": (
        lambda folder: (sharded("a.safetensors")(folder), (folder / "a.safetensors").unlink()),
        "base: a.safetensors is missing",
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
        "contains an adapter (adapter_config.json)",
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
    "truncated weights": (content("model.safetensors", lambda old: old[:-100]), "model.safetensors: not usable"),
    "garbage as weights": (
        content("model.safetensors", lambda _: b"\xff" * 99),
        "model.safetensors: not usable",
    ),
    "empty weights": (content("model.safetensors", lambda _: b""), "model.safetensors: not usable"),
    "header of a terabyte": (
        content("model.safetensors", lambda _: (2**40).to_bytes(8, "little") + b"{}"),
        "model.safetensors: not usable",
    ),
    "weights without one tensor": (
        without_a_tensor,
        "1 tensors of the model are missing, the first model.layers.2.mlp.up_proj.weight",
    ),
    "weights of other shapes": (
        settings("config.json", intermediate_size=96),
        "do not have the shape given in config.json",
    ),
    "no heads": (settings("config.json", num_attention_heads=0), "base: not usable (ZeroDivisionError"),
    "a context that is not a number": (settings("config.json", max_position_embeddings="long"), "base: not usable"),
    "settings that are a list": (
        content("config.json", lambda _: b"[]"),
        "config.json: expected a JSON object, got an array",
    ),
    "settings that are not text": (content("config.json", lambda _: b"\xff\xfe{}"), "config.json: not usable"),
    "endlessly nested settings": (
        content("config.json", lambda _: b'{"a":' + b"[" * 10**5 + b"]" * 10**5 + b"}"),
        "config.json: not usable (RecursionError",
    ),
    "truncated tokenizer": (content("tokenizer.json", lambda old: old[:-100]), "base: not usable"),
    "template with an injection": (injected_template, "access to attribute '__init__' of 'type' object is unsafe"),
    "template that inspects classes": (template("{{ ''.__class__.__mro__ }}"), "attribute '__class__'"),
    "template with a syntax error": (template("{% for m in messages %}{{"), "chat template"),
    "template with an unknown name": (template("{{ nowhere.to.be.found }}"), "'nowhere' is undefined"),
    "template that imports": (template("{% import 'os' as os %}"), "no loader for this environment"),
    "template that divides by zero": (template("{{ 1 / 0 }}"), "division by zero"),
    "template that calls itself": (
        template("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}"),
        "maximum recursion depth exceeded",
    ),
    "template with a huge loop": (template("{% for i in range(10 ** 12) %}x{% endfor %}"), "Range too big"),
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
    ended = pit(capfd, "sample", "--model", folder, "--data", prompts, "--max-new-tokens", 2, "--load-in-4bit")
    assert ended.code == (2 if "chat template" in ended.err else 3), ended.err
    assert_one_line(ended, problem, str(folder))
    assert digests(tmp_path) == before


HARMLESS: dict[str, tuple[Change, ...]] = {
    "extra pickles": (pickles,),
    "known type with code": (own_code("llama"),),
    "known tokenizer with code": (own_tokenizer("TokenizersBackend"),),
    "old map of tokenizers": (settings("tokenizer_config.json", auto_map=["tokenization_evil.EvilTokenizer", None]),),
    "shards": (sharded("a.safetensors", "b.safetensors"), pickles),
    "link inside": (replaced("LICENSE", lambda path: path.symlink_to("config.json")),),
    "a name from elsewhere": (settings("config.json", _name_or_path="evil/base", name_or_path="evil/base"),),
    "generation by code": (settings("generation_config.json", custom_generate="evil/code"),),
}


@pytest.mark.parametrize("changes", HARMLESS.values(), ids=HARMLESS.keys())
def test_harmless_folders_load_and_nothing_in_them_is_run(
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
def test_an_invalid_hub_name_is_refused(
    name: str, prompts: Path, tmp_path: Path, capfd: Any, no_harm: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    ended = pit(capfd, "sample", "--model", name, "--data", prompts)
    assert ended.code == 2
    assert_one_line(ended, "expected a folder, a .gguf file, tiny, smollm2 or a hub name")


def test_files_next_to_a_gguf_file_are_ignored(
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

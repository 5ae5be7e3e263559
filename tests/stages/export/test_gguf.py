"""pit export --format gguf: llama.cpp writes what pit writes, and Ollama's template is that of the run."""

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoConfig

from pitcli.data.rows import Message, Prompt
from pitcli.data.templates import ChatFormat, with_request
from pitcli.engine.generation.sampling import Decoding
from pitcli.engine.generation.static_batching import generate
from pitcli.engine.models import gguf_file
from pitcli.engine.models.gguf_vocab import _BY_REGEX, pre_tokenizer_of
from pitcli.engine.models.loading import load_tokenizer
from pitcli.engine.models.opening import open_base
from pitcli.engine.models.roles import IMPROVER
from pitcli.errors import RunError
from pitcli.pages.modelfile import ollama_template
from pitcli.runs.earlier import EarlierRun
from pitcli.runs.manifest import load_manifest
from pitcli.settings.base import Dtype, ModelSettings
from pitcli.settings.exporting import Quantisation
from pitcli.stages.export import PROBES
from tests.chat_templates import TEMPLATES, base_with
from tests.stages.export.conftest import TRAINED, Out, error, pit, result

needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="needs the wheel xllamacpp (pip install 'pitcli[gguf]')"
)
TOKENS = 24
RUN = Path("runs/llama-cpp")


@pytest.fixture(scope="module")
def run(project: Path, tiny_folder: Path) -> Path:
    """A run on the embedded base with a tokenizer that llama.cpp has: one that adds no space before a text."""
    folder = shutil.copytree(tiny_folder, project / "base")
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["pre_tokenizer"]["add_prefix_space"] = False
    tokenizer["decoder"] = tokenizer["pre_tokenizer"]
    path.write_text(json.dumps(tokenizer))
    line = f"sft {TRAINED} --out {RUN}".replace("--model tiny --load", "--model base --no-load")
    before = Path.cwd()
    os.chdir(project)
    pit(line)
    os.chdir(before)
    return project / RUN


def prompts() -> list[Prompt]:
    return [with_request((Message("user", x),), y_ref) for x, y_ref, _ in PROBES]


def as_pit(run: Path) -> list[str]:
    """What pit writes greedily."""
    earlier = EarlierRun(run, load_manifest(run, ""))
    base = open_base(ModelSettings(), [earlier])
    model = base.load({IMPROVER: earlier.adapter})
    decoding = Decoding(0, 1, TOKENS, base.chat.stop_ids)
    ids = [base.chat.policy_prompt(prompt) for prompt in prompts()]
    return [base.chat.decode(sample.token_ids) for sample in generate(model, IMPROVER, ids, [0] * len(ids), decoding)]


def as_llama_cpp(file: Path) -> list[str]:
    conversations = [json.dumps([message._asdict() for message in prompt]) + "\n" for prompt in prompts()]
    command = [sys.executable, str(Path(__file__).with_name("llama_cpp.py")), str(file), str(TOKENS)]
    ended = subprocess.run(command, input="".join(conversations), capture_output=True, text=True, check=True)
    return [json.loads(line).strip() for line in ended.stdout.splitlines()]


@needs_llama_cpp
def test_llama_cpp_writes_what_pit_writes(run: Path, tmp_path: Path, capsys: Out) -> None:
    """On eight prompts, through the chat template in the file. Of two tokens that are as likely, each may take one."""
    pit(f"export {RUN} --out {tmp_path}/out --format gguf --dtype fp32")
    shown = result(capsys)
    assert (shown["form"], shown["drift"]["largest"] < 1e-3) == ("gguf", True)
    expected = as_pit(run)
    assert len(set(expected)) > 4, "the texts differ, so this test can fail"
    found = as_llama_cpp(tmp_path / "out/improver-f32.gguf")
    assert sum(text == ours for text, ours in zip(found, expected, strict=True)) >= len(expected) - 1
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"improver-f32.gguf", "Modelfile", "README.md", "digests.json"}
    assert (tmp_path / "out/Modelfile").read_text().startswith("FROM ./improver-f32.gguf\nTEMPLATE ")
    card = (tmp_path / "out/README.md").read_text()
    assert "llama-server --model improver-f32.gguf" in card and "```python" not in card


@needs_llama_cpp
@pytest.mark.parametrize("quantise", Quantisation)
def test_quantised_files_are_smaller_and_close(quantise: Quantisation, run: Path, tmp_path: Path, capsys: Out) -> None:
    pit(f"export {RUN} --out {tmp_path}/out --format gguf --quantise {quantise}")
    drift = result(capsys)["drift"]
    assert 0 < drift["mean"] < 0.5
    assert drift["agreement"] > 0.9
    (file,) = (tmp_path / "out").glob("*.gguf")
    types = {tensor.name: tensor.tensor_type for tensor in gguf.GGUFReader(file).tensors}
    kinds = gguf.GGMLQuantizationType
    # rows of 128 are no whole number of blocks of 256, those of 384 neither
    expected = {"q8_0": kinds.Q8_0, "q4_k_m": kinds.Q5_0}[quantise]
    assert (types["blk.1.attn_q.weight"], types["blk.1.attn_norm.weight"]) == (expected, kinds.F32)
    assert len(as_llama_cpp(file)) == len(PROBES)


@needs_llama_cpp
def test_the_quantiser_of_llama_cpp_is_exact_to_its_bits() -> None:
    quantise = gguf_file._llama_cpp_quantiser()
    rng = np.random.default_rng(0)
    array = rng.standard_normal((8, 512), np.float32)
    for kind, most in ((gguf.GGMLQuantizationType.Q4_K, 0.07), (gguf.GGMLQuantizationType.Q6_K, 0.02)):
        difference = np.abs(gguf.dequantize(quantise(array, kind), kind) - array)
        assert 0 < difference.mean() < most
    same = gguf.quants.quantize(array, gguf.GGMLQuantizationType.Q8_0)
    assert np.mean(quantise(array, gguf.GGMLQuantizationType.Q8_0) == same) > 0.99


def test_without_the_wheel_q4_k_m_is_refused_before_loading(monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    pit("export runs/sft --out out --format gguf --quantise q4_k_m", code=2)
    assert "needs the wheel xllamacpp; pip install 'pitcli[gguf]'" in error(capsys)
    assert gguf_file.form_of(Dtype.bf16, Quantisation.q8_0).name == "q8_0"


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ("runs/sft --format gguf --adapter", "--format gguf is not for --adapter"),
        ("runs/sft --quantise q8_0", "--quantise is for --format gguf"),
        ("runs/reward --format gguf", "expected an improver or a policy, got a gap model"),
    ],
)
def test_settings_that_do_not_fit(flags: str, problem: str, capsys: Out) -> None:
    pit(f"export {flags} --out out", code=2)
    assert problem in error(capsys)


def test_a_base_with_another_tokenizer_is_refused(tmp_path: Path, capsys: Out) -> None:
    """That of the embedded base adds a space before each text, which llama.cpp does not."""
    pit(f"export runs/sft --out {tmp_path}/out --format gguf", code=3)
    assert "the way in which this base's tokenizer splits a text is not known" in error(capsys)
    assert not (tmp_path / "out").exists()


def backend(*steps: dict[str, Any], **model: Any) -> dict[str, Any]:
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "use_regex": not any("pattern" in s for s in steps)}
    sequence = {"type": "Sequence", "pretokenizers": [*steps, byte_level]}
    return {"model": {"type": "BPE", **model}, "pre_tokenizer": sequence if steps else byte_level}


def test_names_of_pre_tokenizers() -> None:
    llama3, qwen2 = ({"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated"} for regex in _BY_REGEX)
    assert pre_tokenizer_of(backend()) == "gpt-2"
    assert pre_tokenizer_of(backend({"type": "Digits", "individual_digits": True})) == "smollm"
    assert pre_tokenizer_of(backend(llama3, ignore_merges=True)) == "llama-bpe"
    assert pre_tokenizer_of(backend(qwen2)) == "qwen2"
    for unknown in (backend(llama3), backend({"type": "Digits"}), backend({"type": "Punctuation"}), {"model": {}}):
        with pytest.raises(RunError, match="convert_hf_to_gguf"):
            pre_tokenizer_of(unknown)


def test_other_architectures_are_refused(tiny_folder: Path) -> None:
    config = AutoConfig.from_pretrained(tiny_folder)
    gguf_file.check_architecture(config)
    config.rope_parameters = {**config.rope_parameters, "rope_type": "yarn"}
    with pytest.raises(RunError, match="llama with yarn RoPE"):
        gguf_file.check_architecture(config)
    config.model_type = "gemma2"
    config.rope_parameters["rope_type"] = "default"
    with pytest.raises(RunError, match="got gemma2 models"):
        gguf_file.check_architecture(config)


def test_factors_of_llama3_rope(tiny_folder: Path) -> None:
    """Short wave lengths are kept, long ones divided by the factor."""
    config = AutoConfig.from_pretrained(tiny_folder)
    long = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 1024}
    config.rope_parameters = {"rope_type": "llama3", "rope_theta": 500000.0, **long}
    factors = gguf_file._llama3_factors(config, 16)
    assert (factors[0], factors[-1], len(factors)) == (pytest.approx(1.0), pytest.approx(8.0), 8)
    assert (np.diff(factors) > -1e-5).all()


def go(template: str, messages: list[dict[str, str]]) -> str:
    """What Ollama makes of the few forms that its template has here."""
    head, rest = "{{ range $i, $_ := .Messages }}", "{{ end }}{{ end }}"
    assert template.startswith(head)
    body, _, last = template.removeprefix(head).rpartition(rest)
    pattern = r'\{\{ (?:else )?if eq .Role "(\w+)" \}\}(.*?)(?=\{\{ else if eq .Role|\Z)'
    by_role = dict(re.findall(pattern, body, re.DOTALL))
    text = ""
    for index, message in enumerate(messages):
        part = by_role[message["role"]]
        begin = re.search(r"\{\{ if eq \$i 0 \}\}(.*?)\{\{ end \}\}", part, re.DOTALL)
        if begin:
            part = part.replace(begin[0], begin[1] if index == 0 else "")
        text += part.replace("{{ .Content }}", message["content"])
    return text + last


def test_the_template_for_ollama_is_that_of_the_run(smollm2_chat: ChatFormat, tiny_chat: ChatFormat) -> None:
    system = {"role": "system", "content": "Be brief."}
    turns = [message._asdict() for message in prompts()[0]]
    for chat in (smollm2_chat, tiny_chat):
        template = ollama_template(chat)
        assert template is not None
        for messages in (turns, [system, *turns], turns[:1], [*turns, *turns[1:]]):
            rendered = chat.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            assert go(template, messages) == rendered


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_that_does_more_is_left_in_the_file(name: str, tiny_folder: Path, tmp_path: Path) -> None:
    """Thoughts, a system message elsewhere, today's date, or no system messages; what is written is true."""
    chat = ChatFormat(load_tokenizer(base_with(TEMPLATES[name], tiny_folder, tmp_path / "base")))
    template = ollama_template(chat)
    assert (template is None) == (name in {"mistral", "llama3", "gemma"})
    turns = [message._asdict() for message in prompts()[0]]
    for messages in (turns, [{"role": "system", "content": "Be brief."}, *turns]) if template else ():
        rendered = chat.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        assert go(template, messages) == rendered


def test_rows_are_put_in_the_order_of_llama_cpp() -> None:
    """RoPE turns neighbouring rows there, and rows half a head apart in transformers."""
    rows = torch.arange(8)[:, None].float()
    assert gguf_file._rotated(rows, heads=1)[:, 0].tolist() == [0, 4, 1, 5, 2, 6, 3, 7]
    assert gguf_file._rotated(rows, heads=2)[:, 0].tolist() == [0, 2, 1, 3, 4, 6, 5, 7]

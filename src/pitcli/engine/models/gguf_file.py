"""Writes a merged model as a GGUF file, for llama.cpp and Ollama, and reads it back to compare it."""

import ctypes
import importlib.util
import json
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import gguf
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from pitcli.data.templates import ChatFormat
from pitcli.engine.models.bases import reading
from pitcli.engine.models.gguf_vocab import CONVERTER, add_vocab, pre_tokenizer_of
from pitcli.errors import RunError, SettingsError
from pitcli.settings.base import Dtype
from pitcli.settings.exporting import Quantisation

ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
_WHOLE = {Dtype.fp32: Type.F32, Dtype.fp16: Type.F16, Dtype.bf16: Type.BF16}
_FILE_TYPES = {
    **{Type.F32: gguf.LlamaFileType.ALL_F32, Type.F16: gguf.LlamaFileType.MOSTLY_F16},
    **{Type.BF16: gguf.LlamaFileType.MOSTLY_BF16, Type.Q8_0: gguf.LlamaFileType.MOSTLY_Q8_0},
    Type.Q4_K: gguf.LlamaFileType.MOSTLY_Q4_K_M,
}
# for rows that do not have a whole number of blocks of 256, as llama.cpp does
_SMALLER_BLOCKS = {Type.Q4_K: Type.Q5_0, Type.Q6_K: Type.Q8_0, Type.Q5_0: Type.F16, Type.Q8_0: Type.F16}
EXTRA = "pip install 'pitcli[gguf]'"

Quantise = Callable[[np.ndarray, Type], np.ndarray]


class GgufForm(NamedTuple):
    """The type of a file's matrices, and what its name says."""

    type: Type
    name: str


def form_of(dtype: Dtype, quantise: Quantisation | None) -> GgufForm:
    """Return the form of a file; SettingsError if this environment cannot write it."""
    if quantise is Quantisation.q4_k_m:
        _llama_cpp_quantiser()
        return GgufForm(Type.Q4_K, "q4_k_m")
    form = Type.Q8_0 if quantise is Quantisation.q8_0 else _WHOLE[dtype]
    return GgufForm(form, form.name.lower())


def check_supported(folder: Path, chat: ChatFormat) -> None:
    """Raise RunError if models of this architecture, or with this tokenizer, are not written."""
    with reading(folder):
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    check_architecture(config)
    pre_tokenizer_of(json.loads(chat.tokenizer.backend_tokenizer.to_str()))


def check_architecture(config: PreTrainedConfig) -> None:
    """Raise RunError if models of this architecture are not written."""
    rope = config.rope_parameters.get("rope_type", "default") if hasattr(config, "rope_parameters") else None
    if config.model_type not in ARCHITECTURES or rope not in ("default", "llama3"):
        known = ", ".join(ARCHITECTURES)
        what = f"{config.model_type} models" if rope in ("default", None) else f"{config.model_type} with {rope} RoPE"
        raise RunError(f"--format gguf: expected one of {known}, got {what}; {CONVERTER}")


def write_gguf(
    path: Path, config: PreTrainedConfig, weights: dict[str, Tensor], chat: ChatFormat, form: GgufForm
) -> None:
    """Write a whole model with its tokenizer and chat template. `weights` is emptied, so that memory is freed."""
    architecture = ARCHITECTURES[config.model_type]
    writer = gguf.GGUFWriter(path, gguf.MODEL_ARCH_NAMES[architecture])
    _add_settings(writer, config, form)
    add_vocab(writer, chat, config.vocab_size)
    names = gguf.get_tensor_name_map(architecture, config.num_hidden_layers)
    quantise = _quantiser(form)
    for name, array in _tensors(config, weights, architecture):
        stored = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if stored is None:
            raise RunError(f"--format gguf: {name} has no place in a {config.model_type} file; {CONVERTER}")
        kind = _type_of(stored, array.shape, config, form)
        data = array if kind is Type.F32 else quantise(array, kind)
        writer.add_tensor(stored, data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_settings(writer: gguf.GGUFWriter, config: Any, form: GgufForm) -> None:
    head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_file_type(_FILE_TYPES[form.type])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(head)
    writer.add_value_length(head)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(head)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    if window := getattr(config, "sliding_window", None):
        writer.add_sliding_window(window)
    if config.rope_parameters.get("rope_type") == "llama3":
        writer.add_tensor("rope_freqs.weight", _llama3_factors(config, head))


def _llama3_factors(config: Any, head: int) -> np.ndarray:
    """Return by how much the frequencies of RoPE are divided: the inverse of what transformers multiplies them with."""
    from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

    scaled, _ = ROPE_INIT_FUNCTIONS["llama3"](config, torch.device("cpu"))
    plain = config.rope_parameters["rope_theta"] ** (-torch.arange(0, head, 2, dtype=torch.float64) / head)
    return (plain / scaled.double()).float().numpy()


def _tensors(
    config: Any, weights: dict[str, Tensor], architecture: gguf.MODEL_ARCH
) -> Iterator[tuple[str, np.ndarray]]:
    """Yield the tensors in fp32, without an output layer that is the embeddings, and take them out of `weights`."""
    for name in list(weights):
        tensor = weights.pop(name).float()
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if architecture is gguf.MODEL_ARCH.LLAMA and ".self_attn." in name:
            heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
            if count := heads.get(name.split(".")[-2]):
                tensor = _rotated(tensor, count)
        yield name, tensor.contiguous().numpy()


def _rotated(tensor: Tensor, heads: int) -> Tensor:
    """Return the rows of a projection in llama.cpp's order: RoPE turns neighbours there, halves in transformers."""
    rows = tensor.reshape(heads, 2, tensor.shape[0] // heads // 2, *tensor.shape[1:])
    return rows.swapaxes(1, 2).reshape(tensor.shape)


def _type_of(name: str, shape: tuple[int, ...], config: Any, form: GgufForm) -> Type:
    """Return the type of a tensor: vectors stay in fp32, and q4_k_m is a mixture, as in llama.cpp."""
    if len(shape) == 1:
        return Type.F32
    kind = form.type
    if kind is Type.Q4_K:
        is_output = name == "output.weight" or (name == "token_embd.weight" and config.tie_word_embeddings)
        sensitive = "attn_v" in name or "ffn_down" in name
        if is_output or (sensitive and _gets_more_bits(int(name.split(".")[1]), config.num_hidden_layers)):
            kind = Type.Q6_K
    while shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = _SMALLER_BLOCKS[kind]
    return kind


def _gets_more_bits(layer: int, layers: int) -> bool:
    """Return whether llama.cpp gives a layer more bits: the first and the last eighth, and every third between."""
    return layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2


def _quantiser(form: GgufForm) -> Quantise:
    return _llama_cpp_quantiser() if form.type is Type.Q4_K else gguf.quants.quantize


def _llama_cpp_quantiser() -> Quantise:
    """Return the quantiser inside the wheel xllamacpp: the package gguf has none for 4-bit K-quants.

    Raises SettingsError if the wheel is not installed, or does not have it.
    """
    spec = importlib.util.find_spec("xllamacpp")
    library = next((p for f in (spec and spec.submodule_search_locations) or () for p in Path(f).glob("*.so")), None)
    try:
        quantise = ctypes.CDLL(str(library)).ggml_quantize_chunk if library else None
    except (OSError, AttributeError):
        quantise = None
    if quantise is None:
        remedy = f"{EXTRA}, use --quantise q8_0, or quantise the file with llama-quantize of llama.cpp"
        raise SettingsError(f"--quantise q4_k_m: needs the wheel xllamacpp; {remedy}")
    pointer, size = ctypes.c_void_p, ctypes.c_int64
    quantise.restype = ctypes.c_size_t
    quantise.argtypes = [ctypes.c_int, pointer, pointer, size, size, size, pointer]

    def run(array: np.ndarray, kind: Type) -> np.ndarray:
        if kind is Type.F16:
            return array.astype(np.float16)
        rows, columns = array.shape
        values = np.ascontiguousarray(array, np.float32)
        stored = np.empty(gguf.quant_shape_to_byte_shape(array.shape, kind), np.uint8)
        written = quantise(int(kind), values.ctypes.data, stored.ctypes.data, 0, rows, columns, None)
        assert written == stored.nbytes
        return stored

    return run


def load_gguf(path: Path, device: torch.device) -> PreTrainedModel:
    """Load a GGUF file as transformers reads it: dequantised, in fp32."""
    # alone in a folder, so that files next to it are not read; and without transformers' progress bar
    with reading(path), TemporaryDirectory() as alone, redirect_stderr(StringIO()):
        Path(alone, path.name).symlink_to(path.resolve())
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            alone, gguf_file=path.name, dtype=torch.float32, trust_remote_code=False
        )
    plain: PreTrainedModel = loaded.to(device).eval()
    return plain

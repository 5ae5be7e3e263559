"""Loads tokenizers, bases and LoRA settings from model folders."""

import re
import reprlib
from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit
from peft import LoraConfig, TaskType
from safetensors import safe_open
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from pitcli.data.rendering import Option, with_options
from pitcli.data.strict_json import RowProblem
from pitcli.data.templates import FALLBACK_CHAT_TEMPLATE, ChatFormat
from pitcli.engine.models.bases import check_entries, read_json, reading
from pitcli.engine.models.tree_support import transformer_of
from pitcli.errors import RunError, SettingsError
from pitcli.processes.ranks import local_rank, world_size
from pitcli.runs.files import DIGESTS, WEIGHTS
from pitcli.settings.base import Device, LoraSettings

MARKED_LOGIT = 64.0  # far beyond the caps of any model
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_FILES = {WEIGHTS, ADAPTER_CONFIG, DIGESTS, "README.md"}
# fields of ADAPTER_CONFIG: those that pit reads, and those that it writes for other tools only
_FREE_FIELDS = {"r", "lora_alpha", "target_modules"} | {
    *("task_type", "modules_to_save", "base_model_name_or_path", "inference_mode", "peft_version")
}


def pick_device(device: Device) -> torch.device:
    """Return the device of --device; RunError if torch does not see it.

    auto: a CUDA device (of ROCm too), otherwise the CPU; not mps, which was never tried.
    """
    if device is Device.cuda and not torch.cuda.is_available():
        raise RunError("--device cuda: no CUDA device is visible to torch")
    if device is Device.mps and not torch.backends.mps.is_available():
        raise RunError(
            "--device mps: torch sees no Apple GPU; it needs Apple silicon, macOS 14 and torch's wheel for it"
        )
    if device is Device.mps and world_size() > 1:
        raise RunError(f"--device mps: expected one process, got {world_size()}")
    if device is Device.auto:
        device = Device.cuda if torch.cuda.is_available() else Device.cpu
    if device is Device.cuda:
        # cuDNN's attention makes a plan for each new shape, and here nearly every pass has one of its own
        torch.backends.cuda.enable_cudnn_sdp(False)
    if device is Device.cuda and world_size() > 1:
        return torch.device("cuda", local_rank())
    return torch.device(device.value)


def load_tokenizer(folder: Path, options: Mapping[str, Option] | None = None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a base, with a chat template, and with a pad token other than EOS if it has one.

    options: variables that are set in the chat template, so that all of its renderings have them. Raises RunError if it
    cannot be read or has no EOS token, and SettingsError if the chat template does not read an option.
    """
    with reading(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        if tokenizer.eos_token_id is None:
            raise RunError(f"{folder}: the tokenizer has no EOS token, so responses could never end; use another base")
        if not tokenizer.chat_template:
            tokenizer.chat_template = ("{{ bos_token }}" if _adds_bos(tokenizer) else "") + FALLBACK_CHAT_TEMPLATE
        if options:
            template = tokenizer.get_chat_template()
            refuse_unread_options(template, options)
            tokenizer.chat_template = with_options(template, options)
        if tokenizer.pad_token_id in (None, tokenizer.eos_token_id):
            spare = [token for token in tokenizer.all_special_tokens if token != tokenizer.eos_token]
            preferred = [token for token in (tokenizer.unk_token, *spare) if token]
            tokenizer.pad_token = preferred[0] if preferred else tokenizer.eos_token
        with suppress(RowProblem):  # roles that the template rejects are reported when they are used
            ChatFormat(tokenizer).digest()  # renders the model's template, which can raise anything
    return tokenizer


def _adds_bos(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer begins a text with BOS."""
    return tokenizer.bos_token_id is not None and tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id


def refuse_unread_options(template: str, options: Mapping[str, Option]) -> None:
    """Raise SettingsError if the template does not read one of the options: a typo would change nothing."""
    names = dict.fromkeys(re.findall(r"[A-Za-z_]\w*", template))
    for name in options:
        if name not in names:
            near = get_close_matches(name, names, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise SettingsError(f"--template-option: the chat template of the base does not read {name}{hint}")


def end_tokens(folder: Path) -> set[int]:
    """Return every token at which the model ends a response, by its settings; eos_token_id may be a list."""
    found = set[int]()
    for name in ("config.json", "generation_config.json"):
        settings = read_json(folder / name) if (folder / name).is_file() else {}
        text_settings = settings.get("text_config")
        for part in (settings, text_settings if isinstance(text_settings, dict) else {}):
            value = part.get("eos_token_id")
            found.update(token for token in (value if isinstance(value, list) else [value]) if type(token) is int)
    return found


def load_base(
    folder: Path, load_in_4bit: bool, device: torch.device, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """Load a frozen causal language model from safetensors, without remote code.

    dtype: what it computes in; with load_in_4bit, what its layers are dequantised to.

    Raises RunError if it cannot be read, lacks tensors or rescales its logits.
    """
    quantization = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    with reading(folder):
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=dtype,
            quantization_config=quantization if load_in_4bit else None,
            device_map={"": device},
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
        )
    base, report = loaded
    if missing := sorted(report["missing_keys"]):  # transformers would continue with random numbers
        raise RunError(f"{folder}: {len(missing)} tensors of the model are missing, the first {missing[0]}")
    for name, layer in base.named_modules():  # transformers accepts 4-bit weights of any shape
        state = getattr(getattr(layer, "weight", None), "quant_state", None)
        if state is not None and tuple(state.shape) != (layer.out_features, layer.in_features):
            raise RunError(f"{folder}: the weights of {name} do not have the shape given in config.json")
    keep_unpacked(base)
    base.requires_grad_(False).eval()
    if not gives_plain_logits(base):
        raise RunError(f"{folder}: models that rescale their logits are not supported; use another base")
    return base


@torch.no_grad()
def gives_plain_logits(base: PreTrainedModel) -> bool:
    """Return whether the logits are exactly the output layer applied to the last hidden states, by trying it."""
    ids_1T = torch.arange(4, device=base.device)[None]
    seen: list[Tensor] = []

    def mark(layer: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        seen.append(inputs[0])
        return torch.full_like(output, MARKED_LOGIT)

    with base.get_output_embeddings().register_forward_hook(mark):
        logits_1TV = base(input_ids=ids_1T, use_cache=False).logits
    states_1TD = transformer_of(base)(input_ids=ids_1T, use_cache=False).last_hidden_state
    return bool((logits_1TV == MARKED_LOGIT).all()) and torch.allclose(seen[0], states_1TD, rtol=1e-2, atol=1e-3)


def keep_unpacked(module: nn.Module) -> None:
    """Make 4-bit layers compute in sampling as they do in training, on every CPU.

    On CPUs with bf16 instructions (AVX512-BF16), bitsandbytes repacks the weights of a 4-bit layer, for good, the first
    time that it samples. From then on the layer computes in bf16 and passes no gradient.
    """
    for layer in module.modules():
        if isinstance(layer, Linear4bit):
            layer.support_avx512bf16_for_cpu = False


def lora_config(settings: LoraSettings) -> LoraConfig:
    """Return LoRA on every linear layer but the output layer, without dropout, which would make RL's ratios noisy."""
    return LoraConfig(
        r=settings.lora_rank,
        lora_alpha=settings.lora_alpha,
        lora_dropout=0.0,
        target_modules="all-linear",
        task_type=TaskType.CAUSAL_LM,
    )


def lora_settings(folder: Path) -> LoraSettings:
    """Return the LoRA settings that an adapter folder was trained with; RunError as in saved_lora."""
    saved = saved_lora(folder)
    return LoraSettings(lora_rank=saved.r, lora_alpha=saved.lora_alpha)


def saved_lora(folder: Path) -> LoraConfig:
    """Read the LoRA settings of an adapter folder, which may be hostile; RunError if pit could not have written it.

    Rank, alpha and layers go into a fresh LoraConfig. Every other field must have the value that pit writes: some
    values would make peft import modules, read other files or build another network.
    """
    if foreign := sorted(path.name for path in folder.iterdir() if path.name not in ADAPTER_FILES):
        raise RunError(f"{folder / foreign[0]}: not part of an adapter; remove it from the folder")
    check_entries(folder)
    path = folder / ADAPTER_CONFIG
    saved = {"peft_type": None, **read_json(path)}
    plain = LoraConfig().to_dict()
    for name, value in saved.items():
        if name not in _FREE_FIELDS and (value != plain[name] if name in plain else value):
            raise RunError(f"{path}: {name} {reprlib.repr(value)} is not supported; pit loads only its own adapters")
    with reading(path):
        config = lora_config(LoraSettings(lora_rank=saved["r"], lora_alpha=saved["lora_alpha"]))
        config.target_modules = [str(name) for name in saved["target_modules"]]
    with reading(folder / WEIGHTS), safe_open(folder / WEIGHTS, framework="pt") as tensors:
        ranks = {tensors.get_slice(name).get_shape()[0] for name in list(tensors.keys()) if ".lora_A." in name}
    if ranks != {config.r}:  # before memory is allocated for the rank in the config
        raise RunError(f"{folder}: the adapter's tensors do not have the rank {config.r} given in {ADAPTER_CONFIG}")
    return config

"""Merges a role into its base: a plain model for transformers and vLLM, and its drift from the role."""

import copy
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from bitsandbytes.functional import dequantize_4bit
from bitsandbytes.nn import Linear4bit
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from pitcli.data.templates import ChatFormat, Example
from pitcli.engine.models.bases import read_json, reading
from pitcli.engine.models.forward import hidden_states, score_trees
from pitcli.engine.models.loading import ADAPTER_CONFIG
from pitcli.engine.models.roles import RoleModel
from pitcli.engine.models.trees import Tree, completion_batch
from pitcli.errors import RunError
from pitcli.runs.files import WEIGHTS

SHARD_SIZE = "5GB"
ADAPTER_FIELDS = (
    *("peft_type", "task_type", "base_model_name_or_path", "inference_mode", "r", "lora_alpha", "lora_dropout"),
    *("bias", "target_modules", "modules_to_save"),
)


class Drift(NamedTuple):
    """How far a merged model is from the role on its base.

    largest, mean: absolute differences of all log-probs in nats (gap model: of the scores). agreement: the share of
    positions with the same most likely token (gap model: of pairs with the same better response).
    """

    largest: float
    mean: float
    agreement: float


@torch.no_grad()
def merged_weights(model: RoleModel, role: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Return every tensor of the base by its plain name, with the role's LoRA merged, as `dtype` on the CPU.

    Merged weights are W + alpha / r * B A in fp32, with 4-bit W dequantised. Each layer is removed from the model once
    it is merged, so that no tensor is in memory twice: the model cannot be used afterwards.
    """
    weights: dict[str, Tensor] = {}
    linear = (LoraLayer, Linear4bit)
    names = [name for name, layer in model.base.named_modules() if isinstance(layer, linear)]
    for name in [name for name in names if not name.endswith(".base_layer")]:
        for part, tensor in _merged_layer(model.base.get_submodule(name), role).items():
            weights[f"{name}.{part}"] = _as(tensor, dtype)
        model.base.set_submodule(name, nn.Identity())
    persistent = model.base.state_dict().keys()
    rest = {**dict(model.base.named_parameters()), **dict(model.base.named_buffers())}
    return weights | {name: _as(tensor, dtype) for name, tensor in rest.items() if name in persistent}


def _merged_layer(layer: Any, role: str) -> dict[str, Tensor]:
    """Return the weight, shape (O, I), and the bias of one layer, merged in fp32."""
    adapted = isinstance(layer, LoraLayer)
    linear: Any = layer.get_base_layer() if adapted else layer
    state = getattr(linear.weight, "quant_state", None)
    if getattr(state, "packing_format_for_cpu", False):
        raise RunError("a 4-bit layer was repacked for this CPU, so its exact weights are lost")
    weight_OI = linear.weight if state is None else dequantize_4bit(linear.weight.data, state)
    if adapted:
        weight_OI = weight_OI.float() + layer.get_delta_weight(role).float()
    return {"weight": weight_OI} if linear.bias is None else {"weight": weight_OI, "bias": linear.bias}


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)


def plain_model(
    config: PreTrainedConfig, weights: dict[str, Tensor], gap_head: Tensor | None, chat: ChatFormat, dtype: torch.dtype
) -> PreTrainedModel:
    """Return a transformers model with the merged weights; with a gap head, a sequence classifier with one label.

    gap_head: shape (1, D). Raises RunError if transformers has no such model for this architecture.
    """
    config = copy.deepcopy(config)
    vars(config).pop("quantization_config", None)
    pad_id = chat.tokenizer.pad_token_id
    kind: Any = AutoModelForCausalLM
    if gap_head is not None:
        kind, config.num_labels = AutoModelForSequenceClassification, 1
        config.problem_type = "regression"  # for vLLM: no sigmoid over the score
        weights = {**weights, "score.weight": _as(gap_head, dtype)}
        # transformers scores the last token that is not padding, which is the stop token: it must not be the pad token
        pad_id = None if pad_id == chat.stop_id else pad_id
    config.get_text_config().pad_token_id = pad_id
    try:
        with torch.device("meta"):
            plain = kind.from_config(config, dtype=dtype, trust_remote_code=False)
        unknown = plain.load_state_dict(weights, strict=False, assign=True).unexpected_keys
    except (ValueError, RuntimeError) as error:
        raise RunError(f"{config.model_type} models cannot be merged ({' '.join(str(error).split())[:300]})") from error
    plain.tie_weights()
    missing = [name for name, tensor in plain.state_dict().items() if tensor.is_meta]
    if missing or [name for name in unknown if gap_head is None or not name.startswith("lm_head.")]:
        raise RunError(f"{config.model_type} models cannot be merged: {', '.join([*missing, *unknown][:3])} do not fit")
    if gap_head is None:  # pit samples in its own way, so the base's sampling settings do not apply
        stops = GenerationConfig.from_model_config(config).eos_token_id
        stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
        plain.generation_config = GenerationConfig(
            bos_token_id=config.get_text_config().bos_token_id,
            eos_token_id=sorted({*stops, *chat.stop_ids}),
            pad_token_id=pad_id,
        )
    return plain.requires_grad_(False).eval()


def write_plain(plain: PreTrainedModel, chat: ChatFormat, folder: Path) -> None:
    """Save a plain model with its tokenizer and chat template; RunError if the disk is too small."""
    size = sum(tensor.nbytes for tensor in plain.parameters())
    if (free := shutil.disk_usage(folder).free) < size:
        raise RunError(f"{folder.parent}: needs {size / 2**30:.2f} GiB; {free / 2**30:.2f} GiB free")
    try:
        plain.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    except SafetensorError as error:
        raise RunError(f"{folder.parent}: the weights were not written ({error})") from error
    for path in folder.glob("*.safetensors"):  # safetensors makes its files readable by their owner only
        shutil.copymode(folder / "config.json", path)
    chat.tokenizer.save_pretrained(folder)


def load_plain(folder: Path, gap: bool, device: torch.device) -> PreTrainedModel:
    """Load a plain model as any user would, on CPUs in fp32 like pit; RunError if tensors are missing or unknown."""
    kind: Any = AutoModelForSequenceClassification if gap else AutoModelForCausalLM
    placement: dict[str, Any] = {"dtype": torch.float32} if device.type == "cpu" else {"device_map": "auto"}
    with reading(folder):
        plain, report = kind.from_pretrained(folder, trust_remote_code=False, output_loading_info=True, **placement)
    if wrong := sorted(report["missing_keys"]) + sorted(report["unexpected_keys"]):
        raise RunError(f"{folder}: {len(wrong)} tensors are missing or unknown, the first {wrong[0]}")
    return plain.eval()


@torch.no_grad()
def role_logprobs(model: RoleModel, role: str, examples: Sequence[Example]) -> list[Tensor]:
    """Return the log-probs over the vocabulary at each completion token, shape (C, V) per example, on the CPU."""
    model.use(role)
    rows = []
    for example in examples:
        batch = completion_batch([example], model.pad_id).to(model.device)
        hidden_CD = hidden_states(model, batch)
        rows.append(model.base.get_output_embeddings()(hidden_CD).float().log_softmax(-1).cpu())
    return rows


@torch.no_grad()
def plain_logprobs(plain: PreTrainedModel, examples: Sequence[Example]) -> list[Tensor]:
    """Return the same as role_logprobs for a plain model."""
    rows = []
    for example in examples:
        logits_TV = plain(torch.tensor([example.prompt + example.completion], device=plain.device)).logits[0]
        rows.append(logits_TV[len(example.prompt) - 1 : -1].float().log_softmax(-1).cpu())
    return rows


def logprob_drift(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Drift:
    """Return the drift over all examples, positions and tokens of the vocabulary."""
    ours_NV, theirs_NV = torch.cat(list(ours)), torch.cat(list(theirs))
    difference_NV = (ours_NV - theirs_NV).abs()
    same_N = ours_NV.argmax(-1) == theirs_NV.argmax(-1)
    return Drift(float(difference_NV.max()), float(difference_NV.mean()), float(same_N.float().mean()))


def role_scores(model: RoleModel, trees: Sequence[Tree]) -> Tensor:
    """Return the scores of both leaves of each tree, shape (B, 2), as pit computes them."""
    return torch.stack(score_trees(model, trees, 2))


@torch.no_grad()
def plain_scores(plain: PreTrainedModel, trees: Sequence[Tree]) -> Tensor:
    """Return the same as role_scores for a plain model, one conversation at a time."""
    rows = [[plain(torch.tensor([ids], device=plain.device)).logits.item() for ids in t.conversations()] for t in trees]
    return torch.tensor(rows)


def score_drift(ours_B2: Tensor, theirs_B2: Tensor) -> Drift:
    """Return the drift over all pairs; the better response is the one whose order, or reward, scores higher."""
    difference_B2 = (ours_B2 - theirs_B2).abs()
    same_B = (ours_B2[:, 0] > ours_B2[:, 1]) == (theirs_B2[:, 0] > theirs_B2[:, 1])
    return Drift(float(difference_B2.max()), float(difference_B2.mean()), float(same_B.float().mean()))


def write_adapter(adapter: Path, base_name: str, folder: Path) -> None:
    """Write an adapter for other tools: with the base's name, and only settings that all of peft and vLLM know."""
    saved = read_json(adapter / ADAPTER_CONFIG)
    saved["base_model_name_or_path"] = base_name
    kept = {name: saved[name] for name in ADAPTER_FIELDS}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(adapter / WEIGHTS, folder / WEIGHTS)

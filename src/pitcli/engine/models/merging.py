"""A role folded into its base: one plain model for transformers and vLLM, and how far it drifts from the role."""

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
from pitcli.engine.models.loading import ADAPTER_CONFIG, WEIGHTS
from pitcli.engine.models.roles import RoleModel
from pitcli.engine.models.trees import Tree, completion_batch
from pitcli.errors import RunError

SHARD_SIZE = "5GB"
ADAPTER_FIELDS = (
    *("peft_type", "task_type", "base_model_name_or_path", "inference_mode", "r", "lora_alpha", "lora_dropout"),
    *("bias", "target_modules", "modules_to_save"),
)


class Drift(NamedTuple):
    """The merged model against the role on its base.

    largest, mean: absolute differences of all log-probs (gap: of the scores), in nats (gap: in score units);
    agreement: the share of positions with the same likeliest token (gap: of pairs with the same better response).
    """

    largest: float
    mean: float
    agreement: float


def keep_layout(model: RoleModel) -> None:
    """Before a first forward pass: 4-bit layers that are to be merged must stay as they were quantised.

    In eval mode bitsandbytes repacks them for CPUs with bf16 instructions, which cannot be undone exactly.
    """
    for layer in model.base.modules():
        if isinstance(layer, Linear4bit):
            layer.train()


@torch.no_grad()
def merged_weights(model: RoleModel, role: str, dtype: torch.dtype) -> dict[str, Tensor]:
    """Every tensor of the base by its plain name, the role's LoRA added, as `dtype` on the CPU.

    W + alpha / r * B A in fp32, where W is what a 4-bit layer holds, dequantised. Each layer leaves the model once it
    is merged, so that no tensor is held twice: afterwards the model is of no use.
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
    adapted = isinstance(layer, LoraLayer)
    linear: Any = layer.get_base_layer() if adapted else layer
    state = getattr(linear.weight, "quant_state", None)
    if getattr(state, "packing_format_for_cpu", False):
        raise RunError("a 4-bit layer was repacked for this CPU, so its weights can no longer be read exactly")
    weight_OI = linear.weight if state is None else dequantize_4bit(linear.weight.data, state)
    if adapted:
        weight_OI = weight_OI.float() + layer.get_delta_weight(role).float()
    return {"weight": weight_OI} if linear.bias is None else {"weight": weight_OI, "bias": linear.bias}


def _as(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.detach().to("cpu", dtype if tensor.is_floating_point() else tensor.dtype)


def plain_model(
    config: PreTrainedConfig, weights: dict[str, Tensor], gap_head: Tensor | None, chat: ChatFormat, dtype: torch.dtype
) -> PreTrainedModel:
    """Merged weights as a model of transformers, which takes them over; with a gap head, one with a single label.

    RunError where transformers has no such model of this architecture.
    """
    config = copy.deepcopy(config)
    vars(config).pop("quantization_config", None)
    pad_id = chat.tokenizer.pad_token_id
    kind: Any = AutoModelForCausalLM
    if gap_head is not None:
        kind, config.num_labels = AutoModelForSequenceClassification, 1
        config.problem_type = "regression"  # for vLLM: no sigmoid over the score
        weights = {**weights, "score.weight": _as(gap_head, dtype)}
        # the score is read at the last token that is not padding, and the last token is the stop token
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
    if gap_head is None:  # pit samples in its own way, so the base's settings of sampling do not hold
        stops = GenerationConfig.from_model_config(config).eos_token_id
        stops = stops if isinstance(stops, list) else [] if stops is None else [stops]
        plain.generation_config = GenerationConfig(
            bos_token_id=config.get_text_config().bos_token_id,
            eos_token_id=sorted({*stops, chat.stop_id}),
            pad_token_id=pad_id,
        )
    return plain.requires_grad_(False).eval()


def write_plain(plain: PreTrainedModel, chat: ChatFormat, folder: Path) -> None:
    """Weights, settings, tokenizer and chat template; RunError where the disk does not hold them."""
    size = sum(tensor.nbytes for tensor in plain.parameters())
    if (free := shutil.disk_usage(folder).free) < size:
        raise RunError(
            f"{folder.parent}: {size / 2**30:.2f} GiB are to be written, and {free / 2**30:.2f} GiB are free"
        )
    try:
        plain.save_pretrained(folder, max_shard_size=SHARD_SIZE)
    except SafetensorError as error:
        raise RunError(f"{folder.parent}: the weights were not written ({error})") from error
    for path in folder.glob("*.safetensors"):  # safetensors keeps its files from everybody else
        shutil.copymode(folder / "config.json", path)
    chat.tokenizer.save_pretrained(folder)


def load_plain(folder: Path, gap: bool, device: torch.device) -> PreTrainedModel:
    """What anyone gets from the folder, every tensor of it; on a CPU in fp32, in which pit computes there."""
    kind: Any = AutoModelForSequenceClassification if gap else AutoModelForCausalLM
    where: dict[str, Any] = {"dtype": torch.float32} if device.type == "cpu" else {"device_map": "auto"}
    with reading(folder):
        plain, report = kind.from_pretrained(folder, trust_remote_code=False, output_loading_info=True, **where)
    if wrong := sorted(report["missing_keys"]) + sorted(report["unexpected_keys"]):
        raise RunError(f"{folder}: {len(wrong)} tensors are missing or unknown, the first {wrong[0]}")
    return plain.eval()


@torch.no_grad()
def role_logprobs(model: RoleModel, role: str, examples: Sequence[Example]) -> list[Tensor]:
    """All log-probs at each token of a completion, shape (C, V) each, on the CPU: of the role as pit runs it."""
    model.use(role)
    rows = []
    for example in examples:
        batch = completion_batch([example], model.pad_id).to(model.device)
        hidden_CD = hidden_states(model, batch)
        rows.append(model.base.get_output_embeddings()(hidden_CD).float().log_softmax(-1).cpu())
    return rows


@torch.no_grad()
def plain_logprobs(plain: PreTrainedModel, examples: Sequence[Example]) -> list[Tensor]:
    """As role_logprobs, of a plain model."""
    rows = []
    for example in examples:
        logits_TV = plain(torch.tensor([example.prompt + example.completion], device=plain.device)).logits[0]
        rows.append(logits_TV[len(example.prompt) - 1 : -1].float().log_softmax(-1).cpu())
    return rows


def logprob_drift(ours: Sequence[Tensor], theirs: Sequence[Tensor]) -> Drift:
    """Over all examples, positions and tokens of the vocabulary."""
    ours_NV, theirs_NV = torch.cat(list(ours)), torch.cat(list(theirs))
    apart_NV = (ours_NV - theirs_NV).abs()
    same_N = ours_NV.argmax(-1) == theirs_NV.argmax(-1)
    return Drift(float(apart_NV.max()), float(apart_NV.mean()), float(same_N.float().mean()))


def role_scores(model: RoleModel, trees: Sequence[Tree]) -> Tensor:
    """Scores of both orders of each pair, shape (B, 2), as pit gives them."""
    return torch.stack(score_trees(model, trees, 2))


@torch.no_grad()
def plain_scores(plain: PreTrainedModel, trees: Sequence[Tree]) -> Tensor:
    """As role_scores, of a plain model that reads one conversation at a time."""
    rows = [[plain(torch.tensor([ids], device=plain.device)).logits.item() for ids in t.conversations()] for t in trees]
    return torch.tensor(rows)


def score_drift(ours_B2: Tensor, theirs_B2: Tensor) -> Drift:
    """Over both orders of all pairs; the better response is told by the sign of the symmetrised gap."""
    apart_B2 = (ours_B2 - theirs_B2).abs()
    same_B = (ours_B2[:, 0] > ours_B2[:, 1]) == (theirs_B2[:, 0] > theirs_B2[:, 1])
    return Drift(float(apart_B2.max()), float(apart_B2.mean()), float(same_B.float().mean()))


def write_adapter(adapter: Path, base_name: str, folder: Path) -> None:
    """An adapter for others: the settings that peft and vLLM know in all their versions, and the base by its name."""
    saved = read_json(adapter / ADAPTER_CONFIG)
    saved["base_model_name_or_path"] = base_name
    kept = {name: saved[name] for name in ADAPTER_FIELDS}
    (folder / ADAPTER_CONFIG).write_text(json.dumps(kept, indent=2) + "\n", encoding="utf-8")
    shutil.copyfile(adapter / WEIGHTS, folder / WEIGHTS)

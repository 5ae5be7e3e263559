"""Steps of training and use on a model of random weights, made on the device: one JSON line each, as soon as measured.

    python examples/gpu/random_shapes.py --shape 8b --dtype bf16 [--load-in-4bit] [--device cpu]

Each line has the seconds of a step, its tokens per second, the share of the matrix-product peak, and the peak memory.
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from torch import nn
from torch.profiler import ProfilerActivity, profile
from transformers import AutoModelForCausalLM, LlamaConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from cost_steps import STEPS as MADE
from cost_steps import measure_on, with_roles
from flops import llama_shape
from matmul import DTYPES, square_peak
from workloads import SHAPES

from pitcli.engine.models.packing import packs
from pitcli.settings.base import LoraSettings

SMOLLM2 = {
    **{"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "num_attention_heads": 9},
    **{"num_key_value_heads": 3, "tie_word_embeddings": True},
}
VOCABULARY = 49_152
STEPS = (
    {"stage": "sft", "length": 1024, "rows": 8},
    {"stage": "gap", "length": 1024, "rows": 2},
    {"stage": "rl", "length": 512, "k": 4},
    {"stage": "improve", "length": 512, "rows": 16},
)
SHORT = 192  # tokens of a row with --shape tiny


def random_base(shape: str, dtype: torch.dtype, load_in_4bit: bool, device: torch.device) -> Any:
    """Make a frozen base of a shape on the device."""
    torch.manual_seed(0)
    sizes = SHAPES[shape] or SMOLLM2
    config = LlamaConfig(**sizes, vocab_size=VOCABULARY, max_position_embeddings=8192, eos_token_id=2, pad_token_id=0)
    with torch.device(device):
        base = AutoModelForCausalLM.from_config(config, dtype=dtype)
    if load_in_4bit:
        for name, layer in list(base.model.named_modules()):
            if isinstance(layer, nn.Linear):
                parent, _, last = name.rpartition(".")
                setattr(base.model.get_submodule(parent), last, quantised(layer, dtype, device))
        base.is_loaded_in_4bit = (
            True  # so that peft takes its own layer for these, as for a base that is loaded in 4-bit
        )
    return base.requires_grad_(False).eval()


def quantised(layer: nn.Linear, dtype: torch.dtype, device: torch.device) -> Linear4bit:
    """Return the layer in NF4 with double quantisation, as pit loads it; it is quantised on its device."""
    new = Linear4bit(
        layer.in_features, layer.out_features, bias=False, compute_dtype=dtype, compress_statistics=True,
        quant_type="nf4", device="meta",
    )  # fmt: skip
    new.support_avx512bf16_for_cpu = False
    weight = Params4bit(layer.weight.data, requires_grad=False, compress_statistics=True, quant_type="nf4", module=new)
    new.weight = weight.to(device)
    return new


def top_kernels(model: Any, request: dict[str, Any], config: dict[str, Any]) -> str:
    """Return the operations in which a step spends most time."""
    step, _, _ = MADE[request["stage"]](model, request, llama_shape(config, LoraSettings().lora_rank))
    on_gpu = request["device"] == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    with profile(activities=activities) as profiled:
        step({})
    order = "self_cuda_time_total" if on_gpu else "self_cpu_time_total"
    return str(profiled.key_averages().table(sort_by=order, row_limit=15, max_name_column_width=60))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=list(SHAPES), default="1b")
    parser.add_argument("--dtype", choices=list(DTYPES), default="bf16")
    parser.add_argument("--load-in-4bit", action="store_true")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--cudnn", action="store_true", help="with cuDNN's attention, which pit turns off")
    parser.add_argument("--profile", action="store_true", help="print the operations of each step that take longest")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.backends.cuda.enable_cudnn_sdp(options.cudnn)
    named = {"shape": options.shape, "dtype": options.dtype, "4bit": options.load_in_4bit, "cudnn": options.cudnn}
    peak = square_peak(options.device, options.dtype)
    print(json.dumps({**named, "step": "peak", "tflops": peak / 1e12}), flush=True)
    base = random_base(options.shape, DTYPES[options.dtype], options.load_in_4bit, device)
    model = with_roles(base, recompute=False)
    config = base.config.to_dict()
    layer = type(base.model.layers[0].mlp.up_proj)
    print(
        json.dumps({**named, "layer": f"{layer.__module__}.{layer.__name__}", "packs": packs(model, 1024)}), flush=True
    )
    requests = []
    for step in STEPS:
        request = {"length": 0, "rows": 1, "k": 4, "recompute": False, "device": options.device, **step}
        if options.shape == "tiny":
            request["length"] = SHORT
        found = measure_on(model, request, config)
        figures = {
            "seconds": found["seconds"],
            "tokens_per_second": found["tokens"] / found["seconds"],
            "share_of_peak": found["flops"] / found["seconds"] / peak,
            "peak_gib": found["peak_bytes"] / 2**30,
            "parts": found["parts"],
        }
        print(json.dumps({**named, "step": step["stage"], **figures}), flush=True)
        requests.append(request)
    for request in requests if options.profile else ():
        print(f"{request['stage']}\n{top_kernels(model, request, config)}", flush=True)


if __name__ == "__main__":
    main()

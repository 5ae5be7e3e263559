"""Models of a given shape with random weights and SmolLM2's tokenizer."""

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, LlamaConfig
from workloads import SEED, SHAPES

from pitcli.engine.models.opening import open_base
from pitcli.settings.base import ModelSettings


def model_of(shape: str, scratch: Path, device: str) -> str:
    """Return the value for --model: a name that pit knows, or a folder with random weights, which is made once."""
    settings = SHAPES[shape]
    if settings is None:
        return shape
    folder = scratch / "models" / shape
    if (folder / "tokenizer.json").exists():
        return str(folder)
    tokenizer = open_base(ModelSettings(model="smollm2"), []).tokenizer
    torch.manual_seed(SEED)
    config = LlamaConfig(
        **settings,
        vocab_size=len(tokenizer),
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()  # leave the GPU's memory to the processes that train on it
    tokenizer.save_pretrained(folder)
    return str(folder)

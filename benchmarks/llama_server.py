"""Serves a model folder by llama.cpp (the wheel xllamacpp): `python benchmarks/llama_server.py FOLDER --gguf FILE`.

Writes the weights as they are (fp32) and the tokenizer to FILE, unless it exists, and prints the URL of the
OpenAI-compatible server. For Llama models with a byte-level BPE tokenizer, such as SmolLM2 and the embedded tiny model.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from safetensors.numpy import load_file

NAMES = {
    **{"input_layernorm": "attn_norm", "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k"},
    **{"self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output", "post_attention_layernorm": "ffn_norm"},
    **{"mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down"},
}
OUTER = {"model.embed_tokens.weight": "token_embd.weight", "model.norm.weight": "output_norm.weight"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="model folder as transformers writes it")
    parser.add_argument("--gguf", type=Path, required=True, help="where the model is written in llama.cpp's format")
    parser.add_argument("--port", type=int, default=0, help="default: any free port")
    parser.add_argument("--slots", type=int, default=4, help="responses generated at the same time")
    parser.add_argument("--context", type=int, default=1024, help="tokens of a conversation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--until-stdin-closes", action="store_true", help="end with the process that started it")
    parser.add_argument("--key", help="the API key that clients must send")
    options = parser.parse_args()
    if not options.gguf.exists():
        write_gguf(options.folder, options.gguf)
    server = start(options)
    print(f"{server.listening_address}/v1", flush=True)
    if options.until_stdin_closes:
        sys.stdin.read()
        return
    while True:
        time.sleep(60)


def start(options: argparse.Namespace) -> Any:
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path = str(options.gguf)
    settings.n_parallel, settings.n_ctx = options.slots, options.slots * options.context
    settings.hostnames, settings.port = ["127.0.0.1"], options.port
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = options.threads
    # all in fp32; by default keys and values are in fp16, which moves log-probs by some hundredths of a nat
    settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
    settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.verbosity = -1
    if options.key:
        settings.api_keys = [options.key]
    return xllamacpp.Server(settings)


def write_gguf(folder: Path, target: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    temporary = target.with_suffix(f".tmp-{os.getpid()}")
    writer = gguf.GGUFWriter(temporary, "llama")
    heads, key_heads = config["num_attention_heads"], config["num_key_value_heads"]
    rope = config.get("rope_parameters") or config
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(key_heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope["rope_theta"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    add_tokenizer(writer, folder, config)
    for name, tensor in as_float(folder / "model.safetensors").items():
        writer.add_tensor(*renamed(name, tensor, heads, key_heads))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    temporary.replace(target)


def as_float(path: Path) -> dict[str, np.ndarray]:
    """Read tensors as fp32; numpy has no bf16, so those are read by torch."""
    try:
        return {name: tensor.astype(np.float32) for name, tensor in load_file(path).items()}
    except (KeyError, TypeError):
        from safetensors.torch import load_file as load_torch

        return {name: tensor.float().numpy() for name, tensor in load_torch(path).items()}


def renamed(name: str, tensor: np.ndarray, heads: int, key_heads: int) -> tuple[str, np.ndarray]:
    """Return a tensor as llama.cpp names it; it rotates neighbouring dimensions, transformers the two halves."""
    if name in OUTER or name == "lm_head.weight":
        return OUTER.get(name, "output.weight"), tensor
    _, _, layer, rest = name.split(".", 3)
    part = rest.removesuffix(".weight")
    if part in ("self_attn.q_proj", "self_attn.k_proj"):
        count = heads if part == "self_attn.q_proj" else key_heads
        rows, columns = tensor.shape
        tensor = tensor.reshape(count, 2, rows // count // 2, columns).swapaxes(1, 2).reshape(rows, columns)
    return f"blk.{layer}.{NAMES[part]}.weight", np.ascontiguousarray(tensor)


def add_tokenizer(writer: gguf.GGUFWriter, folder: Path, config: dict[str, Any]) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    added = {token["content"]: token["special"] for token in tokenizer["added_tokens"]}
    names = {number: text for text, number in tokenizer["model"]["vocab"].items()}
    names |= {token["id"]: token["content"] for token in tokenizer["added_tokens"]}
    tokens = [names.get(number, f"<unused-{number}>") for number in range(config["vocab_size"])]
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([control if added.get(token) else normal for token in tokens])
    merges = tokenizer["model"]["merges"]
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in merges])
    ids = {text: number for number, text in names.items()}
    ends = settings["eos_token"]
    writer.add_eos_token_id(ids[ends if isinstance(ends, str) else ends["content"]])
    writer.add_add_bos_token(False)
    template = (folder / "chat_template.jinja").read_text()
    if tokenizer["pre_tokenizer"]["add_prefix_space"]:  # llama.cpp adds none for byte-level BPE
        template = template.replace("+ message['content']", "+ ' ' + message['content']")
    writer.add_chat_template(template)


if __name__ == "__main__":
    main()

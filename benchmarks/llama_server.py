"""Serves a model folder by llama.cpp (the wheel xllamacpp): `python benchmarks/llama_server.py FOLDER --gguf FILE`.

Writes FOLDER as one GGUF file with pit's own writer, unless FILE exists, and prints the URL of the OpenAI-compatible
server.
"""

import argparse
import os
import sys
import time
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="model folder as transformers writes it")
    parser.add_argument("--gguf", type=Path, required=True, help="where the model is written in llama.cpp's format")
    parser.add_argument("--type", choices=["fp32", "bf16", "q8_0"], default="fp32", help="of the file's matrices")
    parser.add_argument(
        "--cache",
        choices=["fp32", "fp16"],
        default="fp32",
        help="type of keys and values. fp32: as pit computes; fp16: llama.cpp's default, with its flash attention,"
        " which moves log-probs by some hundredths of a nat",
    )
    parser.add_argument("--port", type=int, default=0, help="default: any free port")
    parser.add_argument("--slots", type=int, default=4, help="responses generated at the same time")
    parser.add_argument("--context", type=int, default=1024, help="tokens of a conversation")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--until-stdin-closes", action="store_true", help="end with the process that started it")
    parser.add_argument("--key", help="the API key that clients must send")
    options = parser.parse_args()
    if not options.gguf.exists():
        write_model(options.folder, options.gguf, options.type)
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
    if options.cache == "fp32":
        settings.cache_type_k = settings.cache_type_v = xllamacpp.ggml_type.GGML_TYPE_F32
        settings.flash_attn_type = xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    settings.verbosity = -1
    if options.key:
        settings.api_keys = [options.key]
    return xllamacpp.Server(settings)


def write_model(folder: Path, target: Path, form: str) -> None:
    # not imported at the top: a server of a file that exists starts without torch
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from pitcli.data.templates import ChatFormat
    from pitcli.engine.models.gguf_file import form_of, write_gguf
    from pitcli.settings.base import Dtype
    from pitcli.settings.exporting import Quantisation

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    splits = tokenizer.backend_tokenizer.pre_tokenizer
    if getattr(splits, "add_prefix_space", False):  # llama.cpp adds none for byte-level BPE, so the template does
        splits.add_prefix_space = False
        tokenizer.chat_template = tokenizer.chat_template.replace("+ message['content']", "+ ' ' + message['content']")
    temporary = target.with_suffix(f".tmp-{os.getpid()}")
    gguf_form = form_of(Dtype.fp32, Quantisation.q8_0) if form == Quantisation.q8_0 else form_of(Dtype(form), None)
    write_gguf(temporary, model.config, dict(model.state_dict()), ChatFormat(tokenizer), gguf_form)
    temporary.replace(target)


if __name__ == "__main__":
    main()

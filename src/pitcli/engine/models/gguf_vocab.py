"""The tokenizer of a model as metadata of a GGUF file: byte-level BPE, the only kind that is written."""

import json
from typing import Any

import gguf

from pitcli.data.templates import ChatFormat
from pitcli.errors import RunError

# What llama.cpp calls the ways of splitting a text before BPE: by the pre-tokenizer in tokenizer.json.
_LLAMA3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_QWEN2 = _LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
_BY_REGEX = {_LLAMA3: "llama-bpe", _QWEN2: "qwen2"}
CONVERTER = "export with --format safetensors, and convert that folder with convert_hf_to_gguf.py of llama.cpp"


def add_vocab(writer: gguf.GGUFWriter, chat: ChatFormat, size: int) -> None:
    """Add the tokens, the merges, the special tokens and the chat template.

    size: rows of the embeddings, which may be more than the tokens. Raises RunError if llama.cpp would split a text in
    another way than the tokenizer.
    """
    tokenizer = chat.tokenizer
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre_tokenizer_of(backend))
    by_id = {index: token for token, index in tokenizer.get_vocab().items()}
    added = {int(index): token for index, token in tokenizer.added_tokens_decoder.items()}
    writer.add_token_list([by_id.get(index, f"[PAD{index}]") for index in range(size)])
    writer.add_token_types([_type(index, by_id, added) for index in range(size)])
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in backend["model"]["merges"]]
    writer.add_token_merges(merges)
    writer.add_eos_token_id(chat.stop_id)  # what the model has learned to end with
    writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.bos_token_id is not None:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    # llama.cpp does not add a second BOS before a template that begins with one
    begins_with_bos = tokenizer("x")["input_ids"][:1] == [tokenizer.bos_token_id]
    writer.add_add_bos_token(begins_with_bos)
    writer.add_add_space_prefix(False)
    writer.add_chat_template(tokenizer.get_chat_template())


def pre_tokenizer_of(backend: dict[str, Any]) -> str:
    """Return llama.cpp's name of the pre-tokenizer in a tokenizer.json; RunError if it is not known."""
    model, splits = backend["model"], _steps(backend.get("pre_tokenizer") or {})
    *before, last = splits or [{}]
    is_plain = last.get("type") == "ByteLevel" and not last.get("add_prefix_space") and model.get("type") == "BPE"
    name = None
    if is_plain and last.get("use_regex", True):
        if not before:
            name = "gpt-2"
        elif [step.get("type") for step in before] == ["Digits"] and before[0].get("individual_digits"):
            name = "smollm"
    elif is_plain and [(step.get("type"), step.get("behavior")) for step in before] == [("Split", "Isolated")]:
        name = _BY_REGEX.get(before[0].get("pattern", {}).get("Regex", ""))
    # llama.cpp looks for whole words in the vocabulary before it merges with this name only
    if name is None or bool(model.get("ignore_merges")) != (name == "llama-bpe"):
        raise RunError(f"--format gguf: the way in which this base's tokenizer splits a text is not known; {CONVERTER}")
    return name


def _steps(pre_tokenizer: dict[str, Any]) -> list[dict[str, Any]]:
    if pre_tokenizer.get("type") == "Sequence":
        return list(pre_tokenizer["pretokenizers"])
    return [pre_tokenizer] if pre_tokenizer else []


def _type(index: int, by_id: dict[int, str], added: dict[int, Any]) -> gguf.TokenType:
    if index not in by_id:
        return gguf.TokenType.UNUSED
    if index not in added:
        return gguf.TokenType.NORMAL
    return gguf.TokenType.CONTROL if added[index].special else gguf.TokenType.USER_DEFINED

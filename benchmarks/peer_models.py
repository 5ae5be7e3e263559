"""The models of the other side, in plain transformers and peft: a generator of responses and a gap model.

The peer_ modules read the rows and tokens that prepare.py wrote and import nothing from pit.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from gate import Spec
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedTokenizerBase,
)

Messages = list[dict[str, str]]


def on_gpu(spec: Spec) -> bool:
    """Return whether the device is a GPU."""
    return bool(spec["device"] == "cuda")


def in_bf16(spec: Spec) -> bool:
    """Return whether the peers compute in bf16: with --dtype, and with a 4-bit base, as TRL then casts the adapters."""
    return spec["dtype"] == "bf16" or bool(spec["load_in_4bit"])


def loading(spec: Spec) -> dict[str, Any]:
    """Return the options to load the base with the same weights and precision as pit."""
    dtype = torch.bfloat16 if spec["dtype"] == "bf16" else torch.float32
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=["lm_head", "score"],
    )
    quantization = nf4 if spec["load_in_4bit"] else None
    return {"dtype": dtype, "quantization_config": quantization, "device_map": {"": spec["device"]}}


def load_tokenizer(spec: Spec) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the base, with pit's pad token."""
    tokenizer = AutoTokenizer.from_pretrained(spec["base"])
    tokenizer.pad_token = spec["pad_token"]  # not the stop token
    return tokenizer


def load_writer(spec: Spec, adapter: str | Path, trains: bool) -> PeftModel:
    """Load the base with a LoRA adapter as a causal language model."""
    base = AutoModelForCausalLM.from_pretrained(spec["base"], **loading(spec))
    return PeftModel.from_pretrained(base, str(adapter), is_trainable=trains)


def load_gap(spec: Spec, adapter: str | Path, trains: bool) -> PeftModel:
    """Load the base with a gap adapter as a sequence classifier with one label."""
    base = AutoModelForSequenceClassification.from_pretrained(spec["base"], num_labels=1, **loading(spec))
    base.config.pad_token_id = load_tokenizer(spec).pad_token_id
    return PeftModel.from_pretrained(base, str(adapter), is_trainable=trains)


class GapScores:
    """The gap model on a separate copy of the base; the two orders of a comparison are separate sequences."""

    def __init__(self, spec: Spec) -> None:
        self.tokenizer = load_tokenizer(spec)
        self.model = load_gap(spec, Path(spec["reward_run"], "gap"), trains=False).eval()
        self.temperature = spec["gap_temperature"]
        self.instruction = {"role": "user", "content": spec["instruction"]}
        self.micro_batch = spec["sizes"]["micro"]
        self.autocast = torch.autocast(spec["device"], torch.bfloat16, enabled=spec["dtype"] == "bf16")

    def gaps(self, conversations: Sequence[Messages], responses: Sequence[str]) -> list[float]:
        """Return gap / T of each response over the reference in its conversation; 0 for a copy."""
        forward, swapped = [], []
        for messages, response in zip(conversations, responses, strict=True):
            answer = {"role": "assistant", "content": response}
            forward.append([*messages, answer])
            swapped.append([*messages[:-2], answer, self.instruction, messages[-2]])
        scores = self.scores([self.ids(conversation) for conversation in forward + swapped])
        halves = zip(scores[: len(forward)], scores[len(forward) :], strict=True)
        return [(first - second) / 2 / self.temperature for first, second in halves]

    def ids(self, conversation: Messages) -> list[int]:
        """Return the token ids of a conversation up to the stop token of its last response."""
        text = str(self.tokenizer.apply_chat_template(conversation, tokenize=False)).rstrip("\n")
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @torch.inference_mode()
    def scores(self, sequences: Sequence[list[int]]) -> list[float]:
        """Return r_gap of each sequence of token ids."""
        scores = [0.0] * len(sequences)
        for rows in rows_of_similar_length(sequences, self.micro_batch):
            batch = self.tokenizer.pad(
                {"input_ids": [sequences[row] for row in rows]}, padding_side="right", return_tensors="pt"
            ).to(self.model.device)
            with self.autocast:
                logits = self.model(**batch, use_cache=False).logits
            for row, score in zip(rows, logits.squeeze(-1).tolist(), strict=True):
                scores[row] = score
        return scores


def rows_of_similar_length(sequences: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    """Return the indices of the sequences in batches of similar length, the longest first."""
    order = sorted(range(len(sequences)), key=lambda row: -len(sequences[row]))
    return [order[start : start + size] for start in range(0, len(order), size)]

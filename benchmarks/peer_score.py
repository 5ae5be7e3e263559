"""The other side of `pit score`: a plain loop around an exported gap model, one conversation per order of a pair."""

import json
from itertools import permutations
from pathlib import Path
from typing import Any

import torch
from gate import Figures, Gate, Spec
from peer_models import rows_of_similar_length
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging


def run(spec: Spec, side: str, gate: Gate) -> None:
    logging.set_verbosity_error()
    tokenizer = AutoTokenizer.from_pretrained(spec["gap_model"])
    dtype = torch.bfloat16 if spec["dtype"] == "bf16" else torch.float32
    model = AutoModelForSequenceClassification.from_pretrained(spec["gap_model"], dtype=dtype).to(spec["device"]).eval()
    rows = [json.loads(line) for line in Path(spec[f"{spec['trains']}_rows"]).read_text().splitlines()]
    last: Figures = {}
    gate.figures = lambda steps: dict(last)
    while True:
        gate.arrive()
        last["gaps"] = gaps(spec, model, tokenizer, rows)


@torch.inference_mode()
def gaps(spec: Spec, model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> list[list[list[float]]]:
    """Return gap(y_i, y_j) of the responses of each row."""
    orders = [(row, *order) for row in rows for order in permutations(range(len(row["responses"])), 2)]
    ids = [input_ids(spec, tokenizer, row["prompt"], row["responses"][i], row["responses"][j]) for row, i, j in orders]
    size = spec["peer_settings"].get("batch_size", 1)
    in_order = [list(range(len(ids)))[start : start + size] for start in range(0, len(ids), size)]
    batches = rows_of_similar_length(ids, size) if spec["peer_settings"].get("similar_length") else in_order
    scores = [0.0] * len(ids)
    for batch in batches:
        padded = tokenizer.pad(
            {"input_ids": [ids[index] for index in batch]}, padding_side="right", return_tensors="pt"
        )
        for index, score in zip(batch, model(**padded.to(model.device)).logits[:, 0].tolist(), strict=True):
            scores[index] = score
    found = iter(scores)
    matrices = []
    for row in rows:
        count = len(row["responses"])
        r = [[0.0 if i == j else next(found) for j in range(count)] for i in range(count)]
        matrices.append([[(r[i][j] - r[j][i]) / 2 for j in range(count)] for i in range(count)])
    return matrices


def input_ids(spec: Spec, tokenizer: Any, prompt: list[dict[str, str]], response: str, reference: str) -> list[int]:
    """Return the token ids of r_gap(prompt, response, reference)."""
    request = {"role": "user", "content": spec["instruction"]}
    messages = [
        *prompt,
        {"role": "assistant", "content": reference},
        request,
        {"role": "assistant", "content": response},
    ]
    text = str(tokenizer.apply_chat_template(messages, tokenize=False)).rstrip("\n")
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])

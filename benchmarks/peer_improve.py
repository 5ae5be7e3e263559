"""The other side of `pit improve`: a batched loop around transformers' `generate`, with the same stop rule."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from gate import Figures, Gate, Spec
from peer_models import GapScores, Messages, load_tokenizer, load_writer, rows_of_similar_length
from peft import PeftModel
from transformers import GenerationConfig, PreTrainedTokenizerBase
from transformers.utils import logging
from workloads import ITERATIONS, LONGEST_IMPROVEMENT


class Writer:
    """The SFT improver: greedy decoding in batches of similar length, padded on the left."""

    def __init__(self, spec: Spec) -> None:
        self.tokenizer: PreTrainedTokenizerBase = load_tokenizer(spec)
        self.model: PeftModel = load_writer(spec, Path(spec["sft_run"], "improver"), trains=False).eval()
        self.batch_size = spec["sizes"]["drafts_at_once"]
        self.decoding = GenerationConfig(
            do_sample=False,
            max_new_tokens=LONGEST_IMPROVEMENT,
            min_new_tokens=1,
            eos_token_id=spec["stop_ids"],
            pad_token_id=self.tokenizer.pad_token_id,
        )

    @torch.inference_mode()
    def write(self, conversations: Sequence[Messages]) -> list[str]:
        """Return the response to each conversation."""
        rendered: Any = self.tokenizer.apply_chat_template(list(conversations), add_generation_prompt=True)
        prompts: list[list[int]] = rendered["input_ids"]
        texts = [""] * len(prompts)
        for rows in rows_of_similar_length(prompts, self.batch_size):
            batch = self.tokenizer.pad(
                {"input_ids": [prompts[row] for row in rows]}, padding_side="left", return_tensors="pt"
            ).to(self.model.device)
            output = self.model.generate(**batch, generation_config=self.decoding)
            written = output[:, batch["input_ids"].shape[1] :]
            decoded = self.tokenizer.batch_decode(written, skip_special_tokens=True)
            for row, text in zip(rows, decoded, strict=True):
                texts[row] = text.strip()
        return texts


def run(spec: Spec, side: str, gate: Gate) -> None:
    logging.set_verbosity_error()
    writer, gap_model = Writer(spec), GapScores(spec)
    drafts = [json.loads(line) for line in Path(spec["drafts"]).read_text().splitlines()]
    last: Figures = {}
    gate.figures = lambda steps: dict(last)
    while True:
        gate.arrive()
        last.update(improve(spec, writer, gap_model, drafts))


def improve(spec: Spec, writer: Writer, gap_model: GapScores, drafts: Sequence[dict[str, Any]]) -> Figures:
    """Improve each draft greedily up to K times with the learned stop rule; return the texts and stop reasons."""
    best = [draft["response"] for draft in drafts]
    seen = [{draft["response"].strip()} for draft in drafts]
    texts: list[list[str]] = [[] for _ in drafts]
    reasons = ["max_iters"] * len(drafts)
    running = list(range(len(drafts)))
    for _ in range(ITERATIONS):
        conversations = [improvement_of(spec, drafts[row]["prompt"], best[row]) for row in running]
        written = writer.write(conversations)
        gaps = gap_model.gaps(conversations, [text or best[row] for row, text in zip(running, written, strict=True)])
        improved = []
        for row, text, gap in zip(running, written, gaps, strict=True):
            texts[row].append(text)
            if not text:
                reasons[row] = "empty"
            elif text == best[row].strip():
                reasons[row] = "copy"
            elif text in seen[row]:
                reasons[row] = "cycle"
            elif gap <= 0:
                reasons[row] = "not_better"
            else:
                best[row] = text
                seen[row].add(text)
                improved.append(row)
        running = improved
        if not running:
            break
    return {"written": texts, "reasons": reasons}


def improvement_of(spec: Spec, prompt: Messages, response: str) -> Messages:
    """Return the conversation that asks for an improvement of a response."""
    return [*prompt, {"role": "assistant", "content": response}, {"role": "user", "content": spec["instruction"]}]

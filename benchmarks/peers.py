"""The other side: TRL's trainers and a loop around `generate`, as a careful user of them would set them up.

They read the rows and tokens that prepare.py wrote and import nothing of pit.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    GenerationConfig,
    PreTrainedTokenizerBase,
    TrainerCallback,
)
from transformers.utils import logging
from trl import RewardConfig, RewardTrainer, RLOOConfig, RLOOTrainer, SFTConfig, SFTTrainer
from worker import Figures, Gate, distance
from works import ADAM_EPSILON, ITERATIONS, LONGEST_IMPROVEMENT, NEW_TOKENS, SAMPLES

Spec = dict[str, Any]
Messages = list[dict[str, str]]
# the five terms of eq. 2 as chosen and rejected, by the names of prepare.orderings
TERMS = (("wl", "ww"), ("wl", "ll"), ("wl", "lw"), ("ww", "lw"), ("ll", "lw"))
GRADIENT_NORM = 1.0


def run(spec: Spec, side: str, gate: Gate) -> None:
    logging.set_verbosity_error()
    {"sft": run_sft, "gap": run_gap, "rl": run_rl, "improve": run_improve}[spec["trains"]](spec, gate)


def on_gpu(spec: Spec) -> bool:
    return bool(spec["device"] == "cuda")


def in_bf16(spec: Spec) -> bool:
    """Whether arithmetic is bf16: on a GPU, and where TRL casts the adapters of a 4-bit base to it."""
    return on_gpu(spec) or bool(spec["load_in_4bit"])


def loading(spec: Spec) -> dict[str, Any]:
    """How the base is loaded; the same weights and arithmetic as pit's."""
    dtype = torch.bfloat16 if on_gpu(spec) else torch.float32
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
    tokenizer = AutoTokenizer.from_pretrained(spec["base"])
    tokenizer.pad_token = spec["pad_token"]  # another than the token that ends an answer
    return tokenizer


def load_writer(spec: Spec, adapter: str | Path, trains: bool) -> PeftModel:
    base = AutoModelForCausalLM.from_pretrained(spec["base"], **loading(spec))
    return PeftModel.from_pretrained(base, str(adapter), is_trainable=trains)


def load_gap(spec: Spec, adapter: str | Path, trains: bool) -> PeftModel:
    base = AutoModelForSequenceClassification.from_pretrained(spec["base"], num_labels=1, **loading(spec))
    base.config.pad_token_id = load_tokenizer(spec).pad_token_id
    return PeftModel.from_pretrained(base, str(adapter), is_trainable=trains)


def training(spec: Spec, side_settings: dict[str, Any], rows: int, at_once: int) -> dict[str, Any]:
    """What the three trainers share: constant learning rate, no checkpointing of activations, nothing logged or saved.

    rows: of an optimiser step, at_once: of a forward pass, but where side_settings say another.
    """
    settings = {"gradient_checkpointing": False, "per_device_train_batch_size": at_once, **side_settings}
    most = settings["per_device_train_batch_size"]
    batch_size = next(size for size in range(min(most, rows), 0, -1) if rows % size == 0)
    return {
        **settings,
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": rows // batch_size,
        "output_dir": str(Path(spec["scratch"], "run-peer")),
        "learning_rate": spec["learning_rate"],
        "lr_scheduler_type": "constant",
        "weight_decay": 0.0,
        "max_steps": len(spec["steps"]),
        "bf16": in_bf16(spec),
        "use_cpu": not on_gpu(spec),
        "save_strategy": "no",
        "logging_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "dataloader_pin_memory": on_gpu(spec),
        "seed": 0,
    }


class AtGate(TrainerCallback):
    """Waits between the steps of a trainer, and keeps their losses."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.losses: list[torch.Tensor] = [torch.zeros(())]

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.gate.arrive()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.gate.arrive()
        self.losses.append(torch.zeros(()))

    def last(self, steps: int) -> list[float]:
        return [float(loss) for loss in self.losses[-steps:]]


def train_at_gate(trainer: Any, gate: Gate, more: Callable[[int], Figures] = lambda steps: {}) -> None:
    """Trainer.train, step by step; a step's loss is the sum over its micro-batches, as each is scaled already."""
    callback = AtGate(gate)
    step = trainer.training_step

    def kept(*arguments: Any, **named: Any) -> torch.Tensor:
        loss = step(*arguments, **named)
        callback.losses[-1] = callback.losses[-1].to(loss.device) + loss.detach()
        return loss

    trainer.training_step = kept
    trainer.add_callback(callback)
    gate.figures = lambda steps: {"losses": callback.last(steps), **more(steps)}
    trainer.train()


def run_sft(spec: Spec, gate: Gate) -> None:
    """SFTTrainer on completions; within a step the longest rows first, so that a micro-batch holds little padding."""
    rows = [
        row
        for step in spec["steps"]
        for row in by_length(step["rows"], lambda row: len(row["prompt"] + row["completion"]))
    ]
    dataset = Dataset.from_list(
        [
            {
                "input_ids": row["prompt"] + row["completion"],
                "labels": [-100] * len(row["prompt"]) + row["completion"],
            }
            for row in rows
        ]
    )
    settings = training(spec, spec["peer_settings"], spec["sizes"]["sft"], spec["sizes"]["micro"])
    trainer = SFTTrainer(
        model=load_writer(spec, Path(spec["scratch"], "initial"), trains=True),
        args=SFTConfig(**settings, max_grad_norm=GRADIENT_NORM, max_length=None, train_sampling_strategy="sequential"),
        train_dataset=dataset,
        processing_class=load_tokenizer(spec),
    )
    train_at_gate(trainer, gate)


def run_gap(spec: Spec, gate: Gate) -> None:
    """RewardTrainer on the five terms of each pair, each a chosen and a rejected conversation.

    Its loss is a fifth of ours, and its gradient too, so it is clipped to a fifth of the norm.
    """
    rows = []
    for step in spec["steps"]:
        terms = [
            {"chosen_ids": pair[chosen], "rejected_ids": pair[rejected]}
            for pair in step["rows"]
            for chosen, rejected in TERMS
        ]
        rows += by_length(terms, lambda row: max(len(row["chosen_ids"]), len(row["rejected_ids"])))
    terms_of_step = spec["sizes"]["gap"] * len(TERMS)
    settings = training(spec, spec["peer_settings"], terms_of_step, len(TERMS))
    trainer = RewardTrainer(
        model=load_gap(spec, Path(spec["scratch"], "initial"), trains=True),
        args=RewardConfig(
            **settings,
            max_grad_norm=GRADIENT_NORM / len(TERMS),
            max_length=None,
            train_sampling_strategy="sequential",
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(spec),
    )
    train_at_gate(trainer, gate)


def run_rl(spec: Spec, gate: Gate) -> None:
    """RLOOTrainer from the SFT adapter, which it copies for its reference, with a gap model of its own as reward."""
    judge = GapScores(spec)

    def gap_reward(prompts: list[Messages], completions: list[Messages], **_: Any) -> list[float]:
        written = [completion[0]["content"].strip() for completion in completions]
        return judge.gaps(prompts, written)

    samples = spec["sizes"]["rl"] * SAMPLES
    settings = training(spec, spec["peer_settings"], samples, samples)
    trainer = RLOOTrainer(
        model=load_writer(spec, Path(spec["sft_run"], "improver"), trains=True),
        reward_funcs=gap_reward,
        args=RLOOConfig(
            **settings,
            max_grad_norm=GRADIENT_NORM,
            adam_epsilon=ADAM_EPSILON,
            num_generations=SAMPLES,
            max_completion_length=NEW_TOKENS,
            generation_kwargs={"min_new_tokens": NEW_TOKENS},
            temperature=1.0,
            beta=0.05,
            epsilon=0.2,
            shuffle_dataset=False,
        ),
        train_dataset=Dataset.from_list([row for step in spec["steps"] for row in step["rows"]]),
        processing_class=load_tokenizer(spec),
    )
    metrics = trainer._metrics["train"]
    checked = spec["checked"]
    trained = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    before = [parameter.detach().clone() for parameter in trained]
    gate.check = lambda: {
        "rewards": judge.gaps([row["messages"] for row in checked], [row["response"] for row in checked]),
        "moved": distance(before, trained),
    }

    def more(steps: int) -> Figures:
        return {
            "kl": metrics["kl"][-steps:],
            "gap": metrics["reward"][-steps:],
            "tokens": [round(mean * samples) for mean in metrics["completions/mean_length"][-steps:]],
        }

    train_at_gate(trainer, gate, more)


class GapScores:
    """The gap model in plain transformers and peft: a second base with its adapter, both orders by separate passes."""

    def __init__(self, spec: Spec) -> None:
        self.tokenizer = load_tokenizer(spec)
        self.model = load_gap(spec, Path(spec["reward_run"], "gap"), trains=False).eval()
        self.temperature = spec["gap_temperature"]
        self.instruction = {"role": "user", "content": spec["instruction"]}
        self.at_once = spec["sizes"]["micro"]
        self.autocast = torch.autocast("cuda", torch.bfloat16, enabled=on_gpu(spec))

    def gaps(self, asked: Sequence[Messages], responses: Sequence[str]) -> list[float]:
        """Of each response over the reference that the messages show, in logits; 0 for a copy."""
        forth, back = [], []
        for messages, response in zip(asked, responses, strict=True):
            written = {"role": "assistant", "content": response}
            forth.append([*messages, written])
            back.append([*messages[:-2], written, self.instruction, messages[-2]])
        scores = self.scores([self.ids(conversation) for conversation in forth + back])
        halves = zip(scores[: len(forth)], scores[len(forth) :], strict=True)
        return [(there - again) / 2 / self.temperature for there, again in halves]

    def ids(self, conversation: Messages) -> list[int]:
        """Up to the token that ends the last answer."""
        text = str(self.tokenizer.apply_chat_template(conversation, tokenize=False)).rstrip("\n")
        return list(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    @torch.inference_mode()
    def scores(self, sequences: Sequence[list[int]]) -> list[float]:
        scores = [0.0] * len(sequences)
        for places in chunks_by_length(sequences, self.at_once):
            batch = self.tokenizer.pad(
                {"input_ids": [sequences[place] for place in places]}, padding_side="right", return_tensors="pt"
            ).to(self.model.device)
            with self.autocast:
                logits = self.model(**batch, use_cache=False).logits
            for place, score in zip(places, logits.squeeze(-1).tolist(), strict=True):
                scores[place] = score
        return scores


def by_length(rows: Sequence[Any], length: Callable[[Any], int]) -> list[Any]:
    return sorted(rows, key=lambda row: -length(row))


def chunks_by_length(sequences: Sequence[Sequence[int]], size: int) -> list[list[int]]:
    order = sorted(range(len(sequences)), key=lambda place: -len(sequences[place]))
    return [order[start : start + size] for start in range(0, len(order), size)]


def run_improve(spec: Spec, gate: Gate) -> None:
    """Up to K greedy improvements of each draft, judged in both orders; only the drafts that go on are written for."""
    tokenizer = load_tokenizer(spec)
    writer = load_writer(spec, Path(spec["sft_run"], "improver"), trains=False).eval()
    judge = GapScores(spec)
    drafts = [json.loads(line) for line in Path(spec["drafts"]).read_text().splitlines()]
    decoding = GenerationConfig(
        do_sample=False,
        max_new_tokens=LONGEST_IMPROVEMENT,
        min_new_tokens=1,
        eos_token_id=spec["stop_id"],
        pad_token_id=tokenizer.pad_token_id,
    )
    last: Figures = {}
    gate.figures = lambda steps: dict(last)
    while True:
        gate.arrive()
        best = [draft["response"] for draft in drafts]
        seen = [{draft["response"].strip()} for draft in drafts]
        texts: list[list[str]] = [[] for _ in drafts]
        reasons = ["max_iters"] * len(drafts)
        running = list(range(len(drafts)))
        for _ in range(ITERATIONS):
            asked = [improvement_of(spec, drafts[row]["prompt"], best[row]) for row in running]
            written = write(writer, tokenizer, asked, decoding, spec)
            gaps = judge.gaps(asked, [text or best[row] for row, text in zip(running, written, strict=True)])
            going_on = []
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
                    going_on.append(row)
            running = going_on
            if not running:
                break
        last.update(written=texts, reasons=reasons)


def improvement_of(spec: Spec, prompt: Messages, response: str) -> Messages:
    return [*prompt, {"role": "assistant", "content": response}, {"role": "user", "content": spec["instruction"]}]


@torch.inference_mode()
def write(
    model: PeftModel,
    tokenizer: PreTrainedTokenizerBase,
    asked: Sequence[Messages],
    decoding: GenerationConfig,
    spec: Spec,
) -> list[str]:
    """Greedy answers in batches of like length, padded on the left."""
    rendered: Any = tokenizer.apply_chat_template(list(asked), add_generation_prompt=True)
    prompts: list[list[int]] = rendered["input_ids"]
    texts = [""] * len(prompts)
    for places in chunks_by_length(prompts, spec["sizes"]["drafts_at_once"]):
        batch = tokenizer.pad(
            {"input_ids": [prompts[place] for place in places]}, padding_side="left", return_tensors="pt"
        ).to(model.device)
        written = model.generate(**batch, generation_config=decoding)[:, batch["input_ids"].shape[1] :]
        for place, text in zip(places, tokenizer.batch_decode(written, skip_special_tokens=True), strict=True):
            texts[place] = text.strip()
    return texts

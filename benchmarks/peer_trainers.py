"""The other side of training: TRL's trainers, set up as a careful user would."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from gate import Figures, Gate, Spec
from measuring import distance
from peer_models import GapScores, Messages, in_bf16, load_gap, load_tokenizer, load_writer, on_gpu
from transformers import TrainerCallback
from transformers.utils import logging
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, RLOOConfig, RLOOTrainer, SFTConfig, SFTTrainer
from workloads import ADAM_EPSILON, BETA, NEW_TOKENS, SAMPLES

# the five terms of PIT eq. 2 as (chosen, rejected), with the keys of prepare.orderings
TERMS = (("wl", "ww"), ("wl", "ll"), ("wl", "lw"), ("ww", "lw"), ("ll", "lw"))
GRADIENT_NORM = 1.0


def run(spec: Spec, side: str, gate: Gate) -> None:
    logging.set_verbosity_error()
    runs = {"sft": run_sft, "gap": run_gap, "rl": run_rl, "dpo-improver": run_dpo, "dpo-policy": run_dpo}
    runs[spec["trains"]](spec, gate)


def training(spec: Spec, rows: int, micro_batch: int) -> dict[str, Any]:
    """Return the shared settings of the trainers: constant learning rate, nothing logged or saved.

    rows: per optimiser step. micro_batch: rows per forward pass, unless the settings in the spec replace it.
    """
    settings = {
        "gradient_checkpointing": False,
        "per_device_train_batch_size": micro_batch,
        **spec["peer_settings"],
    }
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


class GateCallback(TrainerCallback):
    """Waits at the gate between the steps of a trainer, and records their losses."""

    def __init__(self, gate: Gate) -> None:
        self.gate = gate
        self.losses: list[torch.Tensor] = [torch.zeros(())]

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.gate.arrive()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.gate.arrive()
        self.losses.append(torch.zeros(()))

    def last(self, steps: int) -> list[float]:
        """Return the losses of the last steps."""
        return [float(loss) for loss in self.losses[-steps:]]


def train_at_gate(trainer: Any, gate: Gate, extra_figures: Callable[[int], Figures] = lambda steps: {}) -> None:
    """Run Trainer.train step by step. A step's loss is the sum over its micro-batches, which are scaled already."""
    callback = GateCallback(gate)
    step = trainer.training_step

    def counted_step(*arguments: Any, **named: Any) -> torch.Tensor:
        loss = step(*arguments, **named)
        callback.losses[-1] = callback.losses[-1].to(loss.device) + loss.detach()
        return loss

    trainer.training_step = counted_step
    trainer.add_callback(callback)
    gate.figures = lambda steps: {"losses": callback.last(steps), **extra_figures(steps)}
    trainer.train()


def run_sft(spec: Spec, gate: Gate) -> None:
    """Train with SFTTrainer on completions; each step is sorted by length, for little padding per micro-batch."""
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
    settings = training(spec, spec["sizes"]["sft"], spec["sizes"]["micro"])
    trainer = SFTTrainer(
        model=load_writer(spec, Path(spec["scratch"], "initial"), trains=True),
        args=SFTConfig(**settings, max_grad_norm=GRADIENT_NORM, max_length=None, train_sampling_strategy="sequential"),
        train_dataset=dataset,
        processing_class=load_tokenizer(spec),
    )
    train_at_gate(trainer, gate)


def run_gap(spec: Spec, gate: Gate) -> None:
    """Train with RewardTrainer on the five terms of each pair, each a chosen and a rejected conversation.

    Its loss and its gradient are a fifth of pit's, so the gradient is clipped at a fifth of the norm.
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
    settings = training(spec, terms_of_step, len(TERMS))
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


class TokenisedDPOTrainer(DPOTrainer):  # type: ignore[misc]
    """A DPOTrainer whose rows have token ids already."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        return dataset


class GradientNorms(TrainerCallback):
    """Records the norm of each step's gradient, after it was clipped."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_pre_optimizer_step(self, *_: Any, model: torch.nn.Module, **__: Any) -> None:
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        self.norms.append(float(torch.nn.utils.get_total_norm(gradients)))


def run_dpo(spec: Spec, gate: Gate) -> None:
    """Train with DPOTrainer on a row per pair and context; the reference is the base without the adapter."""
    rows = [
        row
        for step in spec["steps"]
        for row in by_length(
            step["rows"],
            lambda row: len(row["prompt_ids"]) + max(len(row["chosen_ids"]), len(row["rejected_ids"])),
        )
    ]
    settings = training(spec, len(spec["steps"][0]["rows"]), spec["sizes"]["micro"] // 2)
    trainer = TokenisedDPOTrainer(
        model=load_writer(spec, Path(spec["scratch"], "initial"), trains=True),
        args=DPOConfig(
            **settings,
            beta=BETA,
            max_grad_norm=GRADIENT_NORM,
            max_length=None,
            train_sampling_strategy="sequential",
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=load_tokenizer(spec),
    )
    trainer.model.delete_adapter("ref")  # a copy of the new adapter: the trainer switches adapters off instead
    norms = GradientNorms()
    trainer.add_callback(norms)
    train_at_gate(trainer, gate, lambda steps: {"grad_norm": norms.norms[-steps:]})


def run_rl(spec: Spec, gate: Gate) -> None:
    """Train with RLOOTrainer from the SFT adapter, also its reference policy; the reward is a separate gap model."""
    gap_model = GapScores(spec)

    def gap_reward(prompts: list[Messages], completions: list[Messages], **_: Any) -> list[float]:
        texts = [completion[0]["content"].strip() for completion in completions]
        return gap_model.gaps(prompts, texts)

    samples = spec["sizes"]["rl"] * SAMPLES
    settings = training(spec, samples, samples)
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
        "rewards": gap_model.gaps([row["messages"] for row in checked], [row["response"] for row in checked]),
        "moved": distance(before, trained),
    }

    def figures_of(steps: int) -> Figures:
        return {
            "kl": metrics["kl"][-steps:],
            "gap": metrics["reward"][-steps:],
            "tokens": [round(mean * samples) for mean in metrics["completions/mean_length"][-steps:]],
        }

    train_at_gate(trainer, gate, figures_of)


def by_length(rows: Sequence[Any], length: Callable[[Any], int]) -> list[Any]:
    """Sort rows from long to short."""
    return sorted(rows, key=lambda row: -length(row))

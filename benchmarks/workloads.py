"""The workloads of the benchmark, their targets, and their sizes for each shape of model."""

from typing import Any, NamedTuple

SEED = 0
SAMPLES = 4  # k: samples per prompt of an RL step
NEW_TOKENS = 48  # exact length of each sample of an RL step
BETA = 0.1  # of DPO
ADAM_EPSILON = 1e-14  # for RL: after a few steps a gap model's rewards are tiny, and 1e-8 would shrink the updates
ITERATIONS = 3  # K: most improvements per draft
LONGEST_IMPROVEMENT = 64  # tokens
RESPONSES = {"score": 4, "score-two": 2}  # responses of a prompt, each compared with all the others


def pairs_of(trains: str) -> int:
    """Return how many pairs the responses of one prompt make."""
    return RESPONSES[trains] * (RESPONSES[trains] - 1) // 2


class Workload(NamedTuple):
    """What both sides do in one comparison.

    trains: the stage whose steps are measured, improve, score, or endpoint: improve again, for the other side below.
    against: the other side: one of TRL's trainers, pit's own code with each conversation in a separate row (separate),
    pit with its writer at llama.cpp, a loop around `generate`, a loop around the exported gap model (classifier),
    or the machine's matrix products (matmul). target: for the ratio of rates, ours / theirs; for matmul, our share of
    the peak. memory_target: for the ratio of peak memory, ours / theirs.
    """

    name: str
    trains: str
    against: str
    unit: str
    target: float
    memory_target: float | None = None


WORKLOADS = (
    Workload("gap", "gap", "RewardTrainer", "pairs", 4.0),
    Workload("gap-tree", "gap", "separate", "pairs", 1.8),
    Workload("rl", "rl", "RLOOTrainer", "samples", 2.0, memory_target=0.4),
    Workload("sft", "sft", "SFTTrainer", "tokens", 1.2),
    Workload("dpo-improver", "dpo-improver", "DPOTrainer", "pairs", 2.0),
    Workload("dpo-policy", "dpo-policy", "DPOTrainer", "pairs", 1.3),
    Workload("improve", "improve", "generate", "drafts", 2.0),
    Workload("endpoint", "endpoint", "llama.cpp", "drafts", 0.7),
    Workload("score", "score", "classifier", "pairs", 2.0),
    Workload("score-two", "score-two", "classifier", "pairs", 2.0),
    Workload("peak-sft", "sft", "matmul", "FLOP", 0.5),
    Workload("peak-gap", "gap", "matmul", "FLOP", 0.5),
)
GPU_PEAK_TARGET = 0.35
LARGEST_PEAK_GB = 24.0  # of pit's side at the 8B shape


class Sizes(NamedTuple):
    """The sizes of a run.

    max_length: longest conversation in tokens. sft, gap, dpo, rl: rows per optimiser step (rl: prompts). micro,
    rl_micro: sequences per forward pass of pit's side. steps: optimiser steps per run. drafts, drafts_at_once: drafts
    per run and per batch. adapter_steps: training steps of the adapters that rl and improve start from. rows: read from
    the data.
    """

    max_length: int
    sft: int
    gap: int
    dpo: int
    rl: int
    micro: int
    rl_micro: int
    steps: int
    drafts: int
    drafts_at_once: int
    adapter_steps: int
    rows: int

    def scaled(self, factor: float) -> "Sizes":
        """Return the sizes with the rows of a run multiplied by a factor."""

        def times(size: int) -> int:
            return max(1, round(size * factor))

        scaled = ("sft", "gap", "dpo", "rl", "drafts")
        return self._replace(**{name: times(getattr(self, name)) for name in scaled})

    def rows_of(self, trains: str) -> int:
        """Return the rows per optimiser step of a training stage."""
        return int(getattr(self, trains.partition("-")[0]))


CPU = Sizes(
    512,
    sft=16,
    gap=4,
    dpo=8,
    rl=2,
    micro=8,
    rl_micro=4,
    steps=1,
    drafts=16,
    drafts_at_once=8,
    adapter_steps=12,
    rows=256,
)
GPU = Sizes(
    1024,
    sft=64,
    gap=32,
    dpo=32,
    rl=16,
    micro=16,
    rl_micro=16,
    steps=4,
    drafts=64,
    drafts_at_once=32,
    adapter_steps=6,
    rows=1024,
)
TINY = CPU._replace(max_length=256, adapter_steps=2, rows=64)

# settings of LlamaConfig for random weights; None: a model that pit knows by this name
SHAPES: dict[str, dict[str, Any] | None] = {
    "smollm2": None,
    "tiny": {
        **{"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4},
        **{"num_key_value_heads": 2, "tie_word_embeddings": True},
    },
    "1b": {
        **{"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "tie_word_embeddings": True},
    },
    "8b": {
        **{"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32},
        **{"num_key_value_heads": 8, "tie_word_embeddings": False},
    },
}
ALONE = {"8b"}  # shapes at which pit's side runs without the other side
ALONE_WORKLOADS = ("sft", "gap", "rl")


def sizes_of(shape: str, device: str) -> Sizes:
    """Return the sizes for a shape of model on a device."""
    if shape == "tiny":
        return TINY
    return GPU if device == "cuda" else CPU

"""The parts of a rollout: samples of a role, their gaps, their log-probs, and how they are laid out for the update."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pitcli.data.rows import Comparison
from pitcli.data.templates import ChatFormat
from pitcli.engine.generation.methods import PromptWithReference
from pitcli.engine.generation.sampling import Decoding, Sample, generate
from pitcli.engine.improving.scoring import GapModel
from pitcli.engine.models.batches import Batch
from pitcli.engine.models.forward import completion_logprobs
from pitcli.engine.models.packing import tokens_read, tree_batch
from pitcli.engine.models.roles import POLICY, RoleModel
from pitcli.engine.models.trees import group_tree
from pitcli.engine.training.loop import Besides, PlannedRows, StepBatch
from pitcli.engine.training.schedule import training_chunks
from pitcli.equations import sequence_kl
from pitcli.processes.collectives import map_over_ranks
from pitcli.settings.training import RlConfig

SCORED_TOKENS = 1.5  # that the gap model reads for each token of a sampled conversation, with both orders


class RolloutMicroBatch(NamedTuple):
    """Samples of a rollout, flat, token by token; tokens: of the whole rollout, which normalises the loss."""

    batch: Batch
    old_logprobs_N: Tensor
    advantages_N: Tensor
    tokens: int


class Layout(NamedTuple):
    """Samples in micro-batches in which those of one prompt share it.

    samples: the indices of those in each micro-batch, in the order of its states; lengths: their tokens.
    """

    batches: list[Batch]
    samples: list[list[int]]
    lengths: list[list[int]]

    def sequence_kl(self, logprobs: Sequence[Tensor], reference_logprobs: Sequence[Tensor]) -> Tensor:
        """The KL of each sample to the reference, from the log-probs of each micro-batch; shape (B,), nats."""
        kl_B = torch.zeros(sum(map(len, self.samples)))
        for indices, ours_N, reference_N, lengths in zip(
            self.samples, logprobs, reference_logprobs, self.lengths, strict=True
        ):
            kl_B[indices] = sequence_kl(ours_N, reference_N, lengths)
        return kl_B

    def by_token(self, values_B: Tensor) -> list[Tensor]:
        """A value of each sample, repeated for each of its tokens, in the order of each micro-batch."""
        return [
            values_B[indices].repeat_interleave(torch.tensor(lengths))
            for indices, lengths in zip(self.samples, self.lengths, strict=True)
        ]

    def micro_batches(
        self, old_logprobs: Sequence[Tensor], advantages: Sequence[Tensor], device: torch.device
    ) -> list[RolloutMicroBatch]:
        tokens = sum(map(sum, self.lengths))
        return [
            RolloutMicroBatch(batch, old_logprobs_N.to(device), advantages_N.to(device), tokens)
            for batch, old_logprobs_N, advantages_N in zip(self.batches, old_logprobs, advantages, strict=True)
        ]


def rollout_decoding(config: RlConfig, chat: ChatFormat) -> Decoding:
    return Decoding(config.rollout_temperature, 1.0, config.rollout_max_new_tokens, chat.stop_id)


def role_prompts(role: str, chat: ChatFormat, rows: Sequence[PromptWithReference]) -> list[list[int]]:
    """What a role reads before it writes: the policy x, the improver x and y_ref."""
    if role == POLICY:
        return [chat.policy_prompt(row.prompt) for row in rows]
    return [chat.improver_prompt(*row) for row in rows]


def sample_texts(
    model: RoleModel,
    role: str | None,
    chat: ChatFormat,
    prompts: Sequence[list[int]],
    decoding: Decoding,
    seed: int,
) -> list[str]:
    """One response for each prompt, as text."""
    samples = sample_groups(model, role, prompts, decoding, seed, k=1)
    return [chat.decode(sample.token_ids) for sample in samples]


def sample_groups(
    model: RoleModel, role: str | None, prompts: Sequence[list[int]], decoding: Decoding, seed: int, k: int
) -> list[Sample]:
    """k responses for each prompt, the prompts spread over the ranks; a sample depends on its index and the seed."""

    def draw(rows: Sequence[int]) -> list[list[Sample]]:
        seeds = [seed + 7919 * (row * k + number) for row in rows for number in range(k)]
        drawn = generate(
            model, role, prompts=[prompts[row] for row in rows], seeds=seeds, decoding=decoding, samples_per_prompt=k
        )
        return [drawn[start : start + k] for start in range(0, len(drawn), k)]

    return [sample for group in map_over_ranks(range(len(prompts)), draw, model.sharded) for sample in group]


def group_gaps(gap_model: GapModel, comparisons: Sequence[Comparison], k: int) -> Tensor:
    """gap / T of each comparison, shape (B,); the groups of k with the same x and y_ref are spread over the ranks."""

    def of_groups(starts: Sequence[int]) -> list[list[float]]:
        gaps = gap_model.gaps([c for start in starts for c in comparisons[start : start + k]]).tolist()
        return [gaps[start : start + k] for start in range(0, len(gaps), k)]

    groups = map_over_ranks(range(0, len(comparisons), k), of_groups, gap_model.model.sharded)
    return torch.tensor([gap for group in groups for gap in group])


def lay_out(
    model: RoleModel, prompts: Sequence[list[int]], completions: Sequence[list[int]], config: RlConfig
) -> Layout:
    """The samples of prompts, k each, for the states that predict their tokens."""
    k = config.samples_per_prompt
    together = min(k, config.micro_batch_size)
    groups = [
        range(start, min(start + together, end))
        for end in range(k, len(completions) + 1, k)
        for start in range(end - k, end, together)
    ]
    trees = [group_tree(prompts[group[0] // k], [completions[index] for index in group]) for group in groups]
    lengths = [tokens_read(model, tree) for tree in trees]
    chunks = training_chunks(lengths, config, max(1, config.micro_batch_size // together), model.device)
    samples = [[index for group in chunk for index in groups[group]] for chunk in chunks]
    return Layout(
        [tree_batch(model, [trees[group] for group in chunk], of_tokens=True) for chunk in chunks],
        samples,
        [[len(completions[index]) for index in indices] for indices in samples],
    )


def sampling_logprobs(
    model: RoleModel, role: str, layout: Layout, samples: Sequence[Sample], temperature: float
) -> list[Tensor]:
    """log pi_old of the samples of each micro-batch, on the CPU: as they were drawn, or computed again for training."""
    if training_rounds_otherwise(model):
        return role_logprobs(model, role, layout.batches, temperature)
    return [torch.tensor([p for index in indices for p in samples[index].logprobs]) for indices in layout.samples]


def training_rounds_otherwise(model: RoleModel) -> bool:
    """Whether the log-prob of a token that is drawn is another than in training: other kernels round bf16 otherwise.

    With it the ratios of a first update would not be 1, nor its KL 0.
    """
    return model.base.dtype is not torch.float32


def role_logprobs(model: RoleModel, role: str, batches: Sequence[Batch], temperature: float) -> list[Tensor]:
    """What a role says of the samples of each micro-batch, on the CPU; the micro-batches are spread over the ranks."""

    @torch.no_grad()
    def of_batches(indices: Sequence[int]) -> list[Tensor]:
        with model.role(role):
            return [completion_logprobs(model, batches[index], temperature).cpu() for index in indices]

    return list(map_over_ranks(range(len(batches)), of_batches, model.sharded))


def longest_rollouts(config: RlConfig, model: RoleModel, prompts: Sequence[list[int]], rollouts: int) -> PlannedRows:
    """What a dry run measures: so many rollouts over these prompts that never end early."""
    k, new = config.samples_per_prompt, config.rollout_max_new_tokens
    together = min(k, config.micro_batch_size)
    parts = -(-k // together)  # micro-batches that the samples of one prompt are in

    def build(chunks: Sequence[Sequence[int]]) -> StepBatch:
        rows = [row for chunk in chunks for row in chunk]
        layout = lay_out(model, [prompts[row] for row in rows], [[0] * new] * (k * len(rows)), config)
        empty = [torch.zeros(len(batch.targets_N)) for batch in layout.batches]
        return StepBatch(layout.micro_batches(empty, empty, model.device), {})

    prompt = sum(map(len, prompts)) / len(prompts)
    read_forward = k * (prompt + new) * SCORED_TOKENS + parts * prompt + k * new  # for gaps and KL
    besides = Besides(rollouts, new, config.batch_size * k, rollouts * config.batch_size * read_forward)
    lengths = [parts * (len(prompt) + together * new) for prompt in prompts]
    return PlannedRows(lengths, max(1, config.micro_batch_size // together), build, share=1 / parts, besides=besides)


def reward_metrics(rewards_B: Tensor, gaps_B: Tensor, kl_B: Tensor, finished_B: Tensor) -> dict[str, float]:
    return {
        "reward": float(rewards_B.mean()),
        "gap": float(gaps_B.mean()),
        "p_better": float(torch.sigmoid(gaps_B).mean()),
        "kl": float(kl_B.mean()),
        "truncated_share": float((~finished_B).float().mean()),
    }


def runaway(config: RlConfig, metrics: dict[str, float]) -> str | None:
    """What is beyond its limit, or None."""
    if metrics["kl"] > config.max_kl:
        return f"KL {metrics['kl']:.1f} beyond --max-kl"
    if metrics["truncated_share"] > config.max_truncated_share:
        return f"{metrics['truncated_share']:.0%} of the rollouts lack an EOS"
    return None


def identical_share(samples: Sequence[Sample], k: int) -> float:
    """The share of prompts all of whose k samples are the same: nothing can be learned from them."""
    groups = [samples[start : start + k] for start in range(0, len(samples), k)]
    return sum(len({tuple(sample.token_ids) for sample in group}) == 1 for group in groups) / len(groups)


def text_metrics(samples: Sequence[Sample], comparisons: Sequence[Comparison]) -> dict[str, float]:
    """Entropy (nats a token, estimated by the samples themselves), length against y_ref, copies, repetition.

    repetition: the share of the words' triples that came before in the same sample.
    """
    tokens = sum(len(sample.logprobs) for sample in samples)
    words = [(len(c.response.split()), len(c.reference_response.split())) for c in comparisons]
    triples = [list(zip(text, text[1:], text[2:], strict=False)) for text in (c.response.split() for c in comparisons)]
    copies = sum(c.response == c.reference_response.strip() for c in comparisons)
    return {
        "entropy": -sum(sum(sample.logprobs) for sample in samples) / tokens,
        "length_ratio": sum(ours for ours, _ in words) / max(1, sum(theirs for _, theirs in words)),
        "copy_rate": copies / len(comparisons),
        "repetition": 1 - sum(len(set(group)) for group in triples) / max(1, sum(map(len, triples))),
    }

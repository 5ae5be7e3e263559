"""The parts of a rollout: samples of a role, their gaps, their log-probs, and their micro-batches."""

from collections.abc import Callable, Sequence
from statistics import fmean
from typing import NamedTuple

import torch
from torch import Tensor

from pitcli.data.rows import Comparison
from pitcli.data.templates import ChatFormat
from pitcli.data.text_units import units
from pitcli.engine.generation.continuous_batching import generate_all
from pitcli.engine.generation.methods import PromptWithReference
from pitcli.engine.generation.sampling import Decoding, Request, Sample
from pitcli.engine.improving.scoring import GapModel
from pitcli.engine.models.batches import Batch
from pitcli.engine.models.forward import completion_logprobs
from pitcli.engine.models.packing import tokens_read, tree_batch
from pitcli.engine.models.roles import POLICY, RoleModel
from pitcli.engine.models.trees import group_tree
from pitcli.engine.training.loop import PlannedRows, RolloutCost, StepBatch
from pitcli.engine.training.schedule import training_chunks
from pitcli.equations import clipped_policy_loss, sequence_kl
from pitcli.processes.collectives import map_over_ranks
from pitcli.settings.training import RlConfig, RolloutSettings

Reward = Callable[
    [Sequence[Comparison], int], Tensor
]  # the gaps of comparisons, of which k neighbours share x and y_ref

SCORED_TOKENS = 1.5  # read by the gap model per token of a sampled conversation, both orders included


class RolloutMicroBatch(NamedTuple):
    """Part of a rollout; N: all sampled tokens in it, flat. tokens: of the whole rollout, which normalises the loss."""

    batch: Batch
    old_logprobs_N: Tensor
    advantages_N: Tensor
    tokens: int


class Layout(NamedTuple):
    """The micro-batches of a rollout; the samples of one prompt share its tokens.

    samples: the indices of the samples in each micro-batch, in the order of its states. lengths: their tokens.
    """

    batches: list[Batch]
    samples: list[list[int]]
    lengths: list[list[int]]

    def sequence_kl(self, logprobs: Sequence[Tensor], reference_logprobs: Sequence[Tensor]) -> Tensor:
        """Return the KL of each sample to the reference (equations.sequence_kl), shape (B,), nats.

        logprobs, reference_logprobs: of each micro-batch, shape (N,).
        """
        kl_B = torch.zeros(sum(map(len, self.samples)))
        for indices, ours_N, reference_N, lengths in zip(
            self.samples, logprobs, reference_logprobs, self.lengths, strict=True
        ):
            kl_B[indices] = sequence_kl(ours_N, reference_N, lengths)
        return kl_B

    def values_of(self, other: "Layout", values: Sequence[Tensor]) -> list[Tensor]:
        """Return values of the same samples in another layout, shape (N,) of each micro-batch, in this layout."""
        parts = {
            index: part
            for values_N, indices, lengths in zip(values, other.samples, other.lengths, strict=True)
            for index, part in zip(indices, values_N.split(lengths), strict=True)
        }
        return [torch.cat([parts[index] for index in indices]) for indices in self.samples]

    def by_token(self, values_B: Tensor) -> list[Tensor]:
        """Repeat the value of each sample for each of its tokens; return shape (N,) of each micro-batch."""
        return [
            values_B[indices].repeat_interleave(torch.tensor(lengths))
            for indices, lengths in zip(self.samples, self.lengths, strict=True)
        ]

    def micro_batches(
        self, old_logprobs: Sequence[Tensor], advantages: Sequence[Tensor], device: torch.device
    ) -> list[RolloutMicroBatch]:
        """Return the micro-batches with log pi_old and advantages, shape (N,) each, on the device."""
        tokens = sum(map(sum, self.lengths))
        return [
            RolloutMicroBatch(batch, old_logprobs_N.to(device), advantages_N.to(device), tokens)
            for batch, old_logprobs_N, advantages_N in zip(self.batches, old_logprobs, advantages, strict=True)
        ]


def rollout_decoding(config: RolloutSettings, chat: ChatFormat) -> Decoding:
    """Return the decoding of rollouts: no top-p, so that the samples are those of the policy itself."""
    return Decoding(config.rollout_temperature, 1.0, config.rollout_max_new_tokens, chat.stop_ids)


def role_prompts(role: str, chat: ChatFormat, rows: Sequence[PromptWithReference]) -> list[list[int]]:
    """Return the prompts that a role reads, as token ids: x for the policy, x and y_ref for the improver."""
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
    """Sample one response per prompt; return the texts."""
    samples = sample_groups(model, role, prompts, decoding, seed, k=1)
    return [chat.decode(sample.token_ids) for sample in samples]


def sample_groups(
    model: RoleModel, role: str | None, prompts: Sequence[list[int]], decoding: Decoding, seed: int, k: int
) -> list[Sample]:
    """Sample k responses per prompt, neighbours in the result; the ranks share the prompts.

    A sample depends on its index and the seed only, not on the batch or the rank.
    """

    def draw(rows: Sequence[int]) -> list[list[Sample]]:
        requests = [Request(prompts[row], seed + 7919 * (row * k + number)) for row in rows for number in range(k)]
        with model.writing(role):
            drawn = generate_all(model, role, decoding, requests)
        return [drawn[start : start + k] for start in range(0, len(drawn), k)]

    return [sample for group in map_over_ranks(range(len(prompts)), draw, model.sharded) for sample in group]


def group_gaps(gap_model: GapModel, comparisons: Sequence[Comparison], k: int) -> Tensor:
    """Return gap / T of each comparison, shape (B,); k neighbours share x and y_ref. The ranks share the groups."""

    def gaps_of_groups(starts: Sequence[int]) -> list[list[float]]:
        gaps = gap_model.gaps([c for start in starts for c in comparisons[start : start + k]]).tolist()
        return [gaps[start : start + k] for start in range(0, len(gaps), k)]

    groups = map_over_ranks(range(0, len(comparisons), k), gaps_of_groups, gap_model.model.sharded)
    return torch.tensor([gap for group in groups for gap in group])


def lay_out(
    model: RoleModel, prompts: Sequence[list[int]], completions: Sequence[list[int]], config: RolloutSettings
) -> Layout:
    """Lay out the samples, k per prompt, in micro-batches that select the states predicting their tokens."""
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
    """Return log pi_old of each micro-batch, shape (N,), on the CPU.

    They are those of sampling, or computed again if training rounds differently.
    """
    if training_rounds_differently(model):
        return role_logprobs(model, role, layout.batches, temperature)
    return [torch.tensor([p for index in indices for p in samples[index].logprobs]) for indices in layout.samples]


def training_rounds_differently(model: RoleModel) -> bool:
    """Return whether training computes other log-probs than sampling, because its kernels round bf16 differently.

    With the log-probs of sampling the ratios of the first update would then not be 1, nor its KL 0.
    """
    return model.base.dtype is not torch.float32


def role_logprobs(model: RoleModel, role: str, batches: Sequence[Batch], temperature: float) -> list[Tensor]:
    """Return a role's log-probs of each micro-batch, shape (N,), on the CPU. The ranks share the micro-batches."""

    @torch.no_grad()
    def logprobs_of_batches(indices: Sequence[int]) -> list[Tensor]:
        with model.role(role):
            return [completion_logprobs(model, batches[index], temperature).cpu() for index in indices]

    return list(map_over_ranks(range(len(batches)), logprobs_of_batches, model.sharded))


def policy_loss(
    config: RolloutSettings, model: RoleModel, micro_batch: RolloutMicroBatch
) -> tuple[Tensor, dict[str, float]]:
    """The clipped loss summed over the micro-batch's tokens, divided by the token count of the whole rollout."""
    batch, old_logprobs_N, advantages_N, tokens = micro_batch
    logprobs_N = completion_logprobs(model, batch, config.rollout_temperature)
    total, clipped = clipped_policy_loss(logprobs_N, old_logprobs_N, advantages_N, config.clip_range)
    return total / tokens, {"clip_ratio": float(clipped.detach()) / tokens}


def longest_rollouts(
    config: RolloutSettings,
    model: RoleModel,
    prompts: Sequence[list[int]],
    rollouts: int,
    teacher_prompts: Sequence[list[int]] | None = None,
) -> PlannedRows:
    """Return what a dry run measures: this many rollouts whose samples all have the maximum length.

    teacher_prompts: as the improver reads them, if it rates the samples instead of gap models and a reference.
    """
    k, new = config.samples_per_prompt, config.rollout_max_new_tokens
    together = min(k, config.micro_batch_size)
    parts = -(-k // together)  # micro-batches over which the samples of one prompt are split

    def build(chunks: Sequence[Sequence[int]]) -> StepBatch:
        rows = [row for chunk in chunks for row in chunk]
        different = [[sample] * new for sample in range(k)]  # equal ones would share a segment
        layout = lay_out(model, [prompts[row] for row in rows], different * len(rows), config)
        empty = [torch.zeros(len(batch.targets_N)) for batch in layout.batches]
        return StepBatch(layout.micro_batches(empty, empty, model.device), {})

    prompt = fmean(map(len, teacher_prompts or prompts))
    scored = 0.0 if teacher_prompts else k * (prompt + new) * SCORED_TOKENS
    read_forward = scored + parts * prompt + k * new
    cost = RolloutCost(rollouts, new, config.batch_size * k, rollouts * config.batch_size * read_forward)
    lengths = [parts * (len(prompt) + together * new) for prompt in prompts]
    return PlannedRows(lengths, max(1, config.micro_batch_size // together), build, share=1 / parts, rollout_cost=cost)


def reward_metrics(
    rewards_B: Tensor, gaps_B: Tensor, kl_B: Tensor, finished_B: Tensor, scale: float
) -> dict[str, float]:
    """Return the means over a rollout. truncated_share: the share of samples without an EOS.

    scale: P(better) is the sigmoid of gap * scale.
    """
    return {
        "reward": float(rewards_B.mean()),
        "gap": float(gaps_B.mean()),
        "p_better": float(torch.sigmoid(gaps_B * scale).mean()),
        "kl": float(kl_B.mean()),
        "truncated_share": float((~finished_B).float().mean()),
    }


def runaway(config: RlConfig, metrics: dict[str, float]) -> str | None:
    """Return a text that names the metric beyond its limit, or None."""
    if metrics["kl"] > config.max_kl:
        return f"KL {metrics['kl']:.1f} exceeds --max-kl"
    return truncated(config, metrics)


def truncated(config: RolloutSettings, metrics: dict[str, float]) -> str | None:
    """Return a text that says that too many rollouts were truncated, or None."""
    if metrics["truncated_share"] > config.max_truncated_share:
        return f"truncated share {metrics['truncated_share']:.0%} exceeds --max-truncated-share"
    return None


def identical_share(samples: Sequence[Sample], k: int) -> float:
    """Return the share of prompts whose k samples are all the same; nothing can be learned from these."""
    groups = [samples[start : start + k] for start in range(0, len(samples), k)]
    return sum(len({tuple(sample.token_ids) for sample in group}) == 1 for group in groups) / len(groups)


def text_metrics(samples: Sequence[Sample], comparisons: Sequence[Comparison]) -> dict[str, float]:
    """Return metrics of the sampled texts.

    entropy: nats per token, estimated from the log-probs of the samples. length_ratio: units (words, or characters in
    scripts without spaces) relative to y_ref. copy_rate: share of samples equal to y_ref. repetition: share of trigrams
    of units that occurred before in the sample; 0 if no sample has three units.
    """
    tokens = sum(len(sample.logprobs) for sample in samples)
    texts = [units(c.response) for c in comparisons]
    reference_length = sum(len(units(c.reference_response)) for c in comparisons)
    triples = [list(zip(text, text[1:], text[2:], strict=False)) for text in texts]
    distinct, all_triples = sum(len(set(group)) for group in triples), sum(map(len, triples))
    copies = sum(c.response == c.reference_response.strip() for c in comparisons)
    return {
        "entropy": -sum(sum(sample.logprobs) for sample in samples) / tokens,
        "length_ratio": sum(map(len, texts)) / max(1, reference_length),
        "copy_rate": copies / len(comparisons),
        "repetition": 1 - distinct / all_triples if all_triples else 0.0,
    }

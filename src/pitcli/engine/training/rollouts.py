"""Rollouts: sample the improver, judge the samples by the gap, and lay them out for the policy update."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from pitcli.data.records import Comparison
from pitcli.data.templates import ChatFormat
from pitcli.engine.generation.methods import Asked
from pitcli.engine.generation.sampling import Decoding, Sample, generate
from pitcli.engine.improving.scoring import calibrated_gaps
from pitcli.engine.models.batches import Batch, padding_shares, training_chunks
from pitcli.engine.models.roles import POLICY, REFERENCE, RoleModel
from pitcli.engine.models.trees import group_tree
from pitcli.equations import leave_one_out_advantages, rl_rewards, sequence_kl
from pitcli.processes.collectives import spread
from pitcli.settings.training import RlConfig


class Judge(NamedTuple):
    """The model whose gap role is the reward, with what is needed to ask it."""

    model: RoleModel
    chat: ChatFormat
    gap_temperature: float
    micro_batch_size: int

    def gaps(self, comparisons: Sequence[Comparison]) -> list[float]:
        """In logits of P(response is preferred), of each comparison."""
        gaps_B = calibrated_gaps(self.model, self.chat, comparisons, self.gap_temperature, self.micro_batch_size)
        return cast(list[float], gaps_B.tolist())


class RolloutBatch(NamedTuple):
    """A micro-batch of samples, flat, token by token; `tokens` and `metrics` are of the whole rollout.

    The metrics add up over the micro-batches: but for the padding they are on the first only.
    """

    batch: Batch
    old_logprobs_N: Tensor
    advantages_N: Tensor
    tokens: int
    metrics: dict[str, float]


def sample_texts(
    model: RoleModel,
    role: str | None,
    chat: ChatFormat,
    prompts: Sequence[list[int]],
    decoding: Decoding,
    seed: int,
) -> list[str]:
    """One response for each prompt, as text."""
    samples = spread_samples(model, role, prompts, decoding, seed, 1)
    return [chat.decode(sample.token_ids) for sample in samples]


def spread_samples(
    model: RoleModel, role: str | None, prompts: Sequence[list[int]], decoding: Decoding, seed: int, k: int
) -> list[Sample]:
    """k responses for each prompt, the prompts spread over the processes; what is drawn depends on places alone."""

    def draw(rows: Sequence[int]) -> list[list[Sample]]:
        seeds = [seed + 7919 * (row * k + one) for row in rows for one in range(k)]
        drawn = generate(model, role, [prompts[row] for row in rows], seeds, decoding, samples_per_prompt=k)
        return [drawn[place * k : (place + 1) * k] for place in range(len(rows))]

    return [sample for of_one in spread(range(len(prompts)), draw, model.sharded) for sample in of_one]


def roll_out(
    judge: Judge, asked: Sequence[Asked], decoding: Decoding, seed: int, config: RlConfig
) -> list[RolloutBatch]:
    """k samples for each (x, y_ref), with rewards, advantages and the log-probs they were drawn at.

    The improver is shown y_ref; the policy (plain RLHF) is not, and is rewarded for being better than it all the same.
    """
    model, chat, k = judge.model, judge.chat, config.samples_per_prompt
    prompts = asked_prompts(config.role, chat, asked)
    drawn = spread_samples(model, config.role, prompts, decoding, seed, k)
    comparisons = [
        Comparison(asked[row // k].prompt, chat.decode(sample.token_ids), asked[row // k].reference_response)
        for row, sample in enumerate(drawn)
    ]
    gaps_B = torch.tensor(group_gaps(judge, comparisons, k))
    rows, batches = group_batches(model, prompts, drawn, config)
    lengths = [[len(drawn[row].token_ids) for row in of_batch] for of_batch in rows]
    old_logprobs = [torch.tensor([one for row in of_batch for one in drawn[row].logprobs]) for of_batch in rows]
    if sampled_otherwise(model):
        old_logprobs = logprobs_under(model, config.role, batches, decoding.temperature)
    reference_logprobs = logprobs_under(model, REFERENCE, batches, decoding.temperature)
    kl_B = torch.zeros(len(drawn))
    for of_batch, old_N, reference_N, of_length in zip(rows, old_logprobs, reference_logprobs, lengths, strict=True):
        kl_B[of_batch] = sequence_kl(old_N, reference_N, of_length)
    finished_B = torch.tensor([sample.finished for sample in drawn])
    rewards_B = rl_rewards(gaps_B, kl_B, finished_B, config.kl_coef, config.missing_eos_penalty)
    advantages_B = leave_one_out_advantages(rewards_B.view(-1, k)).view(-1)
    tokens = sum(len(sample.token_ids) for sample in drawn)
    metrics = {
        "reward": float(rewards_B.mean()),
        "gap": float(gaps_B.mean()),
        "p_better": float(torch.sigmoid(gaps_B).mean()),
        "kl": float(kl_B.mean()),
        "truncated_share": float((~finished_B).float().mean()),
        "zero_spread_share": alike_share(drawn, k),
        **text_metrics(drawn, comparisons),
    }
    shares: list[dict[str, float]] = [{"padding_share": share} for share in padding_shares(batches)]
    shares[0] |= metrics
    advantages = [
        advantages_B[of_batch].repeat_interleave(torch.tensor(of_length)).to(model.device)
        for of_batch, of_length in zip(rows, lengths, strict=True)
    ]
    return [
        RolloutBatch(batch, old_N.to(model.device), advantages_N, tokens, share)
        for batch, old_N, advantages_N, share in zip(batches, old_logprobs, advantages, shares, strict=True)
    ]


def sampled_otherwise(model: RoleModel) -> bool:
    """Whether the log-prob of a token that is drawn is another than in training, where other kernels round bf16.

    With it the ratios of a first update would not be 1, nor its KL 0.
    """
    return model.base.dtype is not torch.float32


def logprobs_under(model: RoleModel, role: str, batches: Sequence[Batch], temperature: float) -> list[Tensor]:
    """What a role says of the samples of each micro-batch, on the CPU; the micro-batches spread over the processes."""

    @torch.no_grad()
    def of_batches(places: Sequence[int]) -> list[Tensor]:
        model.use(role)
        return [model.completion_logprobs(batches[place], temperature).cpu() for place in places]

    return list(spread(range(len(batches)), of_batches, model.sharded))


def group_gaps(judge: Judge, comparisons: Sequence[Comparison], k: int) -> list[float]:
    """The gap of each comparison, the groups of k with the same x and y_ref spread over the processes."""

    def of_groups(starts: Sequence[int]) -> list[list[float]]:
        gaps = judge.gaps([one for start in starts for one in comparisons[start : start + k]])
        return [gaps[place : place + k] for place in range(0, len(gaps), k)]

    groups = spread(range(0, len(comparisons), k), of_groups, judge.model.sharded)
    return [gap for of_one in groups for gap in of_one]


def group_batches(
    model: RoleModel, prompts: Sequence[list[int]], drawn: Sequence[Sample], config: RlConfig
) -> tuple[list[list[int]], list[Batch]]:
    """The samples in micro-batches in which those of one prompt share it, and which of them each holds in what order.

    Wanted of a batch are the states that predict the samples' tokens, sample by sample.
    """
    k = config.samples_per_prompt
    together = min(k, config.micro_batch_size)
    groups = [
        range(start, min(start + together, end))
        for end in range(k, len(drawn) + 1, k)
        for start in range(end - k, end, together)
    ]
    trees = [group_tree(prompts[group[0] // k], [drawn[row].token_ids for row in group]) for group in groups]
    lengths = [model.tokens_read(tree) for tree in trees]
    chunks = training_chunks(lengths, config, max(1, config.micro_batch_size // together), model.device)
    batches = [model.tree_batch([trees[group] for group in chunk], of_tokens=True) for chunk in chunks]
    return [[row for group in chunk for row in groups[group]] for chunk in chunks], batches


def alike_share(drawn: Sequence[Sample], k: int) -> float:
    """The share of prompts all of whose k samples are the same: there is nothing to learn from them."""
    groups = [drawn[start : start + k] for start in range(0, len(drawn), k)]
    return sum(len({tuple(one.token_ids) for one in group}) == 1 for group in groups) / len(groups)


def asked_prompts(role: str, chat: ChatFormat, asked: Sequence[Asked]) -> list[list[int]]:
    """What a role reads before it writes: the policy x, the improver x and y_ref."""
    if role == POLICY:
        return [chat.policy_prompt(row.prompt) for row in asked]
    return [chat.improver_prompt(*row) for row in asked]


def text_metrics(drawn: Sequence[Sample], comparisons: Sequence[Comparison]) -> dict[str, float]:
    """Entropy (nats a token, estimated by the samples themselves), length against y_ref, copies, repetition.

    repetition: the share of the words' triples that stood before in the same sample.
    """
    tokens = sum(len(sample.logprobs) for sample in drawn)
    words = [(len(c.response.split()), len(c.reference_response.split())) for c in comparisons]
    triples = [list(zip(text, text[1:], text[2:], strict=False)) for text in (c.response.split() for c in comparisons)]
    copies = sum(c.response == c.reference_response.strip() for c in comparisons)
    return {
        "entropy": -sum(sum(sample.logprobs) for sample in drawn) / tokens,
        "length_ratio": sum(ours for ours, _ in words) / max(1, sum(theirs for _, theirs in words)),
        "copy_rate": copies / len(comparisons),
        "repetition": 1 - sum(len(set(of_one)) for of_one in triples) / max(1, sum(map(len, triples))),
    }

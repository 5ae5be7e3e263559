"""Rollouts: sample the improver, judge the samples by the gap, and lay them out for the policy update."""

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor

from pitcli.config import RlConfig
from pitcli.data.records import Comparison
from pitcli.data.templates import ChatFormat, Example
from pitcli.engine.batches import Batch, completion_batch, length_sorted_chunks, one_for_each
from pitcli.engine.equations import leave_one_out_advantages, rl_rewards, sequence_kl
from pitcli.engine.methods import Asked
from pitcli.engine.models import POLICY, REFERENCE, RoleModel
from pitcli.engine.processes import spread
from pitcli.engine.sampling import Decoding, Sample, generate
from pitcli.engine.scoring import calibrated_gaps


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
    """A micro-batch of samples; `tokens` and `metrics` are of the whole rollout, metrics on its first only."""

    batch: Batch
    old_logprobs_BT: Tensor
    advantages_B: Tensor
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
    examples = [Example(prompts[row // k], sample.token_ids) for row, sample in enumerate(drawn)]
    comparisons = [
        Comparison(asked[row // k].prompt, chat.decode(sample.token_ids), asked[row // k].reference_response)
        for row, sample in enumerate(drawn)
    ]
    gaps_B = torch.tensor(spread(comparisons, judge.gaps, model.sharded))
    lengths = [len(example.prompt) + len(example.completion) for example in examples]
    chunks = length_sorted_chunks(lengths, one_for_each(len(lengths), config.micro_batch_size))
    batches = [completion_batch([examples[row] for row in chunk], model.pad_id).to(model.device) for chunk in chunks]
    old_logprobs = [
        drawn_logprobs(batch, [drawn[row] for row in chunk]) for batch, chunk in zip(batches, chunks, strict=True)
    ]

    @torch.no_grad()
    def kl_of(places: Sequence[int]) -> list[Tensor]:
        model.use(REFERENCE)
        references = [model.completion_logprobs(batches[place], decoding.temperature) for place in places]
        return [
            sequence_kl(old_logprobs[place], reference_BT, batches[place].completion_mask_BT).cpu()
            for place, reference_BT in zip(places, references, strict=True)
        ]

    kl_B = torch.zeros(len(drawn))
    for chunk, kl in zip(chunks, spread(range(len(chunks)), kl_of, model.sharded), strict=True):
        kl_B[chunk] = kl
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
        "zero_spread_share": float((rewards_B.view(-1, k).std(1) < 1e-6).float().mean()),
        **text_metrics(drawn, comparisons),
    }
    return [
        RolloutBatch(batch, old_BT, advantages_B[chunk].to(model.device), tokens, metrics if first else {})
        for batch, old_BT, chunk, first in zip(
            batches, old_logprobs, chunks, [True] + [False] * (len(chunks) - 1), strict=True
        )
    ]


def asked_prompts(role: str, chat: ChatFormat, asked: Sequence[Asked]) -> list[list[int]]:
    """What a role reads before it writes: the policy x, the improver x and y_ref."""
    if role == POLICY:
        return [chat.policy_prompt(row.prompt) for row in asked]
    return [chat.improver_prompt(*row) for row in asked]


def drawn_logprobs(batch: Batch, drawn: Sequence[Sample]) -> Tensor:
    """The log-probs that the sampler reported, laid out as the batch's tokens, shape (B, T)."""
    flat = torch.tensor([logprob for sample in drawn for logprob in sample.logprobs], device=batch.input_ids_BT.device)
    return torch.zeros(batch.input_ids_BT.shape, device=flat.device).masked_scatter(batch.completion_mask_BT, flat)


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

"""Sampling in which every request draws from its own seed, whatever runs beside it."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from pitcli.engine.models.precision import finest_dtype


class Sample(NamedTuple):
    """A sampled response.

    token_ids: includes the stop token if the response is finished. logprobs: of each token, in nats. finished: whether
    the response ended in a stop token.
    """

    token_ids: list[int]
    logprobs: list[float]
    finished: bool


class Decoding(NamedTuple):
    """How to sample. Temperature 0 is greedy. No stop token can be among the first min_new_tokens tokens."""

    temperature: float
    top_p: float
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    min_new_tokens: int = 0


class Request(NamedTuple):
    """A response to generate.

    prompt: the token ids that it continues. seed: of its random draws. decoding: None for that of the batching.
    """

    prompt: list[int]
    seed: int
    decoding: Decoding | None = None


def row_uniforms(seeds: Sequence[int], steps: int) -> Tensor:
    """Return one uniform number in [0, 1) per row and step, shape (B, steps), fp64; a row depends on its seed only."""
    rows = [torch.rand(steps, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) for seed in seeds]
    return torch.stack(rows)


def pick_tokens(logits_BV: Tensor, uniforms_B: Tensor, temperature: float, top_p: float) -> Tensor:
    """Sample by inverse CDF from the temperature-scaled, top-p truncated distribution; return token ids, shape (B,)."""
    if temperature == 0:
        return logits_BV.argmax(-1)
    probabilities_BV = torch.softmax(logits_BV.to(finest_dtype(logits_BV.device)) / temperature, -1)
    if top_p < 1:
        sorted_BV, order_BV = probabilities_BV.sort(-1, descending=True)
        kept_BV = sorted_BV.cumsum(-1) - sorted_BV < top_p
        probabilities_BV = torch.zeros_like(sorted_BV).scatter(-1, order_BV, sorted_BV * kept_BV)
    cumulative_BV = probabilities_BV.cumsum(-1)
    thresholds_B1 = uniforms_B[:, None].to(cumulative_BV) * cumulative_BV[:, -1:]
    return torch.searchsorted(cumulative_BV, thresholds_B1, right=True).squeeze(-1).clamp(max=logits_BV.shape[-1] - 1)


def draw(logits_BV: Tensor, uniforms_B: Tensor, decoding: Decoding) -> tuple[Tensor, Tensor]:
    """Draw one token per row; return (token ids, log-probs of the temperature-scaled distribution), shape (B,) each."""
    picked_B = pick_tokens(logits_BV, uniforms_B, decoding.temperature, decoding.top_p)
    logprobs_BV = torch.log_softmax(logits_BV / (decoding.temperature or 1.0), -1)
    return picked_B, logprobs_BV.gather(-1, picked_B[:, None]).squeeze(-1)

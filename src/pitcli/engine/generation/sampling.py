"""Batched sampling in which every row draws from its own seed, whatever else is in the batch."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from transformers import DynamicCache

from pitcli.engine.models.batches import pad_left
from pitcli.engine.models.precision import finest_dtype
from pitcli.engine.models.roles import RoleModel


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


@torch.no_grad()
def generate(
    model: RoleModel,
    role: str | None,
    prompts: Sequence[list[int]],
    seeds: Sequence[int],
    decoding: Decoding,
) -> list[Sample]:
    """Sample one response per prompt by static batching.

    role: the adapter that generates (None: the base itself). seeds: one per response. Finished rows leave the batch
    when half of it has finished. The log-probs are those of the temperature-scaled distribution before top-p,
    in nats.
    """
    device = model.device
    input_ids_BT, mask_BT = (tensor.to(device) for tensor in pad_left(prompts, model.pad_id))
    cache = DynamicCache(config=model.base.config)
    uniforms_BS = row_uniforms(seeds, decoding.max_new_tokens).to(finest_dtype(device)).to(device)
    samples = [Sample([], [], False) for _ in seeds]
    rows = list(range(len(seeds)))  # the response that each row of the shrinking batch belongs to
    with model.role(role):
        hidden_BD = _advance(model, cache, input_ids_BT, mask_BT, (mask_BT.cumsum(-1) - 1).clamp(min=0))
        for step in range(decoding.max_new_tokens):
            logits_BV = model.base.get_output_embeddings()(hidden_BD).float()
            if step < decoding.min_new_tokens:
                logits_BV[:, list(decoding.stop_ids)] = -torch.inf
            picked_B, logprobs_B = draw(logits_BV, uniforms_BS[rows, step], decoding)
            for row, token, logprob in zip(rows, picked_B.tolist(), logprobs_B.tolist(), strict=True):
                samples[row] = _with_token(samples[row], token, logprob, decoding.stop_ids)
            running = [index for index, row in enumerate(rows) if not samples[row].finished]
            if not running or step == decoding.max_new_tokens - 1:
                break
            if len(running) <= len(rows) // 2:
                keep = torch.tensor(running, device=device)
                cache.batch_select_indices(keep)
                mask_BT, picked_B = mask_BT[keep], picked_B[keep]
                rows = [rows[index] for index in running]
            positions_B1 = mask_BT.sum(-1, keepdim=True)
            mask_BT = torch.cat([mask_BT, mask_BT.new_ones(len(rows), 1)], -1)
            hidden_BD = _advance(model, cache, picked_B[:, None], mask_BT, positions_B1)
    return samples


def draw(logits_BV: Tensor, uniforms_B: Tensor, decoding: Decoding) -> tuple[Tensor, Tensor]:
    """Draw one token per row; return (token ids, log-probs of the temperature-scaled distribution), shape (B,) each."""
    picked_B = pick_tokens(logits_BV, uniforms_B, decoding.temperature, decoding.top_p)
    logprobs_BV = torch.log_softmax(logits_BV / (decoding.temperature or 1.0), -1)
    return picked_B, logprobs_BV.gather(-1, picked_B[:, None]).squeeze(-1)


def _with_token(sample: Sample, token: int, logprob: float, stop_ids: tuple[int, ...]) -> Sample:
    """Append a token to a sample; a no-op if it is finished but its row is still in the batch."""
    if sample.finished:
        return sample
    sample.token_ids.append(token)
    sample.logprobs.append(logprob)
    return sample._replace(finished=token in stop_ids)


def _advance(
    model: RoleModel, cache: DynamicCache, input_ids_BT: Tensor, mask_BT: Tensor, position_ids_BT: Tensor
) -> Tensor:
    """Run tokens through the base and extend the KV cache; return the last position's hidden state, shape (B, D)."""
    output = model.transformer(
        input_ids=input_ids_BT,
        attention_mask=mask_BT,
        position_ids=position_ids_BT,
        past_key_values=cache,
        use_cache=True,
    )
    return output.last_hidden_state[:, -1]

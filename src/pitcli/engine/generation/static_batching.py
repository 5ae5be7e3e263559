"""Static batching: requests run together until the last has ended; for bases that do not accept pit's masks."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache

from pitcli.engine.generation.sampling import Decoding, Request, Sample, draw, row_uniforms
from pitcli.engine.models.batches import pad_left
from pitcli.engine.models.precision import finest_dtype
from pitcli.engine.models.roles import RoleModel


class StaticBatching:
    """The interface of ContinuousBatching with batches of at most `slots` requests."""

    def __init__(self, model: RoleModel, role: str | None, decoding: Decoding, slots: int) -> None:
        self.model, self.role, self.decoding, self.slots = model, role, decoding, slots
        self.refill = slots
        self._admitted: list[tuple[int, Request]] = []

    def free(self) -> int:
        """Return how many requests can be admitted now."""
        return self.slots - len(self._admitted)

    def admit(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Queue (key, request) pairs for the next `run`."""
        self._admitted += requests

    def run(self, until: int) -> list[tuple[int, Sample]]:
        """Run every admitted request to its end, whatever `until` is; return the (key, sample) of each."""
        by_decoding: dict[Decoding, list[tuple[int, Request]]] = {}
        for key, request in self._admitted:
            by_decoding.setdefault(request.decoding or self.decoding, []).append((key, request))
        self._admitted = []
        ended: list[tuple[int, Sample]] = []
        for decoding, admitted in by_decoding.items():
            prompts, seeds = [request.prompt for _, request in admitted], [request.seed for _, request in admitted]
            samples = generate(self.model, self.role, prompts, seeds, decoding)
            ended += [(key, sample) for (key, _), sample in zip(admitted, samples, strict=True)]
        return ended

    def advance(self) -> list[tuple[int, Sample]]:
        """Run every admitted request to its end."""
        return self.run(self.slots)

    def drop(self, key: int) -> None:
        """Forget an admitted request; nothing happens if there is none with this key."""
        self._admitted = [admitted for admitted in self._admitted if admitted[0] != key]


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
            logits_BV = model.output_layer(hidden_BD).float()
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

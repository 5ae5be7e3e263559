"""Continuous batching: when a response ends, its slot goes to the next request.

A slot is a row of the KV cache. Its keys and values stay until it is taken again, and a request takes the free slot
whose tokens begin most like its own (prefix cache): of an improvement's next iteration x is not read again.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor
from transformers import Cache

from pitcli.engine.generation.kv_cache import SlotCacheLayer, SlotIndex
from pitcli.engine.generation.prompt_lookup import PromptLookup
from pitcli.engine.generation.sampling import Decoding, Sample, draw, row_uniforms
from pitcli.engine.generation.static_batching import Request, StaticBatching
from pitcli.engine.models.attention import pieces_mask
from pitcli.engine.models.batches import length_sorted_chunks, pad_right
from pitcli.engine.models.packing import packs
from pitcli.engine.models.roles import RoleModel

REFILL = 4  # a quarter of the slots may be empty for a while, so that prompts are read several at a time


def generate_in_order(batching: "ContinuousBatching | StaticBatching", requests: Sequence[Request]) -> Iterator[Sample]:
    """The samples of requests in their order, each as soon as those before it have ended too."""
    waiting, ended = deque(enumerate(requests)), dict[int, Sample]()
    for key in range(len(requests)):
        while key not in ended:
            batching.admit([waiting.popleft() for _ in range(min(batching.free(), len(waiting)))])
            ended.update(batching.run(batching.refill))
        yield ended.pop(key)


def open_batching(
    model: RoleModel, role: str | None, decoding: Decoding, slots: int, longest: int
) -> "ContinuousBatching | StaticBatching":
    """Continuous batching if the model takes our masks on conversations of up to `longest` tokens."""
    kind = ContinuousBatching if packs(model, longest) else StaticBatching
    return kind(model, role, decoding, max(1, slots))


class _Running:
    """A request in its slot; guesses: the tokens that were read after its last one."""

    def __init__(self, key: int, request: Request, decoding: Decoding) -> None:
        self.key = key
        self.uniforms_S = row_uniforms([request.seed], decoding.max_new_tokens)[0]
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.guesses: list[int] = []
        self.right = 0  # of the last guesses
        self.lookup = PromptLookup(request.prompt)

    def add(self, token: int, logprob: float) -> None:
        self.lookup.add(token)
        self.tokens.append(token)
        self.logprobs.append(logprob)

    def was_guessed(self, stop_id: int) -> bool:
        """Whether the token just drawn is the next guess, so that what comes after it was read too."""
        guessed = self.tokens[-1] != stop_id and self.guesses[self.right : self.right + 1] == self.tokens[-1:]
        self.right += guessed
        return guessed

    def guess(self) -> None:
        self.guesses = self.lookup.guess(self.right, limit=len(self.uniforms_S) - len(self.tokens) - 1)


class ContinuousBatching:
    """Requests written side by side, each in a slot of its own; every one draws from its own seed, as in generate."""

    def __init__(self, model: RoleModel, role: str | None, decoding: Decoding, slots: int) -> None:
        self.model, self.role, self.decoding = model, role, decoding
        self.refill = max(1, slots // REFILL)  # how many should have ended before others are admitted
        self._cached: list[list[int]] = [[] for _ in range(slots)]  # tokens whose keys and values a slot holds
        self._running: dict[int, _Running] = {}  # by slot
        self._states: dict[int, Tensor] = {}  # by slot, of shape (1 + guesses, D): what the next tokens are drawn from
        self._index = SlotIndex(slots, model.device)
        layers = model.base.config.get_text_config().num_hidden_layers
        self._cache = Cache(layers=[SlotCacheLayer(self._index) for _ in range(layers)])

    def free(self) -> int:
        """How many requests may be admitted now."""
        return len(self._cached) - len(self._running)

    def admit(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Read the prompts of requests into free slots; each request's key names it when it ends."""
        reads = []
        for key, request in requests:
            slot, shared = self._best_slot(request.prompt)
            self._running[slot] = _Running(key, request, self.decoding)
            del self._cached[slot][shared:]
            reads.append((slot, request.prompt[shared:]))
        with self.model.role(self.role):
            for chunk in length_sorted_chunks([len(ids) for _, ids in reads], len(reads), self.model.device):
                self._read([reads[index] for index in chunk])

    def run(self, until: int) -> list[tuple[int, Sample]]:
        """Write on until `until` requests have ended, or none is left; their keys and samples."""
        ended: list[tuple[int, Sample]] = []
        with self.model.role(self.role):
            while self._running and len(ended) < until:
                ended += self._draw_tokens()
                for running in self._running.values():
                    running.guess()
                if self._running:
                    self._read([(slot, run.tokens[-1:] + run.guesses) for slot, run in sorted(self._running.items())])
        return ended

    def _best_slot(self, prompt: list[int]) -> tuple[int, int]:
        """The free slot that holds most of the prompt, and how much of it; the last token is always read again."""
        free = [slot for slot in range(len(self._cached)) if slot not in self._running]
        shared = {slot: min(_common_prefix(self._cached[slot], prompt), len(prompt) - 1) for slot in free}
        slot = max(free, key=lambda slot: (shared[slot], -len(self._cached[slot])))
        return slot, shared[slot]

    @torch.no_grad()
    def _draw_tokens(self) -> list[tuple[int, Sample]]:
        """Draw the next tokens of every running request, as far as its guesses were right; those that end."""
        slots = sorted(self._running)
        states_ND = torch.cat([self._states[slot] for slot in slots])
        logits_NV = self.model.base.get_output_embeddings()(states_ND).float()
        firsts = accumulate((len(self._running[slot].guesses) + 1 for slot in slots[:-1]), initial=0)
        drawing = [(self._running[slot], first) for slot, first in zip(slots, firsts, strict=True)]
        for running, _ in drawing:
            running.right = 0
        while drawing:
            rows = [first + running.right for running, first in drawing]
            self._draw_one_each([running for running, _ in drawing], logits_NV[rows])
            drawing = [(running, first) for running, first in drawing if running.was_guessed(self.decoding.stop_id)]
        return [ended for slot in slots if (ended := self._end(slot))]

    def _end(self, slot: int) -> tuple[int, Sample] | None:
        """Forget the guesses of a slot that were wrong; its request's sample if that has ended."""
        running, cached = self._running[slot], self._cached[slot]
        del cached[len(cached) - len(running.guesses) + running.right :]
        finished = running.tokens[-1] == self.decoding.stop_id
        if not finished and len(running.tokens) < self.decoding.max_new_tokens:
            return None
        del self._running[slot]
        return running.key, Sample(running.tokens, running.logprobs, finished)

    def _draw_one_each(self, running: Sequence[_Running], logits_BV: Tensor) -> None:
        decoding = self.decoding
        early = [row for row, run in enumerate(running) if len(run.tokens) < decoding.min_new_tokens]
        logits_BV[early, decoding.stop_id] = -torch.inf
        uniforms_B = torch.stack([run.uniforms_S[len(run.tokens)] for run in running]).to(logits_BV.device)
        picked_B, logprobs_B = draw(logits_BV, uniforms_B, decoding)
        for run, token, logprob in zip(running, picked_B.tolist(), logprobs_B.tolist(), strict=True):
            run.add(token, logprob)

    @torch.no_grad()
    def _read(self, reads: Sequence[tuple[int, list[int]]]) -> None:
        """Feed tokens to slots after what they hold, and keep the states that the next tokens are drawn from."""
        states = self._read_flat(reads) if self.model.reads_branches else self._read_padded(reads)
        for (slot, ids), states_TD in zip(reads, states, strict=True):
            self._states[slot] = states_TD[len(ids) - 1 - len(self._running[slot].guesses) : len(ids)]
            self._cached[slot] += ids

    def _read_flat(self, reads: Sequence[tuple[int, list[int]]]) -> Sequence[Tensor]:
        """The states of each read, shape (T, D), all of them in one row without padding."""
        pieces = [(len(ids), slot, len(self._cached[slot])) for slot, ids in reads]
        slots_1N = torch.tensor([[slot for tokens, slot, _ in pieces for _ in range(tokens)]])
        positions_1N = torch.tensor([[p for tokens, _, held in pieces for p in range(held, held + tokens)]])
        self._index.go_to(slots_1N, positions_1N, None)
        input_ids_1N = torch.tensor([[token for _, ids in reads for token in ids]])
        states_1ND = self._forward(input_ids_1N, pieces_mask(pieces), positions_1N)
        return states_1ND[0].split([tokens for tokens, _, _ in pieces])

    def _read_padded(self, reads: Sequence[tuple[int, list[int]]]) -> Sequence[Tensor]:
        """The same with a row for each read."""
        model, slots_B = self.model, torch.tensor([slot for slot, _ in reads])
        input_ids_BT = pad_right([ids for _, ids in reads], model.pad_id)
        starts_B1 = torch.tensor([[len(self._cached[slot])] for slot, _ in reads])
        lasts_B1 = starts_B1 + torch.tensor([[len(ids) - 1] for _, ids in reads])
        places_BT = starts_B1 + torch.arange(input_ids_BT.shape[1])
        self._index.go_to(slots_B[:, None].expand_as(places_BT), places_BT, slots_B)
        sees_BTW = torch.arange(int(places_BT.max()) + 1) <= places_BT[:, :, None]
        mask_BTW = torch.zeros(sees_BTW.shape, dtype=model.base.dtype)
        mask_BTW.masked_fill_(~sees_BTW, torch.finfo(model.base.dtype).min)
        positions_BT = places_BT.minimum(lasts_B1)  # of padding too, which may lie beyond what the model knows
        return list(self._forward(input_ids_BT, mask_BTW[:, None], positions_BT))

    def _forward(self, input_ids_BT: Tensor, mask: Tensor, positions_BT: Tensor) -> Tensor:
        device = self.model.device
        output = self.model.transformer(
            input_ids=input_ids_BT.to(device),
            attention_mask=mask.to(device),
            position_ids=positions_BT.to(device),
            past_key_values=self._cache,
            use_cache=True,
        )
        states_BTD: Tensor = output.last_hidden_state
        return states_BTD


def _common_prefix(held: Sequence[int], prompt: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    for index, (ours, theirs) in enumerate(zip(held, prompt, strict=False)):
        if ours != theirs:
            return index
    return min(len(held), len(prompt))

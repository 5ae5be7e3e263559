"""Continuous batching: when a response ends, its slot goes to the next request.

A slot is a row of the KV cache. Its keys and values stay until the slot is reused, and a request begins with those of
the slot that shares the longest prefix with its prompt (prefix cache). So the next iteration of an improvement does not
read x again, and samples of one prompt read it once.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import accumulate

import torch
from torch import Tensor
from transformers import Cache

from pitcli.console import warn
from pitcli.engine.generation.kv_cache import SlotCacheLayer, SlotIndex
from pitcli.engine.generation.prompt_lookup import PromptLookup
from pitcli.engine.generation.sampling import Decoding, Request, Sample, draw, row_uniforms
from pitcli.engine.generation.static_batching import StaticBatching
from pitcli.engine.models.attention import pieces_mask, prefix_mask
from pitcli.engine.models.batches import common_prefix, length_sorted_chunks, pad_right
from pitcli.engine.models.packing import packs
from pitcli.engine.models.precision import finest_dtype
from pitcli.engine.models.roles import RoleModel
from pitcli.errors import is_out_of_memory

CPU_SLOTS = 16  # with more, a CPU is hardly faster, and its cache larger
GPU_SLOTS = 256  # and fewer if memory runs out
GUESSING = 8  # on a GPU: with more requests in progress, guesses of one only make the rows of all others longer
READ_TOKENS = 65_536  # on a GPU: most tokens of prompts, with padding, that are read in one pass
REFILL = 4  # refill when a quarter of the slots are empty, so that several prompts are read in one pass


def generate_in_order(batching: "ContinuousBatching | StaticBatching", requests: Sequence[Request]) -> Iterator[Sample]:
    """Yield the samples in the order of their requests, each as soon as it and all before it have ended."""
    waiting, ended = deque(enumerate(requests)), dict[int, Sample]()
    for key in range(len(requests)):
        while key not in ended:
            batching.admit([waiting.popleft() for _ in range(min(batching.free(), len(waiting)))])
            ended.update(batching.run(batching.refill))
        yield ended.pop(key)


def open_batching(
    model: RoleModel, role: str | None, decoding: Decoding, slots: int, longest: int
) -> "ContinuousBatching | StaticBatching":
    """Return continuous batching, or static batching if the base does not accept pit's attention masks.

    role: the adapter that generates (None: the base itself). slots: most requests in progress at a time. longest:
    tokens of the longest conversation, prompt and response together.
    """
    kind = ContinuousBatching if packs(model, longest) else StaticBatching
    return kind(model, role, decoding, max(1, slots))


def generate_all(model: RoleModel, role: str | None, decoding: Decoding, requests: Sequence[Request]) -> list[Sample]:
    """Return the samples of the requests, in their order; with fewer slots if memory runs out.

    A sample depends on the seed of its request, not on the slots.
    """
    slots = min(len(requests), CPU_SLOTS if model.device.type == "cpu" else GPU_SLOTS)
    longest = max((len(request.prompt) for request in requests), default=0) + decoding.max_new_tokens
    while True:
        try:
            return [*generate_in_order(open_batching(model, role, decoding, slots, longest), requests)]
        except (MemoryError, RuntimeError) as problem:
            if slots == 1 or not is_out_of_memory(problem):
                raise
        slots //= 2
        warn(f"out of memory while sampling; continuing, {slots} at a time")


class _RunningRequest:
    """A request in its slot. guesses: the speculated tokens that were read after its last drawn one."""

    def __init__(self, key: int, request: Request, decoding: Decoding) -> None:
        self.key = key
        self.decoding = request.decoding or decoding
        self.uniforms_S = row_uniforms([request.seed], self.decoding.max_new_tokens)[0]
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.guesses: list[int] = []
        self.accepted = 0  # how many of the last guesses
        self.lookup = PromptLookup(request.prompt)

    def add(self, token: int, logprob: float) -> None:
        """Append a drawn token."""
        self.lookup.add(token)
        self.tokens.append(token)
        self.logprobs.append(logprob)

    def accept_guess(self) -> bool:
        """Accept the next guess if it is the token just drawn; return whether it is.

        An accepted guess has been read already, so the token after it can be drawn without another pass.
        """
        guess = self.guesses[self.accepted : self.accepted + 1]
        guessed = self.tokens[-1] not in self.decoding.stop_ids and guess == self.tokens[-1:]
        self.accepted += guessed
        return guessed

    def guess(self) -> None:
        """Guess the next tokens, fewer than may still be drawn."""
        self.guesses = self.lookup.guess(self.accepted, limit=len(self.uniforms_S) - len(self.tokens) - 1)


class ContinuousBatching:
    """Generate the responses to several requests side by side, each in its own slot.

    Every response draws from its request's seed, as in sampling.generate, so it does not depend on the other requests.
    """

    def __init__(self, model: RoleModel, role: str | None, decoding: Decoding, slots: int) -> None:
        self.model, self.role, self.decoding = model, role, decoding
        self.refill = max(1, slots // REFILL)  # requests that should end before others are admitted
        self._cached: list[list[int]] = [[] for _ in range(slots)]  # by slot: the tokens whose keys and values it has
        self._running: dict[int, _RunningRequest] = {}  # by slot
        self._states: dict[int, Tensor] = {}  # by slot, shape (1 + guesses, D): states that predict the next tokens
        # by branch, attention is in fp32, so that keys and values are converted once
        dtype = torch.float32 if model.reads_branches else model.base.dtype
        self._index = SlotIndex(slots, model.device, dtype)
        layers = model.base.config.get_text_config().num_hidden_layers
        self._layers = [SlotCacheLayer(self._index) for _ in range(layers)]
        self._cache = Cache(layers=[*self._layers])

    @property
    def _on_cpu(self) -> bool:
        return self.model.device.type == "cpu"

    def free(self) -> int:
        """Return how many requests can be admitted now."""
        return len(self._cached) - len(self._running)

    def admit(self, requests: Sequence[tuple[int, Request]]) -> None:
        """Read the prompts of (key, request) pairs into free slots; `run` returns each sample with its key."""
        firsts = {tuple(request.prompt): key for key, request in reversed(requests)}
        alone = [(key, request) for key, request in requests if firsts[tuple(request.prompt)] == key]
        repeated = [(key, request) for key, request in requests if firsts[tuple(request.prompt)] != key]
        for part in (alone, repeated):
            if part:
                self._admit(part)

    def _admit(self, requests: Sequence[tuple[int, Request]]) -> None:
        reads = []
        for key, request in requests:
            slot, shared = self._begin(request.prompt)
            self._running[slot] = _RunningRequest(key, request, self.decoding)
            reads.append((slot, request.prompt[shared:]))
        with self.model.role(self.role):
            budget = None if self._on_cpu else READ_TOKENS
            for chunk in length_sorted_chunks([len(ids) for _, ids in reads], len(reads), self.model.device, budget):
                self._read([reads[index] for index in chunk])

    def run(self, until: int) -> list[tuple[int, Sample]]:
        """Generate until `until` requests have ended or none is left; return the (key, sample) of each that ended."""
        ended: list[tuple[int, Sample]] = []
        with self.model.role(self.role):
            while self._running and len(ended) < until:
                ended += self._draw_and_read()
        return ended

    def advance(self) -> list[tuple[int, Sample]]:
        """Generate the next tokens of every request in one pass; return the (key, sample) of each that ended.

        The role stays in use, because a switch costs as much as a small pass.
        """
        self.model.use(self.role)
        return self._draw_and_read() if self._running else []

    def drop(self, key: int) -> None:
        """Stop a request without a sample; nothing happens if none with this key is running."""
        self._running = {slot: running for slot, running in self._running.items() if running.key != key}

    def _draw_and_read(self) -> list[tuple[int, Sample]]:
        ended = self._draw_tokens()
        for running in self._running.values():
            running.guesses = []
            if self._on_cpu or len(self._running) <= GUESSING:
                running.guess()
        if self._running:
            self._read([(slot, run.tokens[-1:] + run.guesses) for slot, run in sorted(self._running.items())])
        return ended

    def _begin(self, prompt: list[int]) -> tuple[int, int]:
        """Return (a free slot, how many tokens of the prompt it has cached): the longest prefix that any slot has.

        The prompt's last token is always read again, because the first new token is drawn from its state.
        """
        shared = [min(common_prefix(cached, prompt), len(prompt) - 1) for cached in self._cached]
        free = [slot for slot in range(len(self._cached)) if slot not in self._running]
        slot = max(free, key=lambda slot: (shared[slot], -len(self._cached[slot])))
        source = max(range(len(shared)), key=lambda slot: shared[slot])
        if shared[source] > shared[slot]:
            self._cached[slot] = self._cached[source][: shared[source]]
            for layer in self._layers:
                layer.copy(source, slot, shared[source])
        del self._cached[slot][shared[source] :]
        return slot, shared[source]

    @torch.no_grad()
    def _draw_tokens(self) -> list[tuple[int, Sample]]:
        """Draw the next tokens of every running request, as far as its guesses are right; return those that end."""
        slots = sorted(self._running)
        states_ND = torch.cat([self._states[slot] for slot in slots])
        logits_NV = self.model.output_layer(states_ND).float()
        firsts = accumulate((len(self._running[slot].guesses) + 1 for slot in slots[:-1]), initial=0)
        drawing = [(self._running[slot], first) for slot, first in zip(slots, firsts, strict=True)]
        for running, _ in drawing:
            running.accepted = 0
        while drawing:
            rows = [first + running.accepted for running, first in drawing]
            self._draw_next_token([running for running, _ in drawing], logits_NV[rows])
            drawing = [(running, first) for running, first in drawing if running.accept_guess()]
        return [ended for slot in slots if (ended := self._end(slot))]

    def _end(self, slot: int) -> tuple[int, Sample] | None:
        """Drop a slot's wrong guesses from its cached tokens; return (key, sample) if its request has ended."""
        running, cached = self._running[slot], self._cached[slot]
        del cached[len(cached) - len(running.guesses) + running.accepted :]
        finished = running.tokens[-1] in running.decoding.stop_ids
        if not finished and len(running.tokens) < running.decoding.max_new_tokens:
            return None
        del self._running[slot]
        return running.key, Sample(running.tokens, running.logprobs, finished)

    def _draw_next_token(self, running: Sequence[_RunningRequest], logits_BV: Tensor) -> None:
        by_decoding: dict[Decoding, list[int]] = {}
        for row, run in enumerate(running):
            by_decoding.setdefault(run.decoding, []).append(row)
        for decoding, rows in by_decoding.items():
            part = logits_BV if len(by_decoding) == 1 else logits_BV[rows]
            self._draw_alike([running[row] for row in rows], part, decoding)

    def _draw_alike(self, running: Sequence[_RunningRequest], logits_BV: Tensor, decoding: Decoding) -> None:
        """Draw the next token of requests with the same decoding."""
        early = [row for row, run in enumerate(running) if len(run.tokens) < decoding.min_new_tokens]
        for token in decoding.stop_ids if early else ():
            logits_BV[early, token] = -torch.inf
        uniforms_B = torch.stack([run.uniforms_S[len(run.tokens)] for run in running])
        uniforms_B = uniforms_B.to(finest_dtype(logits_BV.device)).to(logits_BV.device)
        picked_B, logprobs_B = draw(logits_BV, uniforms_B, decoding)
        for run, token, logprob in zip(running, picked_B.tolist(), logprobs_B.tolist(), strict=True):
            run.add(token, logprob)

    @torch.no_grad()
    def _read(self, reads: Sequence[tuple[int, list[int]]]) -> None:
        """Append tokens to the slots in one pass, and keep the states that predict the next tokens.

        reads: (slot, token ids) of each read.
        """
        states = self._read_flat(reads) if self.model.reads_branches else self._read_padded(reads)
        for (slot, ids), states_TD in zip(reads, states, strict=True):
            self._states[slot] = states_TD[len(ids) - 1 - len(self._running[slot].guesses) : len(ids)]
            self._cached[slot] += ids

    def _read_flat(self, reads: Sequence[tuple[int, list[int]]]) -> Sequence[Tensor]:
        """Return the states of each read, shape (T, D); all reads are one row without padding."""
        pieces = [(len(ids), slot, len(self._cached[slot])) for slot, ids in reads]
        slots_1N = torch.tensor([[slot for tokens, slot, _ in pieces for _ in range(tokens)]])
        positions_1N = torch.tensor([[p for tokens, _, cached in pieces for p in range(cached, cached + tokens)]])
        self._index.go_to(slots_1N, positions_1N, None)
        input_ids_1N = torch.tensor([[token for _, ids in reads for token in ids]])
        states_1ND = self._forward(input_ids_1N, pieces_mask(pieces), positions_1N)
        return states_1ND[0].split([tokens for tokens, _, _ in pieces])

    def _read_padded(self, reads: Sequence[tuple[int, list[int]]]) -> Sequence[Tensor]:
        """Return the states of each read, shape (T, D); each read is a padded row."""
        model, slots_B = self.model, torch.tensor([slot for slot, _ in reads])
        input_ids_BT = pad_right([ids for _, ids in reads], model.pad_id)
        starts_B1 = torch.tensor([[len(self._cached[slot])] for slot, _ in reads])
        lasts_B1 = starts_B1 + torch.tensor([[len(ids) - 1] for _, ids in reads])
        columns_BT = starts_B1 + torch.arange(input_ids_BT.shape[1])
        self._index.go_to(slots_B[:, None].expand_as(columns_BT), columns_BT, slots_B)
        mask_BTW = prefix_mask(columns_BT.to(model.device), self._index.width, model.base.dtype)
        positions_BT = columns_BT.minimum(lasts_B1)  # of padding too, which could lie beyond the model's last position
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

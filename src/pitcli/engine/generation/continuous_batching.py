"""Generation without idle places: what responses leave when they end, the next take.

A slot is a place in the batch with its keys and values. They stay until the slot is taken again, and a call takes the
free slot whose tokens begin most like its own: of an improvement's next iteration x is not read again.

An improvement repeats much of what it improves. So where the last two tokens stand together before, the ones after them
are guessed to come again and read in the same pass (prompt lookup, arXiv 2304.04487). A guess is kept only where it is
what is drawn, and every token has a number of its own to be drawn with: but for rounding, the guesses change the time
alone.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import CacheLayerMixin

from pitcli.engine.generation.sampling import Decoding, Sample, generate, pick_tokens, row_uniforms
from pitcli.engine.models.batches import length_sorted_chunks, pad_right
from pitcli.engine.models.roles import RoleModel

REFILL = 4  # one of so many places may be empty for a while, so that prompts are read several at a time
MOST_GUESSES = 8  # tokens that are read ahead at most
MORE_GUESSES = 2  # than were right the last time


class Call(NamedTuple):
    """A response that is wanted: the tokens that it goes on from, and the seed of its draws."""

    prompt: list[int]
    seed: int


def write_all(places: "Slots | Waves", calls: Sequence[Call]) -> Iterator[Sample]:
    """The samples of calls in their order, each as soon as those before it have ended too."""
    waiting, ended = deque(enumerate(calls)), dict[int, Sample]()
    for key in range(len(calls)):
        while key not in ended:
            places.admit([waiting.popleft() for _ in range(min(places.free(), len(waiting)))])
            ended.update(places.run(places.refill))
        yield ended.pop(key)


def open_places(model: RoleModel, role: str | None, decoding: Decoding, count: int, longest: int) -> "Slots | Waves":
    """So many places: slots if the model takes our masks on conversations of up to `longest` tokens."""
    kind = Slots if model.packs(longest) else Waves
    return kind(model, role, decoding, max(1, count))


class _Running:
    """A call in its slot; guesses: what was read after its last token."""

    def __init__(self, key: int, call: Call, decoding: Decoding) -> None:
        self.key = key
        self.uniforms_S = row_uniforms([call.seed], decoding.max_new_tokens)[0]
        self.tokens: list[int] = []
        self.logprobs: list[float] = []
        self.guesses: list[int] = []
        self.right = 0  # of the last guesses
        self._text = list(call.prompt)
        self._follows: dict[tuple[int, ...], int] = {
            pair: place + 2 for place, pair in enumerate(pairwise(self._text[:-1]))
        }

    def add(self, token: int, logprob: float) -> None:
        self._follows[tuple(self._text[-2:])] = len(self._text)
        self._text.append(token)
        self.tokens.append(token)
        self.logprobs.append(logprob)

    def goes_on(self, stop_id: int) -> bool:
        """Whether the token just drawn is the next guess, so that what comes after it was read too."""
        follows = self.tokens[-1] != stop_id and self.guesses[self.right : self.right + 1] == self.tokens[-1:]
        self.right += follows
        return follows

    def guess(self) -> None:
        """What follows the last place where the last two tokens stand together; as many as were right, and some."""
        place = self._follows.get(tuple(self._text[-2:]), len(self._text))
        left = len(self.uniforms_S) - len(self.tokens) - 1
        self.guesses = self._text[place : place + min(self.right + MORE_GUESSES, MOST_GUESSES, left)]


class Waves:
    """Calls written together, as many as there are places: for bases that take no mask of four axes."""

    def __init__(self, model: RoleModel, role: str | None, decoding: Decoding, places: int) -> None:
        self.model, self.role, self.decoding, self.places = model, role, decoding, places
        self.refill = places
        self._calls: list[tuple[int, Call]] = []

    def free(self) -> int:
        return self.places - len(self._calls)

    def admit(self, calls: Sequence[tuple[int, Call]]) -> None:
        self._calls += calls

    def run(self, until: int) -> list[tuple[int, Sample]]:
        """All that was admitted, whatever `until` says."""
        calls, self._calls = self._calls, []
        if not calls:
            return []
        prompts, seeds = [call.prompt for _, call in calls], [call.seed for _, call in calls]
        samples = generate(self.model, self.role, prompts, seeds, self.decoding)
        return [(key, sample) for (key, _), sample in zip(calls, samples, strict=True)]


class Slots:
    """Calls written side by side, each in a slot of its own; every one draws from its own seed, as in generate."""

    def __init__(self, model: RoleModel, role: str | None, decoding: Decoding, places: int) -> None:
        self.model, self.role, self.decoding = model, role, decoding
        self.refill = max(1, places // REFILL)  # how many should have ended before others are admitted
        self._held: list[list[int]] = [[] for _ in range(places)]  # tokens whose keys and values a slot holds
        self._running: dict[int, _Running] = {}  # by slot
        self._states: dict[int, Tensor] = {}  # by slot, of shape (1 + guesses, D): what the next tokens are drawn from
        self._places = _Places(places, model.device)
        layers = model.base.config.get_text_config().num_hidden_layers
        self._cache = Cache(layers=[_SlotLayer(self._places) for _ in range(layers)])

    def free(self) -> int:
        """How many calls may be admitted now."""
        return len(self._held) - len(self._running)

    def admit(self, calls: Sequence[tuple[int, Call]]) -> None:
        """Read the prompts of calls into free slots; each call's key names it when it ends."""
        reads = []
        for key, call in calls:
            slot, shared = self._best_slot(call.prompt)
            self._running[slot] = _Running(key, call, self.decoding)
            del self._held[slot][shared:]
            reads.append((slot, call.prompt[shared:]))
        for chunk in length_sorted_chunks([len(ids) for _, ids in reads], len(reads), self.model.device):
            self._read([reads[place] for place in chunk])

    def run(self, until: int) -> list[tuple[int, Sample]]:
        """Write on until so many calls have ended, or none is left; their keys and samples."""
        ended: list[tuple[int, Sample]] = []
        while self._running and len(ended) < until:
            ended += self._pick()
            for one in self._running.values():
                one.guess()
            if self._running:
                self._read([(slot, one.tokens[-1:] + one.guesses) for slot, one in sorted(self._running.items())])
        return ended

    def _best_slot(self, prompt: list[int]) -> tuple[int, int]:
        """The free slot that holds most of the prompt, and how much of it; the last token is always read anew."""
        free = [slot for slot in range(len(self._held)) if slot not in self._running]
        shared = {slot: min(_shared(self._held[slot], prompt), len(prompt) - 1) for slot in free}
        slot = max(free, key=lambda slot: (shared[slot], -len(self._held[slot])))
        return slot, shared[slot]

    @torch.no_grad()
    def _pick(self) -> list[tuple[int, Sample]]:
        """Draw the next tokens of every running call, as far as its guesses were right; those that end."""
        slots = sorted(self._running)
        states_ND = torch.cat([self._states[slot] for slot in slots])
        logits_NV = self.model.base.get_output_embeddings()(states_ND).float()
        firsts = accumulate((len(self._running[slot].guesses) + 1 for slot in slots[:-1]), initial=0)
        drawing = [(self._running[slot], first) for slot, first in zip(slots, firsts, strict=True)]
        for one, _ in drawing:
            one.right = 0
        while drawing:
            self._draw([one for one, _ in drawing], logits_NV[[first + one.right for one, first in drawing]])
            drawing = [(one, first) for one, first in drawing if one.goes_on(self.decoding.stop_id)]
        ended = []
        for slot in slots:
            one, held = self._running[slot], self._held[slot]
            del held[len(held) - len(one.guesses) + one.right :]
            finished = one.tokens[-1] == self.decoding.stop_id
            if finished or len(one.tokens) == self.decoding.max_new_tokens:
                ended.append((one.key, Sample(one.tokens, one.logprobs, finished)))
                del self._running[slot]
        return ended

    def _draw(self, running: Sequence[_Running], logits_BV: Tensor) -> None:
        """One token of each."""
        decoding = self.decoding
        early = [row for row, one in enumerate(running) if len(one.tokens) < decoding.min_new_tokens]
        logits_BV[early, decoding.stop_id] = -torch.inf
        uniforms_B = torch.stack([one.uniforms_S[len(one.tokens)] for one in running]).to(logits_BV.device)
        picked_B = pick_tokens(logits_BV, uniforms_B, decoding.temperature, decoding.top_p)
        logprobs_BV = torch.log_softmax(logits_BV / (decoding.temperature or 1.0), -1)
        logprobs = logprobs_BV.gather(-1, picked_B[:, None]).squeeze(-1).tolist()
        for one, token, logprob in zip(running, picked_B.tolist(), logprobs, strict=True):
            one.add(token, logprob)

    @torch.no_grad()
    def _read(self, reads: Sequence[tuple[int, list[int]]]) -> None:
        """Feed tokens to slots after what they hold, and keep the states that the next tokens are drawn from."""
        self.model.use(self.role)
        states = self._flat(reads) if self.model.reads_branches else self._padded(reads)
        for (slot, ids), states_TD in zip(reads, states, strict=True):
            self._states[slot] = states_TD[len(ids) - 1 - len(self._running[slot].guesses) : len(ids)]
            self._held[slot] += ids

    def _flat(self, reads: Sequence[tuple[int, list[int]]]) -> Sequence[Tensor]:
        """The states of each read, shape (T, D), all of them in one row."""
        pieces = [(len(ids), slot, len(self._held[slot])) for slot, ids in reads]
        slots_1N = torch.tensor([[slot for tokens, slot, _ in pieces for _ in range(tokens)]])
        places_1N = torch.tensor([[place for tokens, _, held in pieces for place in range(held, held + tokens)]])
        self._places.go_to(slots_1N, places_1N, None)
        input_ids_1N = torch.tensor([[token for _, ids in reads for token in ids]])
        states_1ND = self._forward(input_ids_1N, torch.tensor([[pieces]]), places_1N)
        return states_1ND[0].split([tokens for tokens, _, _ in pieces])

    def _padded(self, reads: Sequence[tuple[int, list[int]]]) -> Sequence[Tensor]:
        """The same with a row for each read."""
        model, slots_B = self.model, torch.tensor([slot for slot, _ in reads])
        input_ids_BT = pad_right([ids for _, ids in reads], model.pad_id)
        starts_B1 = torch.tensor([[len(self._held[slot])] for slot, _ in reads])
        lasts_B1 = starts_B1 + torch.tensor([[len(ids) - 1] for _, ids in reads])
        places_BT = starts_B1 + torch.arange(input_ids_BT.shape[1])
        self._places.go_to(slots_B[:, None].expand_as(places_BT), places_BT, slots_B)
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


def _shared(held: Sequence[int], prompt: Sequence[int]) -> int:
    """How many tokens two sequences begin with alike."""
    for place, (one, other) in enumerate(zip(held, prompt, strict=False)):
        if one != other:
            return place
    return min(len(held), len(prompt))


class _Places:
    """Where the tokens of the next pass go, and which slots its rows read; of all layers."""

    def __init__(self, slots: int, device: torch.device) -> None:
        self.slots, self.device = slots, device
        self.width = 0

    def go_to(self, slots_BT: Tensor, places_BT: Tensor, rows_B: Tensor | None) -> None:
        """Each token of the batch to its slot and its place there; rows_B: the slot of each row (None: all slots)."""
        self.slots_BT, self.places_BT = slots_BT.to(self.device), places_BT.to(self.device)
        if rows_B is not None and rows_B.tolist() == list(range(self.slots)):
            rows_B = None
        self.rows_B = rows_B if rows_B is None else rows_B.to(self.device)
        self.width = int(places_BT.max()) + 1

    def write(self, held: Tensor | None, states_BHTD: Tensor) -> Tensor:
        states_BTHD = states_BHTD.transpose(1, 2)
        if held is None or held.shape[1] < self.width:
            wider = states_BTHD.new_zeros(self.slots, self.width * 5 // 4 + 16, *states_BTHD.shape[2:])
            if held is not None:
                wider[:, : held.shape[1]] = held
            held = wider
        held[self.slots_BT, self.places_BT] = states_BTHD
        return held

    def read(self, held: Tensor) -> Tensor:
        part = held[:, : self.width] if self.rows_B is None else held[self.rows_B, : self.width]
        return part.transpose(1, 2)


class _SlotLayer(CacheLayerMixin):
    """Keys and values of one layer, of shape (slots, width, heads, D)."""

    def __init__(self, places: _Places) -> None:
        super().__init__()
        self.places = places

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Both states of shape (B, heads, T, D); all that the slots read hold, of shape (slots, heads, W, D)."""
        places = self.places
        self.keys = places.write(self.keys, key_states)
        self.values = places.write(self.values, value_states)
        return places.read(self.keys), places.read(self.values)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: the first write lays the slots out."""

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.places.width, 0

    def get_seq_length(self) -> int:
        return self.places.width

    def get_max_length(self) -> int:
        return -1

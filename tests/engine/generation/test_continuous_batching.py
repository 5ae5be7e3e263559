"""Responses written side by side in slots are those that are written alone."""

import gc
import weakref
from collections.abc import Callable, Sequence

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from pitcli.engine.generation import continuous_batching as slots_module
from pitcli.engine.generation.continuous_batching import Call, Slots, Waves, open_places, write_all
from pitcli.engine.generation.sampling import Decoding, Sample, generate
from pitcli.engine.models.roles import GAP, IMPROVER, RoleModel
from tests.conftest import WithRoles
from tests.engine.generation.test_sampling import OTHERS, PROMPTS, SEEDS, STEPS, assert_same

CALLS = [Call(prompt, seed) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
DECODING = Decoding(1.0, 1.0, STEPS, 4)


@pytest.fixture(params=["in one row", "padded"])
def model(
    request: pytest.FixtureRequest, small_llama: Callable[[], PreTrainedModel], with_roles: WithRoles
) -> RoleModel:
    made = with_roles(small_llama(), 0, IMPROVER, GAP)
    assert made.reads_branches
    made.reads_branches = request.param == "in one row"  # or as on a GPU
    return made


def alone(model: RoleModel, role: str | None, call: Call, decoding: Decoding) -> Sample:
    return generate(model, role, [call.prompt], [call.seed], decoding)[0]


def written(slots: Slots | Waves, calls: Sequence[Call], refill: int) -> list[Sample]:
    slots.refill = refill
    return list(write_all(slots, calls))


@pytest.mark.parametrize("kind", [Slots, Waves])
@pytest.mark.parametrize(("places", "refill"), [(1, 1), (3, 1), (3, 2), (8, 2), (8, 8)])
def test_each_is_what_it_is_alone(kind: type[Slots | Waves], places: int, refill: int, model: RoleModel) -> None:
    for decoding in (DECODING, Decoding(0.7, 0.8, STEPS, 4, min_new_tokens=3), Decoding(0.0, 1.0, 5, -1)):
        samples = written(kind(model, IMPROVER, decoding, places), CALLS, refill)
        assert_same(samples, [alone(model, IMPROVER, call, decoding) for call in CALLS])
    assert len({len(sample.token_ids) for sample in written(Slots(model, IMPROVER, DECODING, 3), CALLS, 1)}) > 3


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("positions", [name for name in OTHERS if name != "ALiBi"])
def test_other_architectures(positions: str, padded: bool) -> None:
    torch.manual_seed(0)
    model = RoleModel(AutoModelForCausalLM.from_config(OTHERS[positions], dtype=torch.float32).eval(), 0)
    assert model.reads_branches == (positions != "a sliding window")  # of 6 tokens, which the probe does not fit
    model.reads_branches &= not padded
    decoding, calls = DECODING, CALLS
    if positions == "a sliding window":  # of 6 tokens, beyond which a mask of ours does not hold
        assert isinstance(open_places(model, None, DECODING, 3, longest=7), Waves)
        decoding, calls = Decoding(1.0, 1.0, 3, 4), [call for call in CALLS if len(call.prompt) <= 3]
    else:
        assert isinstance(open_places(model, None, DECODING, 3, longest=64), Slots)
    assert_same(
        written(Slots(model, None, decoding, 3), calls, 1), [alone(model, None, call, decoding) for call in calls]
    )


def test_what_a_slot_holds_is_not_read_again(model: RoleModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The next call of a conversation takes the slot of the one before, though others stand before it in the queue."""
    slots = Slots(model, IMPROVER, Decoding(1.0, 1.0, 6, -1), 3)
    prompts = [[3, 4, 5, 6, 7], [8, 9, 10], [11, 12, 13, 14]]
    slots.admit([(key, Call(prompt, key)) for key, prompt in enumerate(prompts)])
    first = dict(slots.run(3))
    reads: list[list[int]] = []
    original = Slots._read

    def counted(self: Slots, of_slots: Sequence[tuple[int, list[int]]]) -> None:
        reads.extend(ids for _, ids in of_slots)
        original(self, of_slots)

    monkeypatch.setattr(Slots, "_read", counted)
    calls = [
        Call([20, 21], 5),  # fits nowhere
        Call([*prompts[2], *first[2].token_ids[:3], 9, 9], 6),  # goes on after what was written
        Call(prompts[0], 7),  # the same again: its last token is what the first new one is drawn from
    ]
    slots.admit(list(enumerate(calls)))
    assert sorted(reads) == sorted([[20, 21], [9, 9], [7]])
    monkeypatch.setattr(Slots, "_read", original)
    model.use(GAP)  # another role may have been used meanwhile
    samples = dict(slots.run(3))
    wanted = [alone(model, IMPROVER, call, slots.decoding) for call in calls]
    assert_same([samples[key] for key in range(3)], wanted)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize(("temperature", "at_least"), [(0.0, 0), (0.7, 0), (0.7, 6)])
def test_what_is_read_ahead_changes_nothing_but_the_passes(
    temperature: float, at_least: int, kept: bool, model: RoleModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guesses that are right, wrong, beyond the stop token and beyond the last token; then none at all."""
    decoding = Decoding(temperature, 1.0, 20, 4, at_least)
    wanted = [alone(model, IMPROVER, call, decoding) for call in CALLS]
    again = [Call(call.prompt + sample.token_ids[:3], 7) for call, sample in zip(CALLS, wanted, strict=True)][-3:]

    def oracle(self: slots_module._Running) -> None:
        ahead = [*wanted[self.key].token_ids, 4, 4][len(self.tokens) :]
        guesses = [token if kept or place % 3 < 2 else token - 1 for place, token in enumerate(ahead)]
        self.guesses = guesses[: min(6, len(self.uniforms_S) - len(self.tokens) - 1)]

    passes: list[int] = []
    original = Slots._pick

    def counted(self: Slots) -> list[tuple[int, Sample]]:
        passes[-1] += 1
        return original(self)

    monkeypatch.setattr(Slots, "_pick", counted)
    for guess in (oracle, lambda self: None, slots_module._Running.guess):
        monkeypatch.setattr(slots_module._Running, "guess", guess)
        passes.append(0)
        slots = Slots(model, IMPROVER, decoding, 3)
        assert_same(written(slots, CALLS, 1), wanted)
        count = passes[-1]
        if guess is oracle:  # what a slot holds after it guessed is what stands there
            monkeypatch.setattr(slots_module._Running, "guess", lambda self: None)
            assert_same(written(slots, again, 3), [alone(model, IMPROVER, one, decoding) for one in again])
        passes[-1] = count
    assert passes[0] < passes[1] * (0.4 if kept else 0.8)
    if temperature == 0:  # what is written comes again
        assert passes[2] < passes[1]


def test_guesses_are_what_followed_the_last_two_tokens() -> None:
    call = Call([5, 6, 7, 8, 9, 6, 7, 1, 2, 5, 6], 0)
    running = slots_module._Running(0, call, Decoding(0.0, 1.0, 8, -1))
    running.guess()
    assert running.guesses == [7, 8]  # two more than were right before
    running.add(7, 0.0)
    running.guess()
    assert running.guesses == [1, 2]  # after the later of two places
    running.right = 5
    running.guess()
    assert running.guesses == [1, 2, 5, 6, 7]
    for token in (1, 2, 5):
        running.add(token, 0.0)
    running.guess()
    assert running.guesses == [6, 7, 1]  # one token less than may still be written
    running.add(3, 0.0)
    running.guess()
    assert running.guesses == []
    running = slots_module._Running(0, Call([5], 0), Decoding(0.0, 1.0, 8, -1))
    running.guess()
    assert running.guesses == []
    running.add(5, 0.0)
    running.add(5, 0.0)
    running.guess()
    assert running.guesses == [5]


def test_padding_beyond_the_last_position_that_a_model_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row is at its last tokens, another reads ahead."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_embd=32, n_layer=2, n_head=4, n_positions=48, initializer_range=0.2)
    model = RoleModel(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), 0)
    model.reads_branches = False  # where there is padding
    decoding = Decoding(0.0, 1.0, 8, -1)
    calls = [Call([3, 4, 5], 0), Call([7] * 40, 1)]
    wanted = [alone(model, None, call, decoding) for call in calls]

    def oracle(self: slots_module._Running) -> None:
        ahead = wanted[0].token_ids[len(self.tokens) :][:2] + [9] * 5
        self.guesses = [] if self.key else ahead[: 7 - len(self.tokens)]

    monkeypatch.setattr(slots_module._Running, "guess", oracle)
    assert_same(written(Slots(model, None, decoding, 2), calls, 1), wanted)


def test_the_cache_grows_with_longer_prompts(model: RoleModel) -> None:
    calls = [Call([3 + place % 20 for place in range(length)], length) for length in (2, 90, 30, 60, 3)]
    assert_same(
        written(Slots(model, IMPROVER, DECODING, 2), calls, 1),
        [alone(model, IMPROVER, call, DECODING) for call in calls],
    )


def test_keys_and_values_go_with_the_slots(model: RoleModel) -> None:
    """At once, not when garbage is collected: what runs out of memory is tried again with half as many."""
    slots = Slots(model, IMPROVER, DECODING, 3)
    written(slots, CALLS, 1)
    keys = [weakref.ref(layer.keys) for layer in slots._cache.layers]
    gc.disable()
    try:
        assert all(key() is not None for key in keys)
        del slots
        assert all(key() is None for key in keys)
    finally:
        gc.enable()

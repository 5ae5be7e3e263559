"""Continuous batching gives each request the response that it gets alone."""

import gc
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, GPT2Config, PreTrainedModel

from pitcli.engine.generation import continuous_batching as module
from pitcli.engine.generation.continuous_batching import (
    ContinuousBatching,
    generate_all,
    generate_in_order,
    open_batching,
)
from pitcli.engine.generation.sampling import Decoding, Request, Sample
from pitcli.engine.generation.static_batching import StaticBatching, generate
from pitcli.engine.models.batches import PASS_TOKENS
from pitcli.engine.models.roles import GAP, IMPROVER, RoleModel
from tests.conftest import WithRoles
from tests.engine.generation.test_sampling import OTHERS, PROMPTS, SEEDS, STEPS, assert_same

REQUESTS = [Request(prompt, seed) for prompt, seed in zip(PROMPTS, SEEDS, strict=True)]
DECODING = Decoding(1.0, 1.0, STEPS, (4,))


@pytest.fixture(scope="module", params=["in one row", "padded"])
def model(
    request: pytest.FixtureRequest, small_llama: Callable[[], PreTrainedModel], with_roles: WithRoles
) -> RoleModel:
    small = with_roles(small_llama(), 0, IMPROVER, GAP)
    assert small.reads_branches
    small.reads_branches = request.param == "in one row"  # "padded": as on a GPU
    return small


ALONE: dict[tuple[object, ...], Sample] = {}


def alone(model: RoleModel, role: str | None, request: Request, decoding: Decoding) -> Sample:
    """The sample of a request by itself; cached, because many tests compare with it."""
    key = (model, role, *request.prompt, request.seed, decoding)
    if key not in ALONE:
        ALONE[key] = generate(model, role, [request.prompt], [request.seed], decoding)[0]
    return ALONE[key]


def written(batching: ContinuousBatching | StaticBatching, requests: Sequence[Request], refill: int) -> list[Sample]:
    batching.refill = refill
    return list(generate_in_order(batching, requests))


@pytest.mark.parametrize("kind", [ContinuousBatching, StaticBatching])
@pytest.mark.parametrize(("slots", "refill"), [(1, 1), (3, 1), (3, 2), (8, 2), (8, 8)])
def test_samples_do_not_depend_on_the_batch(
    kind: type[ContinuousBatching | StaticBatching], slots: int, refill: int, model: RoleModel
) -> None:
    others = (Decoding(0.7, 0.8, STEPS, (4,), 3), Decoding(0.0, 1.0, 5, ()), Decoding(1.0, 1.0, STEPS, (4, 7, 9), 2))
    for decoding in (DECODING, *others):
        samples = written(kind(model, IMPROVER, decoding, slots), REQUESTS, refill)
        assert_same(samples, [alone(model, IMPROVER, request, decoding) for request in REQUESTS])
    assert (
        len(
            {len(sample.token_ids) for sample in written(ContinuousBatching(model, IMPROVER, DECODING, 3), REQUESTS, 1)}
        )
        > 3
    )


def test_if_memory_runs_out_there_are_fewer_slots_and_the_same_samples(
    model: RoleModel, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    opened: list[int] = []
    whole = module.open_batching

    def limited(*arguments: Any, slots: int, longest: int) -> Any:
        opened.append(slots)
        if slots > 2:
            raise MemoryError
        return whole(*arguments, slots, longest)

    monkeypatch.setattr(module, "open_batching", lambda *given: limited(*given[:3], slots=given[3], longest=given[4]))
    samples = module.generate_all(model, IMPROVER, DECODING, REQUESTS)
    assert opened == [min(len(REQUESTS), 16) >> halved for halved in range(len(opened))]
    assert len(opened) > 1 and opened[-1] <= 2
    assert_same(samples, [alone(model, IMPROVER, request, DECODING) for request in REQUESTS])
    assert f"continuing, {opened[-1]} at a time" in capsys.readouterr().err


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("positions", [name for name in OTHERS if name != "ALiBi"])
def test_other_architectures(positions: str, padded: bool) -> None:
    torch.manual_seed(0)
    model = RoleModel(AutoModelForCausalLM.from_config(OTHERS[positions], dtype=torch.float32).eval(), 0)
    assert model.reads_branches == (positions != "a sliding window")  # the probe is longer than the window of 6 tokens
    model.reads_branches &= not padded
    decoding, requests = DECODING, REQUESTS
    if positions == "a sliding window":  # of 6 tokens; pit's masks are wrong beyond it
        assert isinstance(open_batching(model, None, DECODING, 3, longest=7), StaticBatching)
        decoding, requests = Decoding(1.0, 1.0, 3, (4,)), [request for request in REQUESTS if len(request.prompt) <= 3]
    else:
        assert isinstance(open_batching(model, None, DECODING, 3, longest=64), ContinuousBatching)
    assert_same(
        written(ContinuousBatching(model, None, decoding, 3), requests, 1),
        [alone(model, None, request, decoding) for request in requests],
    )


def recorded_reads(monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    """The token ids of each read from now on."""
    reads: list[list[int]] = []
    original = ContinuousBatching._read

    def recorded(self: ContinuousBatching, ids_of_slots: Sequence[tuple[int, list[int]]]) -> None:
        reads.extend(ids for _, ids in ids_of_slots)
        original(self, ids_of_slots)

    monkeypatch.setattr(ContinuousBatching, "_read", recorded)
    return reads


def test_a_cached_prefix_is_not_read_again(model: RoleModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """A request takes the slot that has its prefix, even if other requests are ahead of it in the queue."""
    slots = ContinuousBatching(model, IMPROVER, Decoding(1.0, 1.0, 6, ()), 3)
    prompts = [[3, 4, 5, 6, 7], [8, 9, 10], [11, 12, 13, 14]]
    slots.admit([(key, Request(prompt, key)) for key, prompt in enumerate(prompts)])
    first = dict(slots.run(3))
    reads = recorded_reads(monkeypatch)
    requests = [
        Request([20, 21], 5),  # shares no prefix
        Request([*prompts[2], *first[2].token_ids[:3], 9, 9], 6),  # continues a response
        Request(prompts[0], 7),  # the same prompt: the first new token is drawn from its last token's state
    ]
    slots.admit(list(enumerate(requests)))
    assert sorted(reads) == sorted([[20, 21], [9, 9], [7]])
    model.use(GAP)  # another role may have been in use since
    samples = dict(slots.run(3))
    expected = [alone(model, IMPROVER, request, slots.decoding) for request in requests]
    assert_same([samples[key] for key in range(3)], expected)


def test_samples_of_a_prompt_read_it_once(model: RoleModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """The later ones copy its keys and values, also if the first sample has begun since."""
    reads = recorded_reads(monkeypatch)
    slots = ContinuousBatching(model, IMPROVER, DECODING, 5)
    requests = [Request([3, 4, 5, 6], seed) for seed in range(3)] + [Request([8, 9, 10], seed) for seed in range(2)]
    slots.admit(list(enumerate(requests[:4])))
    assert reads == [[3, 4, 5, 6], [8, 9, 10], [6], [6]]
    samples = dict(slots.advance())
    reads.clear()
    slots.admit([(4, requests[4])])
    assert reads == [[10]]
    samples |= dict(slots.run(5))
    assert_same([samples[key] for key in range(5)], [alone(model, IMPROVER, r, DECODING) for r in requests])
    assert len({tuple(sample.token_ids) for sample in samples.values()}) == 5
    assert_same(generate_all(model, IMPROVER, DECODING, requests), [samples[key] for key in range(5)])
    assert generate_all(model, IMPROVER, DECODING, []) == []


@pytest.mark.parametrize("all_right", [False, True])
@pytest.mark.parametrize(("temperature", "min_new_tokens"), [(0.0, 0), (0.7, 0), (0.7, 6)])
def test_guesses_change_only_the_number_of_passes(
    temperature: float, min_new_tokens: int, all_right: bool, model: RoleModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guesses that are right, wrong, beyond the stop token and beyond the last token; then no guesses."""
    decoding = Decoding(temperature, 1.0, 20, (4,), min_new_tokens)
    expected = [alone(model, IMPROVER, request, decoding) for request in REQUESTS]
    again = [
        Request(request.prompt + sample.token_ids[:3], 7) for request, sample in zip(REQUESTS, expected, strict=True)
    ][-3:]

    def oracle(self: module._RunningRequest) -> None:
        ahead = [*expected[self.key].token_ids, 4, 4][len(self.tokens) :]
        guesses = [token if all_right or index % 3 < 2 else token - 1 for index, token in enumerate(ahead)]
        self.guesses = guesses[: min(6, len(self.uniforms_S) - len(self.tokens) - 1)]

    passes: list[int] = []
    original = ContinuousBatching._draw_tokens

    def counted(self: ContinuousBatching) -> list[tuple[int, Sample]]:
        passes[-1] += 1
        return original(self)

    monkeypatch.setattr(ContinuousBatching, "_draw_tokens", counted)
    for guess in (oracle, lambda self: None, module._RunningRequest.guess):
        monkeypatch.setattr(module._RunningRequest, "guess", guess)
        passes.append(0)
        slots = ContinuousBatching(model, IMPROVER, decoding, 3)
        assert_same(written(slots, REQUESTS, 1), expected)
        count = passes[-1]
        if guess is oracle:  # a slot that guessed has cached the response
            monkeypatch.setattr(module._RunningRequest, "guess", lambda self: None)
            assert_same(written(slots, again, 3), [alone(model, IMPROVER, request, decoding) for request in again])
        passes[-1] = count
    assert passes[0] < passes[1] * (0.4 if all_right else 0.8)
    if temperature == 0:  # greedy responses repeat themselves
        assert passes[2] < passes[1]


def test_on_a_gpu_only_few_requests_guess_and_prompts_are_read_in_parts(
    model: RoleModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ContinuousBatching, "_on_cpu", False)
    monkeypatch.setattr(module, "GUESSING", 1)
    monkeypatch.setattr(module, "READ_TOKENS", 8)
    monkeypatch.setitem(PASS_TOKENS, "cpu", 2048)  # so that one pass for all would be best
    together, sizes = list[int](), list[tuple[int, int]]()
    guess, read = module._RunningRequest.guess, ContinuousBatching._read

    def recorded_guess(self: module._RunningRequest) -> None:
        together.append(len(slots._running))
        guess(self)

    def recorded_read(self: ContinuousBatching, reads: Sequence[tuple[int, list[int]]]) -> None:
        sizes.append((len(reads), max(len(ids) for _, ids in reads)))
        read(self, reads)

    monkeypatch.setattr(module._RunningRequest, "guess", recorded_guess)
    monkeypatch.setattr(ContinuousBatching, "_read", recorded_read)
    slots = ContinuousBatching(model, IMPROVER, DECODING, 3)
    assert_same(written(slots, REQUESTS, 1), [alone(model, IMPROVER, request, DECODING) for request in REQUESTS])
    assert set(together) == {1}
    assert all(rows == 1 or rows * width <= 8 for rows, width in sizes)
    assert max(rows for rows, _ in sizes) == 3


def test_guesses_are_what_followed_the_last_two_tokens() -> None:
    request = Request([5, 6, 7, 8, 9, 6, 7, 1, 2, 5, 6], 0)
    running = module._RunningRequest(0, request, Decoding(0.0, 1.0, 8, ()))
    running.guess()
    assert running.guesses == [7, 8]  # two more than were accepted before
    running.add(7, 0.0)
    running.guess()
    assert running.guesses == [1, 2]  # after the later of two occurrences
    running.accepted = 5
    running.guess()
    assert running.guesses == [1, 2, 5, 6, 7]
    for token in (1, 2, 5):
        running.add(token, 0.0)
    running.guess()
    assert running.guesses == [6, 7, 1]  # at most one token less than may still be drawn
    running.add(3, 0.0)
    running.guess()
    assert running.guesses == []
    running = module._RunningRequest(0, Request([5], 0), Decoding(0.0, 1.0, 8, ()))
    running.guess()
    assert running.guesses == []
    running.add(5, 0.0)
    running.add(5, 0.0)
    running.guess()
    assert running.guesses == [5]


def test_padding_beyond_the_last_position_of_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """One row is at its last tokens while another speculates."""
    torch.manual_seed(0)
    config = GPT2Config(vocab_size=32, n_embd=32, n_layer=2, n_head=4, n_positions=48, initializer_range=0.2)
    model = RoleModel(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), 0)
    model.reads_branches = False  # so that there is padding
    decoding = Decoding(0.0, 1.0, 8, ())
    requests = [Request([3, 4, 5], 0), Request([7] * 40, 1)]
    expected = [alone(model, None, request, decoding) for request in requests]

    def oracle(self: module._RunningRequest) -> None:
        ahead = expected[0].token_ids[len(self.tokens) :][:2] + [9] * 5
        self.guesses = [] if self.key else ahead[: 7 - len(self.tokens)]

    monkeypatch.setattr(module._RunningRequest, "guess", oracle)
    assert_same(written(ContinuousBatching(model, None, decoding, 2), requests, 1), expected)


def test_the_cache_grows_with_longer_prompts(model: RoleModel) -> None:
    requests = [Request([3 + index % 20 for index in range(length)], length) for length in (2, 90, 30, 60, 3)]
    assert_same(
        written(ContinuousBatching(model, IMPROVER, DECODING, 2), requests, 1),
        [alone(model, IMPROVER, request, DECODING) for request in requests],
    )


def test_keys_and_values_are_freed_with_the_slots(model: RoleModel) -> None:
    """At once, not when garbage is collected, because a batch that runs out of memory is retried at half its size."""
    slots = ContinuousBatching(model, IMPROVER, DECODING, 3)
    written(slots, REQUESTS, 1)
    keys = [weakref.ref(layer.keys) for layer in slots._cache.layers]
    gc.disable()
    try:
        assert all(key() is not None for key in keys)
        del slots
        assert all(key() is None for key in keys)
    finally:
        gc.enable()

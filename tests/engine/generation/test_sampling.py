"""Sampling: rows are independent of each other, and the reported log-probs are those of the model."""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    BloomConfig,
    GPT2Config,
    GPTNeoXConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
)

from pitcli.data.rows import Message
from pitcli.data.templates import ChatFormat, Example
from pitcli.engine.generation.continuous_batching import generate_all
from pitcli.engine.generation.methods import PromptWithReference
from pitcli.engine.generation.sampling import Decoding, Request, Sample, pick_tokens, row_uniforms
from pitcli.engine.generation.static_batching import generate
from pitcli.engine.improving.scoring import GapModel
from pitcli.engine.models.adapters import load_role, save_role
from pitcli.engine.models.batches import Batch
from pitcli.engine.models.forward import completion_logprobs
from pitcli.engine.models.loading import load_base, lora_config
from pitcli.engine.models.roles import GAP, IMPROVER, REFERENCE, RoleModel
from pitcli.engine.models.trees import completion_batch
from pitcli.engine.training import rollouts
from pitcli.engine.training.rollouts import lay_out
from pitcli.equations import clipped_policy_loss, sequence_kl
from pitcli.settings.base import GapLoss, LoraSettings, Stage
from pitcli.settings.training import RlConfig
from pitcli.stages.rl import Curriculum, rl_task
from tests.conftest import WithRoles

NEVER = ()  # no token ends a response
PROMPTS = [[3, 4, 5], [6], [7, 8, 9, 10, 11, 12, 13], [14, 15], [3, 3, 3, 3, 3], [16], [17, 18, 19], [20, 21, 22, 23]]
SEEDS = [100 + row for row in range(len(PROMPTS))]
STEPS = 20


@pytest.fixture(scope="module")
def model(small_llama: Callable[[], PreTrainedModel], with_roles: WithRoles) -> RoleModel:
    return with_roles(small_llama(), 0, IMPROVER)


@pytest.fixture(scope="module")
def free(model: RoleModel) -> list[Sample]:
    """Samples without a stop token."""
    return generate(model, IMPROVER, PROMPTS, SEEDS, Decoding(1.0, 1.0, STEPS, NEVER))


def tokens(samples: Sequence[Sample]) -> list[list[int]]:
    return [sample.token_ids for sample in samples]


def assert_same(ours: Sequence[Sample], theirs: Sequence[Sample]) -> None:
    assert tokens(ours) == tokens(theirs)
    assert [sample.finished for sample in ours] == [sample.finished for sample in theirs]
    for our, their in zip(ours, theirs, strict=True):
        assert our.logprobs == pytest.approx(their.logprobs, abs=1e-4)


def test_the_fixture_has_varied_samples(free: list[Sample]) -> None:
    assert all(len(sample.token_ids) == len(sample.logprobs) == STEPS for sample in free)
    assert len({tuple(sample.token_ids) for sample in free}) == len(PROMPTS)
    assert len({token for sample in free for token in sample.token_ids}) > 12


def greedy_alone(model: RoleModel, role: str | None, prompt: list[int], steps: int) -> list[int]:
    """Greedy decoding without cache, batch or padding: reads the whole sequence again for every token."""
    model.use(role)
    ids = list(prompt)
    for _ in range(steps):
        with torch.no_grad():
            ids.append(int(model.base(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


def test_batched_greedy_decoding_equals_unbatched(model: RoleModel) -> None:
    for role in (IMPROVER, None):
        batched = generate(model, role, PROMPTS, SEEDS, Decoding(0, 1.0, 8, NEVER))
        assert tokens(batched) == [greedy_alone(model, role, prompt, 8) for prompt in PROMPTS]


@pytest.mark.parametrize("load_in_4bit", [True, False])
def test_batched_greedy_of_the_embedded_model(
    load_in_4bit: bool, tiny_folder: Path, tiny_chat: ChatFormat, with_roles: WithRoles
) -> None:
    base = load_base(tiny_folder, load_in_4bit, torch.device("cpu"))
    model = with_roles(base, tiny_chat.tokenizer.pad_token_id, IMPROVER)
    prompts = [tiny_chat.encode_text(text) for text in ("cat", "Write 3 animals. Include red.", "one two three four")]
    assert len({len(prompt) for prompt in prompts}) == 3
    batched = generate(model, IMPROVER, prompts, [0, 1, 2], Decoding(0, 1.0, 6, NEVER))
    assert tokens(batched) == [greedy_alone(model, IMPROVER, prompt, 6) for prompt in prompts]


@pytest.mark.parametrize("order", [[3], [7, 6, 5, 4, 3, 2, 1, 0], [2, 5], [4, 1, 1, 6]])
def test_a_row_does_not_depend_on_the_others(model: RoleModel, free: list[Sample], order: list[int]) -> None:
    decoding = Decoding(1.0, 1.0, STEPS, NEVER)
    drawn = generate(model, IMPROVER, [PROMPTS[row] for row in order], [SEEDS[row] for row in order], decoding)
    assert_same(drawn, [free[row] for row in order])


def test_other_seeds_give_other_samples(model: RoleModel, free: list[Sample]) -> None:
    others = generate(model, IMPROVER, PROMPTS, [seed + 1000 for seed in SEEDS], Decoding(1.0, 1.0, STEPS, NEVER))
    assert all(other != first for other, first in zip(tokens(others), tokens(free), strict=True))


def truncated(sample: Sample, stop_ids: tuple[int, ...], steps: int) -> Sample:
    """A sample without a stop token as it would be with these stop tokens, or after `steps` tokens."""
    ids = sample.token_ids[:steps]
    ends = [index + 1 for index, token in enumerate(ids) if token in stop_ids]
    end = ends[0] if ends else steps
    return Sample(ids[:end], sample.logprobs[:end], bool(ends))


def test_the_stop_token_ends_rows_and_is_counted(model: RoleModel, free: list[Sample]) -> None:
    """The stop token changes only where a row ends, although finished rows leave the batch on the way."""
    for stop_id in range(24):
        expected = [truncated(sample, (stop_id,), STEPS) for sample in free]
        assert_same(generate(model, IMPROVER, PROMPTS, SEEDS, Decoding(1.0, 1.0, STEPS, (stop_id,))), expected)
        if 4 <= sum(len(sample.token_ids) < STEPS / 2 for sample in expected) < 8:
            return  # what this test needs: half of the rows end early and some continue
    pytest.fail("no token stops half of the rows: choose other seeds")


def test_any_of_several_stop_tokens_ends_a_row(model: RoleModel, free: list[Sample]) -> None:
    stop_ids = (free[0].token_ids[4], free[1].token_ids[2])
    expected = [truncated(sample, stop_ids, STEPS) for sample in free]
    assert {sample.token_ids[-1] for sample in expected if sample.finished} == set(stop_ids)
    assert_same(generate(model, IMPROVER, PROMPTS, SEEDS, Decoding(1.0, 1.0, STEPS, stop_ids)), expected)
    delayed = generate(model, IMPROVER, PROMPTS, SEEDS, Decoding(1.0, 1.0, STEPS, stop_ids, 6))
    assert all(not set(stop_ids) & set(sample.token_ids[:6]) for sample in delayed)


def test_the_last_token_may_be_the_stop_token(model: RoleModel, free: list[Sample]) -> None:
    stop_id = free[0].token_ids[4]
    first = free[0].token_ids.index(stop_id) + 1
    for steps, finished in ((first, True), (first - 1, False)):
        if steps:
            drawn = generate(model, IMPROVER, PROMPTS[:1], SEEDS[:1], Decoding(1.0, 1.0, steps, (stop_id,)))
            assert_same(drawn, [Sample(free[0].token_ids[:steps], free[0].logprobs[:steps], finished)])


OTHERS = {
    "a sliding window": MistralConfig(
        vocab_size=24,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        sliding_window=6,
        initializer_range=0.2,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "rotary": GPTNeoXConfig(
        vocab_size=24,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
    ),
    "learned positions": GPT2Config(
        vocab_size=24,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=64,
        initializer_range=0.2,
        bos_token_id=1,
        eos_token_id=2,
    ),
    "ALiBi": BloomConfig(vocab_size=24, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2),
}


@pytest.mark.parametrize("positions", OTHERS)
def test_other_architectures(positions: str) -> None:
    """Padding, cache and the shrinking batch with other kinds of positions, beyond the sliding window too."""
    torch.manual_seed(0)
    config: PreTrainedConfig = OTHERS[positions]
    model = RoleModel(AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval(), 0)
    drawn = generate(model, None, PROMPTS, SEEDS, Decoding(1.0, 1.0, STEPS, (4,)))
    assert 2 <= sum(sample.finished for sample in drawn) < len(drawn)
    for prompt, seed, sample in zip(PROMPTS, SEEDS, drawn, strict=True):
        assert sample.logprobs == pytest.approx(whole_logprobs(model, prompt, sample, 1.0), abs=1e-4)
        assert_same(generate(model, None, [prompt], [seed], Decoding(1.0, 1.0, STEPS, (4,))), [sample])


def whole_logprobs(
    model: RoleModel, prompt: list[int], sample: Sample, temperature: float, role: str | None = None
) -> list[float]:
    """The sample's log-probs from one pass over the whole conversation, without cache, batch or padding."""
    with torch.no_grad(), model.role(role):
        logits_TV = model.base(input_ids=torch.tensor([prompt + sample.token_ids]), use_cache=False).logits[0]
    logprobs_TV = torch.log_softmax(logits_TV[len(prompt) - 1 : -1].double() / temperature, -1)
    return logprobs_TV[range(len(sample.token_ids)), sample.token_ids].tolist()


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_logprobs_are_those_of_the_model(model: RoleModel, temperature: float) -> None:
    drawn = generate(model, IMPROVER, PROMPTS, SEEDS, Decoding(temperature, 1.0, STEPS, (4,)))
    assert 0 < sum(sample.finished for sample in drawn) < len(drawn)
    for prompt, sample in zip(PROMPTS, drawn, strict=True):
        assert sample.logprobs == pytest.approx(whole_logprobs(model, prompt, sample, temperature, IMPROVER), abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_a_rollout_starts_at_ratio_one_and_kl_zero(
    small_llama: Callable[[], PreTrainedModel], with_roles: WithRoles, tmp_path: Path, temperature: float
) -> None:
    model = with_roles(small_llama(), 0, IMPROVER)
    save_role(model, IMPROVER, tmp_path)
    load_role(model, REFERENCE, tmp_path)
    drawn = generate(model, IMPROVER, PROMPTS, SEEDS, Decoding(temperature, 1.0, STEPS, (4,)))
    examples = [Example(prompt, sample.token_ids) for prompt, sample in zip(PROMPTS, drawn, strict=True)]
    batch = completion_batch(examples, pad_id=0)
    old_N = torch.tensor([logprob for sample in drawn for logprob in sample.logprobs])
    lengths = [len(sample.token_ids) for sample in drawn]
    model.use(IMPROVER)
    logprobs_N = completion_logprobs(model, batch, temperature)
    assert (logprobs_N - old_N).abs().max() < 1e-4
    loss, clipped = clipped_policy_loss(logprobs_N, old_N, torch.ones(len(old_N)), clip_range=0.001)
    assert float(clipped) == 0
    assert float(loss) == pytest.approx(-sum(len(sample.token_ids) for sample in drawn), rel=1e-4)
    model.use(REFERENCE)
    ref_logprobs_N = completion_logprobs(model, batch, temperature)
    assert torch.equal(ref_logprobs_N, logprobs_N)
    assert sequence_kl(old_N, ref_logprobs_N, lengths).abs().max() < 1e-3
    model.use(None)
    base_logprobs_N = completion_logprobs(model, batch, temperature)
    assert sequence_kl(old_N, base_logprobs_N, lengths).mean() > 0.1


@pytest.mark.parametrize("rounded", [False, True])
def test_old_logprobs_are_recomputed_if_sampling_rounds_differently(
    rounded: bool, tiny_folder: Path, tiny_chat: ChatFormat, with_roles: WithRoles, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in bf16 on a GPU; here noise is added to the log-probs of sampling."""
    model = with_roles(load_base(tiny_folder, False, torch.device("cpu")), 0, IMPROVER, GAP)
    model.add_role(REFERENCE, lora_config(LoraSettings(lora_rank=4, lora_alpha=8)))
    model.use(IMPROVER)
    for name, parameter in model.role_parameters(REFERENCE).items():
        parameter.data.copy_(model.role_parameters(IMPROVER)[name.replace(REFERENCE, IMPROVER)])

    def noisy(*arguments: Any, **more: Any) -> list[Sample]:
        samples = generate_all(*arguments, **more)
        return [sample._replace(logprobs=[p - 0.01 for p in sample.logprobs]) for sample in samples]

    monkeypatch.setattr(rollouts, "generate_all", noisy)
    monkeypatch.setattr(rollouts, "training_rounds_differently", lambda model: rounded)
    drafts = [PromptWithReference((Message("user", f"Write {count} animals."),), "cat dog") for count in (2, 3)]
    config = RlConfig(
        **{"samples_per_prompt": 2, "micro_batch_size": 2, "rollout_max_new_tokens": 6},
        curriculum_stages=(Stage.policy,),
    )
    reward = partial(rollouts.group_gaps, GapModel(model, tiny_chat, {GAP: 1.0}, 2, GapLoss.five_term))
    task = rl_task(config, Curriculum(config, model, tiny_chat, [], drafts, None), reward)
    rollout = task.batch(0)
    model.use(IMPROVER, train=True)
    for micro_batch in rollout.micro_batches:
        logprobs_N = completion_logprobs(model, micro_batch.batch)
        difference_N = logprobs_N - micro_batch.old_logprobs_N
        assert torch.allclose(
            difference_N, torch.full_like(difference_N, 0.0 if rounded else 0.01), atol=0 if rounded else 1e-4
        )
    assert (rollout.metrics["kl"] == 0) == rounded


def test_share_of_prompts_with_identical_samples() -> None:
    long, short = Sample([3, 4], [0.0, 0.0], True), Sample([3], [0.0], True)
    assert rollouts.identical_share([long, long, long, short], 2) == 0.5
    assert rollouts.identical_share([long, short], 1) == 1


@pytest.mark.parametrize("micro_batch_size", [2, 3, 16])
def test_samples_of_a_prompt_share_it_in_the_update(
    micro_batch_size: int, model: RoleModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probs and gradients equal those of one row per sample, at the indices that lay_out returns."""
    requests = [Request(PROMPTS[row // 2], seed) for row, seed in enumerate(SEEDS)]
    drawn = generate_all(model, IMPROVER, Decoding(1.0, 1.0, STEPS, (4,)), requests)
    config = RlConfig(samples_per_prompt=2, micro_batch_size=micro_batch_size)
    examples = [Example(PROMPTS[row // 2], sample.token_ids) for row, sample in enumerate(drawn)]

    def read(batches: Sequence[Batch]) -> tuple[list[Tensor], list[Tensor]]:
        model.use(IMPROVER, train=True)
        model.zero_grad()
        logprobs = [completion_logprobs(model, batch) for batch in batches]
        torch.cat([logprobs_N.exp() for logprobs_N in logprobs]).sum().backward()
        gradients = [p.grad.clone() for p in model.role_parameters(IMPROVER).values() if p.grad is not None]
        return [logprobs_N.detach() for logprobs_N in logprobs], gradients

    alone, expected = read([completion_batch([example], 0) for example in examples])
    batches, rows, _ = lay_out(model, PROMPTS, [sample.token_ids for sample in drawn], config)
    packed, gradients = read(batches)
    assert sorted(row for batch_rows in rows for row in batch_rows) == list(range(len(drawn)))
    assert max(map(len, rows)) <= micro_batch_size
    for batch_rows, batch, logprobs_N in zip(rows, batches, packed, strict=True):
        assert len(batch.input_ids_BT) == len(batch_rows) / 2  # two samples in each row
        assert (logprobs_N - torch.cat([alone[row] for row in batch_rows])).abs().max() < 1e-5
    for exact, gradient in zip(expected, gradients, strict=True):
        assert (exact - gradient).abs().max() < 1e-5 * max(1, float(exact.abs().max()))
    monkeypatch.setitem(vars(model), "packs_trees", False)
    batches, rows, _ = lay_out(model, PROMPTS, [sample.token_ids for sample in drawn], config)
    separate, _ = read(batches)
    assert sorted(row for batch_rows in rows for row in batch_rows) == list(range(len(drawn)))
    for batch_rows, logprobs_N in zip(rows, separate, strict=True):
        assert (logprobs_N - torch.cat([alone[row] for row in batch_rows])).abs().max() < 1e-5


def picked(
    probabilities: list[float], uniforms: list[float], temperature: float = 1.0, top_p: float = 1.0
) -> list[int]:
    logits_BV = torch.tensor(probabilities, dtype=torch.float64).log().expand(len(uniforms), -1)
    return pick_tokens(logits_BV, torch.tensor(uniforms, dtype=torch.float64), temperature, top_p).tolist()


def test_tokens_are_picked_by_inverse_cdf() -> None:
    # borders 0.1, 0.3, 0.6
    uniforms = [0.0, 0.09, 0.11, 0.29, 0.31, 0.59, 0.61, 1 - 2**-53]
    assert picked([0.1, 0.2, 0.3, 0.4], uniforms) == [0, 0, 1, 1, 2, 2, 3, 3]


def test_a_low_temperature_sharpens_the_distribution() -> None:
    # at T = 1/2 the squares 1, 4, 9, 16 of 30: borders 0.0333, 0.1667, 0.4667
    assert picked([0.1, 0.2, 0.3, 0.4], [0.03, 0.04, 0.16, 0.17, 0.46, 0.47], temperature=0.5) == [0, 1, 1, 2, 2, 3]


def test_top_p_keeps_the_smallest_set_with_that_probability() -> None:
    # 0.4 + 0.3 is the first sum above 0.5: the border between tokens 2 and 3 is 0.3 / 0.7 = 0.4286
    assert picked([0.1, 0.2, 0.3, 0.4], [0.0, 0.42, 0.43, 1 - 2**-53], top_p=0.5) == [2, 2, 3, 3]
    assert picked([0.4, 0.3, 0.2, 0.1], [0.0, 0.57, 0.58, 1 - 2**-53], top_p=0.5) == [0, 0, 1, 1]
    assert picked([0.1, 0.2, 0.3, 0.4], [0.0, 0.5, 1 - 2**-53], top_p=0.39) == [3, 3, 3]
    assert picked([0.1, 0.2, 0.3, 0.4], [0.05, 0.2, 0.5, 0.9], top_p=0.95) == [0, 1, 2, 3]


def test_temperature_zero_is_greedy() -> None:
    assert picked([0.1, 0.5, 0.4], [0.0, 0.99], temperature=0) == [1, 1]


def test_frequencies_are_the_probabilities() -> None:
    """Over rows with the seeds that rollouts use: neighbouring seeds are independent enough."""
    draws = 20_000
    probabilities = [0.02, 0.08, 0.2, 0.3, 0.4]
    uniforms_B2 = row_uniforms([17 + 7919 * row for row in range(draws)], 2)
    first, second = (picked(probabilities, uniforms_B2[:, step].tolist()) for step in (0, 1))
    for drawn in (first, second):
        for token, count in Counter(drawn).items():
            p = probabilities[token]
            assert abs(count / draws - p) < 4 * (p * (1 - p) / draws) ** 0.5
    both = sum(pair == (4, 4) for pair in zip(first, second, strict=True)) / draws
    assert abs(both - 0.16) < 4 * (0.16 * 0.84 / draws) ** 0.5


def test_uniforms_depend_on_their_seed_only() -> None:
    wide, single = row_uniforms([5, 6, 7], 4), row_uniforms([6], 9)
    assert wide[1].tolist() == single[0, :4].tolist()
    assert ((wide >= 0) & (wide < 1)).all()
    assert len(set(wide.flatten().tolist())) == 12


def test_min_new_tokens_delays_the_stop_token(model: RoleModel, free: list[Sample]) -> None:
    """If its first token is the stop token, a row ends at once, unless it must have three tokens first."""
    stop_id = free[0].token_ids[0]
    (ended,) = generate(model, IMPROVER, PROMPTS[:1], SEEDS[:1], Decoding(1.0, 1.0, STEPS, (stop_id,)))
    (delayed,) = generate(model, IMPROVER, PROMPTS[:1], SEEDS[:1], Decoding(1.0, 1.0, STEPS, (stop_id,), 3))
    assert ended.token_ids == [stop_id]
    assert len(delayed.token_ids) >= 3
    assert stop_id not in delayed.token_ids[:3]

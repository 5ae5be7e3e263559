"""Packed trees give the same scores and gradients as separate passes."""

import random
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AttentionInterface,
    AutoModelForCausalLM,
    BloomConfig,
    GPTNeoConfig,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MptConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    Qwen3Config,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from pitcli.data.rows import Message, PreferencePair
from pitcli.data.templates import ChatFormat, Example
from pitcli.engine.models import attention, tree_support
from pitcli.engine.models.attention import tree_mask
from pitcli.engine.models.forward import completion_logprobs, score_trees, scores
from pitcli.engine.models.gaps import training_row
from pitcli.engine.models.loading import load_base
from pitcli.engine.models.packing import tokens_read, tree_batch
from pitcli.engine.models.roles import GAP, IMPROVER, RoleModel
from pitcli.engine.models.trees import (
    SHARED_TOKENS,
    Tree,
    completion_batch,
    group_tree,
    packed_batch,
    prefix_tree,
    separate_batch,
    swapped_tree,
)
from pitcli.equations import ORDERINGS
from pitcli.settings.base import GapLoss
from tests.conftest import WithRoles

PAIR = PreferencePair("1", (Message("user", "Write 3 animals."),), "cat dog fox", "cat axe", {})
SIZES = {
    "vocab_size": 32,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
ARCHITECTURES = {
    "llama": LlamaConfig(**SIZES, num_key_value_heads=2),
    "qwen3": Qwen3Config(**SIZES, num_key_value_heads=1, head_dim=16),
    "neox": GPTNeoXConfig(**SIZES),
    # derives its positions from the mask if none are given
    "opt": OPTConfig(
        **{name: size for name, size in SIZES.items() if name not in ("intermediate_size", "initializer_range")},
        ffn_dim=48,
        word_embed_proj_dim=32,
        init_std=0.2,
    ),
}


def random_model(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(deepcopy(config), dtype=torch.float32).requires_grad_(False).eval()


def random_tree(seed: int) -> Tree:
    """x, two references and four completions of random lengths, laid out as for the five-term loss."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, 9, (7,), generator=generator).tolist()
    segments = [torch.randint(1, 32, (length,), generator=generator).tolist() for length in lengths]
    return Tree(segments, [-1, 0, 1, 1, 0, 4, 4], [5, 2, 6, 3])


def separate_scores(model: RoleModel, trees: list[Tree]) -> Tensor:
    """The gap head on the last token of each conversation, with one forward pass per conversation."""
    ends = []
    for ids in (ids for tree in trees for ids in tree.conversations()):
        ends.append(model.transformer(input_ids=torch.tensor([ids])).last_hidden_state[0, -1])
    return torch.stack(ends) @ model.head_weight(GAP)[0]


def gradients(model: RoleModel, scores_N: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    (scores_N * torch.linspace(-1, 2, len(scores_N))).sum().backward()
    named = model.role_parameters(GAP)
    assert all(parameter.grad is not None for parameter in named.values())
    return {name: parameter.grad.clone() for name, parameter in named.items() if parameter.grad is not None}


def assert_as_separate(model: RoleModel, trees: list[Tree], gradient_tolerance: float = 1e-5) -> None:
    model.use(GAP, train=True)
    batch = tree_batch(model, trees)
    assert len(batch.input_ids_BT) == len(trees)
    packed_N, separate_N = scores(model, batch), separate_scores(model, trees)
    assert separate_N.std() > 0.02  # so that the comparison means something
    assert (packed_N - separate_N).abs().max() < 1e-5
    packed, separate = gradients(model, packed_N), gradients(model, separate_N)
    for name, gradient in separate.items():
        assert gradient.abs().max() > 0, name
        assert (packed[name] - gradient).abs().max() < gradient_tolerance * max(1, float(gradient.abs().max())), name
        assert (packed[name] - gradient).norm() < 1e-4 * gradient.norm(), name
    whole = torch.cat([gradient.flatten() for gradient in separate.values()])
    assert (torch.cat([packed[name].flatten() for name in separate]) - whole).norm() < 1e-5 * whole.norm()
    assert torch.cat(score_trees(model, trees, micro_batch_size=8)).tolist() == pytest.approx(
        separate_N.tolist(), abs=1e-5
    )


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_scores_and_gradients_of_architectures(architecture: str, with_roles: WithRoles) -> None:
    model = with_roles(random_model(ARCHITECTURES[architecture]), 0, GAP)
    assert model.reads_branches
    assert_as_separate(model, [random_tree(seed) for seed in range(5)])


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_logprobs_of_rows_equal_the_base_models(architecture: str, with_roles: WithRoles) -> None:
    base = random_model(ARCHITECTURES[architecture])
    model = with_roles(base, 0, IMPROVER)
    model.use(IMPROVER)
    rows = [Example([3, 4, 5], [6, 7]), Example([8] * 60, [9, 10, 11]), Example([12], [13])]
    logprobs_N = completion_logprobs(model, completion_batch(rows, 0))
    expected = []
    for row in rows:
        ids = torch.tensor([row.prompt + row.completion])
        logprobs_TV = base(input_ids=ids).logits[0].log_softmax(-1)
        expected.append(logprobs_TV[len(row.prompt) - 1 : -1].gather(-1, torch.tensor(row.completion)[:, None])[:, 0])
    assert model.reads_branches
    assert (logprobs_N - torch.cat(expected)).abs().max() < 1e-5


@pytest.mark.parametrize("failure", [TypeError("no mask"), None])
def test_a_base_without_branch_attention_uses_the_mask(
    failure: Exception | None, with_roles: WithRoles, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*arguments: Any, **more: Any) -> tuple[Tensor, None]:
        if failure:
            raise failure
        output, _ = sdpa_attention_forward(*arguments[:4], None, **more)
        return output * 1.01, None

    monkeypatch.setitem(AttentionInterface._global_mapping, attention.BY_BRANCH, wrong)
    base = random_model(ARCHITECTURES["llama"])
    model = with_roles(base, 0, GAP)
    assert not model.reads_branches
    assert base.config._attn_implementation == "sdpa"
    assert model.packs_trees
    model.use(GAP)
    trees = [random_tree(seed) for seed in range(5)]
    with torch.no_grad():
        separate_N = separate_scores(model, trees)
        packed_N = scores(model, packed_batch(trees, 0))
    assert separate_N.std() > 0.02
    assert (packed_N - separate_N).abs().max() < 1e-5


def test_scores_stay_in_fp32_under_autocast(with_roles: WithRoles) -> None:
    model = with_roles(random_model(ARCHITECTURES["llama"]), 0, GAP)
    model.reads_branches = False  # as on a GPU
    trees = [random_tree(seed) for seed in range(5)]
    model.use(GAP)
    with torch.no_grad():
        expected_N = scores(model, tree_batch(model, trees))
        with torch.autocast("cpu", torch.bfloat16):
            found_N = scores(model, tree_batch(model, trees))
    assert found_N.dtype == torch.float32
    assert 0 < (found_N - expected_N).abs().max() < 0.05
    assert not torch.equal(found_N.bfloat16().float(), found_N)


@pytest.mark.parametrize("load_in_4bit", [True, False])
def test_scores_and_gradients_of_the_embedded_model(
    load_in_4bit: bool, with_roles: WithRoles, tiny_chat: ChatFormat, tiny_folder: object
) -> None:
    base = load_base(tiny_folder, load_in_4bit, torch.device("cpu"))
    model = with_roles(base, tiny_chat.tokenizer.pad_token_id, GAP)
    longer = PreferencePair("2", (Message("user", "Write 5 tools. Avoid saw."),), "axe " * 5, "red", {})
    trees = [training_row([pair], tiny_chat, GapLoss.five_term).tree for pair in (PAIR, longer)]
    # fp32 rounds differently in blocks: separate passes are 3e-5 from float64, packed ones half of that
    assert model.reads_branches
    assert_as_separate(model, trees, gradient_tolerance=3e-5)
    model.reads_branches = False  # under the mask, as on a GPU
    assert_as_separate(model, trees)


def test_the_leaves_are_the_orderings(tiny_chat: ChatFormat) -> None:
    text = {"w": PAIR.chosen, "l": PAIR.rejected}
    assert training_row([PAIR], tiny_chat, GapLoss.five_term).tree.conversations() == [
        tiny_chat.gap_input(PAIR.prompt, text[first], text[second]) for first, second in ORDERINGS
    ]


def test_a_prefix_tree_has_each_beginning_once() -> None:
    long = list(range(10, 10 + SHARED_TOKENS))
    tree = prefix_tree(
        [Example([1, 2], [*long, 3]), Example([1, 2], [4, 5]), Example([1, 2], [*long, 6, 7]), Example([1], [2, *long])]
    )
    assert tree.segments == [[1, 2], long, [3], [6, 7], [4, 5]]
    assert tree.parents == [-1, 0, 1, 1, 0]
    assert tree.leaves == [2, 4, 3, 1]
    assert tree.prompts == [2, 2, 2, 1]
    assert prefix_tree([Example([1], [*long[1:], 3]), Example([1], [*long[1:], 4])]).segments == [
        [1, *long[1:]],
        [3],
        [4],
    ]
    short = [Example([1], [2, *long[2:], 3]), Example([1], [2, *long[2:], 4]), Example([1], [5])]
    assert prefix_tree(short).segments == [[1], [2, *long[2:], 3], [2, *long[2:], 4], [5]]
    # two of three share enough
    two = [Example([1], [2, *long, 3]), Example([1], [2, *long, 4]), Example([1], [2, 5]), Example([1], [6])]
    assert prefix_tree(two).segments == [[1], [2], long, [3], [4], [5], [6]]
    assert prefix_tree([Example([1], [2])] * 2) == Tree([[1, 2]], [-1], [0, 0], [1, 1])


def test_a_prefix_tree_has_the_conversations_that_it_is_made_of() -> None:
    rng = random.Random(0)
    for _ in range(200):
        pools = [[rng.randrange(3) for _ in range(rng.randint(1, 12))] for _ in range(3)]
        examples = [
            Example([9, *rng.choice(pools)], rng.choice(pools) + rng.choice(pools)) for _ in range(rng.randint(1, 6))
        ]
        tree = prefix_tree(examples)
        assert tree.examples() == examples
        assert tree.lengths() == [len(example.prompt) + len(example.completion) for example in examples]
        assert tree.tokens() <= sum(tree.lengths())


def test_both_orders_of_two_responses(tiny_chat: ChatFormat) -> None:
    assert swapped_tree(PAIR.prompt, ["cat", "red"], "dog fox", tiny_chat).conversations() == [
        tiny_chat.gap_input(PAIR.prompt, "cat", "dog fox"),
        tiny_chat.gap_input(PAIR.prompt, "dog fox", "cat"),
        tiny_chat.gap_input(PAIR.prompt, "red", "dog fox"),
        tiny_chat.gap_input(PAIR.prompt, "dog fox", "red"),
    ]


def test_a_packed_pair_has_x_once_and_each_response_three_times(tiny_chat: ChatFormat) -> None:
    x, bridge = len(tiny_chat.policy_prompt(PAIR.prompt)), tiny_chat.overhead(2) - tiny_chat.overhead(1)
    chosen, rejected = (len(tiny_chat.encode_text(text)) for text in (PAIR.chosen, PAIR.rejected))
    tree = training_row([PAIR], tiny_chat, GapLoss.five_term).tree
    # each response once as reference, before a bridge, and twice as completion, before a stop token
    shared = 3  # "cat": both references begin with it, and both completions after either
    assert tree.tokens() == x + 3 * chosen + 3 * rejected + 2 * bridge + 4 - shared
    assert sum(map(len, tree.conversations())) == 4 * x + 4 * chosen + 4 * rejected + 4 * bridge + 4


def test_the_layout_of_a_small_tree() -> None:
    # x = [5, 6], children [7] and [8, 9]; a second, shorter tree pads the batch
    batch = packed_batch([Tree([[5, 6], [7], [8, 9]], [-1, 0, 0], [2, 1]), Tree([[5]], [-1], [0])], 0)
    assert batch.position_ids_BT is not None
    assert batch.input_ids_BT.tolist() == [[5, 6, 7, 8, 9], [5, 0, 0, 0, 0]]
    assert batch.position_ids_BT[0].tolist() == [0, 1, 2, 2, 3]
    assert batch.rows_N.tolist() == [0, 0, 1]
    assert batch.columns_N.tolist() == [4, 2, 0]
    assert batch.targets_N.tolist() == []
    assert batch.tokens == 6
    mask_B1TT = tree_mask(batch.branches_BS2, 5, torch.float32, torch.device("cpu"))
    assert mask_B1TT.shape == (2, 1, 5, 5)
    assert mask_B1TT.stride() == (80, 80, 16, 1)  # GPU kernels accept these strides without a copy
    sees = (mask_B1TT[:, 0] == 0).int()
    assert sees[0].tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 0, 1, 0],
        [1, 1, 0, 1, 1],
    ]
    assert sees[1, 0].tolist() == [1, 0, 0, 0, 0]
    assert batch.branches_BS2.tolist() == [[[-1, 2], [0, 1], [0, 2]], [[-1, 1], [-1, 0], [-1, 0]]]


def test_leaf_tokens_are_predicted_by_the_state_before_them_on_their_branch() -> None:
    trees = [group_tree([5, 6], [[7, 1], [8, 9, 1]]), group_tree([5], [[1]])]
    packed, separate = packed_batch(trees, 0, of_tokens=True), separate_batch(trees, 0, of_tokens=True)
    assert packed.input_ids_BT.tolist() == [[5, 6, 7, 1, 8, 9, 1], [5, 1, 0, 0, 0, 0, 0]]
    assert packed.targets_N.tolist() == separate.targets_N.tolist() == [7, 1, 8, 9, 1, 1]
    assert packed.rows_N.tolist() == [0, 0, 0, 0, 0, 1]
    assert packed.columns_N.tolist() == [1, 2, 1, 4, 5, 0]
    assert separate.rows_N.tolist() == [0, 0, 1, 1, 1, 2]
    assert separate.columns_N.tolist() == [1, 2, 1, 2, 3, 0]
    assert (packed.tokens, separate.tokens) == (9, 11)


def test_scores_come_in_the_order_of_the_trees(
    with_roles: WithRoles, small_llama: Callable[[], PreTrainedModel]
) -> None:
    """score_trees sorts by length and splits into micro-batches; neither may change the order."""
    model = with_roles(small_llama(), 0, GAP)
    trees = [Tree([[3] * length, [4, length], [5]], [-1, 0, 0], [1, 2]) for length in (2, 9, 4, 7, 1)]
    trees.insert(2, Tree([[3, 4], [5]], [-1, 0], [1]))  # a tree with fewer leaves
    singly = [score_trees(model, [tree], 1)[0] for tree in trees]
    assert torch.cat(singly).std() > 0.1
    for micro_batch_size in (1, 4, 100):
        for scores_N, alone_N in zip(score_trees(model, trees, micro_batch_size), singly, strict=True):
            assert (scores_N - alone_N).abs().max() < 1e-5
    assert score_trees(model, [], 4) == []


WITHOUT_TREES = {
    # counts ALiBi distances along the row, whatever the given positions
    "mpt": MptConfig(vocab_size=32, d_model=32, n_heads=4, n_layers=2, max_seq_len=128, initializer_range=0.2),
    # computes ALiBi from a 2-D mask, and raises on a 4-D one
    "bloom": BloomConfig(vocab_size=32, hidden_size=32, n_layer=2, n_head=4, initializer_range=0.2),
    # hides distant tokens of the row in every other layer, whatever the mask
    "gpt-neo": GPTNeoConfig(
        vocab_size=32,
        hidden_size=32,
        num_layers=2,
        num_heads=4,
        max_position_embeddings=128,
        attention_types=[[["global", "local"], 1]],
        window_size=60,  # longer than the probe
        initializer_range=0.2,
    ),
}


@pytest.mark.parametrize("architecture", WITHOUT_TREES)
def test_a_base_without_tree_attention_reads_separately(
    architecture: str, with_roles: WithRoles, monkeypatch: pytest.MonkeyPatch
) -> None:
    warnings: list[str] = []
    monkeypatch.setattr(tree_support, "warn", warnings.append)
    model = with_roles(random_model(WITHOUT_TREES[architecture]), 0, GAP)
    trees = [random_tree(seed) for seed in range(3)]
    model.use(GAP)
    assert not model.packs_trees
    assert len(warnings) == 1
    assert "does not support tree attention" in warnings[0]
    input_ids_BT = tree_batch(model, trees).input_ids_BT
    assert len(input_ids_BT) == 12
    assert max(tokens_read(model, tree) for tree in trees) == input_ids_BT.numel() / 3
    with torch.no_grad():
        separate_N = separate_scores(model, trees)
    assert separate_N.std() > 0.1
    assert (torch.cat(score_trees(model, trees, micro_batch_size=8)) - separate_N).abs().max() < 1e-5


def test_trees_are_not_packed_if_a_sliding_window_is_too_short(with_roles: WithRoles) -> None:
    """A tree's mask replaces the window, so a conversation longer than the window would see too much."""
    model = with_roles(random_model(MistralConfig(**SIZES, num_key_value_heads=2, sliding_window=48)), 0, GAP)
    short = Tree([[3] * 41, [4, 5, 6], [7] * 7], [-1, 0, 0], [1, 2])  # conversations of 44 and 48 tokens
    long = Tree([[3, 9] * 25, [4, 5, 6], [7, 8] * 4], [-1, 0, 0], [1, 2])
    assert [tokens_read(model, tree) for tree in (short, long)] == [51, 2 * 58]
    model.use(GAP)
    assert model.packs_trees
    assert len(tree_batch(model, [short]).input_ids_BT) == 1
    assert len(tree_batch(model, [short, long]).input_ids_BT) == 4
    for tree in (short, long):
        with torch.no_grad():
            separate_N = separate_scores(model, [tree])
        assert (torch.cat(score_trees(model, [tree], micro_batch_size=8)) - separate_N).abs().max() < 1e-5
    with torch.no_grad():
        packed = scores(model, packed_batch([long], 0))
    assert (packed - separate_N).abs().max() > 1e-3  # packing would have been wrong


def test_a_separate_batch_is_padded_on_the_right() -> None:
    batch = separate_batch([Tree([[5, 6], [7], [8, 9]], [-1, 0, 0], [2, 1])], 0)
    assert batch.input_ids_BT.tolist() == [[5, 6, 8, 9], [5, 6, 7, 0]]
    assert batch.position_ids_BT is None
    assert batch.branches_BS2.tolist() == [[[-1, 4]], [[-1, 3]]]
    assert batch.rows_N.tolist() == [0, 1]
    assert batch.columns_N.tolist() == [3, 2]
    assert batch.tokens == 7

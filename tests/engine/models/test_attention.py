"""Attention by branch equals attention under the tree's mask, in the forward and the backward pass."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from pitcli.engine.models import attention, block_attention
from pitcli.engine.models.attention import attend, branches_of, tree_mask

# parents and lengths: the tree of a pair; a shorter group tree; a conversation longer than two blocks; one token
ROWS = [
    ([-1, 0, 1, 1, 0, 4, 4], [150, 9, 3, 140, 5, 3, 4]),
    ([-1, 0, 0, 0], [7, 3, 1, 6]),
    ([-1], [300]),
    ([-1], [1]),
]
WIDTH = max(sum(lengths) for _, lengths in ROWS)
BRANCHES = branches_of(ROWS)
MODULE = nn.Module()


def states(heads: int, seed: int, dtype: torch.dtype) -> Tensor:
    """Random states of shape (B, heads, T, D), with the strides that transformers gives them."""
    generator = torch.Generator().manual_seed(seed)
    values = torch.randn(len(ROWS), WIDTH, heads, 8, generator=generator, dtype=dtype)
    return values.transpose(1, 2).requires_grad_()


def masked_attention(query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
    """softmax(q k scale + mask) v, computed plainly."""
    shared = query.shape[1] // key.shape[1]
    key, value = (x.repeat_interleave(shared, 1) for x in (key, value))
    scores = query @ key.transpose(-1, -2) * scale + tree_mask(BRANCHES, WIDTH, query.dtype, query.device)
    return (scores.softmax(-1) @ value).transpose(1, 2)


@pytest.mark.parametrize("block", [32, 128, 1000])
@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2), (3, 1)])
def test_outputs_and_gradients(heads: int, groups: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(block_attention, "BLOCK", block)
    block_attention._blocks.cache_clear()
    inputs = [states(count, seed, torch.float64) for seed, count in enumerate((heads, groups, groups))]
    found, _ = attend(MODULE, *inputs, BRANCHES[:, None], scaling=0.3)
    expected = masked_attention(*inputs, scale=0.3)
    block_attention._blocks.cache_clear()
    assert found.shape == (len(ROWS), WIDTH, heads, 8)
    for row, (_, lengths) in enumerate(ROWS):
        size = sum(lengths)
        assert (found[row, :size] - expected[row, :size]).abs().max() < 1e-12
        assert found[row, size:].isfinite().all()  # padding, whose output is not used
    slope = torch.randn(found.shape, generator=torch.Generator().manual_seed(9), dtype=torch.float64)
    for row, (_, lengths) in enumerate(ROWS):
        slope[row, sum(lengths) :] = 0
    for gradient, exact in zip(
        torch.autograd.grad(found, inputs, slope), torch.autograd.grad(expected, inputs, slope), strict=True
    ):
        assert exact.abs().max() > 0.1
        assert (gradient - exact).abs().max() < 1e-12


def test_a_block_sees_only_its_own_branch() -> None:
    blocks = block_attention._blocks(tuple(zip(*ROWS[0], strict=True)))
    assert [(block.tokens, block.sees) for block in blocks] == [
        ((0, 128), [(0, 128)]),
        ((128, 150), [(0, 150)]),
        ((150, 159), [(0, 159)]),
        ((159, 162), [(0, 162)]),
        ((162, 290), [(0, 159), (162, 290)]),
        ((290, 302), [(0, 159), (162, 302)]),
        ((302, 307), [(0, 150), (302, 307)]),
        ((307, 310), [(0, 150), (302, 310)]),
        ((310, 314), [(0, 150), (302, 307), (310, 314)]),
    ]


@pytest.mark.parametrize(("heads", "groups"), [(4, 4), (6, 2)])
def test_pieces_continue_their_cached_rows(heads: int, groups: int) -> None:
    key, value = (states(groups, seed, torch.float64) for seed in (1, 2))
    pieces = [(5, 2, 200), (1, 0, 7), (3, 1, 0)]  # tokens, row, cached tokens
    query = states(heads, 0, torch.float64)[:1, :, : sum(tokens for tokens, _, _ in pieces)]
    found, _ = attend(MODULE, query, key, value, torch.tensor([[pieces]]), scaling=0.3)
    assert found.shape == (1, 9, heads, 8)
    first = 0
    for tokens, row, cached in pieces:
        own, seen = query[:, :, first : first + tokens], slice(cached + tokens)
        shared_key, shared_value = (
            x[row : row + 1, :, seen].repeat_interleave(heads // groups, 1) for x in (key, value)
        )
        scores = own @ shared_key.transpose(-1, -2) * 0.3
        hidden = torch.ones(tokens, cached + tokens, dtype=torch.bool).triu(cached + 1)
        expected = (scores.masked_fill(hidden, -torch.inf).softmax(-1) @ shared_value).transpose(1, 2)
        assert (found[:, first : first + tokens] - expected).abs().max() < 1e-12
        first += tokens


def test_autocast_leaves_the_cache_in_its_type() -> None:
    """RL samples under autocast; in bf16 torch's kernel for CPUs is slow and converts the whole cache in each pass."""
    query, key, value = (states(2, seed, torch.float32)[:1] for seed in range(3))
    query, mask = query[:, :, :1], torch.tensor([[[(1, 0, 200)]]])
    expected, _ = attend(MODULE, query, key, value, mask)
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = attend(MODULE, query, key, value, mask)
    assert found.dtype == torch.float32 and torch.equal(found, expected)


def test_other_masks_are_left_to_transformers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[Any] = []

    def fake_sdpa(*arguments: Any, **more: Any) -> tuple[str, None]:
        calls.append(more)
        return "theirs", None

    monkeypatch.setattr(attention, "sdpa_attention_forward", fake_sdpa)
    query, key = SimpleNamespace(shape=(1, 4, 5, 8)), SimpleNamespace(shape=(1, 2, 5, 8))
    mask = torch.zeros(1, 1, 5, 5)
    assert attend(MODULE, query, key, key, None, is_causal=True) == ("theirs", None)
    assert attend(MODULE, query, key, key, mask, position_bias=mask) == ("theirs", None)
    assert attend(MODULE, query, key, key, mask > 0) == ("theirs", None)
    assert [list(more) for more in calls] == [["is_causal"], ["position_bias"], []]
    with pytest.raises(ValueError, match="with a mask only"):
        attend(MODULE, query, key, key, BRANCHES[:, None], softcap=30.0)

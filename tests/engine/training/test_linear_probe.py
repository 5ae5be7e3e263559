"""The linear probe: its features are those of separate passes, and its fit meets conditions derived by hand."""

import math

import numpy as np
import pytest
import torch

from pitcli.data.rows import Message, PreferencePair
from pitcli.data.templates import ChatFormat
from pitcli.engine.models.loading import load_base
from pitcli.engine.models.roles import GAP
from pitcli.engine.training.linear_probe import (
    PENALTIES,
    cross_validated_losses,
    feature_differences,
    fit_probe,
    fit_weights,
)
from tests.conftest import WithRoles


def pairs_of(count: int) -> list[PreferencePair]:
    return [
        PreferencePair(
            str(number), (Message("user", f"Write {number} animals."),), "cat dog fox"[: 3 + number], "cat axe", {}
        )
        for number in range(count)
    ]


def test_features_are_those_of_the_base_read_one_conversation_at_a_time(
    with_roles: WithRoles, tiny_chat: ChatFormat, tiny_folder: object
) -> None:
    """Of the frozen base: an adapter that was trained changes nothing."""
    base = load_base(tiny_folder, False, torch.device("cpu"))
    pairs = pairs_of(5)
    expected = []
    for pair in pairs:
        x, rows = tiny_chat.policy_prompt(pair.prompt), []
        for text in (pair.chosen, pair.rejected):
            y = tiny_chat.completion(text)
            with torch.no_grad():
                states_TD = base.model(torch.tensor([x + y])).last_hidden_state[0]
            rows.append(torch.cat([states_TD[len(x) :].mean(0), states_TD[-1]]))
        expected.append(rows[0] - rows[1])
    model = with_roles(base, tiny_chat.tokenizer.pad_token_id, GAP)
    model.use(GAP)
    for micro_batch_size in (1, 4):
        found = feature_differences(model, tiny_chat, pairs, micro_batch_size)
        assert np.abs(found - torch.stack(expected).numpy()).max() < 1e-4
    assert np.abs(found).max() > 0.1


def test_the_weight_of_one_feature() -> None:
    # all differences are 2: the slope 0.1 w - 2 sigmoid(-2 w) is zero
    (weight,) = fit_weights(np.full((7, 1), 2.0), 0.1)
    assert 0.1 * weight == pytest.approx(2 / (1 + math.exp(2 * weight)), abs=1e-5)
    # three of four pairs are ranked right by the feature, with hardly a penalty: sigmoid(w) = 3/4
    (weight,) = fit_weights(np.array([[1.0], [1], [1], [-1]]), 1e-9)
    assert weight == pytest.approx(math.log(3), abs=1e-3)


def test_a_feature_that_says_nothing_gets_no_weight() -> None:
    assert np.abs(fit_weights(np.array([[1.0, 0], [-1, 0]]), 0.1)).max() < 1e-6


def test_the_probe_finds_the_direction_of_the_labels_and_does_not_fit_noise() -> None:
    rng = np.random.default_rng(0)
    direction_F = rng.normal(size=40)
    differences_NF = rng.normal(size=(600, 40))
    differences_NF *= np.sign(differences_NF @ direction_F)[:, None]  # chosen is the better one along the direction
    scales_F = np.where(np.arange(40) % 2, 100.0, 0.01)  # features of any size
    pairs = pairs_of(400)
    probe = fit_probe(differences_NF[:400] * scales_F, pairs)
    assert (probe.gaps(differences_NF[400:] * scales_F) > 0).mean() > 0.93
    noise = fit_probe(rng.normal(size=(400, 40)), pairs)
    assert noise.penalty > probe.penalty
    assert np.abs(noise.gaps(rng.normal(size=(100, 40)))).mean() < 0.3


def test_folds_are_disjoint_by_prompt() -> None:
    """Two copies of each pair: if one were in another fold, the weakest penalty would seem best."""
    rng = np.random.default_rng(0)
    once_NF = rng.normal(size=(40, 60))
    twice = cross_validated_losses(np.repeat(once_NF, 2, axis=0), np.repeat(np.arange(40), 2))
    assert twice / 2 == pytest.approx(cross_validated_losses(once_NF, np.arange(40)), rel=1e-2)
    assert np.argmin(twice) == 0
    apart = cross_validated_losses(np.repeat(once_NF, 2, axis=0), np.arange(80))
    assert np.argmin(apart) > 0


def test_a_single_prompt_gets_the_strongest_penalty() -> None:
    assert fit_probe(np.ones((3, 2)), pairs_of(1) * 3).penalty == PENALTIES[0]

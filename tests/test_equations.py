"""The paper's equations compared with numbers derived by hand."""

import math
from math import exp, log

import pytest
import torch
from torch import Tensor

from pitcli.equations import (
    ORDERINGS,
    as_the_worst,
    bounded_gap,
    bradley_terry_gap_loss,
    clipped_policy_loss,
    cross_validated_log_loss,
    distillation_advantages,
    dpo_loss,
    fit_temperature,
    five_term_loss,
    gap_loss,
    group_spread,
    ipo_loss,
    kto_loss,
    kto_reference_point,
    learning_rate_factor,
    leave_one_out_advantages,
    log_ratios,
    p_better,
    pointwise_gap_loss,
    preference_loss,
    rl_rewards,
    sequence_kl,
    symmetric_gap_loss,
    symmetrised_gap,
    unchanged_preference_loss,
)
from pitcli.settings.base import GapBound, GapLoss, PreferenceLoss


def softplus(z: float) -> float:
    """-log sigmoid(-z)"""
    return log(1 + exp(z))


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def test_the_orderings_are_those_of_the_gap_columns() -> None:
    assert ORDERINGS == (("w", "l"), ("w", "w"), ("l", "l"), ("l", "w"))


def test_five_terms_of_an_ordered_pair() -> None:
    # (2, 0, 0, -2): differences 2, 2, 4, 2, 2
    loss = five_term_loss(tensor(2, 0, 0, -2)[None])
    assert float(loss) == pytest.approx(4 * log(1 + exp(-2)) + log(1 + exp(-4)))
    assert float(loss) == pytest.approx(0.525862, abs=1e-6)


def test_five_terms_of_four_different_gaps() -> None:
    # wl 3, ww 1, ll 0, lw -1: wl-ww 2, wl-ll 3, wl-lw 4, ww-lw 2, ll-lw 1
    expected = 2 * softplus(-2) + softplus(-3) + softplus(-4) + softplus(-1)
    assert float(five_term_loss(tensor(3, 1, 0, -1)[None])) == pytest.approx(expected)


def test_five_terms_of_equal_gaps_whatever_their_offset() -> None:
    for offset in (0.0, -7.5, 100.0):
        assert float(five_term_loss(torch.full((3, 4), offset))) == pytest.approx(5 * log(2), abs=1e-4)


def test_the_losses_are_means_over_the_pairs() -> None:
    gaps_B4 = torch.stack([tensor(2, 0, 0, -2), tensor(0, 0, 0, 0)])
    first = 4 * softplus(-2) + softplus(-4)
    assert float(five_term_loss(gaps_B4)) == pytest.approx((first + 5 * log(2)) / 2)
    gaps_B2 = gaps_B4[:, [0, 3]]
    assert float(bradley_terry_gap_loss(gaps_B2)) == pytest.approx((softplus(-4) + log(2)) / 2)
    assert float(symmetric_gap_loss(gaps_B2)) == pytest.approx((2 * softplus(-2) + 2 * log(2)) / 2)


def test_the_gradient_raises_wl_and_lowers_lw() -> None:
    # At equal gaps every term has slope -1/2. wl and lw are in three terms each; ww and ll in two of opposite sign.
    gaps_B4 = torch.zeros(1, 4, requires_grad=True)
    five_term_loss(gaps_B4).backward()
    assert gaps_B4.grad is not None
    assert gaps_B4.grad[0].tolist() == pytest.approx([-1.5, 0, 0, 1.5])


def test_a_loss_of_badly_ordered_huge_gaps_is_linear() -> None:
    # -log sigmoid(-1000) = 1000; (-500, 0, 0, 500) has differences -500, -500, -1000, -500, -500
    assert float(five_term_loss(torch.tensor([[-500.0, 0, 0, 500]]))) == pytest.approx(3000)


def test_bradley_terry_uses_only_the_swapped_orderings() -> None:
    assert float(bradley_terry_gap_loss(tensor(2, -1)[None])) == pytest.approx(softplus(-3))


def test_symmetric_uses_each_ordering_by_itself() -> None:
    assert float(symmetric_gap_loss(tensor(2, -1)[None])) == pytest.approx(softplus(-2) + softplus(-1))
    # an offset of 5 changes it, unlike the other losses: g_wl = 7, g_lw = 4
    assert float(symmetric_gap_loss(tensor(7, 4)[None])) == pytest.approx(softplus(-7) + softplus(4))


def test_pointwise_compares_the_rewards_of_a_pair() -> None:
    # whatever is added to both rewards of a pair: 2 - (-1) = 3 and 5 - 5 = 0
    assert float(pointwise_gap_loss(tensor(2, -1)[None])) == pytest.approx(softplus(-3))
    assert float(pointwise_gap_loss(torch.stack([tensor(12, 9), tensor(5, 5)]))) == pytest.approx(
        (softplus(-3) + log(2)) / 2
    )


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (GapLoss.five_term, 4 * softplus(-1) + softplus(-2)),
        (GapLoss.bradley_terry, softplus(-2)),
        (GapLoss.symmetric, 2 * softplus(-1)),
        (GapLoss.pointwise, softplus(-2)),
    ],
)
def test_gap_loss_by_name(kind: GapLoss, expected: float) -> None:
    gaps = tensor(1, 0, 0, -1) if kind is GapLoss.five_term else tensor(1, -1)
    assert float(gap_loss(kind, gaps[None])) == pytest.approx(expected)


def test_the_symmetrised_gap() -> None:
    # r(a,b) = 3, r(b,a) = 1 -> 1: an offset of 2 that both share is gone
    reward_ab, reward_ba = tensor(3, 0.5, -4), tensor(1, 0.5, 2)
    assert symmetrised_gap(reward_ab, reward_ba).tolist() == [1, 0, -3]
    assert symmetrised_gap(reward_ba, reward_ab).tolist() == [-1, 0, 3]


@pytest.mark.parametrize(
    ("gap", "gap_temperature", "expected"),
    [(0, 3, 0.5), (log(3), 1, 0.75), (2 * log(3), 2, 0.75), (-log(4), 1, 0.2), (-0.5 * log(4), 0.5, 0.2)],
)
def test_p_better(gap: float, gap_temperature: float, expected: float) -> None:
    assert p_better(gap, gap_temperature) == pytest.approx(expected)


def test_p_better_of_huge_gaps_does_not_overflow() -> None:
    assert p_better(1e6, 1e-3) == 1
    assert p_better(-1e6, 1e-3) == pytest.approx(0, abs=1e-300)
    assert p_better(math.inf, 1) == 1


def test_the_temperature_of_one_magnitude() -> None:
    # three of four pairs are ranked correctly at gap 2: sigmoid(2/T) = (3 + 1)/(4 + 2), so 2/T = ln 2
    assert fit_temperature([2, 2, -2, 2]) == pytest.approx(2 / log(2))
    # both of two: sigmoid(1/T) = 3/4, so 1/T = ln 3; without the prior T would be 0
    assert fit_temperature([1, 1]) == pytest.approx(1 / log(3))


@pytest.mark.parametrize("known", [0.1, 1.0, 7.0])
def test_a_known_temperature_is_recovered(known: float) -> None:
    # 14 pairs, each right with t = 15/16; of n of one magnitude, k correct, sigmoid(g/T) = (k t + (n - k)(1 - t)) / n:
    # (3 t + 1 - t)/4 = 46/64 and (9 t + 1 - t)/10 = 136/160, so both magnitudes fit T = `known`
    small, large = known * log(46 / 18), known * log(136 / 24)
    gaps = [small] * 3 + [-small] + [large] * 9 + [-large]
    assert fit_temperature(gaps) == pytest.approx(known)


def test_the_temperature_scales_with_the_gaps() -> None:
    gaps = [0.3, 1.9, -0.4, 0.8, -1.1, 2.2]
    fitted = fit_temperature(gaps)
    assert fit_temperature([5 * gap for gap in gaps]) == pytest.approx(5 * fitted)


def test_temperatures_without_an_optimum() -> None:
    assert fit_temperature([1e-6] * 3, max_temperature=100) == 1 / 100  # tiny, all correct: the lower limit
    for useless in ([], [0, 0], [-1, -2], [1, -1], [1, -3]):
        assert fit_temperature(useless, max_temperature=100) == 100


def test_the_log_loss_is_under_the_temperature_of_the_other_pairs() -> None:
    # two folds: [2, -2] and [2, 2]. The first is judged by T = 2/ln 3 of the second: -ln(3/4) and -ln(1/4); the second
    # by the T of [2, -2], which is at its bound of 1,000: ln 2 up to 1e-3
    expected = (-log(3 / 4) - log(1 / 4) + 2 * log(2)) / 4
    assert cross_validated_log_loss([2, 2, -2, 2], folds=2) == pytest.approx(expected, abs=1e-3)


def test_sequence_kl_sums_over_the_completion() -> None:
    logprobs_N, ref_logprobs_N = tensor(-2, -3, -1, -1, -1), tensor(-2.5, -3.25, -0.5, -1.25, -1)
    # 0.5 + 0.25; -0.5 + 0.25 + 0: k1 may be negative for a sample
    assert sequence_kl(logprobs_N, ref_logprobs_N, [2, 3]).tolist() == [0.75, -0.25]


def test_log_ratios_are_sums_over_each_sequence() -> None:
    assert log_ratios(tensor(-1, -2, -4), tensor(-2, -2, -1), [2, 1]).tolist() == [1, -3]


def test_dpo_of_one_pair_in_two_contexts() -> None:
    # margins 3 - 1 = 2 and -1 - 3 = -4, times beta 0.5: 1 and -2
    loss = dpo_loss(torch.stack([tensor(3, 1), tensor(-1, 3)])[None], 0.5)
    assert float(loss) == pytest.approx((softplus(-1) + softplus(2)) / 2)


def test_dpo_of_an_improver_is_the_symmetric_loss_of_its_gap_over_the_copy() -> None:
    d_wl, d_ll, d_ww, d_lw = 0.7, -0.4, 0.1, 0.9
    gaps = 0.2 * tensor(d_wl - d_ll, d_lw - d_ww)  # r_gap(x, w, l) and r_gap(x, l, w): the copy is the zero
    loss = dpo_loss(torch.stack([tensor(d_wl, d_ll), tensor(d_ww, d_lw)])[None], 0.2)
    assert float(loss) == pytest.approx(float(symmetric_gap_loss(gaps[None])) / 2)


def test_the_optimum_of_ipo_is_the_preference_over_the_copy() -> None:
    """At E[label] = p the best d of (y given c) is that of exp(p / beta) / Z: margins (2 p - 1) / (2 beta)."""
    beta, p = 0.25, 0.8
    margin = (p - 0.5) / beta  # d(w | l) - d(l | l); with the labels swapped, its sign in the context l swaps
    ratios = torch.tensor([[[margin, 0.0]]], dtype=torch.float64, requires_grad=True)
    (p * ipo_loss(ratios, beta) + (1 - p) * ipo_loss(ratios.flip(-1), beta)).backward()
    assert ratios.grad is not None
    assert ratios.grad.abs().max() < 1e-12


def test_ipo_of_one_pair_in_two_contexts() -> None:
    # margins 2 and -4, target 1 / (2 * 0.25) = 2
    assert float(ipo_loss(torch.stack([tensor(3, 1), tensor(-1, 3)])[None], 0.25)) == (0 + 36) / 2


def test_kto_rates_each_response_by_itself() -> None:
    # z = 1: w at 0.5 * (3 - 1) = 1 and 0.5 * (-1 - 1) = -1, l at 0.5 * (1 - 1) = 0 and 0.5 * (3 - 1) = 1
    expected = (1 / (1 + exp(1)) + 1 / (1 + exp(-1)) + 0.5 + 1 / (1 + exp(-1))) / 4
    assert float(kto_loss(torch.stack([tensor(3, 1), tensor(-1, 3)])[None], 0.5, 1.0)) == pytest.approx(expected)


def test_the_reference_point_of_kto_is_not_negative() -> None:
    assert kto_reference_point(tensor(3, -1)) == 1
    assert kto_reference_point(tensor(-3, 1)) == 0


@pytest.mark.parametrize(
    ("kind", "slopes"),
    [
        # d loss / d margin: -0.5 sigmoid(-0.5 * 2); the margin is d(w) - d(l)
        (PreferenceLoss.dpo, (-0.5 / (1 + exp(1)), 0.5 / (1 + exp(1)))),
        # 2 (2 - 1)
        (PreferenceLoss.ipo, (2.0, -2.0)),
        # sigmoid' of 0.5 (3 - 1) and of 0.5 (1 - 1), times 0.5, as a mean over two responses
        (PreferenceLoss.kto, (-0.25 * exp(-1) / (1 + exp(-1)) ** 2, 0.25 * 0.25)),
    ],
)
def test_gradients_of_the_preference_losses(kind: PreferenceLoss, slopes: tuple[float, float]) -> None:
    """d(w) = 3, d(l) = 1, beta = 0.5, z = 1."""
    ratios = torch.tensor([[[3.0, 1.0]]], dtype=torch.float64, requires_grad=True)
    preference_loss(kind, ratios, 0.5, 1.0).backward()
    assert ratios.grad is not None
    assert ratios.grad.flatten().tolist() == pytest.approx(slopes)


@pytest.mark.parametrize("kind", PreferenceLoss)
def test_the_preference_losses_of_an_unchanged_role(kind: PreferenceLoss) -> None:
    assert float(preference_loss(kind, torch.zeros(3, 2, 2), 0.3, 0.0)) == pytest.approx(
        unchanged_preference_loss(kind, 0.3)
    )
    assert unchanged_preference_loss(PreferenceLoss.ipo, 0.5) == 1


def test_rl_rewards() -> None:
    finished_B = torch.tensor([True, False])
    # 1 - 0.05 * 2 = 0.9; 0.5 - 0.05 * 4 - 1 = -0.7
    rewards_B = rl_rewards(tensor(1, 0.5), tensor(2, 4), finished_B, kl_coef=0.05, missing_eos_penalty=1.0)
    assert rewards_B.tolist() == pytest.approx([0.9, -0.7])


def test_the_spread_is_the_mean_over_the_prompts() -> None:
    # 0, 2, 4: variance 8/3 over three samples; 5, 5, 5: 0
    assert group_spread(torch.stack([tensor(0, 2, 4), tensor(5, 5, 5)])) == pytest.approx((8 / 3) ** 0.5 / 2)


def test_leave_one_out() -> None:
    # 1 - (2+6)/2 = -3; 2 - (1+6)/2 = -1.5; 6 - (1+2)/2 = 4.5
    advantages_PK = leave_one_out_advantages(torch.stack([tensor(1, 2, 6), tensor(5, 5, 5)]))
    assert advantages_PK.tolist() == [[-3, -1.5, 4.5], [0, 0, 0]]


def test_leave_one_out_of_two_samples_is_their_difference() -> None:
    assert leave_one_out_advantages(tensor(3, 1)[None]).tolist() == [[2, -2]]


def test_leave_one_out_sums_to_zero_for_each_prompt() -> None:
    rewards_PK = torch.randn(20, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert leave_one_out_advantages(rewards_PK).sum(1).abs().max() < 1e-12


def test_at_ratio_one_the_gradient_is_reinforce() -> None:
    # d/d log pi of -A log pi is -A at every token, and the loss is -A per token
    old_N = tensor(-2, -3, -0.5, -0.7)
    logprobs_N = old_N.clone().requires_grad_()
    loss, clipped = clipped_policy_loss(logprobs_N, old_N, tensor(2, 2, -3, -3), clip_range=0.2)
    loss.backward()
    assert logprobs_N.grad is not None
    assert logprobs_N.grad.tolist() == [-2, -2, 3, 3]
    assert float(loss.detach()) == pytest.approx(-2 * 2 + 3 * 2)
    assert float(clipped) == 0


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "expected"),
    [
        (1.5, 2.0, -2.4, 0.0, 1),  # better and already likelier: clipped at 1.2
        (0.5, 2.0, -1.0, -1.0, 0),  # better but less likely: not clipped
        (0.5, -2.0, 1.6, 0.0, 1),  # worse and already less likely: clipped at 0.8
        (1.5, -2.0, 3.0, 3.0, 0),  # worse but likelier: not clipped
    ],
)
def test_clipping(ratio: float, advantage: float, loss: float, slope: float, expected: int) -> None:
    logprobs_N = tensor(log(ratio) - 1).requires_grad_()
    value, clipped = clipped_policy_loss(logprobs_N, tensor(-1), tensor(advantage), clip_range=0.2)
    value.backward()
    assert logprobs_N.grad is not None
    assert float(value.detach()) == pytest.approx(loss)
    assert float(logprobs_N.grad) == pytest.approx(slope)
    assert float(clipped) == expected


def test_clipping_counts_tokens() -> None:
    loss, clipped = clipped_policy_loss(tensor(log(1.5), log(1.5), 0), tensor(0, 0, 0), tensor(1, 1, 1), clip_range=0.2)
    assert float(loss) == pytest.approx(-3.4)
    assert float(clipped) == 2


def test_distillation_advantages_are_differences_without_gradient() -> None:
    # the improver gives the first token e times the policy's probability, and the second one half of it
    ours = tensor(-2, -1).requires_grad_()
    advantages = distillation_advantages(tensor(-1, -1 - log(2)).requires_grad_(), ours)
    assert advantages.tolist() == pytest.approx([1, -log(2)])
    assert not advantages.requires_grad


def test_the_policy_gradient_of_distillation_is_that_of_the_reverse_kl() -> None:
    """Two tokens, pi = (1/4, 3/4), p = (1/2, 1/2): A = (ln 2, ln 2/3), KL = -(1/4 ln 2 + 3/4 ln 2/3) = 0.1308.

    By hand, the gradient of the KL by the first logit is pi_1 (log pi_1 / p_1 - KL) = 1/4 (-ln 2 - 0.1308) = -0.2060.
    """
    logits = tensor(0, log(3)).requires_grad_()
    logprobs = logits.log_softmax(0)
    advantages = distillation_advantages(tensor(log(0.5), log(0.5)), logprobs)
    assert advantages.tolist() == pytest.approx([log(2), log(2 / 3)])
    # the expectation over y_t: each token as often as pi samples it
    losses = [
        clipped_policy_loss(logprobs[i : i + 1], logprobs[i : i + 1].detach(), advantages[i : i + 1], 0.2)[0]
        for i in (0, 1)
    ]
    (0.25 * losses[0] + 0.75 * losses[1]).backward()
    kl = -(0.25 * log(2) + 0.75 * log(2 / 3))
    expected = 0.25 * (-log(2) - kl)
    assert expected == pytest.approx(-0.2060, abs=1e-4)
    assert logits.grad is not None
    assert logits.grad.tolist() == pytest.approx([expected, -expected])


def test_the_learning_rate_rises_then_falls_to_a_tenth() -> None:
    # 10 steps, 2 of them warm-up, 8 of decay by 0.9 / 8 each
    factors = [learning_rate_factor(step, 10, 0.2) for step in range(11)]
    assert factors[:4] == pytest.approx([0.5, 1, 1, 1 - 0.9 / 8])
    assert factors[9:] == pytest.approx([1 - 0.9 * 7 / 8, 0.1])


@pytest.mark.parametrize(("total", "share"), [(1, 0.0), (1, 0.05), (1, 0.99), (2, 0.99), (7, 0.0)])
def test_the_learning_rate_of_very_short_runs(total: int, share: float) -> None:
    factors = [learning_rate_factor(step, total, share) for step in range(total)]
    assert all(0.1 <= factor <= 1 for factor in factors)
    assert max(factors) == 1


def test_bounded_gap() -> None:
    """Gaps 1, 2, 6 of three models: mean 3, standard deviation sqrt((4 + 1 + 9) / 3) = sqrt(14 / 3)."""
    gaps_MB = torch.tensor([[1.0, 4.0], [2.0, 4.0], [6.0, 4.0]])
    assert bounded_gap(gaps_MB, GapBound.mean).tolist() == [3.0, 4.0]
    assert bounded_gap(gaps_MB, GapBound.least).tolist() == [1.0, 4.0]
    assert bounded_gap(gaps_MB, GapBound.lcb).tolist() == pytest.approx([3 - (14 / 3) ** 0.5, 4.0])
    for bound in GapBound:
        assert torch.equal(bounded_gap(gaps_MB[:1], bound), gaps_MB[0])


def test_empty_samples_get_the_least_gap_of_their_prompt() -> None:
    gaps = tensor(3, 1, 2, 5, 4, 9)
    empty = torch.tensor([True, False, False, False, False, True])
    assert as_the_worst(gaps, empty, 3).tolist() == [1, 1, 2, 5, 4, 4]

"""The equations of the paper as pure functions of tensors (PIT = arXiv 2310.00898).

Axes: B rows, T tokens, P prompts, K samples per prompt, 4 the orderings of a pair as in ORDERINGS, C the contexts that
the responses of a pair are written in: y_l and y_w for an improver, one for a policy, which sees x alone.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from pitcli.settings.base import GapBound, GapLoss, PreferenceLoss

MAX_TEMPERATURE = 1e3  # of P(better); gaps that need more say nothing
# (y1, y2) of r_gap(x, y1, y2): w is the chosen response, l the rejected one
ORDERINGS = (("w", "l"), ("w", "w"), ("l", "l"), ("l", "w"))


def five_term_loss(gaps_B4: Tensor) -> Tensor:
    """PIT eq. 2: the loss that teaches g_wl >= g_ww ~ g_ll >= g_lw; mean over the pairs.

    gaps_B4: r_gap of each ordering (w,l), (w,w), (l,l), (l,w). Returns a scalar; 5 ln 2 if all gaps are equal.
    """
    g_wl, g_ww, g_ll, g_lw = gaps_B4.unbind(-1)
    terms = (g_wl - g_ww, g_wl - g_ll, g_wl - g_lw, g_ww - g_lw, g_ll - g_lw)
    return -sum((logsigmoid(term) for term in terms), torch.zeros_like(g_wl)).mean()


def bradley_terry_gap_loss(gaps_B2: Tensor) -> Tensor:
    """Ablation: -log sigmoid(g_wl - g_lw), only the third of the five terms; mean over the pairs.

    gaps_B2: r_gap of the orderings (w,l) and (l,w).
    """
    g_wl, g_lw = gaps_B2.unbind(-1)
    return -logsigmoid(g_wl - g_lw).mean()


def symmetric_gap_loss(gaps_B2: Tensor) -> Tensor:
    """Ablation: -log sigmoid(g_wl) - log sigmoid(-g_lw); each ordering by itself must have the right sign.

    gaps_B2: r_gap of the orderings (w,l) and (l,w).
    Unlike the other losses, this one fixes the offset: g_wl = -g_lw at the optimum of a noiseless pair.
    """
    g_wl, g_lw = gaps_B2.unbind(-1)
    return -(logsigmoid(g_wl) + logsigmoid(-g_lw)).mean()


def pointwise_gap_loss(rewards_B2: Tensor) -> Tensor:
    """Ablation: -log sigmoid(r(x, y_w) - r(x, y_l)), Bradley-Terry on a reward that reads one response; the mean.

    rewards_B2: r of the chosen and the rejected response. The gap r(x, y1) - r(x, y2) is antisymmetric by construction,
    and exactly 0 for a copy; what y1 has that y2 lacks must show in y1 alone. ln 2 if the rewards are equal.
    """
    r_w, r_l = rewards_B2.unbind(-1)
    return -logsigmoid(r_w - r_l).mean()


def gap_loss(kind: GapLoss, scores_BO: Tensor) -> Tensor:
    """The loss that --gap-loss names.

    scores_BO: r_gap of the orderings that it reads, from (w,l) to (l,w); for pointwise r of w and l.
    """
    losses = {
        GapLoss.five_term: five_term_loss,
        GapLoss.bradley_terry: bradley_terry_gap_loss,
        GapLoss.symmetric: symmetric_gap_loss,
        GapLoss.pointwise: pointwise_gap_loss,
    }
    return losses[kind](scores_BO)


def symmetrised_gap(reward_ab: Tensor, reward_ba: Tensor) -> Tensor:
    """gap(a, b) = 1/2 [r(x,a,b) - r(x,b,a)]: antisymmetric, and exactly 0 for a copy.

    The loss leaves an offset c(x) free and does not enforce antisymmetry, so a raw r_gap is never used as a gap.
    """
    return (reward_ab - reward_ba) / 2


def bounded_gap(gaps_MB: Tensor, bound: GapBound) -> Tensor:
    """One gap from those of M gap models (Coste et al., arXiv 2310.02743), shape (B,); all bounds agree if M = 1.

    gaps_MB: calibrated symmetrised gaps, in units of T. mean: their mean. min: the least, the paper's worst-case
    optimisation. lcb: mean - standard deviation; the paper's uncertainty-weighted optimisation subtracts a multiple of
    the variance, which has other units.
    """
    if bound is GapBound.least:
        return gaps_MB.amin(0)
    mean_B = gaps_MB.mean(0)
    return mean_B if bound is GapBound.mean else mean_B - gaps_MB.std(0, correction=0)


def p_better(gap: float, gap_temperature: float) -> float:
    """sigmoid(gap / T): the probability that the first response is preferred; 0 for NaN."""
    if math.isnan(gap):
        return 0.0
    return 1 / (1 + math.exp(-max(-700.0, min(700.0, gap / gap_temperature))))


def fit_temperature(gaps: Sequence[float], max_temperature: float = MAX_TEMPERATURE) -> float:
    """The T that minimises the log loss of sigmoid(gap / T) on held-out pairs, with Platt's prior (1999).

    gaps: gap(chosen, rejected) of each of N pairs. Each counts as right with probability (N + 1) / (N + 2), so if all
    gaps are +g or -g, k of them +g, then sigmoid(g / T) = (k + 1) / (N + 2): pairs that are all ranked right do not
    make T zero. The loss is convex in 1/T, so bisection on its slope finds the minimum. T is at its bound,
    max_temperature, if the gaps are useless.
    """
    gaps_N = torch.tensor(list(gaps), dtype=torch.float64)
    right = (len(gaps_N) + 1) / (len(gaps_N) + 2)

    def slope(inverse: float) -> float:
        return float((gaps_N * (torch.sigmoid(inverse * gaps_N) - right)).mean())

    low, high = 1 / max_temperature, max_temperature
    if not len(gaps_N) or slope(low) >= 0:
        return max_temperature
    if slope(high) <= 0:
        return 1 / max_temperature
    for _ in range(200):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return 1 / low


def log_losses(gaps: Sequence[float], temperature: float) -> Tensor:
    """-log sigmoid(gap / T) of each pair, shape (N,), in nats; ln 2 says nothing."""
    return -logsigmoid(torch.tensor(list(gaps), dtype=torch.float64) / temperature)


def cross_validated_log_loss(gaps: Sequence[float], folds: int = 5) -> float:
    """The mean log loss of pairs under the temperature that is fitted on the other folds (every folds-th pair)."""
    parts = [gaps[fold::folds] for fold in range(min(folds, len(gaps)))]
    losses = [
        log_losses(part, fit_temperature([gap for other, gaps in enumerate(parts) if other != fold for gap in gaps]))
        for fold, part in enumerate(parts)
    ]
    return float(torch.cat(losses).mean())


def log_ratios(logprobs_N: Tensor, ref_logprobs_N: Tensor, lengths: Sequence[int]) -> Tensor:
    """d(y) = log pi(y) - log pi_ref(y) of each sequence, the sum over its tokens. Returns nats of shape (B,).

    The N tokens are those of B sequences of these lengths, concatenated.
    """
    return torch.stack([differences_T.sum() for differences_T in (logprobs_N - ref_logprobs_N).split(list(lengths))])


def sequence_kl(logprobs_N: Tensor, ref_logprobs_N: Tensor, lengths: Sequence[int]) -> Tensor:
    """KL of the sampled sequences to the reference policy, k1 estimator: d(y) for y ~ pi, whose mean is the KL."""
    return log_ratios(logprobs_N, ref_logprobs_N, lengths)


def dpo_loss(ratios_BC2: Tensor, beta: float) -> Tensor:
    """DPO (Rafailov et al., arXiv 2305.18290): -log sigmoid(beta [d(w | c) - d(l | c)]); mean over pairs and contexts.

    ratios_BC2: d(y | c) = log pi(y | x, c) - log pi_ref(y | x, c) of the chosen and the rejected response.

    For an improver the context c is the response to improve. What PIT maximises, E_y [r_gap(x, y, c)] - beta KL(pi ||
    pi_ref), has the optimum pi(y | x, c) = pi_ref(y | x, c) exp(r_gap(x, y, c) / beta) / Z(x, c), so
    r_gap(x, y, c) = beta [d(y | c) + log Z(x, c)]. The gap of the copy y = c is 0, and the difference from it has no Z:

        r_gap(x, y, c) = beta [d(y | c) - d(c | c)]: the copy is the zero of the scale.

    With P(y better than c) = sigmoid(r_gap(x, y, c)), the two observations of a pair cost
    -log sigmoid(r_gap(x, w, l)) = -log sigmoid(beta [d(w | l) - d(l | l)]) and
    -log sigmoid(-r_gap(x, l, w)) = -log sigmoid(beta [d(w | w) - d(l | w)]): the loss above in the contexts l and w,
    and symmetric_gap_loss of the gap that the improver itself implies. ln 2 if pi = pi_ref.
    """
    return -logsigmoid(beta * preference_margins(ratios_BC2)).mean()


def ipo_loss(ratios_BC2: Tensor, beta: float) -> Tensor:
    """IPO (Azar et al., arXiv 2310.12036): (d(w | c) - d(l | c) - 1 / (2 beta))^2; mean over pairs and contexts.

    For an improver it is the in-context form of SRPO (arXiv 2406.01660). It maximises the probability p(y better than
    c | x) itself, in place of r_gap in dpo_loss. A copy is better than itself with p = 1/2, so
    p(y better than c) - 1/2 = beta [d(y | c) - d(c | c)]. Regression on the observed 1 for (w, l) and 0 for (l, w),
    whose mean is p, has the targets d(w | l) - d(l | l) = 1 / (2 beta) and d(l | w) - d(w | w) = -1 / (2 beta).
    1 / (4 beta^2) if pi = pi_ref.
    """
    return (preference_margins(ratios_BC2) - 1 / (2 * beta)).square().mean()


def kto_loss(ratios_BC2: Tensor, beta: float, reference_point: float) -> Tensor:
    """KTO (Ethayarajh et al., arXiv 2402.01306), weights 1: each response is rated by itself; mean over all of them.

    1 - sigmoid(beta [d(w | c) - z]) and 1 - sigmoid(beta [z - d(l | c)]). reference_point: z, see kto_reference_point.
    1/2 if pi = pi_ref.
    """
    d_w, d_l = (ratios_BC2 - reference_point).unbind(-1)
    return torch.cat([torch.sigmoid(-beta * d_w), torch.sigmoid(beta * d_l)]).mean()


def kto_reference_point(mismatched_ratios_N: Tensor) -> float:
    """z of kto_loss, without gradient: max(0, mean of d(y') over responses y' of other rows), KTO's estimate of the KL.

    mismatched_ratios_N: d(y' | x, c), where y' answers another prompt.
    """
    return max(0.0, float(mismatched_ratios_N.mean()))


def preference_margins(ratios_BC2: Tensor) -> Tensor:
    """d(w | c) - d(l | c), shape (B, C), in nats; beta times it is the reward margin, above 0 if y_w is preferred."""
    d_w, d_l = ratios_BC2.unbind(-1)
    return d_w - d_l


def preference_loss(kind: PreferenceLoss, ratios_BC2: Tensor, beta: float, reference_point: float) -> Tensor:
    """The loss that --loss names. reference_point: of KTO."""
    match kind:
        case PreferenceLoss.dpo:
            return dpo_loss(ratios_BC2, beta)
        case PreferenceLoss.ipo:
            return ipo_loss(ratios_BC2, beta)
        case PreferenceLoss.kto:
            return kto_loss(ratios_BC2, beta, reference_point)


def unchanged_preference_loss(kind: PreferenceLoss, beta: float) -> float:
    """The loss of pi = pi_ref, with which training begins."""
    return {PreferenceLoss.dpo: math.log(2), PreferenceLoss.ipo: 1 / (4 * beta**2), PreferenceLoss.kto: 0.5}[kind]


def rl_rewards(gaps_B: Tensor, kl_B: Tensor, finished_B: Tensor, kl_coef: float, missing_eos_penalty: float) -> Tensor:
    """PIT eq. 3: r_gap(x, y, y_ref) - beta KL, minus a penalty if the response has no EOS. Shape (B,)."""
    return gaps_B - kl_coef * kl_B - missing_eos_penalty * (~finished_B).to(gaps_B.dtype)


def as_the_worst(gaps_B: Tensor, is_B: Tensor, k: int) -> Tensor:
    """Return the gaps, where those marked by is_B are the least of their prompt's k samples. Shapes (B,)."""
    least_P = gaps_B.view(-1, k).min(dim=1).values
    return torch.where(is_B.to(gaps_B.device), least_P.repeat_interleave(k), gaps_B)


def group_spread(gaps_PK: Tensor) -> float:
    """Return the standard deviation of the gaps of a prompt's K samples, averaged over the prompts.

    The unit of the penalty for a missing EOS: what a better or worse response is worth at this point of the training.
    """
    return float(gaps_PK.std(dim=1, correction=0).mean())


def leave_one_out_advantages(rewards_PK: Tensor) -> Tensor:
    """RLOO (Ahmadian et al. 2024, eq. 8): each reward minus the leave-one-out baseline. Shape (P, K).

    The baseline is the mean reward of the other samples of the prompt.
    """
    samples = rewards_PK.shape[1]
    others_PK = (rewards_PK.sum(1, keepdim=True) - rewards_PK) / (samples - 1)
    return rewards_PK - others_PK


def clipped_policy_loss(
    logprobs_N: Tensor, old_logprobs_N: Tensor, advantages_N: Tensor, clip_range: float
) -> tuple[Tensor, Tensor]:
    """PPO's clipped objective (Schulman et al. 2017, eq. 7), one ratio per token, summed over the N tokens.

    advantages_N: for each token, the advantage of its sequence. Returns (loss, clipped): the loss, which the caller
    divides by the token count of the step, and the number of tokens whose gradient is clipped.
    At ratio 1 the gradient is that of -A log pi(y), i.e. REINFORCE.
    """
    ratio_N = torch.exp(logprobs_N - old_logprobs_N)
    unclipped_N = ratio_N * advantages_N
    clipped_N = ratio_N.clamp(1 - clip_range, 1 + clip_range) * advantages_N
    return -torch.minimum(unclipped_N, clipped_N).sum(), (clipped_N < unclipped_N).sum()


def distillation_advantages(teacher_logprobs_N: Tensor, logprobs_N: Tensor) -> Tensor:
    """A_t = log p(y_t | x, c, y_<t) - log pi(y_t | x, y_<t): the advantage of token t in on-policy distillation.

    pi is the policy, which sampled y; p the improver, which has seen a draft c. Returns shape (N,), nats, no gradient.

    In each state s = (x, y_<t) that pi visits, the policy should write what the improver would write next:

        KL(pi || p) = sum_v pi(v | s) [log pi(v | s) - log p(v | s, c)]   (reverse KL)

    Its gradient is sum_v grad pi(v | s) [log pi(v | s) - log p(v | s, c)] + sum_v grad pi(v | s), of which the second
    sum is 0, as pi sums to 1. With grad pi = pi grad log pi this is -E_(y_t ~ pi) [A_t grad log pi(y_t | s)], the
    gradient of clipped_policy_loss at ratio 1, with an advantage per token. The states count as given (arXiv
    2306.13649): the KL of whole sequences would give y_t the advantages of all later tokens too, with far more
    variance. The mean of A_t is minus the KL per token; at pi = p every A_t is 0.
    """
    return (teacher_logprobs_N - logprobs_N).detach()


def learning_rate_factor(step: int, total_steps: int, warmup_share: float) -> float:
    """Linear warm-up, then linear decay to a tenth; a pure function of the step, so resuming needs no state."""
    warmup = max(1, round(total_steps * warmup_share))
    if step < warmup:
        return (step + 1) / warmup
    return 1 - 0.9 * (step - warmup) / max(1, total_steps - warmup)

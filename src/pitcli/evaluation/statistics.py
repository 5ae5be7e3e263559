"""The statistics of paired comparisons: clustered bootstrap, length control, Bradley-Terry, power, Holm."""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from typing import NamedTuple

import numpy as np
from scipy.special import expit
from scipy.stats import norm

DRAWS = 10_000
BLOCK = 4_000_000  # weights in memory at the same time
KEPT = 60_000_000  # at most this many weights, of two bytes each, are kept for the next statistic
WITHIN_DRAWS = 400  # draws for the estimate of the variance within a seed
SIMILAR_LENGTH = 0.1  # relative difference

Interval = tuple[float, float]
Statistic = Callable[[np.ndarray], np.ndarray]
GroupLabels = Sequence[str] | Sequence[int] | np.ndarray


class BootstrapSettings(NamedTuple):
    """The number of resamples, and the seed of their random numbers."""

    draws: int
    seed: int


class PairedComparison(NamedTuple):
    """Wins, ties and losses of a system against a baseline, and delta = win% - lose% with its interval."""

    wins: int
    ties: int
    losses: int
    delta: float
    delta_ci: Interval


class Bootstrap:
    """95% percentile intervals that resample prompts and, as far as they differ, allow for training seeds.

    A row's weight in a draw is the number of times its prompt was drawn. With several seeds, each draw is moved by what
    other seeds might have given: a draw of Student's t with one degree of freedom less than seeds, times the standard
    error of their mean. That is from the variance of the seeds' own values less the part that prompts explain, which is
    the variance of the resampled values around their mean over the seeds: what a shared prompt does to all seeds alike
    explains no difference between them. Three seeds or more cover the truth in about 95% of the cases; two in as few as
    83%, as they may look alike by chance. A statistic maps weights of shape (B, N) to B values or vectors. The draws
    are the same for every statistic.
    """

    def __init__(
        self, clusters: GroupLabels, seeds: GroupLabels | None = None, draws: int = DRAWS, seed: int = 0
    ) -> None:
        self.cluster_N = np.unique(np.asarray(clusters), return_inverse=True)[1]
        self.seed_N = np.zeros(len(self.cluster_N), int) if seeds is None else np.unique(seeds, return_inverse=True)[1]
        self.seeds = int(self.seed_N.max()) + 1
        self.draws, self.seed = draws, seed

    def prompt_weights(self) -> Iterator[np.ndarray]:
        """How often each draw contains each row's prompt, in blocks of shape (B, N)."""
        rng = np.random.default_rng(self.seed)
        prompts = int(self.cluster_N.max()) + 1
        block = max(1, BLOCK // len(self.cluster_N))
        for start in range(0, self.draws, block):
            # two bytes are enough: no draw contains one prompt 65,536 times
            yield _resample_counts(rng, prompts, min(block, self.draws - start)).astype(np.uint16)[:, self.cluster_N]

    @cached_property
    def kept(self) -> list[np.ndarray] | None:
        """All prompt weights, if few enough to keep: drawing them takes longer than using them."""
        return list(self.prompt_weights()) if self.draws * len(self.cluster_N) <= KEPT else None

    def sample(self, statistic: Statistic) -> np.ndarray:
        """The statistic of every draw, shape (draws,) or (draws, ...)."""
        values_D = np.concatenate([statistic(weights_BN) for weights_BN in self.kept or self.prompt_weights()])
        if self.seeds == 1:
            return values_D
        error = self.error_of_seeds(statistic)
        moves_D = np.random.default_rng(self.seed + 1).standard_t(self.seeds - 1, len(values_D))
        moved: np.ndarray = values_D + moves_D.reshape(-1, *[1] * (values_D.ndim - 1)) * error
        return moved

    def error_of_seeds(self, statistic: Statistic) -> np.ndarray:
        """The standard error of the mean over seeds, as far as prompts do not explain their differences."""
        weights_BN = next(iter(self.kept or self.prompt_weights()))[:WITHIN_DRAWS].astype(float)
        masks_SN = self.seed_N == np.arange(self.seeds)[:, None]
        between = np.var(statistic(masks_SN.astype(float)), axis=0, ddof=1)
        values_SB = np.stack([statistic(weights_BN * mask_N) for mask_N in masks_SN])
        within = np.var(values_SB - values_SB.mean(0), axis=1).mean(0) * self.seeds / (self.seeds - 1)
        return np.sqrt(np.maximum(0.0, between - within) / self.seeds)

    def interval(self, statistic: Statistic) -> Interval:
        return percentile_interval(self.sample(statistic))


def _resample_counts(rng: np.random.Generator, groups: int, draws: int) -> np.ndarray:
    """How often each resample of all groups contains each group, shape (draws, groups)."""
    return rng.multinomial(groups, np.full(groups, 1 / groups), size=draws)


def percentile_interval(values_D: np.ndarray) -> Interval:
    """The middle 95% of bootstrapped values."""
    low, high = np.quantile(values_D, [0.025, 0.975])
    return float(low), float(high)


def p_value(values_D: np.ndarray) -> float:
    """The two-sided p-value of no difference: twice the smaller share of the draws at or beyond zero."""
    beyond = min(int((values_D <= 0).sum()), int((values_D >= 0).sum()))
    return min(1.0, 2 * (beyond + 1) / (len(values_D) + 1))


def mean_of(values: Sequence[float] | np.ndarray) -> Statistic:
    """The weighted mean of one value per row, as a statistic."""
    values_N = np.asarray(values, dtype=float)

    def statistic(weights_BN: np.ndarray) -> np.ndarray:
        # a draw may have no rows: none of its prompts belong to its seeds
        return (weights_BN @ values_N) / np.maximum(weights_BN.sum(1), 1e-9)

    return statistic


def compare(
    system: Sequence[float],
    baseline: Sequence[float],
    clusters: Sequence[str],
    draws: int = DRAWS,
    seed: int = 0,
) -> PairedComparison:
    """Compare grades of the same rows; the 95% percentile interval resamples clusters (prompts), not rows.

    system, baseline: one grade per row. clusters: the cluster of each row, e.g. its prompt. Delta is in percentage
    points.
    """
    signs_N = np.sign(np.asarray(system) - np.asarray(baseline))
    low, high = Bootstrap(clusters, draws=draws, seed=seed).interval(mean_of(signs_N))
    wins, ties, losses = win_tie_loss_counts(signs_N)
    delta = float(100 * signs_N.mean())
    return PairedComparison(wins=wins, ties=ties, losses=losses, delta=delta, delta_ci=(100 * low, 100 * high))


def win_tie_loss_counts(signs_N: np.ndarray) -> tuple[int, int, int]:
    """The numbers of wins, ties and losses."""
    return int((signs_N > 0).sum()), int((signs_N == 0).sum()), int((signs_N < 0).sum())


def mean_interval(values: Sequence[float], draws: int = DRAWS, seed: int = 0) -> Interval:
    """The 95% percentile bootstrap interval of the mean of independent values, e.g. differences of paired grades."""
    return Bootstrap(range(len(values)), draws=draws, seed=seed).interval(mean_of(values))


def length_terms(lengths: Sequence[int], baseline_lengths: Sequence[int]) -> np.ndarray:
    """tanh(length difference / its standard deviation), shape (N,); 0 if all differences are equal."""
    difference_N = np.asarray(lengths, dtype=float) - np.asarray(baseline_lengths, dtype=float)
    spread = float(difference_N.std())
    return np.tanh(difference_N / spread) if spread else np.zeros(len(difference_N))


def length_is_identified(lengths: Sequence[int], baseline_lengths: Sequence[int]) -> bool:
    """Whether the rows cover a length difference of zero: some are of similar length, or some lie on each side."""
    ours_N, theirs_N = np.asarray(lengths, dtype=float), np.asarray(baseline_lengths, dtype=float)
    near = float((np.abs(ours_N - theirs_N) <= SIMILAR_LENGTH * theirs_N).mean())
    return near >= 0.02 or min((ours_N > theirs_N).mean(), (ours_N < theirs_N).mean()) >= 0.02


def length_controlled(signs_N: np.ndarray, terms_N: np.ndarray) -> Statistic:
    """Delta in points at equal lengths: P(win) = sigmoid(a + b * term), with ties as half a win, evaluated at term 0.

    Fitted by Newton's method for all draws at once. The ridge of 1e-3 matters only if wins and losses are separated.
    """
    wins_N, squares_N = (signs_N + 1) / 2, terms_N**2
    ridge = 1e-3

    def fitted(weights_BN: np.ndarray, a: float, b: float) -> tuple[np.ndarray, np.ndarray]:
        a_B, b_B = np.full(len(weights_BN), a), np.full(len(weights_BN), b)
        for _ in range(50):
            p_BN = expit(a_B[:, None] + b_B[:, None] * terms_N)
            slope_BN = weights_BN * p_BN * (1 - p_BN)
            error_BN = weights_BN * (wins_N - p_BN)
            grad_a, grad_b = error_BN.sum(1) - ridge * a_B, error_BN @ terms_N - ridge * b_B
            h_aa, h_ab, h_bb = slope_BN.sum(1) + ridge, slope_BN @ terms_N, slope_BN @ squares_N + ridge
            determinant = h_aa * h_bb - h_ab**2
            # far from the optimum, Newton's steps are too long
            step_a = np.clip((h_bb * grad_a - h_ab * grad_b) / determinant, -2, 2)
            step_b = np.clip((h_aa * grad_b - h_ab * grad_a) / determinant, -2, 2)
            a_B, b_B = a_B + step_a, b_B + step_b
            if max(np.abs(step_a).max(), np.abs(step_b).max()) < 1e-4:  # 0.005 points
                break
        return a_B, b_B

    start = fitted(np.ones((1, len(signs_N))), 0.0, 0.0)
    return lambda weights_BN: 200 * expit(fitted(weights_BN, float(start[0][0]), float(start[1][0]))[0]) - 100


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's adjusted p-values, in the order given.

    The smallest of n is multiplied by n, the next by n - 1, and so on; none falls below the one before it or exceeds 1.
    """
    adjusted = [0.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * float(p_values[index])))
        adjusted[index] = largest
    return adjusted


def rows_needed(values_D: np.ndarray, rows: int, power: float = 0.8) -> int | None:
    """How many rows would show the mean of these bootstrapped values at 5% with this power; None if it is zero.

    Assumes that the standard error shrinks with the square root of the number of rows, whatever the clusters.
    """
    effect, error = float(values_D.mean()), float(values_D.std())
    if abs(effect) < 1e-9:
        return None
    return math.ceil(rows * ((norm.ppf(0.975) + norm.ppf(power)) * error / effect) ** 2)


def bradley_terry(wins_DKK: np.ndarray, rounds: int = 200) -> np.ndarray:
    """Strengths in logits relative to item 0, shape (D, K): P(i beats j) = sigmoid(s_i - s_j).

    wins_DKK[d, i, j]: how often i beat j in draw d; a tie is half a win for each. Fitted by Hunter's (2004)
    minorise-maximise steps. 0.01 of a tie is added to every pair, to keep the strength of an item that never lost
    finite.
    """
    items = wins_DKK.shape[-1]
    wins_DKK = wins_DKK + 0.005 * (1 - np.eye(items))
    games_DKK = wins_DKK + wins_DKK.swapaxes(-1, -2)
    won_DK = wins_DKK.sum(-1)
    strengths_DK = np.ones(won_DK.shape)
    for _ in range(rounds):
        before_DK = strengths_DK
        shares_DKK = games_DKK / (strengths_DK[..., :, None] + strengths_DK[..., None, :])
        strengths_DK = won_DK / shares_DKK.sum(-1)
        strengths_DK = strengths_DK / strengths_DK[..., :1]
        if np.abs(np.log(strengths_DK / before_DK)).max() < 1e-6:
            break
    return np.log(strengths_DK)


def elo(games: Sequence[tuple[int, int, float]], items: int, step: float = 16.0, seed: int = 0) -> list[float]:
    """Elo ratings, starting at 1000, after the games (i, j, score of i) in a random order, on which they depend."""
    ratings = np.full(items, 1000.0)
    for index in np.random.default_rng(seed).permutation(len(games)):
        i, j, score = games[index]
        gain = step * (score - 1 / (1 + 10 ** ((ratings[j] - ratings[i]) / 400)))
        ratings[i] += gain
        ratings[j] -= gain
    return ratings.tolist()

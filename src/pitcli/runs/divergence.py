"""Whether a training diverged, from the metrics that it logged.

The start is the first step: its loss is that of the model before its first update. The end is a mean over the last
steps. Single batches vary, so every limit has room for the noise of the rows that it compares: healthy short runs, in
which nothing is learned yet, pass.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from pitcli.console import counted
from pitcli.settings.base import GapLoss
from pitcli.settings.default_runs import Kind
from pitcli.settings.distill import Distillation

Rows = Sequence[Mapping[str, float]]

DIVERGED = "diverged"  # the result of a run that says why
ENOUGH_ROWS = 64  # a mean over this many rows varies little
TEXT_NOISE = 1.3  # about three times the relative standard deviation of the loss of one row
# times the loss of equal gaps, of a mean over enough rows or over fewer: the first steps overshoot, and are made up for
PAIR_RISE, SHORT_RISE = 2.0, 6.0
PREFERENCE_RISE = 1.5  # times the loss of the reference, of a mean over enough rows
LEAST_RISE = 0.1  # in nats: at losses near zero, ratios say little
EXPLODED, NOT_BACK = 1.5, 1.2  # a mean this far above the limit, with an end this far above the start, is not noise
LOST_AGAIN = 0.3  # of the loss at the start: so much above its lowest mean, the loss is not that of a trained model
NOT_BELOW = 0.98  # a gap model with more than this share of the loss of equal gaps has learned nothing
RL_STEPS = 10
MOVED = 1.0  # nats of KL per sequence, below which a role is still nearly the one it started as
EMPTY, NOT_EMPTY = 0.05, 0.5  # lengths relative to the reference responses
GAP_TERMS = {GapLoss.five_term: 5, GapLoss.bradley_terry: 1, GapLoss.symmetric: 2, GapLoss.pointwise: 1}


def divergence(kind: Kind, config: Mapping[str, Any], rows: Rows) -> str | None:
    """Return what shows that a training diverged, None if nothing does. config: the settings in its manifest."""
    if not rows:
        return None
    method = config.get("method") if kind == "distill" else kind
    if method == "rl":
        return _of_rl(config, rows)
    if method == Distillation.on_policy:
        return _of_on_policy(config, rows)
    of_losses = {"reward": _of_reward, "dpo": _of_dpo}.get(str(method), _of_sft)
    members: dict[float, list[float]] = {}
    for row in rows:
        members.setdefault(row.get("member", 1.0), []).append(row.get("loss", math.nan))
    return next(filter(None, (of_losses(config, losses) for losses in members.values())), None)


def loss_of_equal_gaps(kind: GapLoss) -> float:
    """The loss per pair in nats of a gap model that says nothing."""
    return GAP_TERMS[kind] * math.log(2)


def _of_sft(config: Mapping[str, Any], losses: Sequence[float]) -> str | None:
    """The loss ends above that of the model before training, or exploded, or lost again what it had gained."""
    batch = int(config.get("batch_size", ENOUGH_ROWS))
    means = _rolling_means(losses, batch)
    start, end, lowest = losses[0], means[-1], min(means)
    steps = len(losses) + 1 - len(means)
    limit = start * math.exp(TEXT_NOISE * math.sqrt(1 / batch + 1 / (batch * steps))) + LEAST_RISE
    exploded = max(means) > EXPLODED * limit and end > NOT_BACK * start
    tenths = _rolling_means(losses, batch, len(losses) // 10)  # the lowest of many means over few steps is noise
    lost_again = batch * steps >= ENOUGH_ROWS and tenths[-1] - min(tenths) > LOST_AGAIN * start
    if end > limit or exploded or lost_again:
        fell = f", fell to {lowest:.2f}" if lowest < min(start, end) else ""
        means_of = f" (mean of the last {counted(steps, 'steps')})" if steps > 1 else ""
        return f"the loss per token was {start:.2f} in the first step{fell} and is {end:.2f} at the end{means_of}"
    return None


def _of_reward(config: Mapping[str, Any], losses: Sequence[float]) -> str | None:
    """The loss exploded and ends no lower than that of equal gaps.

    Without the explosion, such a loss is that of a gap model that needs more pairs or steps.
    """
    batch = int(config.get("batch_size", ENOUGH_ROWS))
    means = _rolling_means(losses, batch)
    steps = len(losses) + 1 - len(means)
    equal, end, highest = loss_of_equal_gaps(GapLoss(config.get("gap_loss", GapLoss.five_term))), means[-1], max(means)
    rise = PAIR_RISE if batch * steps >= ENOUGH_ROWS else SHORT_RISE
    if highest > rise * equal and end > NOT_BELOW * equal:
        means_of = f" (mean of the last {counted(steps, 'steps')})" if steps > 1 else ""
        return (
            f"the loss per pair rose to {highest:.2f} and is {end:.2f} at the end{means_of}; a model that says nothing "
            f"has {equal:.2f}"
        )
    return None


def _of_dpo(config: Mapping[str, Any], losses: Sequence[float]) -> str | None:
    """The loss ends far above that of the first step, in which the role is its reference."""
    batch = int(config.get("batch_size", ENOUGH_ROWS))
    means = _rolling_means(losses, batch)
    steps = len(losses) + 1 - len(means)
    start, end = losses[0], means[-1]
    if end > (PREFERENCE_RISE if batch * steps >= ENOUGH_ROWS else SHORT_RISE) * start:
        means_of = f" (mean of the last {counted(steps, 'steps')})" if steps > 1 else ""
        return f"the loss per pair was {start:.2f} in the first step and is {end:.2f} at the end{means_of}"
    return None


def _of_rl(config: Mapping[str, Any], rows: Rows) -> str | None:
    """The last rollouts exceed a limit, are empty, or cost more KL than their gap is worth."""
    last = _last_rollouts(rows)
    kl, reward = (fmean(row.get(name, math.nan) for row in last) for name in ("kl", "reward"))
    # each stage has references that are harder to beat
    first_reward = next(row for row in rows if row.get("stage") == rows[-1].get("stage")).get("reward", math.nan)
    noise = fmean(abs(row.get("reward", math.nan) - reward) for row in last)
    max_kl, over = config.get("max_kl", math.inf), _mean_over(last)
    if not kl > MOVED:
        return None
    if kl > max_kl:
        return f"KL {kl:.1f} exceeds --max-kl ({over})"
    if kl > max_kl / 2 and reward + 2 * noise < first_reward:
        return f"the reward fell from {first_reward:.2f} to {reward:.2f}, at KL {kl:.1f} ({over})"
    return _of_lengths(config, rows)


def _of_on_policy(config: Mapping[str, Any], rows: Rows) -> str | None:
    """The KL to the improver, which training lowers, ends far above its start, or the last rollouts exceed a limit.

    The KL of a few samples varies by more than that, so shorter runs are judged by their lengths only.
    """
    start, end = (fmean(row.get("kl", math.nan) for row in part) for part in (rows[:RL_STEPS], rows[-RL_STEPS:]))
    if len(rows) >= 2 * RL_STEPS and end > PREFERENCE_RISE * start + MOVED:
        means_of = f"means of the first and last {RL_STEPS} steps"
        return f"the KL to the improver was {start:.1f} at the start and is {end:.1f} at the end ({means_of})"
    return _of_lengths(config, rows)


def _of_lengths(config: Mapping[str, Any], rows: Rows) -> str | None:
    """The last rollouts have no end, or are empty, unlike the first."""
    last, names = _last_rollouts(rows), ("truncated_share", "length_ratio")
    truncated, length = (fmean(row.get(name, math.nan) for row in last) for name in names)
    first_truncated, first_length = (rows[0].get(name, math.nan) for name in names)
    most = config.get("max_truncated_share", math.inf)
    if truncated > most and first_truncated < most / 2:
        return f"truncated share {truncated:.0%} exceeds --max-truncated-share ({_mean_over(last)})"
    if length < EMPTY and first_length > NOT_EMPTY:
        return f"the responses became {length:.1%} as long as their references ({_mean_over(last)})"
    return None


def _last_rollouts(rows: Rows) -> Rows:
    return rows[-min(RL_STEPS, max(1, len(rows) // 4)) :]


def _mean_over(last: Rows) -> str:
    return f"mean of the last {counted(len(last), 'steps')}"


def _rolling_means(values: Sequence[float], batch: int, least: int = 1) -> list[float]:
    """Means over neighbouring steps, `least` or more with at least ENOUGH_ROWS rows, but at most half of the steps."""
    size = min(max(least, math.ceil(ENOUGH_ROWS / batch)), max(1, len(values) // 2))
    sums = [0.0]
    for value in values:
        sums.append(sums[-1] + value)
    return [(after - before) / size for before, after in zip(sums, sums[size:], strict=False)]

"""Draw the metrics of training runs as small curves over steps: raw and smoothed, several runs in one plot."""

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from markupsafe import Markup

from pitcli.pages.figures import COLORS, GREY, LegendEntry, blank_axes, svg_of
from pitcli.pages.page import short
from pitcli.pages.trained_run import TrainedRun

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SMOOTHED_FROM = 20  # steps; shorter curves are drawn as points
RAW_POINTS = 600
SMOOTH_POINTS = 200
NO_METRICS = {"step", "stage", "member"}
NO_NOISE = {"learning_rate"}
FLAT = 0.02  # an axis spans at least this share of its values, so that rounding errors look flat
# line styles of the runs: matplotlib's name, and characters for the legend
LINES = (("-", "━━"), ("--", "╍╍"), (":", "┉┉"), ("-.", "━╍"))
MEANINGS = {
    "loss": "The minimised loss. In RL, its level has no meaning.",
    "tokens": "Completion tokens per step.",
    "padding_share": "Share of padding among the tokens of a step.",
    "accuracy": "Share of the training pairs that the gap ranks like their label.",
    "grad_norm": "Norm of the gradient before clipping.",
    "learning_rate": "Learning rate of AdamW.",
    "reward": "Maximised by RL: gap − β·KL, minus the penalty for truncated rollouts.",
    "gap": "How much better a rollout is than its reference response, in logits. Should rise.",
    "p_better": "P(better): the gap as a calibrated probability.",
    "kl": "KL divergence from the start of RL, summed over a response. Should stay moderate.",
    "entropy": "Nats per token. A collapse means that all samples are alike.",
    "truncated_share": "Share of rollouts without an end token. Low is good.",
    "zero_spread_share": "Share of prompts whose samples all got the same reward. Low is good.",
    "length_ratio": "Words per rollout, divided by words per reference response; characters in scripts without spaces.",
    "copy_rate": "Share of rollouts that copy their reference response. Low is good.",
    "repetition": "Share of word triples (character triples in scripts without spaces) that repeat an earlier one in "
    "the same rollout. Low is good.",
    "clip_ratio": "Share of tokens whose probability ratio was clipped. Low is good.",
}


class Curve(NamedTuple):
    """The plot of one metric. ends: the first and last value, smoothed, for each run that logged the metric."""

    name: str
    meaning: str
    svg: Markup
    ends: list[tuple[float, float]]


def curves(runs: Sequence[TrainedRun]) -> list[Curve]:
    """Draw a curve for every metric that any run logged, in the order of logging."""
    names = dict.fromkeys(name for run in runs for row in run.rows for name in row if name not in NO_METRICS)
    return [_curve(name, runs) for name in names]


def _curve(name: str, runs: Sequence[TrainedRun]) -> Curve:
    from matplotlib.ticker import MaxNLocator

    figure, axes = blank_axes(312, 190, left=60, bottom=26, top=22)
    ends = []
    for number, run in enumerate(runs):
        points = [(row["step"], row[name]) for row in run.rows if name in row]
        if points:
            steps, values = np.array(points).T
            smooth = len(values) >= SMOOTHED_FROM and name not in NO_NOISE
            draw = _smooth if smooth else _plain
            ends.append(draw(axes, steps, values, line=line_of(number)))
    if len(runs) == 1:
        _mark_stages(axes, runs[0])
    low, high = axes.get_ylim()
    if high - low < FLAT * max(abs(low), abs(high)):
        axes.margins(y=FLAT * max(abs(low), abs(high)) / (high - low))
    axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(lambda value, _: short(value))
    svg = svg_of(figure, f"{name} over steps")
    return Curve(name=name, meaning=MEANINGS.get(name, ""), svg=svg, ends=ends)


def line_of(number: int) -> tuple[str, str]:
    """The color and line style of a run."""
    return COLORS[number % len(COLORS)], LINES[number % len(LINES)][0]


def legend_of(names: Sequence[str]) -> list[LegendEntry]:
    return [LegendEntry(line_of(number)[0], LINES[number % len(LINES)][1], name) for number, name in enumerate(names)]


def _plain(axes: "Axes", steps: np.ndarray, values: np.ndarray, line: tuple[str, str]) -> tuple[float, float]:
    shown = thinned(values, RAW_POINTS)
    marker = "o" if len(values) < SMOOTHED_FROM else ""
    axes.plot(
        steps[shown], values[shown], color=line[0], linestyle=line[1], linewidth=1.8, marker=marker, markersize=3.5
    )
    return float(values[0]), float(values[-1])


def _smooth(axes: "Axes", steps: np.ndarray, values: np.ndarray, line: tuple[str, str]) -> tuple[float, float]:
    """Draw raw values, faint, under smoothed values; return the first and last smoothed value."""
    smooth = smoothed(values, len(values) // 40 + 1)
    shown = thinned(values, RAW_POINTS)
    axes.plot(steps[shown], values[shown], color=line[0], linewidth=0.8, alpha=0.35)
    shown = np.unique(np.linspace(0, len(values) - 1, SMOOTH_POINTS).astype(int))
    axes.plot(steps[shown], smooth[shown], color=line[0], linestyle=line[1], linewidth=1.8)
    return float(smooth[0]), float(smooth[-1])


def _mark_stages(axes: "Axes", run: TrainedRun) -> None:
    stages = run.stages()
    for index, (name, rows) in enumerate(stages if len(stages) > 1 else []):
        begin, end = rows[0]["step"] - 0.5, rows[-1]["step"] + 0.5
        if index % 2:
            axes.axvspan(begin, end, color=GREY, alpha=0.15, linewidth=0)
        axes.text(begin, 1.02, name, transform=axes.get_xaxis_transform(), fontsize=10.5, va="bottom")


def smoothed(values: np.ndarray, reach: int) -> np.ndarray:
    """The mean of each value and `reach` neighbours on either side, or fewer at the ends; shape (N,)."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    indices = np.arange(len(values))
    low, high = np.maximum(indices - reach, 0), np.minimum(indices + reach + 1, len(values))
    return (sums[high] - sums[low]) / (high - low)


def thinned(values: np.ndarray, most: int) -> np.ndarray:
    """Indices of at most `most` values: the smallest and largest of each part, so that no spike is lost."""
    if len(values) <= most:
        return np.arange(len(values))
    edges = np.linspace(0, len(values), most // 2 + 1).astype(int)
    parts = list(pairwise(edges))
    lows = [low + int(values[low:high].argmin()) for low, high in parts]
    highs = [low + int(values[low:high].argmax()) for low, high in parts]
    return np.unique(lows + highs)

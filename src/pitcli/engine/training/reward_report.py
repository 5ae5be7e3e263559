"""The report on a gap model: how well it ranks pairs that it was not trained on, next to simple rules and a probe."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pitcli.console import samples, table, warn
from pitcli.data.rows import PreferencePair
from pitcli.data.splits import prompt_key
from pitcli.data.templates import ChatFormat
from pitcli.data.text_units import units
from pitcli.engine.models.roles import RoleModel
from pitcli.engine.training.linear_probe import feature_differences, fit_probe
from pitcli.equations import cross_validated_log_loss, fit_temperature, log_losses, p_better, symmetrised_gap
from pitcli.runs.earlier import TEMPERATURE, calibration_problem
from pitcli.settings.training import RewardConfig

MEANINGS = {
    "pairs": "number of pairs",
    "accuracy": "share of pairs that the gap ranks as labelled",
    "accuracy_low": "lower end of the 95% interval of the accuracy",
    "accuracy_high": "upper end of the 95% interval of the accuracy",
    "longer_wins_accuracy": "accuracy of always choosing the longer response",
    "shorter_wins_accuracy": "accuracy of always choosing the shorter response",
    "length_correlation": "uncentred correlation of the gap with the length difference in words, or in characters "
    "in scripts without spaces",
    "swap_residual": "mean |r_gap(a, b) + r_gap(b, a)|, 0 if swapping flips the sign exactly",
    "swap_flip_rate": "share of pairs whose winner by the raw r_gap changes with the order of the responses",
    "log_loss": "mean -log P(better) of the labels, T fitted on other pairs, in nats; 0.693 is a coin flip",
    "gap_spread": "root mean square of gap / T, in logits of P(better): what RL sees of two responses; 0 is no signal",
    "probe_accuracy": "accuracy of a linear probe on the hidden states of the frozen base model",
    "probe_accuracy_low": "lower end of the 95% interval of the probe's accuracy",
    "probe_accuracy_high": "upper end of the 95% interval of the probe's accuracy",
}


def pair_gaps(scores_N2: Tensor) -> list[float]:
    """Return the symmetrised gap of chosen over rejected of each pair."""
    gaps: list[float] = symmetrised_gap(scores_N2[:, 0].double(), scores_N2[:, 1].double()).tolist()
    return gaps


def gap_report(
    scores_N2: Tensor, pairs: Sequence[PreferencePair], log_loss: float, temperature: float, by: str | None = None
) -> dict[str, float]:
    """Return the metrics in MEANINGS of a gap model on pairs that it was not trained on, and those of kind_report.

    scores_N2: r_gap of the orderings (w,l) and (l,w). The gap is the symmetrised one, except in swap_residual and
    swap_flip_rate; the interval of the accuracy is Wilson's, with the effective number of pairs.
    """
    r_wl, r_lw = scores_N2[:, 0].double(), scores_N2[:, 1].double()
    gaps_N = np.array(pair_gaps(scores_N2))
    lengths_N = np.array([len(units(p.chosen)) - len(units(p.rejected)) for p in pairs], dtype=float)
    norm = float(np.sqrt((gaps_N**2).sum() * (lengths_N**2).sum()))
    return {
        "pairs": len(pairs),
        **accuracy_metrics(gaps_N, pairs),
        "longer_wins_accuracy": float(((lengths_N > 0) + 0.5 * (lengths_N == 0)).mean()),
        "shorter_wins_accuracy": float(((lengths_N < 0) + 0.5 * (lengths_N == 0)).mean()),
        "length_correlation": float((gaps_N * lengths_N).sum() / norm) if norm else 0.0,
        "swap_residual": float((r_wl + r_lw).abs().mean()),
        "swap_flip_rate": float(torch.eq(r_wl > 0, r_lw > 0).double().mean()),
        "log_loss": log_loss,
        "gap_spread": float(np.sqrt((gaps_N**2).mean())) / temperature,
        **kind_report(gaps_N, pairs, by),
    }


def accuracy_metrics(gaps_N: np.ndarray, pairs: Sequence[PreferencePair]) -> dict[str, float]:
    """Return the share of pairs that the gaps rank as labelled, with its interval."""
    right_N = gaps_N > 0
    correct = float(right_N.mean())
    low, high = wilson_interval(correct, effective_count(right_N, [prompt_key(pair) for pair in pairs]))
    return {"accuracy": correct, "accuracy_low": low, "accuracy_high": high}


def kinds_of(pairs: Sequence[PreferencePair], by: str | None) -> dict[str, list[int]]:
    """Return the indices of the pairs of each value of the field --by; rows without it have the kind ""."""
    kinds: dict[str, list[int]] = {}
    for index, pair in enumerate(pairs if by else ()):
        kinds.setdefault(str(pair.extra.get(by or "", "")), []).append(index)
    return dict(sorted(kinds.items()))


def kind_report(gaps_N: np.ndarray, pairs: Sequence[PreferencePair], by: str | None) -> dict[str, float]:
    """Return pairs[KIND], accuracy[KIND], accuracy_low[KIND] and accuracy_high[KIND] of each kind of --by."""
    return {
        f"{name}[{kind}]": value
        for kind, rows in kinds_of(pairs, by).items()
        for name, value in {"pairs": len(rows), **accuracy_metrics(gaps_N[rows], [pairs[row] for row in rows])}.items()
    }


def show_kinds(report: dict[str, float], pairs: Sequence[PreferencePair], by: str | None, source: str) -> None:
    """Show the accuracy of each kind of --by, if there are any."""
    names = ("pairs", "accuracy", "accuracy_low", "accuracy_high")
    if rows := [(kind, *(report[f"{name}[{kind}]"] for name in names)) for kind in kinds_of(pairs, by)]:
        table(f"accuracy on the {source} by {by}", [str(by), *names], rows)


def report_on_fresh(
    scores_N2: Tensor, pairs: Sequence[PreferencePair], temperature: float, by: str | None
) -> dict[str, float]:
    """Return the report on pairs from which the temperature was not fitted."""
    log_loss = float(log_losses(pair_gaps(scores_N2), temperature).mean())
    return gap_report(scores_N2, pairs, log_loss, temperature, by)


def member_report(scores_N2: Tensor) -> dict[str, float]:
    """Return the accuracy, the log loss and the temperature of one member of an ensemble on the held-out pairs."""
    gaps = pair_gaps(scores_N2)
    accuracy = sum(gap > 0 for gap in gaps) / len(gaps)
    log_loss = cross_validated_log_loss(gaps)
    return {"accuracy": accuracy, "log_loss": log_loss, TEMPERATURE: fit_temperature(gaps)}


def add_probe(
    reports: Sequence[tuple[Sequence[PreferencePair], dict[str, float]]],
    model: RoleModel,
    chat: ChatFormat,
    training: Sequence[PreferencePair],
    config: RewardConfig,
) -> None:
    """Fit a linear probe on the training pairs, and add its accuracy on other pairs to their reports."""

    def differences(pairs: Sequence[PreferencePair]) -> np.ndarray:
        return feature_differences(model, chat, pairs, config.micro_batch_size)

    probe = fit_probe(differences(training), training)
    for pairs, report in reports:
        if pairs:
            found = accuracy_metrics(probe.gaps(differences(pairs)), pairs)
            report.update({f"probe_{name}": value for name, value in found.items()})


def warn_if_weak(report: dict[str, float]) -> None:
    """Warn of too few held-out pairs, and of a gap model that is no better than a coin flip or than the probe."""
    if problem := calibration_problem(int(report["pairs"])):
        warn(f"P(better) is not calibrated: {problem}; use more pairs, or a larger --held-out")
    if report["accuracy_low"] <= 0.5:
        warn(
            "the gap model is not shown to beat a coin flip on the held-out pairs, so RL and the stop rule get little "
            "signal; train on more pairs, or longer (--epochs)"
        )
    if report["accuracy"] < report.get("probe_accuracy", 0.0):
        warn("a linear probe on the base model ranks more held-out pairs as labelled than the gap model does")


def effective_count(right_N: np.ndarray, prompts: Sequence[str]) -> float:
    """How many independent pairs say as much about a share as these, of which some have one prompt (Kish 1965).

    The number of pairs over the design effect: the variance of the share by prompts over that by pairs. If all or none
    are right, that is unknown, and prompts are counted.
    """
    cluster_N = np.unique(np.asarray(prompts), return_inverse=True)[1]
    share, clusters = right_N.mean(), int(cluster_N.max()) + 1
    if clusters == len(right_N) or clusters == 1 or share in (0, 1):
        return float(clusters)
    sums = np.bincount(cluster_N, weights=right_N - share)
    effect = clusters / (clusters - 1) * (sums**2).sum() / (len(right_N) * share * (1 - share))
    return len(right_N) / max(1.0, float(effect))


def wilson_interval(share: float, count: float, z: float = 1.96) -> tuple[float, float]:
    """Return Wilson's interval (95% for the default z) of a share observed in `count` trials."""
    centre = share + z * z / (2 * count)
    reach = z * ((share * (1 - share) + z * z / (4 * count)) / count) ** 0.5
    return (centre - reach) / (1 + z * z / count), (centre + reach) / (1 + z * z / count)


def show_scored(pairs: Sequence[PreferencePair], scores_N2: Tensor, temperature: float) -> None:
    """Show held-out pairs with the probability that the gap model gives to their labels."""
    rows = []
    for pair, gap in zip(pairs, pair_gaps(scores_N2), strict=True):
        probability = f"{p_better(gap, temperature):.2f} that chosen is the better response"
        rows.append((pair.prompt[-1].content, pair.rejected, pair.chosen, probability))
    samples(rows, labels=("prompt", "rejected", "chosen", "P(better)"))

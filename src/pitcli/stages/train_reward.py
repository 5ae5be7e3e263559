"""pit train-reward: trains the gap model r_gap(x, y1, y2), reports on held-out pairs, and calibrates P(better)."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor

from pitcli.console import next_command, note, samples, table, warn
from pitcli.data.rows import Comparison, PreferencePair
from pitcli.data.splits import hold_out, prompt_sketch
from pitcli.data.templates import ChatFormat
from pitcli.engine.models.adapters import start_from
from pitcli.engine.models.batches import Batch, padding_share
from pitcli.engine.models.forward import scores
from pitcli.engine.models.gaps import score_comparisons, training_tree
from pitcli.engine.models.loading import lora_config
from pitcli.engine.models.opening import open_base
from pitcli.engine.models.packing import tokens_read, tree_batch
from pitcli.engine.models.roles import GAP, HEAD, RoleModel
from pitcli.engine.models.trees import Tree
from pitcli.engine.training.dry_run import DryRunPlan, dry_run
from pitcli.engine.training.inputs import new_manifest, open_eval_pairs, open_init, open_pairs, with_learning_rate
from pitcli.engine.training.linear_probe import feature_differences, fit_probe
from pitcli.engine.training.loop import PlannedRows, StepBatch, Task, finish, task_over_rows, train
from pitcli.equations import cross_validated_log_loss, fit_temperature, gap_loss, log_losses, p_better, symmetrised_gap
from pitcli.errors import InputError
from pitcli.processes.collectives import map_over_ranks
from pitcli.runs.earlier import EarlierRun
from pitcli.runs.folder import open_run
from pitcli.runs.metrics import change
from pitcli.settings.base import GapLoss
from pitcli.settings.flags import settings_yaml
from pitcli.settings.training import RewardConfig

SHOWN_ROWS = 2
FEW_PAIRS = 30  # held-out pairs, below which a temperature is a guess
MEANINGS = {
    "pairs": "number of pairs",
    "accuracy": "share of pairs that the gap ranks as labelled",
    "accuracy_low": "lower end of the 95% interval of the accuracy",
    "accuracy_high": "upper end of the 95% interval of the accuracy",
    "longer_wins_accuracy": "accuracy of always choosing the longer response",
    "shorter_wins_accuracy": "accuracy of always choosing the shorter response",
    "length_correlation": "uncentred correlation of the gap with the length difference in words",
    "swap_residual": "mean |r_gap(a, b) + r_gap(b, a)|, 0 if swapping flips the sign exactly",
    "swap_flip_rate": "share of pairs whose winner by the raw r_gap changes with the order of the responses",
    "log_loss": "mean -log P(better) of the labels, T fitted on other pairs, in nats; 0.693 is a coin flip",
    "gap_spread": "root mean square of gap / T, in logits of P(better): what RL sees of two responses; 0 is no signal",
    "probe_accuracy": "accuracy of a linear probe on the hidden states of the frozen base model",
    "probe_accuracy_low": "lower end of the 95% interval of the probe's accuracy",
    "probe_accuracy_high": "upper end of the 95% interval of the probe's accuracy",
}


def run(config: RewardConfig) -> None:
    """Train on all but the held-out prompts, report on these, and write the gap model to the run folder."""
    base = open_base(config, init := open_init(config))
    pairs, data = open_pairs(config, base, [])
    fresh = open_eval_pairs(config, base, pairs)
    training, held_out = hold_out(pairs, config.held_out, config.seed)
    check_held_out(held_out, config.by, init)
    config = with_learning_rate(config, base)
    manifest = new_manifest("reward", GAP, config, base, data, earlier=init)
    trees = [training_tree(pair, base.chat, config.gap_loss) for pair in training]
    if config.dry_run:
        first = trees[0].conversations()[0]
        first_row = [(base.chat.written(first[:-1]), False), (base.chat.written(first[-1:]), True)]
        plan = DryRunPlan(lambda model: gap_task(model, trees, config), roles=1, first_row=first_row)
        return dry_run(config, manifest, lora=config, base=base, plan=plan)
    with open_run(config.run_folder, manifest, config.resume, config.overwrite) as folder:
        folder.keep_settings(settings_yaml(config))
        set_seed(config.seed)
        model = base.load()
        model.add_role(GAP, lora_config(config))
        for start in init:
            start_from(model, GAP, start.adapter)
        result = train(model, gap_task(model, trees, config), config, folder)
        scores_N2 = score_pairs(model, base.chat, held_out, config)
        temperature = fit_temperature(pair_gaps(scores_N2))
        log_loss = cross_validated_log_loss(pair_gaps(scores_N2))
        report = gap_report(scores_N2, held_out, log_loss, temperature, config.by)
        fresh_report = report_on_fresh(model, base.chat, fresh, config, temperature) if fresh else {}
        if config.probe:
            add_probe([(held_out, report), (fresh, fresh_report)], model, base.chat, training, config)
        fresh_results = {f"eval_{name}": value for name, value in fresh_report.items()}
        results = {**result._asdict(), **report, "gap_temperature": temperature, **fresh_results}
        finish(model, folder, [GAP], results)
    columns = ["metric", "held out", *([config.eval_data] if config.eval_data else []), "meaning"]
    lines = [
        (name, report[name], *([fresh_report[name]] if fresh else []), meaning)
        for name, meaning in MEANINGS.items()
        if name in report
    ]
    table("gap model on pairs that it was not trained on", columns, lines)
    show_kinds(report, held_out, config.by, "held-out pairs")
    show_kinds(fresh_report, fresh, config.by, f"pairs of {config.eval_data}")
    note(f"gap temperature T, fitted on the held-out pairs: {temperature:.3f} (P(better) = sigmoid(gap / T))")
    loss = change(config.run_folder, "loss")
    note(f"loss per pair in nats: {loss}; {loss_of_equal_gaps(config):.3f} if all gaps are equal")
    note(f"gap model saved in {config.run_folder}")
    warn_if_weak(report)
    show_scored(held_out[:SHOWN_ROWS], scores_N2[:SHOWN_ROWS], temperature)
    note("to train the improver by SFT, if there is none yet, and by RL:")
    next_command("pit rl --curriculum")


def check_held_out(pairs: Sequence[PreferencePair], by: str | None, init: Sequence[EarlierRun]) -> None:
    """Raise InputError if no pair has the field of --by; warn if the run of --init was trained on prompts of theirs.

    A gap model's run is not warned of: with the same data and seed, it holds out the same prompts.
    """
    for run in init:
        if run.manifest.kind != "reward" and set(run.manifest.data.prompts) & set(prompt_sketch(pairs, len(pairs))):
            warn(f"--init: {run.folder} was trained on held-out prompts, so the report is too good; use another fold")
    if by is not None and not any(by in pair.extra for pair in pairs):
        known = ", ".join(sorted({name for pair in pairs for name in pair.extra})) or "none"
        raise InputError(f"--by: expected a field of the rows, got {by}; the fields of the held-out rows are: {known}")


def warn_if_weak(report: dict[str, float]) -> None:
    if report["pairs"] < FEW_PAIRS:
        warn(f"T was fitted on {report['pairs']} held-out pairs only, so P(better) says little; use more pairs")
    if report["accuracy_low"] <= 0.5:
        warn(
            "the gap model is not shown to beat a coin flip on the held-out pairs, so RL and the stop rule get little "
            "signal; train on more pairs, or longer (--epochs)"
        )
    if report["accuracy"] < report.get("probe_accuracy", 0.0):
        warn("a linear probe on the base model ranks more held-out pairs as labelled than the gap model does")


def loss_of_equal_gaps(config: RewardConfig) -> float:
    orderings = 4 if config.gap_loss is GapLoss.five_term else 2
    return float(gap_loss(config.gap_loss, torch.zeros(1, orderings)))


class PairMicroBatch(NamedTuple):
    """pairs: number of pairs in the whole step, which normalises the loss."""

    batch: Batch
    pairs: int


def gap_task(model: RoleModel, trees: Sequence[Tree], config: RewardConfig) -> Task:
    """Minimise the gap loss over what it reads of each pair (training_tree), averaged over the pairs of a step."""
    orderings = len(trees[0].leaves)

    def build(chunks: Sequence[Sequence[int]]) -> StepBatch:
        pairs = sum(map(len, chunks))
        batches = [tree_batch(model, [trees[row] for row in chunk]) for chunk in chunks]
        return StepBatch([PairMicroBatch(batch, pairs) for batch in batches], {"padding_share": padding_share(batches)})

    def loss(micro_batch: PairMicroBatch) -> tuple[Tensor, dict[str, float]]:
        scores_BO = scores(model, micro_batch.batch).view(-1, orderings)
        share = len(scores_BO) / micro_batch.pairs
        correct = (scores_BO[:, 0] > scores_BO[:, -1]).float().sum() / micro_batch.pairs
        return gap_loss(config.gap_loss, scores_BO) * share, {"accuracy": float(correct.detach())}

    lengths = [tokens_read(model, tree) for tree in trees]
    rows = PlannedRows(lengths, max(1, config.micro_batch_size // orderings), build)
    return task_over_rows(GAP, rows, loss, config, model.device)._replace(rates={HEAD: config.head_rate})


def score_pairs(model: RoleModel, chat: ChatFormat, pairs: Sequence[PreferencePair], config: RewardConfig) -> Tensor:
    """Return r_gap of the orderings (w,l) and (l,w) of each pair, shape (N, 2)."""
    comparisons = [Comparison(pair.prompt, pair.chosen, pair.rejected) for pair in pairs]

    def scored(part: Sequence[Comparison]) -> list[Tensor]:
        return list(score_comparisons(model, chat, config.gap_loss, part, config.micro_batch_size))

    return torch.stack([*map_over_ranks(comparisons, scored, model.sharded)])


def pair_gaps(scores_N2: Tensor) -> list[float]:
    """Return the symmetrised gap of chosen over rejected of each pair."""
    gaps: list[float] = symmetrised_gap(scores_N2[:, 0].double(), scores_N2[:, 1].double()).tolist()
    return gaps


def report_on_fresh(
    model: RoleModel, chat: ChatFormat, pairs: Sequence[PreferencePair], config: RewardConfig, temperature: float
) -> dict[str, float]:
    """Return the report on pairs from which the temperature was not fitted."""
    scores_N2 = score_pairs(model, chat, pairs, config)
    log_loss = float(log_losses(pair_gaps(scores_N2), temperature).mean())
    return gap_report(scores_N2, pairs, log_loss, temperature, config.by)


def gap_report(
    scores_N2: Tensor, pairs: Sequence[PreferencePair], log_loss: float, temperature: float, by: str | None = None
) -> dict[str, float]:
    """Return the metrics in MEANINGS of a gap model on pairs that it was not trained on, and those of kind_report.

    scores_N2: r_gap of the orderings (w,l) and (l,w). The gap is the symmetrised one, except in swap_residual and
    swap_flip_rate; the interval of the accuracy is Wilson's.
    """
    r_wl, r_lw = scores_N2[:, 0].double(), scores_N2[:, 1].double()
    gaps_N = np.array(pair_gaps(scores_N2))
    lengths_N = np.array([len(p.chosen.split()) - len(p.rejected.split()) for p in pairs], dtype=float)
    norm = float(np.sqrt((gaps_N**2).sum() * (lengths_N**2).sum()))
    return {
        "pairs": len(pairs),
        **accuracy_metrics(gaps_N),
        "longer_wins_accuracy": float(((lengths_N > 0) + 0.5 * (lengths_N == 0)).mean()),
        "shorter_wins_accuracy": float(((lengths_N < 0) + 0.5 * (lengths_N == 0)).mean()),
        "length_correlation": float((gaps_N * lengths_N).sum() / norm) if norm else 0.0,
        "swap_residual": float((r_wl + r_lw).abs().mean()),
        "swap_flip_rate": float(torch.eq(r_wl > 0, r_lw > 0).double().mean()),
        "log_loss": log_loss,
        "gap_spread": float(np.sqrt((gaps_N**2).mean())) / temperature,
        **kind_report(gaps_N, pairs, by),
    }


def accuracy_metrics(gaps_N: np.ndarray) -> dict[str, float]:
    """Return the share of pairs that the gaps rank as labelled, with its interval."""
    correct = float((gaps_N > 0).mean())
    low, high = wilson_interval(correct, len(gaps_N))
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
        for name, value in {"pairs": len(rows), **accuracy_metrics(gaps_N[rows])}.items()
    }


def show_kinds(report: dict[str, float], pairs: Sequence[PreferencePair], by: str | None, source: str) -> None:
    """Show the accuracy of each kind of --by, if there are any."""
    names = ("pairs", "accuracy", "accuracy_low", "accuracy_high")
    if rows := [(kind, *(report[f"{name}[{kind}]"] for name in names)) for kind in kinds_of(pairs, by)]:
        table(f"accuracy on the {source} by {by}", [str(by), *names], rows)


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
            found = accuracy_metrics(probe.gaps(differences(pairs)))
            report.update({f"probe_{name}": value for name, value in found.items()})


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
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

"""pit train-reward: trains the gap model r_gap(x, y1, y2), reports on held-out pairs, and calibrates P(better).

With --members it trains an ensemble of gap models on the one base, one after another.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor

from pitcli.console import next_command, note, samples, table, warn
from pitcli.data.rows import PreferencePair
from pitcli.data.splits import hold_out
from pitcli.data.templates import ChatFormat
from pitcli.engine.models.averaging import average_roles
from pitcli.engine.models.batches import Batch, padding_share
from pitcli.engine.models.forward import score_trees, scores
from pitcli.engine.models.loading import lora_config
from pitcli.engine.models.opening import open_base
from pitcli.engine.models.packing import tokens_read, tree_batch
from pitcli.engine.models.roles import GAP, RoleModel, gap_roles, head_name
from pitcli.engine.models.trees import Tree, ordered_tree, swapped_tree
from pitcli.engine.training.dry_run import DryRunPlan, dry_run
from pitcli.engine.training.finish import finish
from pitcli.engine.training.inputs import new_manifest, open_eval_pairs, open_pairs, with_learning_rate
from pitcli.engine.training.loop import PlannedRows, StepBatch, Task, task_over_rows, train
from pitcli.engine.training.schedule import member_seed
from pitcli.equations import cross_validated_log_loss, fit_temperature, gap_loss, log_losses, p_better, symmetrised_gap
from pitcli.processes.collectives import map_over_ranks
from pitcli.runs.earlier import TEMPERATURE
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
}


def run(config: RewardConfig) -> None:
    """Train on all but the held-out prompts, report on these, and write the gap model to the run folder."""
    base = open_base(config, [])
    pairs, data = open_pairs(config, base, [])
    fresh = open_eval_pairs(config, base, pairs)
    training, held_out = hold_out(pairs, config.held_out, config.seed)
    config = with_learning_rate(config, base)
    manifest = new_manifest("reward", GAP, config, base, data)
    trees = [training_tree(pair, base.chat, config.gap_loss) for pair in training]
    if config.dry_run:
        first = trees[0].conversations()[0]
        first_row = [(base.chat.written(first[:-1]), False), (base.chat.written(first[-1:]), True)]
        several = config.members
        plan = DryRunPlan(lambda model: gap_task(model, trees, config), several, first_row, trained=several)
        return dry_run(config, manifest, lora=config, base=base, plan=plan)
    with open_run(config.run_folder, manifest, config.resume, config.overwrite) as folder:
        folder.keep_settings(settings_yaml(config))
        set_seed(config.seed)
        model = base.load()
        add_members(model, config)
        result = train(model, gap_task(model, trees, config), config, folder)
        scorer = PairScorer(model, base.chat, config)
        trained = trained_models(scorer, held_out)
        scores_N2 = trained.scores_N2
        temperature = fit_temperature(pair_gaps(scores_N2))
        report = gap_report(scores_N2, held_out, cross_validated_log_loss(pair_gaps(scores_N2)))
        fresh_report = report_on_fresh(scorer.mean_scores(trained.units, fresh), fresh, temperature) if fresh else {}
        fresh_results = {f"eval_{name}": value for name, value in fresh_report.items()}
        results = {**result._asdict(), **report, TEMPERATURE: temperature, **fresh_results, **member_results(trained)}
        finish(model, folder, [*trained.units], results)
    columns = ["metric", "held out", *([config.eval_data] if config.eval_data else []), "meaning"]
    lines = [(name, value, *([fresh_report[name]] if fresh else []), MEANINGS[name]) for name, value in report.items()]
    table("gap model on pairs that it was not trained on", columns, lines)
    show_result(config, trained, report, temperature)
    show_scored(held_out[:SHOWN_ROWS], scores_N2[:SHOWN_ROWS], temperature)
    note("to train the improver by SFT, if there is none yet, and by RL:")
    next_command("pit rl --curriculum")


class TrainedModels(NamedTuple):
    """The gap model, or the members of an ensemble, after training.

    units: by role, what its scores are divided by before the mean: T of a member, 1 if there is one role. scores_N2:
    that mean for the held-out pairs. members: the report on each trained member, if there are several.
    """

    units: dict[str, float]
    scores_N2: Tensor
    members: list[dict[str, float]]


def show_result(config: RewardConfig, trained: TrainedModels, report: dict[str, float], temperature: float) -> None:
    if trained.members:
        lines = [(number, *member.values()) for number, member in enumerate(trained.members, 1)]
        table("each member by itself, on the held-out pairs", ["member", *trained.members[0]], lines)
    note(f"gap temperature T, fitted on the held-out pairs: {temperature:.3f} (P(better) = sigmoid(gap / T))")
    loss = change(config.run_folder, "loss")
    note(f"loss per pair in nats: {loss}; {loss_of_equal_gaps(config):.3f} if all gaps are equal")
    note(f"gap model saved in {config.run_folder}")
    if report["pairs"] < FEW_PAIRS:
        warn(f"T was fitted on {report['pairs']} held-out pairs only, so P(better) says little; use more pairs")
    if report["accuracy_low"] <= 0.5:
        warn(
            "the gap model is not shown to beat a coin flip on the held-out pairs, so RL and the stop rule get little "
            "signal; train on more pairs, or longer (--epochs)"
        )


def add_members(model: RoleModel, config: RewardConfig) -> None:
    """Add the gap roles, each with its own random initialisation; the first as if it were the only one."""
    for number, role in enumerate(gap_roles(config.members)):
        if number:
            set_seed(member_seed(config.seed, number))
        model.add_role(role, lora_config(config))


def trained_models(scorer: "PairScorer", held_out: Sequence[PreferencePair]) -> TrainedModels:
    """Score the held-out pairs with each member; with --average, replace the members by their average first."""
    roles = gap_roles(scorer.config.members)
    scores = {role: scorer.scores(role, held_out) for role in roles}
    if not roles[1:]:
        return TrainedModels({GAP: 1.0}, scores[GAP], [])
    members = [member_report(scores_N2) for scores_N2 in scores.values()]
    if scorer.config.average:
        average_roles(scorer.model, roles)
        return TrainedModels({GAP: 1.0}, scorer.scores(GAP, held_out), members)
    units = {role: member[TEMPERATURE] for role, member in zip(roles, members, strict=True)}
    return TrainedModels(units, mean_scores(scores, units), members)


def member_report(scores_N2: Tensor) -> dict[str, float]:
    """Return the accuracy, the log loss and the temperature of one member on the held-out pairs."""
    gaps = pair_gaps(scores_N2)
    accuracy = sum(gap > 0 for gap in gaps) / len(gaps)
    log_loss = cross_validated_log_loss(gaps)
    return {"accuracy": accuracy, "log_loss": log_loss, TEMPERATURE: fit_temperature(gaps)}


def member_results(trained: TrainedModels) -> dict[str, float]:
    """Return the results of each member, e.g. accuracy_2; of an average without T, which is not that of the run."""
    is_average = len(trained.units) == 1
    return {
        f"{name}_{number}": value
        for number, member in enumerate(trained.members, 1)
        for name, value in member.items()
        if not (is_average and name == TEMPERATURE)
    }


def loss_of_equal_gaps(config: RewardConfig) -> float:
    orderings = 4 if config.gap_loss is GapLoss.five_term else 2
    return float(gap_loss(config.gap_loss, torch.zeros(1, orderings)))


class PairMicroBatch(NamedTuple):
    """pairs: number of pairs in the whole step, which normalises the loss."""

    batch: Batch
    pairs: int


def gap_task(model: RoleModel, trees: Sequence[Tree], config: RewardConfig) -> Task:
    """Minimise the gap loss over the orderings of each pair, averaged over the pairs of a step."""
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
    roles = gap_roles(config.members)
    rates = {head_name(role): config.head_rate for role in roles}
    return task_over_rows(roles, rows, loss, config, model.device)._replace(rates=rates)


def training_tree(pair: PreferencePair, chat: ChatFormat, loss: GapLoss) -> Tree:
    """Return the tree of the orderings that a loss reads: all four, or only (w,l) and (l,w)."""
    if loss is GapLoss.five_term:
        return ordered_tree(pair, chat)
    return swapped_tree(pair.prompt, [pair.chosen], pair.rejected, chat)


class PairScorer(NamedTuple):
    """Scores the orderings (w,l) and (l,w) of pairs."""

    model: RoleModel
    chat: ChatFormat
    config: RewardConfig

    def scores(self, role: str, pairs: Sequence[PreferencePair]) -> Tensor:
        """Return r_gap of both orderings of each pair, shape (N, 2)."""
        trees = [swapped_tree(pair.prompt, [pair.chosen], pair.rejected, self.chat) for pair in pairs]

        def score(part: Sequence[Tree]) -> list[Tensor]:
            return score_trees(self.model, part, self.config.micro_batch_size, role)

        return torch.stack([*map_over_ranks(trees, score, self.model.sharded)])

    def mean_scores(self, units: Mapping[str, float], pairs: Sequence[PreferencePair]) -> Tensor:
        """Return the mean of the roles' scores, each divided by its unit, shape (N, 2)."""
        return mean_scores({role: self.scores(role, pairs) for role in units}, units)


def mean_scores(scores: Mapping[str, Tensor], units: Mapping[str, float]) -> Tensor:
    """Return the mean over the roles of scores / unit, shape (N, 2)."""
    return torch.stack([scores_N2 / units[role] for role, scores_N2 in scores.items()]).mean(0)


def pair_gaps(scores_N2: Tensor) -> list[float]:
    """Return the symmetrised gap of chosen over rejected of each pair."""
    gaps: list[float] = symmetrised_gap(scores_N2[:, 0].double(), scores_N2[:, 1].double()).tolist()
    return gaps


def report_on_fresh(scores_N2: Tensor, pairs: Sequence[PreferencePair], temperature: float) -> dict[str, float]:
    """Return the report on pairs from which the temperature was not fitted."""
    return gap_report(scores_N2, pairs, float(log_losses(pair_gaps(scores_N2), temperature).mean()))


def gap_report(scores_N2: Tensor, pairs: Sequence[PreferencePair], log_loss: float) -> dict[str, float]:
    """Return the metrics in MEANINGS of a gap model on pairs that it was not trained on.

    scores_N2: r_gap of the orderings (w,l) and (l,w). The gap is the symmetrised one, except in swap_residual and
    swap_flip_rate; the interval of the accuracy is Wilson's.
    """
    r_wl, r_lw = scores_N2[:, 0].double(), scores_N2[:, 1].double()
    gaps_N = np.array(pair_gaps(scores_N2))
    lengths_N = np.array([len(p.chosen.split()) - len(p.rejected.split()) for p in pairs], dtype=float)
    correct = float((gaps_N > 0).mean())
    low, high = wilson_interval(correct, len(pairs))
    norm = float(np.sqrt((gaps_N**2).sum() * (lengths_N**2).sum()))
    return {
        "pairs": len(pairs),
        "accuracy": correct,
        "accuracy_low": low,
        "accuracy_high": high,
        "longer_wins_accuracy": float(((lengths_N > 0) + 0.5 * (lengths_N == 0)).mean()),
        "shorter_wins_accuracy": float(((lengths_N < 0) + 0.5 * (lengths_N == 0)).mean()),
        "length_correlation": float((gaps_N * lengths_N).sum() / norm) if norm else 0.0,
        "swap_residual": float((r_wl + r_lw).abs().mean()),
        "swap_flip_rate": float(torch.eq(r_wl > 0, r_lw > 0).double().mean()),
        "log_loss": log_loss,
    }


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

"""pit train-reward: trains the gap model r_gap(x, y1, y2), reports on held-out pairs, and calibrates P(better).

With --members it trains an ensemble of gap models on the one base, one after another.
"""

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import torch
from accelerate.utils import set_seed
from torch import Tensor

from pitcli.console import counted, next_command, note, table, warn
from pitcli.data.rankings import by_prompt
from pitcli.data.rows import PreferencePair
from pitcli.data.splits import hold_out, prompt_sketch
from pitcli.data.templates import ChatFormat
from pitcli.engine.models.adapters import start_from
from pitcli.engine.models.batches import Batch, padding_share
from pitcli.engine.models.forward import score_trees, scores
from pitcli.engine.models.gaps import TrainingRow, training_row
from pitcli.engine.models.loading import lora_config
from pitcli.engine.models.opening import open_base
from pitcli.engine.models.packing import tokens_read, tree_batch
from pitcli.engine.models.roles import GAP, RoleModel, gap_roles, head_name
from pitcli.engine.training.dry_run import DryRunPlan, dry_run
from pitcli.engine.training.finish import divergence_of, finish, refuse_diverged, rl_command
from pitcli.engine.training.inputs import new_manifest, open_eval_pairs, open_init, open_pairs, with_learning_rate
from pitcli.engine.training.loop import PlannedRows, StepBatch, Task, task_over_rows, train
from pitcli.engine.training.reward_report import (
    MEANINGS,
    add_probe,
    gap_report,
    member_report,
    pair_gaps,
    report_on_fresh,
    show_kinds,
    show_scored,
    warn_if_weak,
)
from pitcli.engine.training.schedule import member_seed
from pitcli.equations import cross_validated_log_loss, fit_temperature, gap_loss
from pitcli.errors import InputError
from pitcli.processes.collectives import map_over_ranks
from pitcli.runs.divergence import loss_of_equal_gaps
from pitcli.runs.earlier import NOT_CALIBRATED, TEMPERATURE, EarlierRun, calibration_problem
from pitcli.runs.folder import open_run
from pitcli.runs.metrics import change
from pitcli.settings.base import GapLoss
from pitcli.settings.flags import settings_yaml
from pitcli.settings.training import RewardConfig

SHOWN_ROWS = 2

Reported = tuple[Sequence[PreferencePair], dict[str, float]]  # pairs, and the report on them


def run(config: RewardConfig) -> None:
    """Train on all but the held-out prompts, report on these, and write the gap model to the run folder."""
    base = open_base(config, init := open_init(config))
    pairs, data = open_pairs(config, base, [])
    fresh = open_eval_pairs(config, base, pairs)
    training, held_out = hold_out(pairs, config.held_out, config.seed)
    check_held_out(held_out, config, init)
    config = with_learning_rate(config, base)
    manifest = new_manifest("reward", GAP, config, base, data, earlier=init)
    rows = [
        training_row([training[index] for index in group], base.chat, config.gap_loss)
        for group in read_together(training, config.pairs_together)
    ]
    if config.dry_run:
        first = rows[0].tree.conversations()[0]
        first_row = [(base.chat.written(first[:-1]), False), (base.chat.written(first[-1:]), True)]
        several = config.members
        left_out = [f"scoring {counted(len(held_out) + len(fresh), 'pairs')} for the report"]
        left_out += ["--probe: one forward pass over all pairs"] if config.probe else []
        plan = DryRunPlan(lambda model: gap_task(model, rows, config), several, first_row, several, left_out)
        return dry_run(config, manifest, lora=config, base=base, plan=plan)
    with open_run(config.run_folder, manifest, config.resume, config.overwrite) as folder:
        folder.keep_settings(settings_yaml(config))
        set_seed(config.seed)
        model = base.load()
        add_members(model, config, init)
        result = train(model, gap_task(model, rows, config), config, folder)
        diverged = refuse_diverged(folder, config, divergence_of(folder, result))
        scorer = PairScorer(model, base.chat, config)
        trained = trained_models(scorer, held_out)
        scores_N2 = trained.scores_N2
        gaps = pair_gaps(scores_N2)
        temperature = fit_temperature(gaps)
        report = gap_report(scores_N2, held_out, cross_validated_log_loss(gaps), temperature, config.by)
        fresh_scores_N2 = scorer.mean_scores(trained.units, fresh) if fresh else torch.empty(0, 2)
        fresh_report = report_on_fresh(fresh_scores_N2, fresh, temperature, config.by) if fresh else {}
        if config.probe:
            add_probe([(held_out, report), (fresh, fresh_report)], model, base.chat, training, config)
        fresh_results = {f"eval_{name}": value for name, value in fresh_report.items()}
        results = {**report, TEMPERATURE: temperature, **fresh_results, **member_results(trained)}
        finish(model, folder, [*trained.units], result._asdict() | diverged | results | calibration_results(held_out))
    show_reports(config, (held_out, report), (fresh, fresh_report))
    show_result(config, trained, report, temperature)
    show_scored(held_out[:SHOWN_ROWS], scores_N2[:SHOWN_ROWS], temperature)
    note("to train the improver by SFT, if there is none yet, and by RL:")
    next_command(rl_command(data.path, reward=config.run_folder))


def check_held_out(pairs: Sequence[PreferencePair], config: RewardConfig, init: Sequence[EarlierRun]) -> None:
    """Raise InputError if no pair has the field of --by; warn if the run of --init was trained on prompts of theirs."""
    by = config.by
    for run in init:
        before = run.manifest.config
        # a gap model of the same seed held out the same prompts
        same = run.manifest.kind == "reward" and before["seed"] == config.seed and before["held_out"] >= config.held_out
        if not same and set(run.manifest.data.prompts) & set(prompt_sketch(pairs, len(pairs))):
            warn(f"--init: {run.folder} was trained on held-out prompts, so the report is too good; use another fold")
    if by is not None and not any(by in pair.extra for pair in pairs):
        known = ", ".join(sorted({name for pair in pairs for name in pair.extra})) or "none"
        raise InputError(f"--by: expected a field of the rows, got {by}; the fields of the held-out rows are: {known}")


class TrainedModels(NamedTuple):
    """The gap model, or the members of an ensemble, after training.

    units: by role, what its scores are divided by before the mean: T of a member, 1 if there is one role. scores_N2:
    that mean for the held-out pairs. members: the report on each trained member, if there are several.
    """

    units: dict[str, float]
    scores_N2: Tensor
    members: list[dict[str, float]]


def show_reports(config: RewardConfig, held_out: Reported, fresh: Reported) -> None:
    """Show the reports on the held-out pairs and on those of --eval-data, if there are any."""
    (pairs, report), (fresh_pairs, fresh_report) = held_out, fresh
    columns = ["metric", "held out", *([config.eval_data] if config.eval_data else []), "meaning"]
    lines = [
        (name, report[name], *([fresh_report[name]] if fresh_report else []), meaning)
        for name, meaning in MEANINGS.items()
        if name in report
    ]
    table("gap model on pairs that it was not trained on", columns, lines)
    show_kinds(report, pairs, config.by, "held-out pairs")
    show_kinds(fresh_report, fresh_pairs, config.by, f"pairs of {config.eval_data}")


def show_result(config: RewardConfig, trained: TrainedModels, report: dict[str, float], temperature: float) -> None:
    if trained.members:
        lines = [(number, *member.values()) for number, member in enumerate(trained.members, 1)]
        table("each member by itself, on the held-out pairs", ["member", *trained.members[0]], lines)
    note(f"gap temperature T, fitted on the held-out pairs: {temperature:.3f} (P(better) = sigmoid(gap / T))")
    loss = change(config.run_folder, "loss")
    note(f"loss per pair in nats: {loss}; {loss_of_equal_gaps(config.gap_loss):.3f} if all gaps are equal")
    note(f"gap model saved in {config.run_folder}")
    warn_if_weak(report)


def add_members(model: RoleModel, config: RewardConfig, init: Sequence[EarlierRun]) -> None:
    """Add the gap roles, each with its own random initialisation; the first as if it were the only one.

    With --init, all of them start from the same adapter instead.
    """
    for number, role in enumerate(gap_roles(config.members)):
        if number:
            set_seed(member_seed(config.seed, number))
        model.add_role(role, lora_config(config))
        for start in init:
            start_from(model, role, start.adapter)


def trained_models(scorer: "PairScorer", held_out: Sequence[PreferencePair]) -> TrainedModels:
    """Score the held-out pairs with each member."""
    roles = gap_roles(scorer.config.members)
    scores = {role: scorer.scores(role, held_out) for role in roles}
    if not roles[1:]:
        return TrainedModels({GAP: 1.0}, scores[GAP], [])
    members = [member_report(scores_N2) for scores_N2 in scores.values()]
    units = {role: member[TEMPERATURE] for role, member in zip(roles, members, strict=True)}
    return TrainedModels(units, mean_scores(scores, units), members)


def member_results(trained: TrainedModels) -> dict[str, float]:
    """Return the results of each member, e.g. accuracy_2."""
    return {
        f"{name}_{number}": value for number, member in enumerate(trained.members, 1) for name, value in member.items()
    }


def calibration_results(held_out: Sequence[PreferencePair]) -> dict[str, str]:
    problem = calibration_problem(len(held_out))
    return {NOT_CALIBRATED: problem} if problem else {}


class PairMicroBatch(NamedTuple):
    """orderings_PO: of each pair, which scores of the batch are those of its orderings.

    pairs: number of pairs in the whole step, which normalises the loss.
    """

    batch: Batch
    orderings_PO: Tensor
    pairs: int


def read_together(pairs: Sequence[PreferencePair], most: int) -> list[list[int]]:
    """Return the indices of the pairs in groups of one prompt, at most `most` each; single pairs keep their order."""
    if most == 1:
        return [[index] for index in range(len(pairs))]
    return [group[start : start + most] for group in by_prompt(pairs) for start in range(0, len(group), most)]


def gap_task(model: RoleModel, rows: Sequence[TrainingRow], config: RewardConfig) -> Task:
    """Minimise the gap loss over what it reads of each pair (training_row), averaged over the pairs of a step."""

    def build(chunks: Sequence[Sequence[int]]) -> StepBatch:
        pairs = sum(len(rows[row].orderings) for chunk in chunks for row in chunk)
        micro_batches = [micro_batch([rows[row] for row in chunk], pairs) for chunk in chunks]
        share = padding_share([micro_batch.batch for micro_batch in micro_batches])
        return StepBatch(micro_batches, {"padding_share": share})

    def micro_batch(chunk: Sequence[TrainingRow], pairs: int) -> PairMicroBatch:
        first = [0, *accumulate(len(row.tree.leaves) for row in chunk)]
        orderings = [
            [start + leaf for leaf in leaves]
            for start, row in zip(first, chunk, strict=False)
            for leaves in row.orderings
        ]
        orderings_PO = torch.tensor(orderings, device=model.device)
        return PairMicroBatch(tree_batch(model, [row.tree for row in chunk]), orderings_PO, pairs)

    def loss(micro_batch: PairMicroBatch) -> tuple[Tensor, dict[str, float]]:
        scores_PO = scores(model, micro_batch.batch)[micro_batch.orderings_PO]
        share = len(scores_PO) / micro_batch.pairs
        correct = (scores_PO[:, 0] > scores_PO[:, -1]).float().sum() / micro_batch.pairs
        return gap_loss(config.gap_loss, scores_PO) * share, {"accuracy": float(correct.detach())}

    lengths = [tokens_read(model, row.tree) for row in rows]
    conversations = max(len(row.tree.leaves) for row in rows)
    planned = PlannedRows(lengths, max(1, config.micro_batch_size // conversations), build)
    roles = gap_roles(config.members)
    rates = {head_name(role): config.head_rate for role in roles}
    return task_over_rows(roles, planned, loss, config, model.device)._replace(rates=rates)


class PairScorer(NamedTuple):
    """Scores the orderings (w,l) and (l,w) of pairs."""

    model: RoleModel
    chat: ChatFormat
    config: RewardConfig

    def scores(self, role: str, pairs: Sequence[PreferencePair]) -> Tensor:
        """Return r_gap of both orderings of each pair, shape (N, 2); for pointwise the gap and its negative."""
        pointwise = self.config.gap_loss is GapLoss.pointwise

        def scored(groups: Sequence[list[int]]) -> list[Tensor]:
            loss = GapLoss.pointwise if pointwise else GapLoss.symmetric
            rows = [training_row([pairs[index] for index in group], self.chat, loss) for group in groups]
            found = score_trees(self.model, [row.tree for row in rows], self.config.micro_batch_size, role)
            return [scores_N[torch.tensor(row.orderings)] for scores_N, row in zip(found, rows, strict=True)]

        groups = read_together(pairs, self.config.pairs_together)
        scores_N2 = torch.empty(len(pairs), 2)
        for group, part in zip(groups, map_over_ranks(groups, scored, self.model.sharded), strict=True):
            scores_N2[group] = part
        if pointwise:
            gaps_N = scores_N2[:, 0] - scores_N2[:, 1]
            return torch.stack([gaps_N, -gaps_N], dim=1)
        return scores_N2

    def mean_scores(self, units: Mapping[str, float], pairs: Sequence[PreferencePair]) -> Tensor:
        """Return the mean of the roles' scores, each divided by its unit, shape (N, 2)."""
        return mean_scores({role: self.scores(role, pairs) for role in units}, units)


def mean_scores(scores: Mapping[str, Tensor], units: Mapping[str, float]) -> Tensor:
    """Return the mean over the roles of scores / unit, shape (N, 2)."""
    return torch.stack([scores_N2 / units[role] for role, scores_N2 in scores.items()]).mean(0)

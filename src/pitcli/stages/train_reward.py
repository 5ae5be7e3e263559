"""pit train-reward: the gap model r_gap(x, y1, y2), its report on held-out pairs, and its calibration."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from accelerate.utils import set_seed
from torch import Tensor

from pitcli.console import next_command, note, samples, table, warn
from pitcli.data.rows import PreferencePair
from pitcli.data.splits import hold_out
from pitcli.data.templates import ChatFormat
from pitcli.engine.models.batches import Batch, padding_share
from pitcli.engine.models.forward import score_trees, scores
from pitcli.engine.models.loading import lora_config
from pitcli.engine.models.opening import open_base
from pitcli.engine.models.packing import tokens_read, tree_batch
from pitcli.engine.models.roles import GAP, RoleModel
from pitcli.engine.models.trees import Tree, ordered_tree
from pitcli.engine.training.dry_run import DryRunPlan, dry_run
from pitcli.engine.training.inputs import new_manifest, open_eval_pairs, open_pairs
from pitcli.engine.training.loop import PlannedRows, StepBatch, Task, finish, task_over_rows, train
from pitcli.equations import ORDERINGS, fit_temperature, gap_loss, p_better, symmetrised_gap
from pitcli.processes.collectives import map_over_ranks
from pitcli.runs.folder import open_run
from pitcli.settings.flags import settings_yaml
from pitcli.settings.training import RewardConfig

SHOWN = 2


def run(config: RewardConfig) -> None:
    """Train on all but the held-out prompts, report on those, and write the gap model to the run folder."""
    base = open_base(config, [])
    pairs, data = open_pairs(config, base, [])
    fresh = open_eval_pairs(config, base, pairs)
    training, held_out = hold_out(pairs, config.held_out, config.seed)
    manifest = new_manifest("reward", GAP, config, base, data)
    trees = [ordered_tree(pair, base.chat) for pair in training]
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
        result = train(model, gap_task(model, trees, config), config, folder)
        scores_N4 = score_pairs(model, base.chat, held_out, config)
        temperature = fit_temperature(pair_gaps(scores_N4).tolist())
        report = gap_report(scores_N4, held_out, temperature)
        fresh_report = gap_report(score_pairs(model, base.chat, fresh, config), fresh, temperature) if fresh else {}
        fresh_results = {f"eval_{name}": value for name, value in fresh_report.items()}
        results = {**result._asdict(), **report, "gap_temperature": temperature, **fresh_results}
        finish(model, folder, [GAP], results)
    columns = ["", "held out", *([config.eval_data] if config.eval_data else [])]
    lines = [(name, value, *([fresh_report[name]] if fresh else [])) for name, value in report.items()]
    table("gap model on pairs that it was not trained on", columns, lines)
    note(f"gap temperature, fitted on the held-out pairs: {temperature:.3f}")
    note(
        f"loss {result.first_loss:.3f} -> {result.last_loss:.3f} in {result.steps} steps; saved in {config.run_folder}"
    )
    if report["accuracy_low"] <= 0.5:
        warn("not shown to be better than a coin on the held-out pairs: RL and the stop rule have little to go by")
    show_scored(held_out[:SHOWN], scores_N4[:SHOWN], temperature)
    next_command("pit rl --curriculum")


class PairMicroBatch(NamedTuple):
    """pairs: those of the whole step, which normalise the loss."""

    batch: Batch
    pairs: int


def gap_task(model: RoleModel, trees: Sequence[Tree], config: RewardConfig) -> Task:
    """The gap loss over the four orderings of each pair, the mean over the pairs of a step."""

    def build(chunks: Sequence[Sequence[int]]) -> StepBatch:
        pairs = sum(map(len, chunks))
        batches = [tree_batch(model, [trees[row] for row in chunk]) for chunk in chunks]
        return StepBatch([PairMicroBatch(batch, pairs) for batch in batches], {"padding_share": padding_share(batches)})

    def loss(micro_batch: PairMicroBatch) -> tuple[Tensor, dict[str, float]]:
        scores_B4 = scores(model, micro_batch.batch).view(-1, 4)
        share = len(scores_B4) / micro_batch.pairs
        correct = (scores_B4[:, 0] > scores_B4[:, 3]).float().sum() / micro_batch.pairs
        return gap_loss(config.gap_loss, scores_B4) * share, {"accuracy": float(correct.detach())}

    lengths = [tokens_read(model, tree) for tree in trees]
    rows = PlannedRows(lengths, max(1, config.micro_batch_size // len(ORDERINGS)), build)
    return task_over_rows(GAP, rows, loss, config, model.device)


def score_pairs(model: RoleModel, chat: ChatFormat, pairs: Sequence[PreferencePair], config: RewardConfig) -> Tensor:
    """r_gap of the orderings (w,l), (w,w), (l,l), (l,w) of each pair, shape (N, 4)."""
    trees = [ordered_tree(pair, chat) for pair in pairs]
    scores_N4 = map_over_ranks(trees, lambda part: score_trees(model, part, config.micro_batch_size), model.sharded)
    return torch.stack([*scores_N4])


def pair_gaps(scores_N4: Tensor) -> np.ndarray:
    """The symmetrised gap of chosen over rejected, shape (N,)."""
    return symmetrised_gap(scores_N4[:, 0].double(), scores_N4[:, 3].double()).numpy()


def gap_report(scores_N4: Tensor, pairs: Sequence[PreferencePair], temperature: float) -> dict[str, float]:
    """Figures of a gap model on pairs that it was not trained on.

    scores_N4: r_gap of the orderings (w,l), (w,w), (l,l), (l,w). accuracy: how often the symmetrised gap ranks
    the pair as its label does, with a 95% Wilson interval; swap_residual: mean |r(a,b) + r(b,a)|;
    swap_flip_rate: how often the raw r_gap names another winner when the responses swap places;
    length_correlation: of the gap with the length difference in words, about zero;
    log_loss: of the labels under sigmoid(gap / temperature).
    """
    r_wl, r_lw = scores_N4[:, 0].double(), scores_N4[:, 3].double()
    gaps_N = pair_gaps(scores_N4)
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
        "log_loss": float(np.mean(np.logaddexp(0, -gaps_N / temperature))),
    }


def wilson_interval(share: float, count: int, z: float = 1.96) -> tuple[float, float]:
    """Wilson's 95% interval of a share seen in `count` trials."""
    centre = share + z * z / (2 * count)
    reach = z * ((share * (1 - share) + z * z / (4 * count)) / count) ** 0.5
    return (centre - reach) / (1 + z * z / count), (centre + reach) / (1 + z * z / count)


def show_scored(pairs: Sequence[PreferencePair], scores_N4: Tensor, temperature: float) -> None:
    """A few held-out pairs with what the gap model says of them."""
    rows = []
    for pair, scores_4 in zip(pairs, scores_N4, strict=True):
        gap = float(symmetrised_gap(scores_4[0], scores_4[3]))
        rows.append((pair.prompt[-1].content, pair.rejected, f"[P {p_better(gap, temperature):.2f}] {pair.chosen}"))
    samples(rows)

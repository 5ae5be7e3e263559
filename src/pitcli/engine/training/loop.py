"""The optimisation loop of the trainings, which differ only in their batches and their loss."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from accelerate.utils import set_seed
from torch import Tensor, nn

from pitcli.engine.models.precision import autocast
from pitcli.engine.models.roles import RoleModel, fingerprint
from pitcli.engine.training.checkpoints import (
    Position,
    Snapshot,
    keep_best,
    restore,
    save,
    save_interrupted,
    snapshot_of,
)
from pitcli.engine.training.schedule import member_seed, micro_batch_rows, planned_steps, stage_of
from pitcli.equations import learning_rate_factor
from pitcli.errors import RunError
from pitcli.panel import training_panel
from pitcli.processes.collectives import RankLost, all_reduce_gradients, all_reduce_metrics
from pitcli.processes.ranks import rank, world_size
from pitcli.runs.folder import RunFolder
from pitcli.runs.metrics import last_step, read_metrics
from pitcli.runs.tracking import tracking
from pitcli.settings.base import OptimSettings

# the metrics in the training panel, if the task has them
WATCHED = (
    *("loss", "accuracy", "reward_margin", "reward", "gap", "p_better", "kl", "entropy", "truncated_share"),
    *("copy_rate", "zero_spread_share", "length_ratio", "grad_norm"),
)

TRAINING_PASSES = 3  # forward and backward together cost about three forward passes
TOKEN_SECONDS = 0.01  # lower bound for sampling one token per response of a batch

Loss = Callable[[Any], tuple[Tensor, dict[str, float]]]


class StepBatch(NamedTuple):
    """The micro-batches of a step, each with a field `batch`, and the metrics of all of them together."""

    micro_batches: Sequence[Any]
    metrics: dict[str, float]


class RolloutCost(NamedTuple):
    """What rollouts cost beyond the training passes: sampling, and forward passes for gaps and KL.

    new_tokens: per response. together: responses sampled together. forward_tokens: read by forward passes only, in all
    rollouts.
    """

    rollouts: int
    new_tokens: int
    together: int
    forward_tokens: float

    def seconds(self, per_token: float) -> float:
        """Return the seconds of all rollouts. per_token: seconds of one token, forward and backward."""
        forward = per_token / TRAINING_PASSES
        sampling = self.new_tokens * max(TOKEN_SECONDS, self.together * forward)
        return self.rollouts * sampling + self.forward_tokens * forward


class PlannedRows(NamedTuple):
    """The rows of a task, known before training starts: what a dry run measures.

    lengths: tokens that each row adds to a step. at_once: most rows per micro-batch. build(chunks): makes the
    micro-batches of these rows. For RL a row is a prompt whose samples all have the maximum length: share is the part
    of a row that is in one micro-batch, rollout_cost what the rollouts cost beyond that.
    """

    lengths: Sequence[int]
    at_once: int
    build: Callable[[Sequence[Sequence[int]]], StepBatch]
    share: float = 1.0
    rollout_cost: RolloutCost | None = None


class Task(NamedTuple):
    """What to optimise.

    phases: the number of steps of each phase; in each the learning rate warms up and decays by itself. phase_roles: the
    role that each phase trains, if not `role` in all.

    batch(index): the data of the steps from index * steps_per_batch on. It depends only on the index, the seed and the
    weights, so that a resumed run sees the same batches as an uninterrupted one. It is the same on every rank; rank r
    of N trains on the micro-batches r, r + N, r + 2N ...

    loss(micro_batch): returns (loss, metrics), both already divided by the whole step's normaliser, so that they add up
    over its micro-batches.

    runaway(metrics): a text that names the metric beyond its limit, or None. After `patience` such steps in a row the
    run stops and keeps the checkpoint with the best `score` metric (early stopping). Scores of two phases are not
    compared: in RL the reward is over reference responses that are harder to beat in each.
    """

    role: str
    phases: Sequence[int]
    batch: Callable[[int], StepBatch]
    loss: Loss
    planned_rows: Callable[[], PlannedRows]
    steps_per_batch: int = 1  # checkpoints are written only between batches
    runaway: Callable[[dict[str, float]], str | None] = lambda metrics: None
    patience: int = 1
    score: str = "loss"
    rates: Mapping[str, float] = {}  # multiples of the learning rate, by the names of parameters
    phase_roles: Sequence[str] = ()

    @property
    def total_steps(self) -> int:
        return sum(self.phases)

    @property
    def roles(self) -> Sequence[str]:
        return self.phase_roles or (self.role,)

    def role_at(self, step: int) -> str:
        return self.phase_roles[stage_of(step, self.phases)[0]] if self.phase_roles else self.role


def task_over_rows(
    roles: Sequence[str], rows: PlannedRows, loss: Loss, config: OptimSettings, device: torch.device
) -> Task:
    """Return a task over shuffled epochs of the rows, one batch per step; the roles are trained one after another.

    Each role sees the rows in its own order.
    """
    phases = [planned_steps(len(rows.lengths), config)] * len(roles)

    def batch(index: int) -> StepBatch:
        member, step = stage_of(index, phases)
        seeded = config.model_copy(update={"seed": member_seed(config.seed, member)})
        built = rows.build(micro_batch_rows(step, rows.lengths, seeded, rows.at_once, device))
        return built._replace(metrics={**built.metrics, "member": member + 1.0}) if roles[1:] else built

    return Task(roles[0], phases, batch, loss, planned_rows=lambda: rows, phase_roles=roles)


class TrainResult(NamedTuple):
    """How training ended. stopped: why it stopped early, or None."""

    steps: int
    first_loss: float
    last_loss: float
    stopped: str | None


class _Training(NamedTuple):
    """What every step needs."""

    model: RoleModel
    task: Task
    config: OptimSettings
    optimizer: torch.optim.Optimizer
    parameters: dict[str, Tensor]


def step_seed(seed: int, step: int, purpose: int = 0) -> int:
    """Return a seed for a step and a purpose (0 to 2), so that checkpoints need no random state."""
    return (seed * 1_000_003 + 4 * step + purpose) % 2**32


def train(model: RoleModel, task: Task, config: OptimSettings, run: RunFolder) -> TrainResult:
    """Optimise the task's roles with AdamW to the last step; with --resume, from the newest valid checkpoint.

    Raises RunError if a metric is not finite, or if the first step changes the base or leaves the role unchanged.
    """
    if config.gradient_checkpointing:
        model.recompute_layers()
    if config.shard_base:
        model.shard_base()
    assert config.learning_rate is not None  # see with_learning_rate
    parameters = {name: p for role in task.roles for name, p in model.role_parameters(role).items()}
    rates = {name: task.rates.get(name, 1.0) for name in parameters}
    groups = [
        {"params": [parameters[name] for name in parameters if rates[name] == rate], "rate": rate}
        for rate in sorted(set(rates.values()))
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=0.0)
    with model.role(task.role, train=True):
        return _train(_Training(model, task, config, optimizer, parameters), run)


def _train(training: _Training, run: RunFolder) -> TrainResult:
    model, task, config, optimizer, parameters = training
    sent = last_step(run.path)
    started = position = restore(run, parameters, optimizer, config.resume)
    base_before, role_before = fingerprint(model.base_tensors()), fingerprint(parameters.values())
    snapshot: Snapshot | None = None
    stopped: str | None = None
    batch = StepBatch([], {})
    rows = read_metrics(run.path)
    try:
        with (
            tracking(config.track, model.device.type, run, rows, sent) as track,
            training_panel(
                f"training {task.role}", task.total_steps, names=WATCHED, rows=rows, per_step=config.batch_size
            ) as show,
        ):
            while position.step < task.total_steps and stopped is None:
                set_seed(step_seed(config.seed, position.step))
                model.use(task.role_at(position.step), train=True)
                if position.step % task.steps_per_batch == 0:
                    with autocast(model.base):
                        batch = task.batch(position.step // task.steps_per_batch)
                metrics = _one_step(training, batch, position.step)
                if position.step == started.step:
                    _check_what_changed(metrics, model, parameters, base_before, role_before)
                position = _advance(position, metrics, task)
                run.log(position.step, metrics)
                track(position.step, metrics)
                show(metrics)
                stopped = task.runaway(metrics) if position.beyond >= task.patience else None
                if position.step % task.steps_per_batch == 0:
                    snapshot = snapshot_of(position, parameters, optimizer)
                    if position.step % config.save_every < task.steps_per_batch and stopped is None:
                        position = save(run, snapshot)
    except (KeyboardInterrupt, SystemExit, RankLost):  # Ctrl-C or SIGTERM; a second one aborts the save without damage
        save_interrupted(run, snapshot)
        raise
    if stopped:
        keep_best(run, parameters, position, stopped)
    return TrainResult(position.step, position.first_loss, position.last_loss, stopped)


def _one_step(training: _Training, batch: StepBatch, step: int) -> dict[str, float]:
    """Accumulate the gradients of all micro-batches, check them, update once; return the step's metrics."""
    model, task, config, optimizer, parameters = training
    phase, within = stage_of(step, task.phases)
    rate = optimizer.defaults["lr"] * learning_rate_factor(within, task.phases[phase], config.warmup_share)
    sums: dict[str, float] = {"loss": 0.0}
    own = batch.micro_batches[rank() :: world_size()]
    for micro_batch in own:
        with autocast(model.base):
            loss, values = task.loss(micro_batch)
        loss.backward()
        for name, value in {"loss": float(loss.detach()), **values}.items():
            sums[name] = sums.get(name, 0.0) + value
    if model.sharded and len(own) * world_size() < len(batch.micro_batches):  # another rank has one more pass
        with autocast(model.base):
            idle, _ = task.loss(batch.micro_batches[-1])
        (0 * idle).backward()
    trained = [parameter for parameter in parameters.values() if parameter.requires_grad]  # those of the role in use
    all_reduce_gradients(trained)
    sums = all_reduce_metrics(sums)
    norm = float(nn.utils.clip_grad_norm_(trained, config.max_grad_norm))
    metrics = {"loss": sums.pop("loss"), **batch.metrics, **sums, "grad_norm": norm}
    if wrong := [name for name, value in metrics.items() if not math.isfinite(value)]:
        raise RunError(
            f"step {step + 1}: {', '.join(wrong)} not finite; the step was discarded; use --resume to "
            "try it again, or if it fails again, start over with --overwrite and a smaller --learning-rate"
        )
    for group in optimizer.param_groups:
        group["lr"] = rate * group["rate"]
    optimizer.step()
    optimizer.zero_grad()
    return {**metrics, "learning_rate": rate}


def _advance(position: Position, metrics: dict[str, float], task: Task) -> Position:
    """Return the position after one more step."""
    sign = -1 if task.score == "loss" else 1
    if position.step and stage_of(position.step, task.phases)[1] == 0:  # the best step stays until its first checkpoint
        position = position._replace(best_score=-math.inf, score_sum=0.0, score_count=0)
    return position._replace(
        step=position.step + 1,
        first_loss=metrics["loss"] if position.step == 0 else position.first_loss,
        last_loss=metrics["loss"],
        score_sum=position.score_sum + sign * metrics[task.score],
        score_count=position.score_count + 1,
        beyond=position.beyond + 1 if task.runaway(metrics) else 0,
    )


def _check_what_changed(
    metrics: dict[str, float], model: RoleModel, parameters: dict[str, Tensor], base_before: int, role_before: int
) -> None:
    """Check after the first step that the base is unchanged and that the role changed if it had a gradient."""
    if fingerprint(model.base_tensors()) != base_before:
        raise RunError("the first step changed the base model, which must stay frozen; nothing was saved")
    if metrics["grad_norm"] > 0 and fingerprint(parameters.values()) == role_before:
        raise RunError("the first step had a gradient but changed no parameter; use a larger --learning-rate")

"""The one optimisation loop: sft, reward and rl differ in their batches and their loss alone."""

import json
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file
from torch import Tensor, nn

from pitcli.console import note, training_panel, warn
from pitcli.engine.models.loading import autocast
from pitcli.engine.models.roles import RoleModel, fingerprint, write_tensors
from pitcli.equations import learning_rate_factor
from pitcli.errors import RunError
from pitcli.processes.collectives import OthersLost, sum_gradients, sum_metrics, wait
from pitcli.processes.ranks import process_count, process_index
from pitcli.runs.folder import TRACKERS, RunFolder
from pitcli.runs.metrics import last_step, read_metrics
from pitcli.runs.tracking import tracking
from pitcli.settings.base import OptimSettings, Tracker

PARAMETERS = "parameters.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"
# what a person watches, where the task has it
WATCHED = (
    *("loss", "accuracy", "reward", "gap", "p_better", "kl", "entropy", "truncated_share", "copy_rate"),
    *("zero_spread_share", "length_ratio", "grad_norm"),
)


class Task(NamedTuple):
    """What to optimise.

    micro_batches(step): the micro-batches of a step, a function of the step, the seed and the weights alone, so
    that a resumed run sees what an uninterrupted one does. They are the same in every process, each of which takes
    every Nth of them.
    loss(micro_batch): (loss, metrics); both are already divided by the whole step's normaliser, so that they
    add up over its micro-batches.
    runaway(metrics): what is beyond its limit at this step, or None. After `patience` such steps in a row the run
    stops and keeps the checkpoint of the best `score` metric.
    """

    role: str
    total_steps: int
    micro_batches: Callable[[int], Sequence[Any]]
    loss: Callable[[Any], tuple[Tensor, dict[str, float]]]
    runaway: Callable[[dict[str, float]], str | None] = lambda metrics: None
    patience: int = 1
    score: str = "loss"
    checkpoint_multiple: int = 1  # checkpoints only after steps that this divides


class TrainResult(NamedTuple):
    steps: int
    first_loss: float
    last_loss: float
    stopped: str | None


class _Position(NamedTuple):
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    first_loss: float = math.nan
    last_loss: float = math.nan
    best_score: float = -math.inf
    best_step: int | None = None
    score_sum: float = 0.0  # since the last checkpoint
    score_count: int = 0
    beyond: int = 0  # steps in a row at which the task was running away


class _Snapshot(NamedTuple):
    """All that a checkpoint holds, copied between two updates."""

    position: _Position
    parameters: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def step_seed(seed: int, step: int, purpose: int = 0) -> int:
    """One seed for each step and purpose (0 to 3), so that no random state has to be saved."""
    return (seed * 1_000_003 + 4 * step + purpose) % 2**32


def make_accelerator(model: RoleModel, trackers: Sequence[Tracker], folder: Path) -> Accelerator:
    log_with = [tracker.value for tracker in trackers] or None
    on_cpu = model.device.type == "cpu"
    return Accelerator(mixed_precision="no", cpu=on_cpu, log_with=log_with, project_dir=folder)


def train(model: RoleModel, task: Task, config: OptimSettings, run: RunFolder) -> TrainResult:
    """Optimise one role's parameters with AdamW from where the run folder stands to the last step."""
    accelerator = make_accelerator(model, config.track, run.path / TRACKERS)
    if config.gradient_checkpointing:
        model.recompute_layers()
    if config.shard_base:
        model.shard_base()
    model.use(task.role, train=True)
    parameters = model.role_parameters(task.role)
    optimizer = torch.optim.AdamW(parameters.values(), lr=config.learning_rate, weight_decay=0.0)
    sent = last_step(run.path)
    started = position = _restore(run, parameters, optimizer, config.resume)
    base_before, role_before = fingerprint(model.base_tensors()), fingerprint(parameters.values())
    snapshot: _Snapshot | None = None
    stopped: str | None = None
    rows = read_metrics(run.path)
    try:
        with (
            tracking(accelerator, run, rows, sent) as track,
            training_panel(f"training {task.role}", task.total_steps, WATCHED, rows, config.batch_size) as show,
        ):
            while position.step < task.total_steps and stopped is None:
                set_seed(step_seed(config.seed, position.step))
                factor = learning_rate_factor(position.step, task.total_steps, config.warmup_share)
                for group in optimizer.param_groups:
                    group["lr"] = config.learning_rate * factor
                metrics = _one_step(model, task, config, accelerator, optimizer, parameters, position.step)
                if position.step == started.step:
                    _check_what_moved(metrics, model, parameters, base_before, role_before)
                position = _advance(position, metrics, task)
                values = {**metrics, "learning_rate": config.learning_rate * factor}
                run.log(position.step, values)
                track(position.step, values)
                show(values)
                stopped = task.runaway(metrics) if position.beyond >= task.patience else None
                if position.step % task.checkpoint_multiple == 0:
                    snapshot = _snapshot(position, parameters, optimizer)
                    if position.step % config.save_every < task.checkpoint_multiple and stopped is None:
                        position = _save(run, snapshot)
    except (KeyboardInterrupt, SystemExit, OthersLost):  # Ctrl-C, SIGTERM; a second one ends the save, without damage
        _save_interrupted(run, snapshot)
        raise
    if stopped:
        _keep_best(run, parameters, position, stopped)
    return TrainResult(position.step, position.first_loss, position.last_loss, stopped)


def _check_what_moved(
    metrics: dict[str, float], model: RoleModel, parameters: dict[str, Tensor], base_before: int, role_before: int
) -> None:
    """After the first step: the role's parameters moved, unless there was no gradient, and the base did not."""
    if fingerprint(model.base_tensors()) != base_before:
        raise RunError("the first step changed the base model, which must stay as it is; nothing was saved")
    if metrics["grad_norm"] > 0 and fingerprint(parameters.values()) == role_before:
        raise RunError("the first step had a gradient and changed no parameter; is --learning-rate far too small?")


def finish(model: RoleModel, run: RunFolder, roles: Sequence[str], results: dict[str, Any]) -> None:
    """Publish the adapters of a run and complete its manifest.

    Each adapter is read back from its files, and must then be what it was to the last bit.
    """
    probes = {}
    for role in roles:
        probes[role] = model.probe(role)
        before = fingerprint(model.role_parameters(role).values())
        run.publish(role, partial(model.save_role, role))
        wait()
        model.clear_role(role)
        model.read_role(role, run.path / role)
        if fingerprint(model.role_parameters(role).values()) != before:
            raise RunError(f"{run.path / role}: the saved adapter is not the one that was trained")
    run.complete(results, roles, probes)
    wait()


def _one_step(
    model: RoleModel,
    task: Task,
    config: OptimSettings,
    accelerator: Accelerator,
    optimizer: torch.optim.Optimizer,
    parameters: dict[str, Tensor],
    step: int,
) -> dict[str, float]:
    """Gradients of all micro-batches, a finite check, one update; the step's metrics."""
    metrics: dict[str, float] = {}
    with autocast(model.device):
        micro_batches = task.micro_batches(step)
    model.use(task.role, train=True)
    mine = micro_batches[process_index() :: process_count()]
    for micro_batch in mine:
        with autocast(model.device):
            loss, values = task.loss(micro_batch)
        accelerator.backward(loss)
        for name, value in {"loss": float(loss.detach()), **values}.items():
            metrics[name] = metrics.get(name, 0.0) + value
    if model.sharded and len(mine) * process_count() < len(micro_batches):  # another process has one more
        with autocast(model.device):
            idle, _ = task.loss(micro_batches[-1])
        accelerator.backward(0 * idle)
    sum_gradients(parameters.values())
    metrics = sum_metrics(metrics)
    norm = float(nn.utils.clip_grad_norm_(parameters.values(), config.max_grad_norm))
    metrics["grad_norm"] = norm
    if wrong := [name for name, value in metrics.items() if not math.isfinite(value)]:
        raise RunError(
            f"step {step + 1}: {', '.join(wrong)} not finite; nothing of this step was kept. "
            f"--resume tries it again; if it comes back, start anew with a smaller --learning-rate (--overwrite)"
        )
    optimizer.step()
    optimizer.zero_grad()
    return metrics


def _advance(position: _Position, metrics: dict[str, float], task: Task) -> _Position:
    sign = -1 if task.score == "loss" else 1
    return position._replace(
        step=position.step + 1,
        first_loss=metrics["loss"] if position.step == 0 else position.first_loss,
        last_loss=metrics["loss"],
        score_sum=position.score_sum + sign * metrics[task.score],
        score_count=position.score_count + 1,
        beyond=position.beyond + 1 if task.runaway(metrics) else 0,
    )


def _snapshot(position: _Position, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> _Snapshot:
    moments = {
        f"{name}|{key}": value.detach().clone()
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }
    return _Snapshot(position, {name: p.detach().clone() for name, p in parameters.items()}, moments)


def _save(run: RunFolder, snapshot: _Snapshot) -> _Position:
    """Publish a checkpoint; the position with the scores since the last one accounted for."""
    position = snapshot.position
    score = position.score_sum / position.score_count
    if score > position.best_score:
        position = position._replace(best_score=score, best_step=position.step)
    position = position._replace(score_sum=0.0, score_count=0)

    def write(folder: Path) -> None:
        for name, tensors in ((PARAMETERS, snapshot.parameters), (OPTIMIZER, snapshot.optimizer)):
            write_tensors(folder / name, tensors)
            read = load_file(folder / name)
            if not all(torch.equal(tensor.cpu(), read[key]) for key, tensor in tensors.items()):
                raise RunError(f"{folder / name}: what was read back is not what was written")
        (folder / STATE).write_text(json.dumps(position._asdict()))

    run.save_checkpoint(position.step, write, keep=position.best_step)
    return position


def _save_interrupted(run: RunFolder, snapshot: _Snapshot | None) -> None:
    """What was reached since the last checkpoint; a rollout that was not used up is taken again."""
    if snapshot is not None and not run.checkpoint(snapshot.position.step).exists():
        _save(run, snapshot)
        note(f"saved step {snapshot.position.step}; --resume goes on from there")


def _restore(
    run: RunFolder, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer, resume: bool
) -> _Position:
    folder = run.latest_checkpoint() if resume else None
    if folder is None:
        if resume:
            warn("no checkpoint yet; starting from the first step")
        run.cut_metrics(0)
        return _Position()
    position = _Position(**json.loads((folder / STATE).read_text()))
    _load_parameters(folder, parameters)
    for key, value in load_file(folder / OPTIMIZER).items():
        name, _, field = key.rpartition("|")
        parameter = parameters[name]
        optimizer.state[parameter][field] = value if field == "step" else value.to(parameter.device)
    run.cut_metrics(position.step)
    run.prune(position.best_step, position.step)  # what a kill between a save and its pruning left
    note(f"going on from step {position.step}")
    return position


def _load_parameters(folder: Path, parameters: dict[str, Tensor]) -> None:
    saved = load_file(folder / PARAMETERS)
    if saved.keys() != parameters.keys():
        raise RunError(f"{folder}: its parameters are not those of this model")
    for name, parameter in parameters.items():
        parameter.data.copy_(saved[name])


def _keep_best(run: RunFolder, parameters: dict[str, Tensor], position: _Position, stopped: str) -> None:
    if position.best_step is None:
        raise RunError(f"{stopped} at step {position.step}, before the first checkpoint; lower --learning-rate")
    _load_parameters(run.checkpoint(position.best_step), parameters)
    warn(f"{stopped} at step {position.step}: stopped, keeping the best checkpoint, step {position.best_step}")

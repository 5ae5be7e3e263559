"""The one optimisation loop: sft, reward and rl differ in their batches and their loss alone."""

import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from accelerate.utils import set_seed
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from pitcli.config import OptimSettings
from pitcli.console import note, progress, warn
from pitcli.engine.equations import learning_rate_factor
from pitcli.engine.models import RoleModel, compute_dtype
from pitcli.engine.run_folder import RunFolder
from pitcli.errors import RunError

PARAMETERS = "parameters.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"


class Task(NamedTuple):
    """What to optimise.

    micro_batches(step): the micro-batches of a step, a function of the step, the seed and the weights alone, so
    that a resumed run sees what an uninterrupted one does.
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


class _Progress(NamedTuple):
    """Where a run stands; saved with every checkpoint."""

    step: int = 0
    first_loss: float = math.nan
    best_score: float = -math.inf
    best_step: int | None = None
    score_sum: float = 0.0  # since the last checkpoint
    score_count: int = 0
    beyond: int = 0  # steps in a row at which the task was running away


def step_seed(seed: int, step: int, purpose: int = 0) -> int:
    """One seed for each step and purpose (0 to 3), so that no random state has to be saved."""
    return (seed * 1_000_003 + 4 * step + purpose) % 2**32


def make_accelerator(model: RoleModel) -> Accelerator:
    mixed = "bf16" if compute_dtype(model.device) is torch.bfloat16 else "no"
    return Accelerator(mixed_precision=mixed, cpu=model.device.type == "cpu")


def train(model: RoleModel, task: Task, config: OptimSettings, run: RunFolder) -> TrainResult:
    """Optimise one role's parameters with AdamW from where the run folder stands to the last step."""
    accelerator = make_accelerator(model)
    model.use(task.role, train=True)
    parameters = model.role_parameters(task.role)
    optimizer = torch.optim.AdamW(parameters.values(), lr=config.learning_rate, weight_decay=0.0)
    position = _restore(run, parameters, optimizer, config.resume)
    metrics: dict[str, float] = {}
    stopped = None
    with progress(f"training {task.role}", task.total_steps) as advance:
        advance(position.step)
        while position.step < task.total_steps and stopped is None:
            set_seed(step_seed(config.seed, position.step))
            factor = learning_rate_factor(position.step, task.total_steps, config.warmup_share)
            for group in optimizer.param_groups:
                group["lr"] = config.learning_rate * factor
            metrics = _one_step(model, task, config, accelerator, optimizer, parameters, position.step)
            position = _advance(position, metrics, task)
            run.log(position.step, {**metrics, "learning_rate": config.learning_rate * factor})
            advance(loss=metrics["loss"], **_shown(metrics))
            stopped = task.runaway(metrics) if position.beyond >= task.patience else None
            due = position.step % config.save_every < task.checkpoint_multiple
            if position.step % task.checkpoint_multiple == 0 and due and stopped is None:
                position = _save(run, position, parameters, optimizer)
    if stopped:
        _keep_best(run, parameters, position, stopped)
    return TrainResult(position.step, position.first_loss, metrics.get("loss", math.nan), stopped)


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
    micro_batches = task.micro_batches(step)
    model.use(task.role, train=True)
    for micro_batch in micro_batches:
        with accelerator.autocast():
            loss, values = task.loss(micro_batch)
        accelerator.backward(loss)
        for name, value in {"loss": float(loss.detach()), **values}.items():
            metrics[name] = metrics.get(name, 0.0) + value
    norm = float(nn.utils.clip_grad_norm_(parameters.values(), config.max_grad_norm))
    metrics["grad_norm"] = norm
    if wrong := [name for name, value in metrics.items() if not math.isfinite(value)]:
        raise RunError(
            f"step {step + 1}: {', '.join(wrong)} not finite; nothing of this step was kept. "
            f"Try a smaller --learning-rate, then --resume from the last checkpoint"
        )
    optimizer.step()
    optimizer.zero_grad()
    return metrics


def _shown(metrics: dict[str, float]) -> dict[str, float]:
    return {name: metrics[name] for name in ("reward", "kl", "accuracy") if name in metrics}


def _advance(position: _Progress, metrics: dict[str, float], task: Task) -> _Progress:
    sign = -1 if task.score == "loss" else 1
    return position._replace(
        step=position.step + 1,
        first_loss=metrics["loss"] if position.step == 0 else position.first_loss,
        score_sum=position.score_sum + sign * metrics[task.score],
        score_count=position.score_count + 1,
        beyond=position.beyond + 1 if task.runaway(metrics) else 0,
    )


def _save(
    run: RunFolder, position: _Progress, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer
) -> _Progress:
    score = position.score_sum / position.score_count
    if score > position.best_score:
        position = position._replace(best_score=score, best_step=position.step)
    position = position._replace(score_sum=0.0, score_count=0)

    def write(folder: Path) -> None:
        save_file({name: p.detach().cpu().contiguous() for name, p in parameters.items()}, folder / PARAMETERS)
        save_file(_optimizer_tensors(parameters, optimizer), folder / OPTIMIZER)
        (folder / STATE).write_text(json.dumps(position._asdict()))

    run.save_checkpoint(position.step, write, keep=position.best_step)
    return position


def _optimizer_tensors(parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    return {
        f"{name}|{key}": value.detach().cpu().contiguous()
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }


def _restore(
    run: RunFolder, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer, resume: bool
) -> _Progress:
    folder = run.latest_checkpoint() if resume else None
    if folder is None:
        if resume:
            warn("no checkpoint yet; starting from the first step")
        run.cut_metrics(0)
        return _Progress()
    position = _Progress(**json.loads((folder / STATE).read_text()))
    _load_parameters(folder, parameters)
    for key, value in load_file(folder / OPTIMIZER).items():
        name, _, field = key.rpartition("|")
        parameter = parameters[name]
        optimizer.state[parameter][field] = value if field == "step" else value.to(parameter.device)
    run.cut_metrics(position.step)
    note(f"going on from step {position.step}")
    return position


def _load_parameters(folder: Path, parameters: dict[str, Tensor]) -> None:
    saved = load_file(folder / PARAMETERS)
    if saved.keys() != parameters.keys():
        raise RunError(f"{folder}: its parameters are not those of this model")
    for name, parameter in parameters.items():
        parameter.data.copy_(saved[name])


def _keep_best(run: RunFolder, parameters: dict[str, Tensor], position: _Progress, stopped: str) -> None:
    if position.best_step is None:
        raise RunError(f"{stopped} at step {position.step}, before the first checkpoint; lower --learning-rate")
    _load_parameters(run.checkpoint(position.best_step), parameters)
    warn(f"{stopped} at step {position.step}: stopped, keeping the best checkpoint, step {position.best_step}")

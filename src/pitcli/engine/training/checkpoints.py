"""Checkpoints of a training run: its position, the trained parameters and the optimiser state."""

import json
import math
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file
from torch import Tensor

from pitcli.console import note, warn
from pitcli.engine.models.adapters import write_tensors
from pitcli.errors import RunError
from pitcli.runs.folder import RunFolder

PARAMETERS = "parameters.safetensors"
OPTIMIZER = "optimizer.safetensors"
STATE = "state.json"


class Position(NamedTuple):
    """How far a run has come. Losses and scores are those of whole steps."""

    step: int = 0
    first_loss: float = math.nan
    last_loss: float = math.nan
    best_score: float = -math.inf
    best_step: int | None = None
    score_sum: float = 0.0  # over the steps since the last checkpoint
    score_count: int = 0
    beyond: int = 0  # consecutive steps at which the task was running away


class Snapshot(NamedTuple):
    """The contents of a checkpoint, copied between two updates. The keys of `optimizer` are parameter|field."""

    position: Position
    parameters: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def snapshot_of(position: Position, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> Snapshot:
    """Copy the parameters and the optimiser state."""
    state = {
        f"{name}|{key}": value.detach().clone()
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }
    return Snapshot(position, {name: p.detach().clone() for name, p in parameters.items()}, state)


def save(run: RunFolder, snapshot: Snapshot) -> Position:
    """Publish a checkpoint and return its position, with the best score updated and the score sums reset.

    Raises RunError if a file does not read back as it was written.
    """
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
                raise RunError(f"{folder / name}: the file does not read back as it was written; check the disk")
        (folder / STATE).write_text(json.dumps(position._asdict()))

    run.save_checkpoint(position.step, write, keep=position.best_step)
    return position


def save_interrupted(run: RunFolder, snapshot: Snapshot | None) -> None:
    """Save the last snapshot if it has no checkpoint yet; an unfinished rollout is sampled again on --resume."""
    if snapshot is None:
        note("interrupted before the end of the first step or rollout; nothing new to save")
    elif not run.checkpoint(snapshot.position.step).exists():
        save(run, snapshot)
        note(f"saved step {snapshot.position.step}; use --resume to continue from there")


def restore(run: RunFolder, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer, resume: bool) -> Position:
    """Load the newest valid checkpoint if `resume`; return its position, or that of the first step if there is none."""
    folder = run.latest_checkpoint() if resume else None
    if folder is None:
        if resume:
            warn("no checkpoint yet; starting from the first step")
        run.cut_metrics(0)
        return Position()
    position = Position(**json.loads((folder / STATE).read_text()))
    load_parameters(folder, parameters)
    for key, value in load_file(folder / OPTIMIZER).items():
        name, _, field = key.rpartition("|")
        parameter = parameters[name]
        optimizer.state[parameter][field] = value if field == "step" else value.to(parameter.device)
    run.cut_metrics(position.step)
    run.prune(position.best_step, position.step)  # left over if the process was killed between a save and its pruning
    note(f"resuming from step {position.step}")
    return position


def load_parameters(folder: Path, parameters: dict[str, Tensor]) -> None:
    """Load the trained parameters of a checkpoint; RunError if it is of another model."""
    saved = load_file(folder / PARAMETERS)
    if saved.keys() != parameters.keys():
        raise RunError(f"{folder}: the checkpoint has other parameters than this model")
    for name, parameter in parameters.items():
        parameter.data.copy_(saved[name])


def keep_best(run: RunFolder, parameters: dict[str, Tensor], position: Position, stopped: str) -> None:
    """Load the parameters of the best checkpoint; RunError if there is none. stopped: why the run stopped."""
    if position.best_step is None:
        raise RunError(f"{stopped} at step {position.step}, before the first checkpoint; use a smaller --learning-rate")
    load_parameters(run.checkpoint(position.best_step), parameters)
    warn(f"{stopped} at step {position.step}; early stopping, kept the best checkpoint, step {position.best_step}")

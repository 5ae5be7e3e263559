"""What a checkpoint of a training holds: its position, the trained parameters and the optimiser's moments."""

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
    """How far a run has come; saved with every checkpoint."""

    step: int = 0
    first_loss: float = math.nan
    last_loss: float = math.nan
    best_score: float = -math.inf
    best_step: int | None = None
    score_sum: float = 0.0  # since the last checkpoint
    score_count: int = 0
    beyond: int = 0  # steps in a row at which the task was running away


class Snapshot(NamedTuple):
    """All that a checkpoint holds, copied between two updates."""

    position: Position
    parameters: dict[str, Tensor]
    optimizer: dict[str, Tensor]


def snapshot_of(position: Position, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer) -> Snapshot:
    moments = {
        f"{name}|{key}": value.detach().clone()
        for name, parameter in parameters.items()
        for key, value in optimizer.state[parameter].items()
    }
    return Snapshot(position, {name: p.detach().clone() for name, p in parameters.items()}, moments)


def save(run: RunFolder, snapshot: Snapshot) -> Position:
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


def save_interrupted(run: RunFolder, snapshot: Snapshot | None) -> None:
    """What was reached since the last checkpoint; a rollout that was not used up is taken again."""
    if snapshot is not None and not run.checkpoint(snapshot.position.step).exists():
        save(run, snapshot)
        note(f"saved step {snapshot.position.step}; --resume goes on from there")


def restore(run: RunFolder, parameters: dict[str, Tensor], optimizer: torch.optim.Optimizer, resume: bool) -> Position:
    """The position of the newest valid checkpoint, with its tensors loaded; the first step if there is none."""
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
    run.prune(position.best_step, position.step)  # what a kill between a save and its pruning left
    note(f"going on from step {position.step}")
    return position


def load_parameters(folder: Path, parameters: dict[str, Tensor]) -> None:
    saved = load_file(folder / PARAMETERS)
    if saved.keys() != parameters.keys():
        raise RunError(f"{folder}: its parameters are not those of this model")
    for name, parameter in parameters.items():
        parameter.data.copy_(saved[name])


def keep_best(run: RunFolder, parameters: dict[str, Tensor], position: Position, stopped: str) -> None:
    """Take the parameters of the best checkpoint; RunError if there is none."""
    if position.best_step is None:
        raise RunError(f"{stopped} at step {position.step}, before the first checkpoint; lower --learning-rate")
    load_parameters(run.checkpoint(position.best_step), parameters)
    warn(f"{stopped} at step {position.step}: stopped, keeping the best checkpoint, step {position.best_step}")

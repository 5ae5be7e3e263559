"""The end of a training run: refuses a diverged one, publishes its adapters, and completes its manifest."""

import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from pitcli.console import note, warn
from pitcli.engine.models.adapters import clear_role, read_role, save_role
from pitcli.engine.models.forward import probe
from pitcli.engine.models.roles import RoleModel, fingerprint
from pitcli.engine.training.loop import TrainResult
from pitcli.errors import RunError
from pitcli.processes.collectives import barrier, on_rank_0
from pitcli.runs.divergence import DIVERGED, divergence
from pitcli.runs.folder import RunFolder
from pitcli.runs.metrics import read_metrics
from pitcli.settings.base import Role
from pitcli.settings.default_runs import REWARD_FOLDER, SFT_FOLDER
from pitcli.settings.training import TrainingConfig


def rl_command(data: str, reward: Path | None = None, sft: Path | None = None) -> str:
    """The command that trains by RL on the runs just made. data: their pairs; the fold rl next to it has others."""
    words = ["pit rl --curriculum"]
    if (fold := Path(data).with_name("rl.jsonl")).is_file():
        words.append(f"--data {shlex.quote(str(fold))}")
    for flag, folder, usual in (("--reward", reward, REWARD_FOLDER), ("--sft", sft, SFT_FOLDER)):
        if folder and folder != Path(usual):
            words.append(f"{flag} {shlex.quote(str(folder))}")
    return " ".join(words)


def use_command(role: Role, folder: Path, how: str = "") -> str:
    """The command that uses a trained improver or policy. how: flags of pit improve."""
    run = shlex.quote(str(folder))
    if role is Role.improver:
        return f"pit improve --run {run} --input drafts.jsonl {how}"
    return f"pit sample --policy {run} --output drafts.jsonl < prompts.jsonl"


def divergence_of(run: RunFolder, result: TrainResult) -> str | None:
    """Return what shows in the metrics of a run that it diverged; the same on all ranks.

    A run that stopped early kept a checkpoint from before.
    """
    manifest = run.manifest
    if result.stopped:
        return None
    return on_rank_0(lambda: divergence(manifest.kind, manifest.config, read_metrics(run.path)))


def refuse_diverged(run: RunFolder, config: TrainingConfig, problem: str | None) -> dict[str, str]:
    """Return what to add to the results of a run. problem: what shows that it diverged, if anything.

    Raises RunError, and leaves the run unfinished, if it diverged; with --keep-diverged, warns.
    """
    if problem is None:
        return {}
    results = {DIVERGED: problem}
    if config.keep_diverged:
        warn(f"training diverged: {problem}; kept because of --keep-diverged")
        return results
    run.keep_unfinished(results)
    assert config.learning_rate is not None  # see with_learning_rate
    raise RunError(
        f"{run.path}: training diverged: {problem}; start over with --overwrite --learning-rate "
        f"{config.learning_rate / 10:g}, or keep this model with --resume --keep-diverged"
    )


def finish(model: RoleModel, run: RunFolder, roles: Sequence[str], results: dict[str, Any]) -> None:
    """Publish the adapters of a run and complete its manifest.

    Each adapter is read back from its files; RunError if it is not bit-identical to the trained one.
    """
    probes = {}
    for role in roles:
        probes[role] = probe(model, role)
        before = fingerprint(model.role_parameters(role).values())
        run.publish(role, partial(save_role, model, role))
        barrier()
        clear_role(model, role)
        read_role(model, role, run.path / role)
        if fingerprint(model.role_parameters(role).values()) != before:
            raise RunError(f"{run.path / role}: the saved adapter differs from the trained one; check the disk")
    run.complete(results, roles, probes)
    barrier()
    if model.device.type == "cuda":
        note(f"at most {torch.cuda.max_memory_allocated(model.device) / 2**30:.1f} GiB of GPU memory were allocated")

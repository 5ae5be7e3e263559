"""Starts a command by its name: stages do not import one another, and torch is imported only when work begins."""

import importlib

from pitcli import __version__
from pitcli.console import emit
from pitcli.errors import RunError, SettingsError, is_out_of_memory
from pitcli.processes.ranks import is_rank_0, world_size
from pitcli.runs.folder import refuse_busy
from pitcli.runs.tracking import refuse_missing
from pitcli.settings.base import Settings
from pitcli.settings.commands import COMMANDS, DISTRIBUTED
from pitcli.settings.flags import smaller_command
from pitcli.settings.training import TrainingConfig


def start(command: str, config: Settings) -> int:
    """Run one command and return its exit code.

    Whatever can be refused without torch is refused first, because importing torch takes seconds.
    """
    emit("start", command=command, pit=__version__)
    if world_size() > 1 and not COMMANDS[command].distributed:
        several = ", ".join(DISTRIBUTED)
        raise SettingsError(
            f"pit {command}: expected one process, got {world_size()}; only {several} can run as several processes "
            "(torchrun, accelerate launch)"
        )
    if isinstance(config, TrainingConfig):
        refuse_at_once(config)
    try:
        stage = importlib.import_module(f"pitcli.stages.{command.replace('-', '_')}")
        return stage.run(config) or 0
    except (MemoryError, RuntimeError) as error:
        if not (isinstance(config, TrainingConfig) and is_out_of_memory(error)):
            raise
        raise RunError(f"out of memory; this command needs less: {smaller_command(config)}") from error


def refuse_at_once(config: TrainingConfig) -> None:
    """Raise SettingsError or RunError if this training cannot begin on this machine or in its run folder."""
    refuse_missing(config.track)
    if config.shard_base and world_size() == 1:
        raise SettingsError("--shard-base: expected several processes, got one; use torchrun or accelerate launch")
    if is_rank_0():
        refuse_busy(config.run_folder)

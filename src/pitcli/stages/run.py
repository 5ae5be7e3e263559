"""pit run: runs the stages of a recipe in order; a finished stage is skipped unless its settings or inputs changed.

pipeline.json in the recipe's folder records for each stage what it was run with and what it wrote. A stage is skipped
if none of that has changed; it resumes if it did not finish; otherwise it runs again and replaces its output.
"""

import os
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import chdir, redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal, NamedTuple

from pitcli import __version__, console
from pitcli.errors import InputError, NothingToDo, PitError, RunError, SettingsError
from pitcli.processes.launch import launch
from pitcli.recipes.journal import Journal, Record, digest, existing_output, locked
from pitcli.recipes.paths import PlannedStage
from pitcli.recipes.planning import plan
from pitcli.settings.base import Settings
from pitcli.settings.commands import DISTRIBUTED
from pitcli.settings.flags import command_line
from pitcli.settings.tools import PipelineConfig
from pitcli.stages import start

SOME_ROWS_FAILED = 1
AGAIN = "run the same command again to resume"
STOPPED = f"did not finish; {AGAIN}"


class Decision(NamedTuple):
    action: Literal["run", "resume", "skip"]
    reason: str


def run(config: PipelineConfig) -> int:
    """Run the stages that need it; return 1 if some rows failed, or the exit code of the stage that failed, or 0."""
    out, stages, processes = plan(config)
    if config.dry_run:
        with TemporaryDirectory() as empty, chdir(out if out.is_dir() else empty):
            show(stages, Journal())
        return 0
    out.mkdir(parents=True, exist_ok=True)
    with chdir(out), locked(out):
        console.note(f"the recipe's folder is {out}")
        return run_stages(stages, Journal(), processes)


def start_command(command: str, settings: Settings, processes: int) -> int:
    """Start a command in this process, or as several processes if the command supports that."""
    if processes == 1 or command not in DISTRIBUTED:
        return start(command, settings)
    line = command_line(command, settings, settings.model_fields_set)
    return launch(shlex.split(line)[1:], processes)


def refuse_foreign(stages: Sequence[PlannedStage], journal: Journal) -> None:
    """Raise SettingsError if a stage would replace what pit run did not make."""
    ours = {path for record in journal.records.values() for path in record.writes}
    problems = []
    for stage in stages:
        for path in stage.writes:
            exists = bool(os.listdir(path)) if os.path.isdir(path) else os.path.exists(path)
            if exists and (path not in ours or another_run(path, journal.records.get(path))):
                problems.append(
                    f"{stage.name}: {path} exists and pit run did not make it; move it, or name another output"
                )
    if problems:
        raise SettingsError(problems)


def another_run(path: str, record: Record | None) -> bool:
    """Whether the folder contains a complete run that is not the one that pit run finished there."""
    if record is None or record.outputs is None or not os.path.isdir(path):
        return False
    return digest(path) not in (None, record.outputs[path])


def show(stages: Sequence[PlannedStage], journal: Journal) -> None:
    """Show what would run, as far as that can be known without running it."""
    refuse_foreign(stages, journal)
    pending: dict[str, str] = {}
    for stage in stages:
        decision = decide(stage, journal, pending)
        announce(stage, decision)
        if decision.action != "skip":
            pending |= dict.fromkeys(stage.writes, stage.name)
    console.note("dry run: nothing was run")


def announce(stage: PlannedStage, decision: Decision) -> None:
    console.note(f"{stage.name}: {decision.action} ({decision.reason})")
    if decision.action != "skip":
        settings, names = settings_to_start(stage, decision)
        console.note(f"$ {command_line(stage.command, settings, names)}")


def run_stages(stages: Sequence[PlannedStage], journal: Journal, processes: int) -> int:
    refuse_foreign(stages, journal)
    rows = []
    for stage in stages:
        start = time.monotonic()
        decision = decide(stage, journal, {})
        announce(stage, decision)
        if decision.action != "skip" and (code := run_stage(stage, decision, journal, processes)):
            return code
        result = "skipped" if decision.action == "skip" else "ran"
        failed = ", some rows failed" if journal.records[stage.writes[0]].code else ""
        output = getattr(stage.config, "out", None) or stage.writes[0]
        rows.append([stage.name, result + failed, round(time.monotonic() - start, 1), str(output)])
    console.table("", ["stage", "result", "seconds", "output"], rows)
    return max(journal.records[stage.writes[0]].code for stage in stages)


def run_stage(stage: PlannedStage, decision: Decision, journal: Journal, processes: int) -> int:
    """Run a stage as its command does; record it before it begins and again when it has finished.

    Return 0 if it finished, even if some rows failed; otherwise return its exit code.
    """
    before = journal.of(stage)
    record = Record(
        command=stage.command,
        settings=stage.config.identity(),
        pit_version=__version__,
        inputs=journal.inputs(stage, fetch=True),
        writes=stage.writes,
        replaced=before.replaced if before and decision.action == "resume" else existing_output(stage),
    )
    settings, _ = settings_to_start(stage, decision)
    journal.save(stage, record)
    Path(stage.writes[0]).parent.mkdir(parents=True, exist_ok=True)
    try:
        with redirect_stdout(sys.stderr):  # the stdout of a stage is not output of pit run
            code = start_command(stage.command, settings, processes)
    except NothingToDo:  # the stage had finished, but pit run was stopped before recording that
        code = 0
    except (PitError, KeyboardInterrupt, SystemExit):
        console.note(f"{stage.name} {STOPPED}")
        raise
    if code > SOME_ROWS_FAILED:
        console.note(f"{stage.name} {STOPPED}")
        return code
    if code == SOME_ROWS_FAILED and has_no_rows(stage):
        raise InputError(f"{stage.name}: every row failed, so the recipe stops here; {AGAIN}")
    outputs = {path: digest(path) for path in stage.writes}
    if missing := [path for path, found in outputs.items() if found is None]:
        raise RunError(f"{stage.name}: finished without writing {', '.join(missing)}")
    asked_again = before is not None and before.outputs == outputs  # in vain
    journal.save(stage, record.model_copy(update={"outputs": outputs, "code": code, "asked_again": asked_again}))
    return 0


def has_no_rows(stage: PlannedStage) -> bool:
    output = Path(stage.writes[0])
    may_be_empty = getattr(stage.config, "only_changed", False)
    return output.is_file() and not output.stat().st_size and not may_be_empty


def settings_to_start(stage: PlannedStage, decision: Decision) -> tuple[Settings, list[str]]:
    """Return the settings that a stage is started with, and the names of those on its command line."""
    flag = "resume" if decision.action == "resume" else "overwrite"
    is_there = any(map(os.path.exists, stage.writes))
    if flag not in type(stage.config).model_fields or not is_there:
        return stage.config, [*stage.given]
    return stage.config.model_copy(update={flag: True}), [*stage.given, flag]


def decide(stage: PlannedStage, journal: Journal, pending: Mapping[str, str]) -> Decision:
    """Decide whether to run a stage. pending: outputs that earlier stages would make again, with the stages' names."""
    before = journal.of(stage)
    if before is None:
        return Decision("run", "not run yet")
    if reason := changed_settings(before, stage) or changed_inputs(before, stage, journal, pending):
        return Decision("run", reason)
    if before.outputs is None:
        can_resume = "resume" in type(stage.config).model_fields and existing_output(stage) not in (
            None,
            before.replaced,
        )
        return Decision("resume" if can_resume else "run", "did not finish")
    if lost := [path for path in stage.writes if digest(path) != before.outputs.get(path)]:
        return Decision("run", f"output missing or changed: {', '.join(lost)}")
    if before.code and asks_server(stage.config) and not before.asked_again:
        can_resume = "resume" in type(stage.config).model_fields
        return Decision("resume" if can_resume else "run", "a server did not answer some rows")
    return Decision("skip", "nothing changed")


def asks_server(config: Settings) -> bool:
    """Return whether a stage sends requests to an endpoint."""
    judges = getattr(config, "judge", None) or ()
    named = (judges,) if isinstance(judges, str) else judges
    is_endpoint = any(str(judge).startswith("openai:") for judge in named)
    return bool(is_endpoint or getattr(config, "writer", None) or getattr(config, "gap_url", None))


def changed_inputs(before: Record, stage: PlannedStage, journal: Journal, pending: Mapping[str, str]) -> str:
    if makers := dict.fromkeys(pending[path] for path in stage.reads if path in pending):
        return f"unless the output of {', '.join(makers)} stays the same"
    old, new = before.inputs, journal.inputs(stage)
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return f"input changed: {', '.join(changed)}" if changed else ""


def changed_settings(before: Record, stage: PlannedStage) -> str:
    old = {**before.settings, "command": before.command, "pit": before.pit_version, "writes": before.writes}
    new = {**stage.config.identity(), "command": stage.command, "pit": __version__, "writes": stage.writes}
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return ", ".join(f"{name} was {old.get(name)}, is {new.get(name)}" for name in changed)

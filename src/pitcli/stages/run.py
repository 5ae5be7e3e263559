"""pit run: the stages of a recipe in their order; what was done before, of the same inputs, is not done again.

pipeline.json in the recipe's folder says of each stage what it was run with and what came out. A stage is skipped where
all of that is as it was, goes on where it was stopped, and else runs again and replaces what it made.
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
from pitcli.errors import NothingToDo, PitError, RunError, SettingsError
from pitcli.processes.launch import launch
from pitcli.recipes.journal import Journal, Record, digest, existing_output, locked
from pitcli.recipes.planning import PlannedStage, plan
from pitcli.settings.base import Fact, Settings
from pitcli.settings.commands import DISTRIBUTED
from pitcli.settings.flags import command_line
from pitcli.settings.tools import PipelineConfig
from pitcli.stages import start

SOME_ROWS_FAILED = 1


class Decision(NamedTuple):
    action: Literal["run", "go on", "skip"]
    why: str


def run(config: PipelineConfig) -> int:
    """Run what has to be run; 1 if rows failed on the way, else the code of the stage that ended it."""
    out, stages, processes = plan(config)
    if config.dry_run:
        with TemporaryDirectory() as empty, chdir(out if out.is_dir() else empty):
            show(stages, Journal())
        return 0
    out.mkdir(parents=True, exist_ok=True)
    with chdir(out), locked(out):
        console.note(f"in {out}:")
        return run_stages(stages, Journal(), processes)


def carry_out(command: str, settings: Settings, processes: int) -> int:
    """Start a command: here, or as several processes if it can be that."""
    if processes == 1 or command not in DISTRIBUTED:
        return start(command, settings)
    line = command_line(command, settings, settings.model_fields_set)
    return launch(shlex.split(line)[1:], processes)


def refuse_foreign(stages: Sequence[PlannedStage], journal: Journal) -> None:
    """SettingsError where a stage would replace what pit run did not make."""
    ours = {path for record in journal.records.values() for path in record.writes}
    problems = []
    for stage in stages:
        for path in stage.writes:
            there = bool(os.listdir(path)) if os.path.isdir(path) else os.path.exists(path)
            if there and (path not in ours or another_run(path, journal.records.get(path))):
                problems.append(
                    f"{stage.name}: {path} is there, and pit run did not make it; move it, or write elsewhere"
                )
    if problems:
        raise SettingsError(problems)


def another_run(path: str, record: Record | None) -> bool:
    """Whether a whole run stands where pit run finished another."""
    if record is None or record.outputs is None or not os.path.isdir(path):
        return False
    return digest(path) not in (None, record.outputs[path])


def show(stages: Sequence[PlannedStage], journal: Journal) -> None:
    """What would be done, as far as it can be known before."""
    refuse_foreign(stages, journal)
    pending: dict[str, str] = {}
    for stage in stages:
        decision = decide(stage, journal, pending)
        announce(stage, decision)
        if decision.action != "skip":
            pending |= dict.fromkeys(stage.writes, stage.name)
    console.note("dry run: nothing was run")


def announce(stage: PlannedStage, decision: Decision) -> None:
    console.note(f"{stage.name}: {decision.action} ({decision.why})")
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
        if decision.action != "skip" and (code := run_one(stage, decision, journal, processes)):
            return code
        did = "skipped" if decision.action == "skip" else "ran"
        failed = ", some rows failed" if journal.records[stage.writes[0]].code else ""
        made = getattr(stage.config, "out", None) or stage.writes[0]
        rows.append([stage.name, did + failed, round(time.monotonic() - start, 1), str(made)])
    console.table("", ["stage", "", "seconds", "output"], rows)
    return max(journal.records[stage.writes[0]].code for stage in stages)


def run_one(stage: PlannedStage, decision: Decision, journal: Journal, processes: int) -> int:
    """Run a stage as its command does, with a record before it begins and one once it is done.

    0 where it is done, with all rows or some; else the code that it ended with.
    """
    before = journal.of(stage)
    record = Record(
        command=stage.command,
        settings=stage.config.identity(),
        pit_version=__version__,
        inputs=journal.inputs(stage, fetch=True),
        writes=stage.writes,
        replaced=before.replaced if before and decision.action == "go on" else existing_output(stage),
    )
    settings, _ = settings_to_start(stage, decision)
    journal.save(stage, record)
    Path(stage.writes[0]).parent.mkdir(parents=True, exist_ok=True)
    try:
        with redirect_stdout(sys.stderr):  # what a command says there is not what pit run has to say
            code = carry_out(stage.command, settings, processes)
    except NothingToDo:  # it was stopped between its end and our record of it
        code = 0
    except (PitError, KeyboardInterrupt, SystemExit):
        console.note(f"{stage.name} was stopped; the same command goes on from there")
        raise
    if code > SOME_ROWS_FAILED:
        console.note(f"{stage.name} was stopped; the same command goes on from there")
        return code
    outputs = {path: digest(path) for path in stage.writes}
    if missing := [path for path, found in outputs.items() if found is None]:
        raise RunError(f"{stage.name}: ended without {', '.join(missing)}")
    journal.save(stage, record.model_copy(update={"outputs": outputs, "code": code}))
    return 0


def settings_to_start(stage: PlannedStage, decision: Decision) -> tuple[Settings, list[str]]:
    """The settings that a stage is started with, and the names of those on its command line."""
    flag = "resume" if decision.action == "go on" else "overwrite"
    if flag not in type(stage.config).model_fields or not os.path.exists(stage.writes[0]):
        return stage.config, [*stage.given]
    return stage.config.model_copy(update={flag: True}), [*stage.given, flag]


def decide(stage: PlannedStage, journal: Journal, pending: Mapping[str, str]) -> Decision:
    """pending: what stages before would make anew, with their names."""
    before = journal.of(stage)
    if before is None:
        return Decision("run", "not run yet")
    if why := differences(before, stage) or other_inputs(before, stage, journal, pending):
        return Decision("run", why)
    if before.outputs is None:
        goes_on = "resume" in type(stage.config).model_fields and existing_output(stage) not in (None, before.replaced)
        return Decision("go on" if goes_on else "run", "it was stopped")
    if lost := [path for path in stage.writes if digest(path) != before.outputs.get(path)]:
        return Decision("run", f"missing, or not as it was made: {', '.join(lost)}")
    return Decision("skip", "nothing changed")


def other_inputs(before: Record, stage: PlannedStage, journal: Journal, pending: Mapping[str, str]) -> str:
    if makers := dict.fromkeys(pending[path] for path in stage.reads if path in pending):
        return f"unless {', '.join(makers)} makes what it made before"
    old, new = before.inputs, journal.inputs(stage)
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return f"changed: {', '.join(changed)}" if changed else ""


def differences(before: Record, stage: PlannedStage) -> str:
    kept = type(stage.config).named(Fact.start | Fact.execution | Fact.output)  # a record of earlier versions has some
    settings = {name: value for name, value in before.settings.items() if name not in kept}
    old = {**settings, "command": before.command, "pit": before.pit_version, "writes": before.writes}
    new = {**stage.config.identity(), "command": stage.command, "pit": __version__, "writes": stage.writes}
    changed = [name for name in sorted(old.keys() | new.keys()) if old.get(name) != new.get(name)]
    return ", ".join(f"{name} was {old.get(name)}, is {new.get(name)}" for name in changed)

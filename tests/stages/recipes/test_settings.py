"""pit run: the settings of each stage, and the number of processes that it runs as."""

import os
import shlex
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer

from pitcli.recipes.planning import writes_of
from pitcli.settings.commands import COMMANDS, DISTRIBUTED
from pitcli.settings.flags import command_of
from pitcli.stages import run
from tests.faults.warm import Warm
from tests.stages.recipes.conftest import NAMES, SMALL, pit, recipe


@pytest.fixture
def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Replaces the commands: they only record their settings and write small files as outputs."""
    ran: list[tuple[str, Any]] = []

    def start(name: str, config: Any) -> int:
        ran.append((name, config))
        for path in writes_of(config):
            file = Path(path) if Path(path).suffix else Path(path, "manifest")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(config.model_dump_json())
        return int(name == "sample")

    monkeypatch.setattr(run, "start", start)
    return ran


def test_shared_settings_and_set_reach_the_stages(
    recorded: list[tuple[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """A shared setting goes to every stage that has it; a stage's own value wins, and --set replaces shared values."""
    Path("mine.jsonl").touch()
    recipe(SMALL)
    changes = ["seed=7", "rl.seed=8", "evaluate.validate-on=mine.jsonl", "micro_batch_size=4"]
    pit(capsys, "recipe.yaml", *(word for change in changes for word in ("--set", change)), "--out", "there", code=1)
    configs = [config for _, config in recorded]
    assert [getattr(config, "seed", None) for config in configs] == [7, 7, 7, 7, 8, 7, 7, 7, None]
    assert [getattr(config, "micro_batch_size", None) for config in configs] == [
        *(None, 4, 4, 2, 4, None, None, 4, None)
    ]
    assert configs[-2].validate_on == (str(Path("mine.jsonl").resolve()),)
    assert Path("there/improved.jsonl").is_file()


def test_failed_rows_are_reported_each_time(
    recorded: list[tuple[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    err = pit(capsys, recipe(SMALL), code=1)
    assert len(recorded) == len(NAMES)
    assert "ran, some rows failed" in err
    assert "skipped, some rows failed" in pit(capsys, "recipe.yaml", code=1)


def test_the_printed_commands_have_the_same_settings(
    recorded: list[tuple[str, Any]], capsys: pytest.CaptureFixture[str]
) -> None:
    """Each printed command, run in the recipe's folder, has the settings that the stage had."""
    text = SMALL.replace("improved.jsonl", "my rows.jsonl")
    lines = [line[2:] for line in pit(capsys, recipe(text), code=1).splitlines() if line.startswith("$ ")]
    ran = list(recorded)
    recorded.clear()
    os.chdir("made")
    for line, (name, config) in zip(lines, ran, strict=True):
        program, command, *words = shlex.split(line)
        assert (program, command) == ("pit", name)
        app = typer.Typer()
        app.command()(command_of(type(config), partial(run.start, name)))
        app(words, standalone_mode=False)
    assert recorded == ran


@pytest.mark.parametrize(("more", "processes"), [((), 3), (("--processes", "2"), 2), (("--processes", "1"), 1)])
def test_stages_run_as_several_processes(
    more: tuple[str, ...],
    processes: int,
    recorded: list[tuple[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    launched: list[tuple[str, int]] = []

    def launch(arguments: list[str], count: int) -> int:
        """Runs the command in this process, which is enough to see the arguments of the processes."""
        name, *words = arguments
        launched.append((name, count))
        app = typer.Typer()
        app.command()(command_of(COMMANDS[name].settings, partial(run.start, name)))
        return int(app(words, standalone_mode=False) or 0)

    monkeypatch.setattr("pitcli.stages.run.launch", launch)
    pit(capsys, recipe(SMALL), "--processes", "1", "--out", "alone", code=1)
    alone = list(recorded)
    recorded.clear()
    pit(capsys, recipe(f"processes: 3{SMALL}"), *more, code=1)
    spread = [] if processes == 1 else [name for name, _ in alone if name in DISTRIBUTED]
    assert launched == [(name, processes) for name in spread]
    assert recorded == alone


def test_an_error_of_several_processes_is_printed_once(folder: Path, warm: Warm) -> None:
    """The failed process prints its error once; the launcher prints nothing."""
    command = warm.start(folder, "sft", "--model", "tiny", "--data", "none.jsonl", processes=2)
    ended = command.wait()
    assert (ended.code, ended.out) == (2, "")
    assert ended.err == "error: none.jsonl: no such file\n"

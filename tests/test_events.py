"""--json-progress: stderr has one JSON object per line, from the first error to the last step."""

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pitcli import cli, console, events
from pitcli.panel import training_panel
from pitcli.settings.commands import COMMANDS

Out = pytest.CaptureFixture[str]
Event = dict[str, Any]


def run(arguments: list[str], capsys: Out) -> tuple[int, list[Event]]:
    """The exit code and the events; fails if a line is anything else."""
    capsys.readouterr()
    code = cli.main([*arguments, "--json-progress"])
    return code, [json.loads(line) for line in capsys.readouterr().err.splitlines()]


@pytest.fixture
def on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(events.VARIABLE, "1")


def written(capsys: Out) -> list[Event]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_a_command_with_rows_that_fail(tmp_path: Path, capsys: Out) -> None:
    (tmp_path / "bad.jsonl").write_text('{"prompt": "p", "chosen": "a", "rejected": "b"}\n{"prompt"\n')
    code, found = run(["prepare", "--data", str(tmp_path / "bad.jsonl"), "--out", str(tmp_path / "out")], capsys)
    assert code == 2
    assert [event["event"] for event in found] == ["start", "error", "error", "end"]
    assert (found[0]["command"], found[-1]["exit_code"]) == ("prepare", 2)
    assert found[1]["message"].startswith(f"{tmp_path}/bad.jsonl:2: ")


@pytest.mark.parametrize("arguments", [["improve", "--no-such-flag"], ["no-such-command"], ["sft", "--epochs", "x"]])
def test_errors_in_the_arguments_are_events_too(arguments: list[str], capsys: Out) -> None:
    code, found = run(arguments, capsys)
    assert code == 2
    assert [event["event"] for event in found if event["event"] != "start"] == ["error", "end"]


def test_the_flag_does_not_stay_on(capsys: Out) -> None:
    run(["verify", "no-such-run"], capsys)
    assert cli.main(["verify", "no-such-run"]) == 2
    assert capsys.readouterr().err.startswith("error: no-such-run")


def test_progress_counts(on: None, capsys: Out) -> None:
    with console.progress("improving", 3) as advance:
        advance(2, changed=1)
        advance()
    first, second = written(capsys)
    assert (first["task"], first["done"], first["total"], first["changed"]) == ("improving", 2, 3, 1)
    assert second["done"] == 3


def test_training_steps_continue_after_a_resume(on: None, capsys: Out) -> None:
    with training_panel("training gap", 4, ("loss",), [{"loss": 3.0}], 8) as show:
        show({"loss": 2.0, "kl": math.nan})
        show({"loss": math.inf})
    first, second = written(capsys)
    assert (first["done"], first["total"], first["metrics"]) == (2, 4, {"loss": 2.0, "kl": None})
    assert (second["done"], second["metrics"]) == (3, {"loss": None})


def test_everything_for_people_has_an_event(on: None, capsys: Out) -> None:
    console.note("a\x1b[0m\nb")
    console.warn("w")
    console.next_command("pit rl")
    console.table("t", ["x"], [[1.5], [Path("p")]])
    console.samples([("p", "long " * 200)], ("prompt", "draft"))
    console.marked([("a", True)])
    console.word_changes("f:1", iter([("-", "old"), ("+", "\ud800")]))
    found = written(capsys)
    names = ["note", "warning", "next", "table", "sample", "text", "changes"]
    assert [event["event"] for event in found] == names
    assert found[0]["message"] == "a\x1b[0m\nb"
    assert (found[3]["title"], found[3]["columns"], found[3]["rows"]) == ("t", ["x"], [[1.5], ["p"]])
    assert found[4]["draft"] == "long " * 200
    assert found[6]["parts"] == [["-", "old"], ["+", "\ud800"]]


def test_a_full_stderr_does_not_end_a_command(tmp_path: Path) -> None:
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "pitcli", "verify", str(tmp_path), "--json-progress"]
        assert subprocess.run(command, check=False, stderr=full).returncode == 3


@pytest.mark.parametrize("command", COMMANDS)
def test_each_command_has_the_flag_and_shows_the_exit_codes(command: str, capsys: Out) -> None:
    assert cli.main([command, "--help"]) == 0
    shown = capsys.readouterr().out
    assert "--json-progress" in shown
    for line in cli.EXIT_CODES.splitlines():
        assert line in shown

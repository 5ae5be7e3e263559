"""The `pit` command from outside: help, errors, exit codes, and what reaches which stream."""

import os
import re
import resource
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pitcli import cli, console
from pitcli.errors import InputError, NothingToDo, RunError
from pitcli.settings.base import StopRule
from pitcli.settings.commands import COMMANDS
from pitcli.settings.generating import ImproveConfig

PIT = [sys.executable, "-c", "import sys; from pitcli.cli import main; sys.exit(main())"]
MODULES = {name: name.replace("-", "_") for name in COMMANDS}

Runs = list[tuple[str, Any]]


def command(stage: str) -> list[str]:
    """The command line of a process that runs `pit improve`; `stage` replaces the body of its run(config)."""
    fake = f"""
import signal, sys, time, types
def run(config):
    {stage}
signal.signal(signal.SIGINT, signal.default_int_handler)  # background jobs of a shell inherit SIG_IGN
sys.modules["pitcli.stages.improve"] = types.SimpleNamespace(run=run)
from pitcli.cli import main
sys.exit(main(["improve"]))
"""
    return [sys.executable, "-c", fake]


def improve(stage: str, stdout: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(stage),
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=stdout,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def runs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runs:
    """The stages that ran, with their settings: each one only records itself, in an empty folder."""
    ran: Runs = []

    def recording(name: str) -> Callable[[Any], None]:
        return lambda config, *commands: ran.append((name, config))

    for name in MODULES.values():
        monkeypatch.setitem(sys.modules, f"pitcli.stages.{name}", SimpleNamespace(run=recording(name)))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PIT_DEBUG", raising=False)
    return ran


def with_stage(name: str, run: Callable[[Any], int | None]) -> None:
    """Replace the body of a stage of the fixture `runs`, which restores everything."""
    vars(sys.modules[f"pitcli.stages.{name}"])["run"] = run


def raising(error: BaseException) -> Callable[[Any], int | None]:
    def run(config: Any) -> int | None:
        raise error

    return run


def test_importing_the_command_line_imports_nothing_heavy() -> None:
    heavy = ["torch", "transformers", "peft", "datasets", "numpy", "yaml", "rich.progress"]
    code = f"import sys, pitcli.cli; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "[]\n"


def test_help_is_quick() -> None:
    """Measured in processor time, because other tests run at the same time; and against the libraries that it needs."""

    def seconds(command: list[str]) -> float:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    libraries = min(seconds([sys.executable, "-c", "import pydantic.main, typer.main"]) for _ in range(5))
    assert min(seconds([*PIT, "--help"]) for _ in range(5)) < 3.25 * libraries


def test_help_of_pit_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--help"]) == 0
    out, err = capsys.readouterr()
    for name in COMMANDS:
        assert re.search(rf"^  {name} +[A-Z].*\.$", out, re.MULTILINE)
    assert err == ""


@pytest.mark.parametrize("name", COMMANDS)
def test_help_of_a_command(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([name, "-h"]) == 0
    out = capsys.readouterr().out
    assert f":\n    {COMMANDS[name].examples[0]}\n" in out
    assert f"pit {name}:" not in out
    assert "--config <file>" in out


def test_help_shows_defaults_once_and_choices(capsys: pytest.CaptureFixture[str]) -> None:
    cli.main(["rl", "--help"])
    out = " ".join(capsys.readouterr().out.split())
    assert "--load-in-4bit / --no-load-in-4bit" in out
    assert "Prompts per rollout [default: 8]" in out
    assert "cmd:COMMAND, a program that scores rows [default: runs/reward] --policy" in out
    assert "--device <auto|cpu|cuda|mps>" in out
    assert "at least one rollout [default: dataset]" in out
    assert "None" not in out


def test_examples_in_the_help_are_accepted(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, command in COMMANDS.items():
        for example in command.examples:
            assert cli.main(shlex.split(example.split(" < ")[0])[1:]) == 0
            assert runs[-1][0] == MODULES[name]


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"pit \d+\.\d+\.\d+\n", capsys.readouterr().out)


def test_without_a_command_the_help_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "Usage: pit" in err


def test_flags_reach_the_stage(runs: Runs) -> None:
    arguments = "improve --input a.jsonl --max-iters 5 --stop none --no-load-in-4bit --run r"
    assert cli.main(arguments.split()) == 0
    expected = ImproveConfig(input="a.jsonl", max_iters=5, stop=StopRule.none, load_in_4bit=False, run=Path("r"))
    assert runs == [("improve", expected)]
    assert runs[0][1].model_fields_set == {"input", "max_iters", "stop", "load_in_4bit", "run"}


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            "sft --lerning-rate 3",
            "no such option: --lerning-rate; did you mean --learning-rate? (see pit sft --help)",
        ),
        ("sft --data", "option '--data' requires an argument"),
        ("stf", "no such command 'stf'. Did you mean 'sft'? (see pit --help)"),
        ("zzzz", "no such command 'zzzz' (see pit --help)"),
        ("sft hh.jsonl", "got unexpected extra argument(s) (hh.jsonl) (see pit sft --help)"),
        ("improve --max-iters -1", "--max-iters: must be greater than or equal to 0, got -1"),
        ("prepare", "give either --data or --synthetic"),
        ("sft --config none.yaml", "--config: none.yaml: No such file or directory"),
    ],
)
def test_a_mistake_is_one_line_and_no_stage_runs(
    arguments: str, error: str, runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"error: {error}\n")
    assert runs == []


def test_flags_override_the_config_file(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    Path("c.yaml").write_text("epochs: 2\nseed: 5\n")
    assert cli.main(["sft", "--config", "c.yaml", "--seed", "6"]) == 0
    assert (runs[0][1].epochs, runs[0][1].seed) == (2, 6)
    Path("c.yaml").write_text("epoch: 2\nseed: -5\n")
    assert cli.main(["sft", "--config", "c.yaml", "--epochs", "0"]) == 2
    assert sorted(capsys.readouterr().err.splitlines()) == [
        "error: --epochs: must be greater than or equal to 1, got 0",
        "error: c.yaml: epoch: no such setting; did you mean epochs?",
        "error: c.yaml: seed: must be greater than or equal to 0, got -5",
    ]


LESS_MEMORY = (
    "out of memory; this command needs less: pit sft --config runs/sft/config.yaml --micro-batch-size 4 --resume"
)


class OutOfMemoryError(RuntimeError):
    """A substitute for torch's error, which pit recognises by its name."""


@pytest.mark.parametrize(
    ("error", "code", "lines"),
    [
        (InputError(["a.jsonl:1: bad", "a.jsonl:2: bad"]), 2, ["a.jsonl:1: bad", "a.jsonl:2: bad"]),
        (RunError("runs/rl is locked \x1b[2J[bold]"), 3, ["runs/rl is locked \\x1b[2J[bold]"]),
        (OSError(28, "No space left on device", "out.jsonl"), 3, ["No space left on device: out.jsonl"]),
        (PermissionError(13, "Permission denied", "/x"), 3, ["Permission denied: /x"]),
        (OSError("We couldn't connect\nto the hub"), 3, ["We couldn't connect to the hub"]),
        (MemoryError(), 3, [LESS_MEMORY]),
        (OutOfMemoryError("CUDA"), 3, [LESS_MEMORY]),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 1 byte"),
            3,
            [LESS_MEMORY],
        ),
    ],
)
def test_exit_codes(
    error: BaseException, code: int, lines: list[str], runs: Runs, capsys: pytest.CaptureFixture[str]
) -> None:
    with_stage("sft", raising(error))
    assert cli.main(["sft"]) == code
    assert capsys.readouterr().err.splitlines() == [f"error: {line}" for line in lines]


@pytest.mark.parametrize(
    ("arguments", "smaller"),
    [
        (["rl", "--out", "my run"], "pit rl --config 'my run/config.yaml' --micro-batch-size 4 --resume"),
        (["train-reward"], "pit train-reward --config runs/reward/config.yaml --micro-batch-size 4 --resume"),
        (
            ["train-reward", "--micro-batch-size", "7", "--max-length", "300"],
            "pit train-reward --config runs/reward/config.yaml --max-length 150 --overwrite",
        ),
        (
            ["sft", "--tokens-per-batch", "4096"],
            "pit sft --config runs/sft/config.yaml --tokens-per-batch 2048 --resume",
        ),
        (
            ["sft", "--tokens-per-batch", "1024"],
            "pit sft --config runs/sft/config.yaml --max-length 512 --overwrite",
        ),
        (
            ["sft", "--micro-batch-size", "1", "--long-rows", "error"],
            "pit sft --config runs/sft/config.yaml --max-length 512 --long-rows cut --overwrite",
        ),
    ],
)
def test_out_of_memory_names_the_smaller_command(
    arguments: list[str], smaller: str, runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with_stage(MODULES.get(arguments[0], arguments[0]), raising(MemoryError()))
    assert cli.main(arguments) == 3
    assert capsys.readouterr().err == f"error: out of memory; this command needs less: {smaller}\n"


def test_nothing_to_do_is_not_an_error(runs: Runs, capsys: pytest.CaptureFixture[str]) -> None:
    with_stage("sft", raising(NothingToDo("the run in runs/sft is finished")))
    assert cli.main(["sft"]) == 0
    assert capsys.readouterr().err == "the run in runs/sft is finished\n"


def test_the_exit_code_of_the_stage(runs: Runs) -> None:
    with_stage("improve", lambda config: 1)
    assert cli.main(["improve"]) == 1


@pytest.mark.parametrize("bug", [ValueError("bug"), RuntimeError("bug"), AssertionError("bug"), RecursionError()])
def test_a_bug_shows_its_traceback(bug: Exception, runs: Runs) -> None:
    with_stage("sft", raising(bug))
    with pytest.raises(type(bug)):
        cli.main(["sft"])


def test_a_bug_has_an_exit_code_of_its_own(runs: Runs, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    """Without it a bug would end with 1, as some failed rows do."""
    with_stage("sft", raising(ValueError("bug")))
    monkeypatch.setattr(sys, "argv", ["pit", "sft", "--json-progress"])
    assert cli.entry() == 70
    err = capsys.readouterr().err
    assert "ValueError: bug" in err
    assert '{"event": "end", "exit_code": 70}' in err
    with_stage("sft", raising(InputError("bad")))
    monkeypatch.setenv("PIT_DEBUG", "1")
    assert cli.entry() == 2


def test_pit_debug_shows_every_traceback(runs: Runs, monkeypatch: pytest.MonkeyPatch) -> None:
    with_stage("sft", raising(InputError("bad")))
    monkeypatch.setenv("PIT_DEBUG", "1")
    with pytest.raises(InputError):
        cli.main(["sft"])


@pytest.mark.parametrize("rows", [1, 100_000])
def test_a_broken_pipe_ends_it_quietly(rows: int) -> None:
    """One row stays in the buffer until the end; many break the pipe inside the stage."""
    reading, writing = os.pipe()
    os.close(reading)
    body = f"[print('row') for _ in range({rows})]"
    done = improve(body, stdout=writing)
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("rows", [1, 100_000])
def test_a_full_disk_is_one_line(rows: int) -> None:
    body = f"[print('row') for _ in range({rows})]"
    with open("/dev/full", "w") as full:
        done = improve(body, stdout=full)
    assert (done.returncode, done.stderr) == (3, "error: No space left on device: stdout\n")


def test_rows_before_an_error_are_written() -> None:
    body = "print('row'); from pitcli.errors import RunError; raise RunError('diverged')"
    done = improve(body, stdout=subprocess.PIPE)
    assert (done.returncode, done.stdout, done.stderr) == (3, "row\n", "error: diverged\n")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 143)])
def test_signals_let_the_stage_clean_up(number: signal.Signals, code: int) -> None:
    body = "\n    ".join(
        [
            "try:",
            "    print('started', flush=True); time.sleep(60)",
            "finally:",
            "    print('closed', flush=True)",
        ]
    )
    process = subprocess.Popen(
        command(body),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "started\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (code, "closed\n")
    assert err == ("interrupted\n" if number == signal.SIGINT else "")


def test_the_console_escapes_control_characters_and_markup(capsys: pytest.CaptureFixture[str]) -> None:
    console.warn("[red]x[/red]\x1b[2J\r" + "w" * 200)
    console.table("T [b]", ["name", "n"], [["[i]y\x9b" + "z" * 200, 1], ["a", 2.34567]])
    console.samples([("p" * 400, "a\nb", "\u202eevil")])
    console.next_command("pit rl")
    out, err = capsys.readouterr()
    assert out == ""
    assert "warning: [red]x[/red]\\x1b[2J\\r" + "w" * 200 + "\n" in err
    assert "T [b]" in err
    assert "[i]y\\x9b" + "z" * 200 in err, "no cell is truncated or folded outside a terminal"
    assert "2.346" in err
    assert "prompt  " + "p" * 299 + "…\n" in err
    assert "before  a\n        b\nafter   \\u202eevil\n" in err
    assert err.endswith("next: pit rl\n")
    assert "\x1b" not in err


@pytest.mark.parametrize("total", [None, 4])
def test_progress_outside_a_terminal_is_a_line_every_few_minutes(
    total: int | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter([0.0, 10.0, 310.0, 320.0, 700.0])
    monkeypatch.setattr("pitcli.console.time.monotonic", lambda: next(seconds))
    with console.progress("train", total) as advance:
        for loss in (0.8, 0.53, 0.4):
            advance(loss=loss)
        advance(loss=0.3)
    first = "train: 2 of 4, loss 0.53, about 5 minutes left\n" if total else "train: 2, loss 0.53\n"
    assert capsys.readouterr() == ("", first if total else f"{first}train: 4, loss 0.3\n")


def test_progress_on_a_terminal_keeps_rows_on_stdout() -> None:
    """stderr is a pseudo-terminal and stdout a pipe: the rows must not go to the stream of the bar."""
    code = (
        "from pitcli import console\n"
        "with console.progress('train', 2) as outer, console.progress('inner', None) as advance:\n"
        "    advance(loss=0.53125); outer(2); print('row')\n"
    )
    ours, theirs = os.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": "120"}
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, stdout=subprocess.PIPE, stderr=theirs, env=environment
    )
    os.close(theirs)
    shown = os.read(ours, 100_000).decode()
    os.close(ours)
    assert (done.returncode, done.stdout) == (0, b"row\n")
    assert "loss=0.5312" in shown
    assert "2/2" in shown

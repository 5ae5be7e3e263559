"""Shell completion in real shells: the script of `pit --show-completion` is loaded, and a word is completed."""

import os
import pty
import re
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Completes as pit does; a completed command line only prints its arguments.
PIT = f"""#!/bin/sh
case "$_PIT_COMPLETE $1" in
complete_*|*" --show-completion") exec {sys.executable} -m pitcli "$@";;
*) echo "ran: $*";;
esac
"""
START = {
    "bash": (["bash", "--norc", "--noprofile", "-i"], 'eval "$(pit --show-completion)"'),
    "zsh": (["zsh", "-f", "-i"], 'autoload -Uz compinit; compinit -u -D; eval "$(pit --show-completion)"'),
}
WORDS = [
    pytest.param("pit train", "train-reward", id="command"),
    pytest.param("pit rl --samples", "rl --samples-per-prompt", id="flag"),
    pytest.param("pit sft --role imp", "sft --role improver", id="choice"),
    pytest.param("pit sft --config sett", "sft --config settings.yaml", id="file"),
]
TIMEOUT_S = 60


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a file to complete, and with `pit` on the PATH."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "pit").write_text(PIT)
    (tmp_path / "bin" / "pit").chmod(0o755)
    (tmp_path / "settings.yaml").touch()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def skip_if_missing(shell: str) -> None:
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")


def wait_for(pattern: str, terminal: int) -> str:
    """Read the output of the terminal until the pattern is in it; the pattern's group."""
    shown, deadline = "", time.monotonic() + TIMEOUT_S
    while not (found := re.search(pattern, shown)):
        ready, _, _ = select.select([terminal], [], [], max(0, deadline - time.monotonic()))
        assert ready, f"no {pattern!r} in {shown!r}"
        shown += os.read(terminal, 65536).decode(errors="replace")
    return found[1]


@pytest.mark.parametrize(("typed", "expected"), WORDS)
@pytest.mark.parametrize("shell", START)
def test_tab_completes_the_word(shell: str, typed: str, expected: str, folder: Path) -> None:
    skip_if_missing(shell)
    command, load_script = START[shell]
    ours, theirs = pty.openpty()
    process = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True)
    os.close(theirs)
    try:
        os.write(ours, f"{load_script}; echo script 'loaded'\n".encode())
        wait_for("(script loaded)", ours)
        os.write(ours, f"{typed}\t\n".encode())
        assert wait_for("ran: (.*)\r\n", ours) == expected
    finally:
        process.kill()
        process.wait()
        os.close(ours)


@pytest.mark.parametrize(("typed", "expected"), WORDS)
def test_fish_offers_the_word(typed: str, expected: str, folder: Path) -> None:
    skip_if_missing("fish")
    script = f'pit --show-completion | source; complete --do-complete "{typed}"'
    offered = subprocess.run(["fish", "--no-config", "-c", script], capture_output=True, text=True, check=True).stdout
    assert [line.split("\t")[0] for line in offered.splitlines()] == expected.split()[-1:]


@pytest.mark.parametrize("typed", ["pit ", "pit rl --", "pit export --"])
@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_each_completion_is_one_line(shell: str, typed: str, folder: Path) -> None:
    """Without the shell: whatever the width of the terminal, and although Typer removes brackets."""
    request = {"_PIT_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    environment = {**os.environ, **request, "_TYPER_COMPLETE_ARGS": typed, "COLUMNS": "40"}
    lines = subprocess.run(["pit"], capture_output=True, text=True, check=True, env=environment).stdout.splitlines()
    pattern = r"[a-z0-9-]+\t[^\t]+" if shell == "fish" else r"""(_arguments '\*: :\(\()?"[a-z0-9-]+":"[^"]+"(\)\)')?"""
    assert len(lines) > 10
    assert [line for line in lines if not re.fullmatch(pattern, line) or line.endswith(" ")] == []

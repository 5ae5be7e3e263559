"""The README is true: names and flags of its commands, its test command."""

import re
from pathlib import Path

from typer.testing import CliRunner

from pitcli.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_every_pit_command_in_the_readme_exists_with_its_flags() -> None:
    runner = CliRunner()
    lines = re.findall(r"\bpit ([a-z-]+)((?: +(?:--?[a-z][a-z-]*|[\w./=,-]+))*)", "\n".join(commands()))
    assert len(lines) >= 5
    for command, rest in lines:
        shown = runner.invoke(app, [command, "--help"])
        assert shown.exit_code == 0, command
        for flag in re.findall(r"--[a-z][a-z-]*", rest):
            assert flag in shown.output, f"pit {command} {flag}"


def commands() -> list[str]:
    """Commands in fenced blocks and inline code, without comments."""
    fenced = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    inline = re.findall(r"`(pit [^`]+)`", README)
    return [line.split(" #")[0] for block in [*fenced, *inline] for line in block.splitlines() if "COMMAND" not in line]


def test_ci_calls_the_test_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert "make test" in README
    assert "make test" in script


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 150

"""The README says what is so: its file tree, its commands' names and flags, its test command."""

import ast
import re
from pathlib import Path

from typer.testing import CliRunner

from pitcli.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def summary(module: Path) -> str:
    return " ".join((ast.get_docstring(ast.parse(module.read_text())) or "").split("\n\n")[0].split())


def file_tree() -> str:
    source = ROOT / "src" / "pitcli"
    lines = ["src/pitcli/"]
    for folder in [source, *sorted({m.parent for m in source.rglob("[a-z]*.py")} - {source})]:
        if folder != source:
            lines.append(f"  {folder.relative_to(source).as_posix()}/")
        lines += [f"    {m.name:<24} {summary(m)}" for m in sorted(folder.glob("[a-z]*.py"))]
    return "\n".join(lines)


def test_file_tree_repeats_the_first_sentence_of_each_module() -> None:
    assert file_tree() in README


def test_every_pit_command_in_the_readme_exists_with_its_flags() -> None:
    runner = CliRunner()
    lines = re.findall(r"\bpit ([a-z-]+)((?: +(?:--?[a-z][a-z-]*|[\w./=,-]+))*)", "\n".join(commands()))
    assert len(lines) >= 10
    for command, rest in lines:
        shown = runner.invoke(app, [command, "--help"])
        assert shown.exit_code == 0, command
        for flag in re.findall(r"--[a-z][a-z-]*", rest):
            assert flag in shown.output, f"pit {command} {flag}"


def commands() -> list[str]:
    """What stands in code: fenced blocks and inline code, comments taken off."""
    fenced = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
    inline = re.findall(r"`(pit [^`]+)`", README)
    return [line.split(" #")[0] for block in [*fenced, *inline] for line in block.splitlines() if "COMMAND" not in line]


def test_ci_calls_the_test_command_of_the_readme() -> None:
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    assert "make test" in README
    assert "make test" in script

"""Writes docs/reference.md, the help of every command: `python docs/make_reference.py`."""

from pathlib import Path

from typer.testing import CliRunner

from pitcli.cli import app
from pitcli.settings.commands import COMMANDS

WIDTH = 100
START = """# Commands

The output of `pit --help` and `pit COMMAND --help`; `docs/make_reference.py` writes this page.

Rows go to stdout, everything for people to stderr. Exit codes: 0 done, 1 some rows failed (each is reported on stderr),
2 bad input or settings, 3 the machine, a model or a run cannot be used, 130, 141 and 143 signals.

Every setting is also a key of a YAML file for `--config`, with `_` instead of `-`; flags override the file.
"""


def reference() -> str:
    """The page for the present commands."""
    parts = [START, block(help_of([]))]
    for name in COMMANDS:
        parts += [f"## pit {name}\n", block(help_of([name]))]
    return "\n".join(parts)


def help_of(command: list[str]) -> str:
    shown = CliRunner().invoke(app, [*command, "--help"], prog_name="pit", terminal_width=WIDTH)
    if shown.exit_code:
        raise SystemExit(f"pit {' '.join(command)} --help: exit code {shown.exit_code}")
    return "\n".join(line.rstrip() for line in shown.stdout.strip().splitlines())


def block(text: str) -> str:
    return f"```text\n{text}\n```\n"


if __name__ == "__main__":
    Path(__file__).with_name("reference.md").write_text(reference(), encoding="utf-8")

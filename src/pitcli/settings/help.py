"""The help of pit and of its commands as plain text, with one section per group of commands or options."""

import os
import re
from textwrap import wrap
from typing import Any

from typer.core import TyperCommand, TyperGroup

from pitcli.settings.facts import Section

NAME_COLUMNS = 30  # a longer name gets a line of its own
NOTE_COLUMNS = 24  # a longer "[default: ...]" may be wrapped
ARGUMENTS, OPTIONS = "Arguments", "Options"
NO_BREAK_SPACE = "\u00a0"
NOTE = re.compile(r" *\[[^]]+\]$")  # [default: ...], [required]

Rows = list[tuple[str, str]]


class SectionedCommand(TyperCommand):
    """A command whose help shows each option under the heading in its `rich_help_panel`."""

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        return _with_one_line_help(super().shell_complete(ctx, incomplete))

    def collect_usage_pieces(self, ctx: Any) -> list[str]:
        """Typer sees every argument as optional, because the settings class reports the missing ones."""
        return [self.options_metavar or "", *(name for name, _ in _rows_by_heading(self, ctx).get(ARGUMENTS, []))]

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections = _rows_by_heading(self, ctx)
        if not sections.keys() - {ARGUMENTS, Section.common, Section.other}:
            merged = sections.pop(Section.common, []) + sections.pop(Section.other)
            sections[OPTIONS] = merged
        _write_sections(formatter, sections)


class SectionedGroup(TyperGroup):
    """A group whose help shows each command under the heading in its `rich_help_panel`, then the options."""

    def shell_complete(self, ctx: Any, incomplete: str) -> list[Any]:
        return _with_one_line_help(super().shell_complete(ctx, incomplete))

    def format_options(self, ctx: Any, formatter: Any) -> None:
        sections: dict[str, Rows] = {}
        for name, command in self.commands.items():
            heading = getattr(command, "rich_help_panel", OPTIONS)
            sections.setdefault(heading, []).append((name, command.get_short_help_str()))
        _write_sections(formatter, sections)
        _write_sections(formatter, {OPTIONS: _rows_by_heading(self, ctx)[Section.other]})


def _with_one_line_help(completions: list[Any]) -> list[Any]:
    """Completions that Typer prints on one line each; fish would take a second line for another completion.

    Typer renders their help by Rich, which wraps it to the terminal, and takes brackets for markup.
    """
    os.environ["TERMINAL_WIDTH"] = "10000"
    for completion in completions:
        completion.help = NOTE.sub("", completion.help or "")
    return completions


def _rows_by_heading(command: Any, ctx: Any) -> dict[str, Rows]:
    """The name and the text of each argument and option; an option without a heading is under the last one."""
    sections: dict[str, Rows] = {ARGUMENTS: []}
    for parameter in command.get_params(ctx):
        name, text = parameter.get_help_record(ctx)
        if parameter.param_type_name == "argument":
            sections[ARGUMENTS].append((parameter.name.upper(), text))
            continue
        if parameter.is_bool_flag and parameter.metavar:
            name = parameter.metavar
        sections.setdefault(parameter.rich_help_panel or Section.other, []).append((name, text))
    return {heading: rows for heading, rows in sections.items() if rows}


def _write_sections(formatter: Any, sections: dict[str, Rows]) -> None:
    """Write each section under its heading; the texts of all sections begin in the same column."""
    longest = max(len(name) for rows in sections.values() for name, _ in rows)
    column = formatter.indent_increment + min(NAME_COLUMNS, longest) + 2
    for heading, rows in sections.items():
        with formatter.section(heading):
            for name, text in rows:
                indented = f"{'':{formatter.current_indent}}{name}"
                lines = _wrapped(text, formatter.width - column)
                if len(indented) + 2 > column:
                    lines = ["", *lines]
                first, *others = lines
                formatter.write(f"{indented:{column}}{first}".rstrip() + "\n")
                formatter.write("".join(f"{'':{column}}{line}\n" for line in others))


def _wrapped(text: str, width: int) -> list[str]:
    """Lines of at most `width` columns; a flag and a short "[default: ...]" are not broken."""
    together = NOTE.sub(lambda note: " " + _unbroken(note[0].strip()), text)
    return [line.replace(NO_BREAK_SPACE, " ") for line in wrap(together, max(width, 10), break_on_hyphens=False)] or [
        ""
    ]


def _unbroken(note: str) -> str:
    return note.replace(" ", NO_BREAK_SPACE) if len(note) <= NOTE_COLUMNS else note

"""The help: sections, common options first, a default for each option, and the width of the terminal."""

import re

import pytest

from pitcli import cli
from pitcli.settings.commands import COMMANDS, Purpose
from pitcli.settings.facts import Fact, Section, facts_of
from pitcli.settings.flags import sections_of

SETTINGS = [command.settings for command in COMMANDS.values()]
OFF_SWITCHES = [
    pytest.param(command, "--no-" + name.replace("_", "-"), id=f"{command}: {name}")
    for command, (settings, *_) in COMMANDS.items()
    for name, field in settings.model_fields.items()
    if field.default is False
]


def help_of(command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: int) -> str:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert cli.main([*([command] if command else []), "--help"]) == 0
    return capsys.readouterr().out


def sections_in(text: str) -> dict[str, list[str]]:
    """By heading, the first words of its rows: flags, arguments or commands."""
    sections: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.strip().startswith("Exit codes"):
            break
        if heading := re.match(r"([A-Z][a-z ]+):$", line):
            rows = sections.setdefault(heading[1], [])
        elif sections and (row := re.match(r"  (?:-h, )?(\S+)", line)):
            rows.append(row[1])
    return sections


@pytest.mark.parametrize("name", COMMANDS)
def test_each_option_is_in_exactly_one_section(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = sections_in(help_of(name, capsys, monkeypatch, 80))
    fields = COMMANDS[name].settings.model_fields
    arguments = [field.upper() for field in fields if facts_of(fields[field]) & Fact.argument]
    flags = ["--" + field.replace("_", "-") for field in fields if field.upper() not in arguments]
    assert shown.pop("Arguments", []) == arguments
    rows = [row for rows in shown.values() for row in rows]
    assert sorted(rows) == sorted([*flags, "--config", "--json-progress", "--help"])
    assert rows[-3:] == ["--config", "--json-progress", "--help"]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_common_options_come_first(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    headings = list(sections_in(help_of(name, capsys, monkeypatch, 80)))
    arguments, options = (["Arguments"], headings[1:]) if headings[0] == "Arguments" else ([], headings)
    assert headings == arguments + options
    if options != ["Options"]:
        assert options[0] == Section.common
        assert options == [section for section in Section if section in options]


@pytest.mark.parametrize("settings", SETTINGS)
def test_a_few_options_are_common(settings: type) -> None:
    sections = list(sections_of(settings).values())
    assert 1 <= sections.count(Section.common) <= 6
    assert Section.other not in sections


def test_common_options_are_in_the_order_of_the_work() -> None:
    """What is read, what it is processed with, what is written, how the command is started."""
    common = [name for name, section in sections_of(COMMANDS["sft"].settings).items() if section is Section.common]
    assert common == ["data", "role", "model", "out", "resume"]


def test_a_setting_that_a_command_redefines_stays_in_its_section() -> None:
    sections = sections_of(COMMANDS["rl"].settings)
    assert sections["learning_rate"] == sections["batch_size"] == Section.training
    assert sections["kl_coef"] == Section.rl


@pytest.mark.parametrize("name", COMMANDS)
def test_each_option_shows_its_default(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = re.sub(r"\n {5,}", " ", help_of(name, capsys, monkeypatch, 80))
    rows = [line for line in text.splitlines() if re.match(r"  (--|[A-Z]+ )", line)]
    assert rows
    assert [row for row in rows if not re.search(r" \[(default: [^]]+|required[^]]*)\]$", row)] == []


@pytest.mark.parametrize(("command", "flag"), OFF_SWITCHES)
def test_a_switch_that_is_off_is_shown_without_its_negation(
    command: str, flag: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert flag not in help_of(command, capsys, monkeypatch, 80)
    assert cli.main([command, flag, "--no-such-option"]) == 2
    assert "no such option: --no-such-option" in capsys.readouterr().err, "the negation itself is accepted"


@pytest.mark.parametrize("columns", [60, 80, 200])
@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_the_help_fits_the_terminal(
    name: str, columns: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = help_of(name, capsys, monkeypatch, columns)
    wide = [line for line in text.splitlines() if len(line) > min(columns, 110)]
    assert [line for line in wide if not line.startswith("    pit ")] == [], "only examples stay whole"
    assert columns == 60 or wide == []
    assert [line for line in text.splitlines() if line != line.rstrip()] == []


@pytest.mark.parametrize("name", COMMANDS)
def test_no_flag_is_broken_over_two_lines(
    name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    narrow, wide = (help_of(name, capsys, monkeypatch, columns) for columns in (60, 1000))
    assert sorted(re.findall(r"--[\w-]+", narrow)) == sorted(re.findall(r"--[\w-]+", wide))


def test_commands_are_grouped_by_purpose(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    shown = sections_in(help_of("", capsys, monkeypatch, 80))
    assert list(shown) == [*Purpose, "Options"]
    for purpose in Purpose:
        assert shown[purpose] == [name for name, command in COMMANDS.items() if command.purpose is purpose]


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS)
def test_summaries_fit_one_line_of_80_columns(command: object) -> None:
    assert len(command.summary) <= 62  # type: ignore[attr-defined]


def test_the_help_is_plain_text(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert help_of("rl", capsys, monkeypatch, 80).isascii()
    assert "\x1b" not in help_of("rl", capsys, monkeypatch, 80)

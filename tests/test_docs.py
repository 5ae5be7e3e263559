"""The documentation says what is so: its commands, links, error lines, functions, and the reference of the commands."""

import ast
import re
import runpy
import shlex
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from pitcli import cli
from pitcli.settings import commands as commands_of_pit

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
STAGES = sorted(path.stem for path in (ROOT / "src/pitcli/stages").glob("[a-z]*.py"))
SEPARATORS = {"|", "||", "&&", ";", "&"}


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """A page without its code."""
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE))


def commands(block: str) -> list[list[str]]:
    """The arguments of each `pit` in a block of shell: without comments, variables, redirections, the pipe's others."""
    found: list[list[str]] = []
    for line in block.replace("\\\n", " ").splitlines():
        words = shlex.shlex(line, posix=True, punctuation_chars="|&;<>")
        words.whitespace_split = True
        part: list[str] = []
        parts = [part]
        redirected = False
        for word in words:
            if word in SEPARATORS:
                part = []
                parts.append(part)
            elif word[0] in "<>":
                redirected = True
            elif redirected:
                redirected = False
            elif part or not re.match(r"\w+=", word):
                part.append(word)
        found += [part[1:] for part in parts if part and part[0] == "pit"]
    return found


COMMANDS = [
    pytest.param(command, id=f"{page.name}: {shlex.join(command)}")
    for page in PAGES
    for block in fenced(page.read_text(), "sh")
    for command in commands(block)
]


def anchors(page: Path) -> set[str]:
    """Of the headings, as MkDocs makes them."""
    text = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    headings = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_commands_are_found_in_shell() -> None:
    block = "cat a | X=1 pit improve --input - > b.jsonl  # pit rl\npit sft \\\n  --seed 2 && pit rl; pip install pit\n"
    assert commands(block) == [["improve", "--input", "-"], ["sft", "--seed", "2"], ["rl"]]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_in_a_code_block_is_accepted(
    command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[Any] = []
    for name in STAGES:
        fake = SimpleNamespace(run=lambda config, *rest: ran.append(config))
        monkeypatch.setitem(sys.modules, f"pitcli.stages.{name}", fake)
    monkeypatch.setattr("pitcli.stages.refuse_missing", lambda trackers: None)
    monkeypatch.chdir(tmp_path)
    if "--config" in command:
        file = Path(command[command.index("--config") + 1])
        file.parent.mkdir(parents=True)
        file.touch()
    if command[0] in ("--install-completion", "--show-completion"):  # these write to the home folder, or find no shell
        assert cli.main(["--help"]) == 0
        assert command[0] in capsys.readouterr().out
    else:
        assert cli.main(command) == 0, capsys.readouterr().err
        assert len(ran) == 1


def test_code_blocks_of_both_readme_and_tutorial_are_read() -> None:
    assert sum(str(param.id).startswith("README.md") for param in COMMANDS) >= 8
    assert sum(str(param.id).startswith("tutorial.md") for param in COMMANDS) >= 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_flags_in_the_text_exist(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = set(commands_of_pit.COMMANDS)
    for name, rest in re.findall(r"`(?:\w+=\S+ )?pit ([a-z][a-z-]*)([^`\n]*)`", page.read_text()):
        assert name in names, f"pit {name}"
        assert cli.main([name, "--help"]) == 0
        shown = capsys.readouterr().out
        for flag in re.findall(r"--[a-z][a-z0-9-]*", rest):
            assert re.search(rf"{flag}\b", shown), f"pit {name} {flag}"


def test_the_reference_is_what_the_commands_say_now() -> None:
    now = runpy.run_path(str(DOCS / "make_reference.py"))["reference"]()
    assert (DOCS / "reference.md").read_text() == now, "python docs/make_reference.py writes it anew"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_internal_links_resolve(page: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if target.startswith(("https://", "http://")):
            continue
        name, _, anchor = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.is_file(), target
        assert not anchor or anchor in anchors(linked), target


def test_every_page_is_in_the_navigation() -> None:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    assert sorted(file for entry in nav for file in entry.values()) == sorted(path.name for path in DOCS.glob("*.md"))


def literal(text: ast.JoinedStr | ast.Constant) -> list[str]:
    """What of a text of the source is always so, in its order."""
    values = text.values if isinstance(text, ast.JoinedStr) else [text]
    return [str(value.value) for value in values if isinstance(value, ast.Constant)]


def test_error_lines_are_those_of_the_source() -> None:
    """`…` stands for what differs: a line must hold all that is always so in some text of the source."""
    modules = [ast.parse(path.read_text()) for path in (ROOT / "src").rglob("*.py")]
    texts = [node for module in modules for node in ast.walk(module) if isinstance(node, ast.JoinedStr | ast.Constant)]
    long_ones = {tuple(parts) for text in texts if len("".join(parts := literal(text))) >= 20}
    patterns = [re.compile(".*".join(map(re.escape, parts))) for parts in long_ones]
    blocks = fenced((DOCS / "troubleshooting.md").read_text(), "text")
    lines = [line for block in blocks for line in block.splitlines()]
    assert len(lines) >= 30
    assert [line for line in lines if not any(pattern.search(line) for pattern in patterns)] == []


def test_functions_and_tests_of_the_paper_exist() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (DOCS / "paper.md").read_text())
    assert len(named) >= 30
    for file, name in named:
        tree = ast.walk(ast.parse((ROOT / file).read_text()))
        assert name in {node.name for node in tree if isinstance(node, ast.FunctionDef | ast.ClassDef)}, (file, name)

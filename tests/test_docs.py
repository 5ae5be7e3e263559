"""README and docs are true: their commands, flags, make targets, links, output, functions, and the reference."""

import ast
import json
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
from pitcli.data.explained import parse_edits
from pitcli.data.instructions.requests import request_problem, request_rows
from pitcli.settings import commands as commands_of_pit
from pitcli.stages.score import accuracy

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
GUIDE_NAMES = ("data", "train", "improve", "score", "explain", "evaluate", "export", "recipes")
GUIDE = [DOCS / f"{name}.md" for name in GUIDE_NAMES]
STAGES = sorted(path.stem for path in (ROOT / "src/pitcli/stages").glob("[a-z]*.py"))
SEPARATORS = {"|", "||", "&&", ";", "&"}


def fenced(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def prose(page: Path) -> str:
    """The page without its code."""
    return re.sub(r"`[^`\n]+`", "", re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE))


def commands(block: str) -> list[list[str]]:
    """The arguments of each `pit` in a block of shell, without comments, variables, redirections and other commands."""
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
    """The anchors of the headings, as MkDocs makes them."""
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


def test_commands_of_readme_and_guide_are_found() -> None:
    pages = [str(param.id).partition(": ")[0] for param in COMMANDS]
    assert pages.count("README.md") >= 3
    assert pages.count("start.md") >= 5
    assert sum(pages.count(page.name) for page in GUIDE) >= 20


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_make_targets_exist(page: Path) -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    targets |= {f"study-{path.stem}" for path in (ROOT / "examples" / "studies").glob("*.py")}
    text = page.read_text()
    code = [*re.findall(r"`([^`\n]+)`", text), *(line for block in fenced(text, "sh") for line in block.splitlines())]
    named = {name for line in code for name in re.findall(r"^make ([a-z][\w-]*)", line)}
    assert named <= targets


def test_rows_shown_in_the_docs_have_the_fields_of_rows() -> None:
    source = (ROOT / "src/pitcli/engine/improving/stop_rule.py").read_text()
    shown = [json.loads(block) for page in PAGES for block in fenced(page.read_text(), "json")]
    rows = [row for row in shown if "iterations" in row]
    requests = [row for row in shown if "instructions" in row]
    scored = [row for row in shown if "rank" in row]
    results = [row for row in shown if "accuracy" in row]
    explained = [row for row in shown if "edits" in row]
    assert len(rows) + len(requests) + len(scored) + len(results) + len(explained) == len(shown)
    assert all((rows, requests, scored, results, explained))
    for row in explained:
        assert row["edits"] == [e.fields() for e in parse_edits(row, row["original_response"], row["response"])]
    for row in scored:
        assert row.keys() - {"prompt", "responses"} == {"gap", "p_better", "rank"}
    assert [row.keys() for row in results] == [accuracy([{"prompt": "p", "gap": 0.5}]).keys()]
    for row in requests:
        assert row.keys() == next(request_rows("instructions:train")).keys() and request_problem(row) is None
    for row in rows:
        fields = {*row, *(name for iteration in row["iterations"] for name in iteration)} - {"prompt"}
        assert [name for name in fields if f'"{name}"' not in source] == []


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
    assert (DOCS / "reference.md").read_text() == now, "run docs/make_reference.py"


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
    assert sorted(files(nav)) == sorted(path.name for path in DOCS.glob("*.md"))


def files(nav: list[dict[str, Any]]) -> list[str]:
    """The pages of a navigation, those of its sections included."""
    entries = [value for entry in nav for value in entry.values()]
    return [file for entry in entries for file in (files(entry) if isinstance(entry, list) else [entry])]


def literal(text: ast.JoinedStr | ast.Constant) -> list[str]:
    """The constant parts of a text of the source, in their order."""
    values = text.values if isinstance(text, ast.JoinedStr) else [text]
    return [str(value.value) for value in values if isinstance(value, ast.Constant)]


def test_lines_of_output_are_those_of_the_source() -> None:
    """Each line in a `text` block must contain all constant parts of some text of the source."""
    modules = [ast.parse(path.read_text()) for path in (ROOT / "src").rglob("*.py")]
    texts = [node for module in modules for node in ast.walk(module) if isinstance(node, ast.JoinedStr | ast.Constant)]
    long_ones = {tuple(parts) for text in texts if len("".join(parts := literal(text))) >= 20}
    patterns = [re.compile(".*".join(map(re.escape, parts))) for parts in long_ones]
    pages = [page.read_text() for page in PAGES if page.name != "reference.md"]  # that page is tested as a whole
    lines = [line for page in pages for block in fenced(page, "text") for line in block.splitlines()]
    assert len(lines) >= 30
    assert [line for line in lines if not any(pattern.search(line) for pattern in patterns)] == []


def test_figures_of_console_output_exist() -> None:
    """Names of metrics in `console` blocks are texts of the source."""
    source = "".join(path.read_text() for path in (ROOT / "src").rglob("*.py"))
    blocks = [block for page in PAGES for block in fenced(page.read_text(), "console")]
    names = {name for block in blocks for name in re.findall(r"\b[a-z]+_[a-z_]+\b", block)}
    assert len(names) >= 3
    assert [name for name in names if f'"{name}"' not in source] == []


def test_functions_and_tests_of_the_paper_exist() -> None:
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", (DOCS / "paper.md").read_text())
    assert len(named) >= 30
    for file, name in named:
        tree = ast.walk(ast.parse((ROOT / file).read_text()))
        assert name in {node.name for node in tree if isinstance(node, ast.FunctionDef | ast.ClassDef)}, (file, name)

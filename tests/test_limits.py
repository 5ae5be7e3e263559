"""Readable code: short functions with few parameters, short files, and no list of names of settings."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from pitcli.settings.commands import COMMANDS

ROOT = Path(__file__).parents[1]
SOURCES = [path for folder in ("src", "benchmarks", "examples", "docs") for path in (ROOT / folder).rglob("*.py")]
TESTS = list((ROOT / "tests").rglob("*.py"))
NAMES = {name for command in COMMANDS.values() for name in command.settings.model_fields}
FEW = 2  # this many may be a coincidence: the columns of a table, the fields of a manifest


def functions(path: Path) -> Iterator[ast.FunctionDef]:
    yield from (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef))


def parameters(function: ast.FunctionDef) -> int:
    given = function.args
    return len([a for a in (*given.posonlyargs, *given.args, *given.kwonlyargs) if a.arg not in ("self", "cls")])


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_functions_and_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 300
    for function in functions(path):
        assert (function.end_lineno or 0) - function.lineno < 50, function.name
        assert parameters(function) <= 6, function.name


@pytest.mark.parametrize("path", TESTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_test_files_are_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= 500


def name_lists(path: Path) -> Iterator[list[str]]:
    """Literals with names of settings: lists, tuples and sets of strings."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.List | ast.Tuple | ast.Set):
            names = [item.value for item in node.elts if isinstance(item, ast.Constant) and item.value in NAMES]
            if len(names) > FEW:
                yield names


def test_no_list_of_names_of_settings() -> None:
    """Facts about a setting are declared on its field (settings/facts.py)."""
    found = {path: lists for path in (ROOT / "src").rglob("*.py") if (lists := list(name_lists(path)))}
    assert found == {}

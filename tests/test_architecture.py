"""docs/architecture.md agrees with the code: its picture, its list of files, its walks."""

import ast
import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


@pytest.fixture(scope="module")
def make() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_architecture", ROOT / "docs" / "make_architecture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_picture_shows_each_folder_and_is_up_to_date(make: ModuleType) -> None:
    assert make.BOXES.keys() == make.parts_of_the_source()
    assert (ROOT / "docs" / "architecture.svg").read_text() == make.picture(), "run docs/make_architecture.py"


def test_the_list_of_files_repeats_their_first_sentences(make: ModuleType) -> None:
    assert make.with_file_list(PAGE) == PAGE, "run docs/make_architecture.py"
    assert "| `rl.py` | pit rl: " in PAGE


def walks() -> dict[str, list[tuple[str, str]]]:
    """The stops (file, function or class) of each walk."""
    section = PAGE.partition("## Three walks")[2].partition("## Files")[0]
    titles = re.split(r"^### (.+)$", section, flags=re.MULTILINE)[1:]
    return {
        title: re.findall(r"^\d+\. `([\w/]+\.py)::(\w+)`", text, re.MULTILINE)
        for title, text in zip(titles[::2], titles[1::2], strict=True)
    }


@pytest.mark.parametrize("title", walks())
def test_each_stop_of_a_walk_exists(title: str) -> None:
    stops = walks()[title]
    assert 5 <= len(stops) <= 8
    for file, name in stops:
        tree = ast.walk(ast.parse((ROOT / "src" / "pitcli" / file).read_text()))
        assert name in {n.name for n in tree if isinstance(n, ast.FunctionDef | ast.ClassDef)}, (file, name)

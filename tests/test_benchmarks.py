"""In benchmarks/ and examples/ imports point one way."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path for folder in ("benchmarks", "examples") for path in (ROOT / folder).rglob("*.py"))
# scripts find one another in their own folder, as Python puts the folder of a started script first on its path
FOLDERS = sorted({path.parent for path in SCRIPTS})


def imports_in(source: str) -> set[str]:
    """Top-level modules that a file imports, also inside functions and for type checking alone."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and node.level == 0, "relative imports hide their direction"
            names.add(node.module.partition(".")[0])
    return names


def local_imports(sources: dict[str, str]) -> dict[str, set[str]]:
    """By module, the modules beside it that it imports."""
    return {name: imports_in(source) & sources.keys() for name, source in sources.items()}


def refuse_circle(imports: dict[str, set[str]]) -> None:
    """AssertionError naming the modules of an import circle."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        raise AssertionError(f"an import circle: {' <- '.join(error.args[1])}") from None


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.relative_to(ROOT).as_posix())
def test_no_import_circle(folder: Path) -> None:
    refuse_circle(local_imports({path.stem: path.read_text() for path in folder.glob("*.py")}))


def test_the_folders_that_are_read_hold_imports() -> None:
    found = {folder.name: local_imports({p.stem: p.read_text() for p in folder.glob("*.py")}) for folder in FOLDERS}
    assert "worker" in found["benchmarks"]
    assert found["studies"]["curriculum"] == {"project"}


@pytest.mark.parametrize("late", ["def load():\n    import first", "if TYPE_CHECKING:\n    from first import Name"])
def test_a_circle_is_seen_in_functions_and_under_type_checking(late: str) -> None:
    with pytest.raises(AssertionError, match="first"):
        refuse_circle(local_imports({"first": "import second", "second": late}))

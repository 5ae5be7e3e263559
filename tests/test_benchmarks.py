"""Imports in benchmarks/ and examples/ have no cycles."""

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path for folder in ("benchmarks", "examples") for path in (ROOT / folder).rglob("*.py"))
# scripts import one another from their own folder: Python puts the folder of a started script first on its path
FOLDERS = sorted({path.parent for path in SCRIPTS})


def imports_in(source: str) -> set[str]:
    """Top-level modules that a file imports, also inside functions and only for type checking."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name.partition(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.module is not None and node.level == 0, "relative imports hide their direction"
            names.add(node.module.partition(".")[0])
    return names


def local_imports(sources: dict[str, str]) -> dict[str, set[str]]:
    """For each module, the modules in the same folder that it imports."""
    return {name: imports_in(source) & sources.keys() for name, source in sources.items()}


def refuse_cycle(imports: dict[str, set[str]]) -> None:
    """Raise AssertionError with the modules of an import cycle."""
    try:
        TopologicalSorter(imports).prepare()
    except CycleError as error:
        raise AssertionError(f"import cycle: {' <- '.join(error.args[1])}") from None


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.relative_to(ROOT).as_posix())
def test_no_import_cycle(folder: Path) -> None:
    refuse_cycle(local_imports({path.stem: path.read_text() for path in folder.glob("*.py")}))


def test_imports_are_found_in_the_folders() -> None:
    found = {folder.name: local_imports({p.stem: p.read_text() for p in folder.glob("*.py")}) for folder in FOLDERS}
    assert "worker" in found["benchmarks"]
    assert found["studies"]["curriculum"] == {"project"}


@pytest.mark.parametrize("late", ["def load():\n    import first", "if TYPE_CHECKING:\n    from first import Name"])
def test_a_cycle_is_found_in_functions_and_under_type_checking(late: str) -> None:
    with pytest.raises(AssertionError, match="first"):
        refuse_cycle(local_imports({"first": "import second", "second": late}))

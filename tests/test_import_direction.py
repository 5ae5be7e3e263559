"""Imports point one way, and modules that do not need torch do not import it."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pitcli

PACKAGE = Path(pitcli.__file__).parent
# each folder may import from itself and from the folders before it in this list
FOLDERS = (
    "errors",
    "processes",
    "events",
    "settings",
    "console",
    "panel",
    "equations",
    "data",
    "endpoints",
    "runs",
    "engine.models",
    "engine.generation",
    "engine.improving",
    "engine.training",
    "evaluation",
    "pages",
    "serving",
    "recipes",
    "stages",
    "cli",
    "__main__",
)


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield ".".join(path.relative_to(PACKAGE).with_suffix("").parts), ast.parse(path.read_text())


def imported_modules(tree: ast.AST) -> Iterator[str]:
    """The modules of pitcli that are imported, also inside functions, without the leading pitcli."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide their direction"
            # from pitcli import console; from pitcli.stages import sft: the names may be modules
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        yield from (name.removeprefix("pitcli.") for name in names if name.startswith("pitcli."))


def edges() -> list[tuple[str, str]]:
    return [
        (name, imported)
        for name, tree in modules()
        if name != "__init__"
        for imported in imported_modules(tree)
        if imported != "__version__"
    ]


def part(name: str) -> str | None:
    """The folder (or the module at the root) that contains a module or a name."""
    return next((folder for folder in FOLDERS if f"{name}.".startswith(f"{folder}.")), None)


def test_every_module_is_in_a_listed_folder() -> None:
    missing = [name for name, _ in modules() if part(name) is None]
    assert missing == ["__init__", "engine.__init__"]


def test_imports_point_down() -> None:
    found = edges()
    assert ("stages.rl", "equations.rl_rewards") in found
    height = {folder: number for number, folder in enumerate(FOLDERS)}
    assert [edge for edge in found if height[part(edge[1]) or ""] > height[part(edge[0]) or ""]] == []


def test_stages_do_not_import_one_another() -> None:
    """A stage starts another by name, through `pitcli.stages.start`."""
    between = [edge for edge in edges() if part(edge[0]) == part(edge[1]) == "stages"]
    assert {imported for _, imported in between} == {"stages.start"}


def test_the_command_line_and_the_data_load_without_torch() -> None:
    light = [
        name
        for name, _ in modules()
        if part(name)
        in {"cli", "data", "endpoints", "settings", "errors", "events", "console", "panel", "processes", "recipes"}
    ]
    imports = "; ".join(f"import pitcli.{name.removesuffix('.__init__')}" for name in light)
    heavy = "{'torch', 'transformers', 'peft', 'accelerate', 'bitsandbytes'}"
    code = f"import sys; {imports}; print(sorted({heavy} & sys.modules.keys()))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"

"""metrics.jsonl: what a run logged, a line a step."""

import json
import math
from pathlib import Path

from pitcli.errors import RunError

METRICS = "metrics.jsonl"


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """A dict a step, `step` in it; a last line cut in half, as a kill leaves it, is not there yet.

    RunError where the file holds anything else than finite numbers by name.
    """
    path = folder / METRICS
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [_row(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def _row(line: str, where: str) -> dict[str, float]:
    try:
        row = json.loads(line, parse_int=float)
    except (ValueError, RecursionError):
        row = None
    if not isinstance(row, dict) or "step" not in row:
        raise RunError(f"{where}: damaged, or not a line that pit logged")
    if wrong := [name for name, value in row.items() if not isinstance(value, float) or not math.isfinite(value)]:
        raise RunError(f"{where}: {', '.join(wrong)}: not a finite number")
    return row


def last_step(folder: Path) -> int:
    """The last step that was logged; 0 where none was."""
    rows = read_metrics(folder)
    return int(rows[-1]["step"]) if rows else 0


def last_metrics(folder: Path, steps: int = 10) -> dict[str, float]:
    """The means of what a run logged in its last steps."""
    rows = read_metrics(folder)[-steps:]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[-1]} if rows else {}

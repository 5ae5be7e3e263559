"""metrics.jsonl: the metrics that a run logged, one line per step."""

import json
import math
from pathlib import Path
from statistics import fmean

from pitcli.console import counted
from pitcli.errors import RunError

METRICS = "metrics.jsonl"


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """One dict per step, which includes `step`; an incomplete last line, as a kill leaves it, is ignored.

    Raises RunError if the file contains anything but finite numbers by name.
    """
    path = folder / METRICS
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    lines = [line for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [_row(line, f"{path}:{number}") for number, line in enumerate(lines, 1)]


def change(folder: Path, name: str) -> str:
    """A metric at the start and the end of a run, as text; single steps vary too much to be compared.

    Means over the first and the last tenth of the steps; of fewer than ten steps, the mean of all.
    """
    values = [row[name] for row in read_metrics(folder) if name in row]
    tenth = len(values) // 10
    if not tenth:
        return f"{fmean(values):.3f}, mean of {counted(len(values), 'steps')}" if values else "not logged"
    first, last = fmean(values[:tenth]), fmean(values[-tenth:])
    means = "" if tenth == 1 else f", means of the first and last {tenth}"
    return f"{first:.3f} -> {last:.3f} in {len(values)} steps{means}"


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
    """The last step that was logged; 0 if there is none."""
    rows = read_metrics(folder)
    return int(rows[-1]["step"]) if rows else 0


def last_metrics(folder: Path, steps: int = 10) -> dict[str, float]:
    """The means of the metrics over the last steps."""
    rows = read_metrics(folder)[-steps:]
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[-1]} if rows else {}

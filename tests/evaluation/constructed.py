"""Constructed rows, steps, systems and judges, for cases with a known result."""

import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from pitcli.data.rows import Comparison, Message
from pitcli.evaluation.ask_judge import ask
from pitcli.evaluation.compare_systems import against_originals, compare_rows
from pitcli.evaluation.judge import Judge, Verdict
from pitcli.evaluation.results import SystemComparison
from pitcli.evaluation.statistics import BootstrapSettings
from pitcli.evaluation.systems import ImprovedRow, Step, System

SETTINGS = BootstrapSettings(500, 0)


def row(number: int, original: str, response: str, steps: Sequence[Step] = ()) -> ImprovedRow:
    return ImprovedRow(
        seed=0,
        prompt=(Message("user", f"prompt {number}"),),
        original=original,
        response=response,
        steps=tuple(steps),
        generated_tokens=10,
        dataset="all",
    )


def step(before: str, written: str, p_better: float | None = 0.7, kept: str | None = None) -> Step:
    """A step of three tokens, accepted unless another response is kept."""
    kept = written if kept is None else kept
    return Step(before=before, written=written, p_better=p_better, kept=kept, generated_tokens=3)


def steps(original: str, *written: str) -> list[Step]:
    return [step(before, after) for before, after in pairwise([original, *written])]


def system(name: str, files: tuple[str, ...] = (), **settings: str) -> System:
    """A system without rows, with these settings in its manifest."""
    return System(name, files=files, rows={}, records=({"settings": settings},) if settings else ())


def judge_of(p_better: Any, asked: list[Comparison] | None = None) -> Judge:
    def verdicts(comparisons: Sequence[Comparison]) -> list[Verdict]:
        if asked is not None:
            asked.extend(comparisons)
        return [Verdict(p_better(comparison)) for comparison in comparisons]

    return Judge("constructed", verdicts)


def compared(rows: list[ImprovedRow], judge: Judge) -> SystemComparison:
    pair = against_originals("system", rows)
    found = compare_rows(pair, ask(judge, pair.comparisons()), SETTINGS)
    assert found is not None
    return found


def pairs_file(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)

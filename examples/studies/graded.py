"""The rows of the systems of a study, and their grades by the oracle: of word lists, or of English requests."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from pydantic_core import to_json

from pitcli.evaluation.load_judge import oracle_grade
from pitcli.evaluation.statistics import Bootstrap, holm, mean_of, p_value, percentile_interval
from pitcli.evaluation.systems import ImprovedRow, Key, fields_by_prompt, load_systems

Rows = dict[Key, ImprovedRow]


class Estimate(NamedTuple):
    """A mean, its 95% interval, and the two-sided p-value of zero."""

    mean: float
    low: float
    high: float
    p: float


class Iterated(NamedTuple):
    """What a system does over its iterations.

    quality: mean grade of the drafts, and after each iteration, or at the end only. less: of the last, less that of
    another system. harm: the share of the drafts that the last has made worse. tokens: written for each draft.
    """

    quality: list[float]
    less: Estimate
    harm: float
    tokens: float


class Graded:
    """The rows of the systems of a study, and their grades."""

    def __init__(self, out: Path, seeds: Sequence[int]) -> None:
        self.folders = [out / f"seed-{seed}" for seed in seeds]
        self.grade = oracle_grade(
            fields_by_prompt([f"drafts={folder / 'drafts.jsonl'}" for folder in self.folders], [])
        )

    def rows(self, name: str) -> Rows:
        return load_systems([f"{name}={folder}/{name}.jsonl" for folder in self.folders], "--input", None, None)[0].rows

    def grades(self, rows: Iterable[ImprovedRow], iterations: int | None = None) -> np.ndarray:
        """Grade of each row after this many iterations; None: of its final response."""
        texts = ((row, row.response if iterations is None else row.response_after(iterations)) for row in rows)
        return np.array([self.grade(row.prompt, text) for row, text in texts])

    def iterated(self, name: str, other: Rows, iterations: int | None) -> Iterated:
        """Grade the rows of a system that are also rows of the other one.

        iterations: after each of this many; None: its final responses only.
        """
        mine = self.rows(name)
        rows = [mine[key] for key in other]
        counts = [0, None] if iterations is None else range(iterations + 1)
        quality_IN = np.array([self.grades(rows, count) for count in counts])
        less_N = quality_IN[-1] - self.grades(other.values(), iterations)
        tokens = [row.tokens_until(len(row.steps) if iterations is None else iterations) for row in rows]
        return Iterated(
            quality_IN.mean(1).tolist(),
            mean_with_interval(rows, less_N),
            float((quality_IN[-1] < quality_IN[0]).mean()),
            float(np.mean(tokens)),
        )


def mean_with_interval(rows: Sequence[ImprovedRow], values_N: np.ndarray) -> Estimate:
    """The mean of a value per row and its 95% interval, for which prompts and seeds are drawn again."""
    values_D = bootstrap_of(rows).sample(mean_of(values_N))
    return Estimate(float(values_N.mean()), *percentile_interval(values_D), p_value(values_D))


def bootstrap_of(rows: Sequence[ImprovedRow]) -> Bootstrap:
    several = len({row.seed for row in rows}) > 1
    return Bootstrap([repr(row.prompt) for row in rows], [row.seed for row in rows] if several else None)


def written(estimate: Estimate, digits: int = 3) -> str:
    """Format a difference and its interval: +0.012 [-0.003, +0.027]."""
    mean, low, high = (f"{value:+.{digits}f}" for value in estimate[:3])
    return f"{mean} [{low}, {high}]"


def written_family(estimates: Mapping[str, Estimate]) -> dict[str, str]:
    """Format the differences of one table; a star marks those from zero at 5% after Holm's correction."""
    compared = [name for name, estimate in estimates.items() if (estimate.low, estimate.high) != (0, 0)]
    adjusted = dict(zip(compared, holm([estimates[name].p for name in compared]), strict=True))
    return {name: written(it) + " *" * (adjusted.get(name, 1.0) < 0.05) for name, it in estimates.items()}


def write_figures(path: Path, figures: object) -> None:
    path.write_bytes(to_json(figures, indent=1, inf_nan_mode="null") + b"\n")

"""The rows of the systems of a study, and their grades by the oracle: of word lists, or of English requests."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pitcli.evaluation.load_judge import oracle_grade
from pitcli.evaluation.statistics import Bootstrap, mean_of
from pitcli.evaluation.systems import Key, Row, fields_by_prompt, load_systems

Rows = dict[Key, Row]
Estimate = tuple[float, float, float]  # mean, low, high


class Iterated(NamedTuple):
    """What a system does over its iterations.

    quality: mean grade of the drafts, and after each iteration. less: of the last, less that of another system. harm:
    the share of the drafts that the last has made worse. tokens: written for each draft.
    """

    quality: list[float]
    less: Estimate
    harm: float
    tokens: float


class Graded:
    """The rows of the systems of a study, and their grades."""

    def __init__(self, out: Path, seeds: Sequence[int]) -> None:
        self.folders = [out / f"seed-{seed}" for seed in seeds]
        self.grade = oracle_grade(fields_by_prompt([str(folder / "drafts.jsonl") for folder in self.folders], []))

    def rows(self, name: str) -> Rows:
        return load_systems([f"{name}={folder}/{name}.jsonl" for folder in self.folders], "--input", None, None)[0].rows

    def grades(self, rows: Iterable[Row], iterations: int | None = None) -> np.ndarray:
        """Grade of each row after this many iterations; None: of its final response."""
        texts = ((row, row.response if iterations is None else row.response_after(iterations)) for row in rows)
        return np.array([self.grade(row.prompt, text) for row, text in texts])

    def iterated(self, name: str, other: Rows, iterations: int) -> Iterated:
        """Grade the rows of a system that are also rows of the other one, after each of its iterations."""
        mine = self.rows(name)
        rows = [mine[key] for key in other]
        quality_IN = np.array([self.grades(rows, count) for count in range(iterations + 1)])
        less_N = quality_IN[-1] - self.grades(other.values(), iterations)
        return Iterated(
            quality_IN.mean(1).tolist(),
            mean_with_interval(rows, less_N),
            float((quality_IN[-1] < quality_IN[0]).mean()),
            float(np.mean([row.tokens_until(iterations) for row in rows])),
        )


def mean_with_interval(rows: Sequence[Row], values_N: np.ndarray) -> Estimate:
    """The mean of a value per row and its 95% interval, for which prompts and seeds are drawn again."""
    several = len({row.seed for row in rows}) > 1
    bootstrap = Bootstrap([repr(row.prompt) for row in rows], [row.seed for row in rows] if several else None)
    return (float(values_N.mean()), *bootstrap.interval(mean_of(values_N)))


def written(estimate: Estimate, digits: int = 3) -> str:
    """Format a difference and its interval: +0.012 [-0.003, +0.027]."""
    mean, low, high = (f"{value:+.{digits}f}" for value in estimate)
    return f"{mean} [{low}, {high}]"

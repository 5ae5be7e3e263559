"""The format of evaluation.json: every field of it, from which report.html, the tables and model cards are made."""

from typing import Any

from pydantic import BaseModel, ConfigDict

Interval = tuple[float, float]


class _Result(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Decile(_Result):
    """A tenth of the rows, by the baseline's grade: the share made worse and copied, and the mean edit size."""

    harm_rate: float
    copy_rate: float
    edit_size: float


class SystemComparison(_Result):
    """One system against one baseline by one judge. Deltas are win% - lose%, in points, with 95% intervals.

    dataset: the value of --by, else "all". seed: the index of a training seed's file, None for all seeds together.
    Lengths are in characters, edit_size is the share of the words that changed, generated_tokens are means a row.
    length_controlled_delta: None if no row is near an equal length, because the fit would then extrapolate.
    grades: mean quality of the system and of the baseline, if the judge grades single responses.
    deciles: the rows by the baseline's grade, the worst baselines first; empty without grades.
    p_value: 1 if there are fewer than 20 prompts.
    rows_needed: how many rows would show a delta of this size with 80% power, if none is shown. With several seeds it
    is too low, because more rows do not reduce the differences between seeds.
    """

    system: str
    baseline: str
    judge: str
    dataset: str
    seed: int | None
    rows: int
    wins: int
    ties: int
    losses: int
    delta: float
    delta_ci: Interval
    p_value: float
    p_holm: float
    length_controlled_delta: float | None
    length_controlled_ci: Interval | None
    delta_similar_length: float | None
    rows_similar_length: int
    delta_shorter: float | None
    rows_shorter: int
    mean_length: float
    baseline_mean_length: float
    harm_rate: float
    harm_rate_ci: Interval
    copy_rate: float
    edit_size: float
    generated_tokens: float | None
    baseline_generated_tokens: float | None
    grades: tuple[float, float] | None
    grade_difference_ci: Interval | None
    deciles: list[Decile]
    rows_needed: int | None
    verdict: str


class Validation(_Result):
    """A judge on pairs that people labelled; agreement with the labels, beside "longest" and "shortest".

    beats_length: the agreement is above both, with the interval of each difference above zero.
    """

    file: str
    dataset: str
    rows: int
    agreement: float
    agreement_ci: Interval
    longest: float
    shortest: float
    over_longest_ci: Interval
    over_shortest_ci: Interval
    beats_length: bool


class JudgeResult(_Result):
    """A judge: what it is, how it did on human labels, how often its two orders agreed, and how often it failed.

    independent: False if it has seen data of the reward, or if that is not known.
    """

    name: str
    identity: dict[str, Any]
    independence: str
    independent: bool
    validation: list[Validation]
    consistency: float | None
    failed: int

    @property
    def usable(self) -> bool:
        """Whether its win rates may be shown: it beats length on human labels, or was not validated on any."""
        return all(validation.beats_length for validation in self.validation if validation.dataset == "all")


class Iteration(_Result):
    """The responses after this many iterations, against the originals.

    worse_than_before: the share that is worse than after the iteration before. reached: the share of rows that got this
    far; the others keep their last response. copy_rate, edit_size: against the iteration before. strength, elo: None
    unless every pair of iterations was judged.
    """

    iteration: int
    reached: float
    delta: float
    delta_ci: Interval
    grade: float | None
    harm_rate: float
    worse_than_before: float
    copy_rate: float
    edit_size: float
    generated_tokens: float
    strength: float | None
    strength_ci: Interval | None
    elo: float | None


class CalibrationBin(_Result):
    """Improvements whose p_better lies in one bin: the gap model's mean, and how often the judge agreed."""

    p_better: float
    judged_better: float
    judged_better_ci: Interval
    rows: int


class SystemIterations(_Result):
    """A system's iterations by one judge; strengths are Bradley-Terry's, in logits, the originals at 0."""

    system: str
    judge: str
    by_iteration: list[Iteration]
    calibration: list[CalibrationBin]


class Control(_Result):
    """A negative control and whether it passed.

    wanted: the result that passes. seen: the result.
    """

    name: str
    judge: str
    wanted: str
    seen: str
    passed: bool


class EvaluatedSystem(_Result):
    """A system that was evaluated: the files of its rows, and how they were made (the manifest beside them).

    training: the last metrics of its improver's RL run (kl, reward, gap), empty without one.
    """

    name: str
    files: list[str]
    rows: int
    record: dict[str, Any]
    training: dict[str, float]


class Claim(_Result):
    """Whether a system improves on the originals: only if every check passes. reasons: those that do not."""

    system: str
    improves: bool
    reasons: list[str]


class ShownRow(_Result):
    """One row of a system, shown in the report for a person to read.

    p_better: by the system's gap model. judged: P(better) by the first judge.
    """

    system: str
    prompt: str
    original_response: str
    response: str
    p_better: float | None
    judged: float | None


class Evaluation(_Result):
    """The whole evaluation."""

    pit_version: str
    settings: dict[str, Any]
    judges: list[JudgeResult]
    systems: list[EvaluatedSystem]
    comparisons: list[SystemComparison]
    iterations: list[SystemIterations]
    controls: list[Control]
    claims: list[Claim]
    samples: list[ShownRow]


def delta_text(comparison: SystemComparison) -> str:
    """Delta with its interval, in points."""
    return f"{comparison.delta:+.1f} [{comparison.delta_ci[0]:+.1f}, {comparison.delta_ci[1]:+.1f}]"


def controlled_delta_text(comparison: SystemComparison) -> str:
    """The length-controlled delta with its interval, in points."""
    if comparison.length_controlled_delta is None or comparison.length_controlled_ci is None:
        return "not identified"
    low, high = comparison.length_controlled_ci
    return f"{comparison.length_controlled_delta:+.1f} [{low:+.1f}, {high:+.1f}]"

"""The format of evaluation.json, from which report.html, the tables and the model cards are made."""

from typing import Any

from pydantic import BaseModel, ConfigDict

Interval = tuple[float, float]


class _Result(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Decile(_Result):
    """A tenth of the rows, ordered by the baseline's grade: shares made worse and copied, and the mean edit size."""

    harm_rate: float
    copy_rate: float
    edit_size: float


class SystemComparison(_Result):
    """One system against one baseline by one judge. Deltas are win% - lose%, in points, with 95% intervals.

    dataset: a value of the --by field, or "all". seed: the index of a training seed's file, None for all seeds
    together. Lengths are in characters, edit_size is the share of the words (in scripts without spaces: of the
    characters) that changed, generated_tokens are means per row.
    length_controlled_delta: None if no row is near an equal length, because the fit would then extrapolate.
    grades: mean grades of the system and of the baseline, if the judge grades single responses.
    deciles: by the baseline's grade, the worst baselines first; empty without grades.
    p_value: 1 if there are fewer than 20 prompts.
    rows_needed: how many rows would show a delta of this size with 80% power, if no difference is shown. With several
    seeds it is too low, because more rows do not reduce the differences between seeds.
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
    """How a judge agrees with human labels, and how always choosing the longest or the shortest response does.

    beats_length: the agreement is above both, and the interval of each difference is above zero.
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

    independent: False if the judge has seen training data of the reward, or if this is unknown.
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
        """Whether its win rates may be shown: it beats length on human labels, or was not validated."""
        return all(validation.beats_length for validation in self.validation if validation.dataset == "all")


class Iteration(_Result):
    """The responses after this many iterations, compared with the originals.

    reached: the share of rows with this many iterations; the others keep their last response.
    worse_than_before: the share of rows that are worse than one iteration earlier. copy_rate, edit_size: compared with
    one iteration earlier. strength, elo: None unless every pair of iterations was judged.
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
    """Improvements whose p_better lies in one bin: its mean, and how often the judge found them better."""

    p_better: float
    judged_better: float
    judged_better_ci: Interval
    rows: int


class SystemIterations(_Result):
    """A system's iterations by one judge. Strengths are Bradley-Terry strengths in logits; the originals have 0."""

    system: str
    judge: str
    by_iteration: list[Iteration]
    calibration: list[CalibrationBin]


class Control(_Result):
    """A negative control and whether it passed.

    expected: the result that passes. seen: the result.
    """

    name: str
    judge: str
    expected: str
    seen: str
    passed: bool


class EvaluatedSystem(_Result):
    """A system that was evaluated: the files of its rows, and how they were made (the manifest next to them).

    training: the last metrics of its improver's RL run (kl, reward, gap); empty without RL.
    """

    name: str
    files: list[str]
    rows: int
    record: dict[str, Any]
    training: dict[str, float]


class Claim(_Result):
    """Whether one may claim that a system improves: only if every check passes.

    reasons: the checks that are missing or failed.
    """

    system: str
    improves: bool
    reasons: list[str]


class BaselineAnswer(_Result):
    """Whether a system is better than a baseline, by one judge over all rows.

    answer: "yes", "no difference shown" or "worse". kind: what the baseline is, as far as its manifest shows it.
    grades: as in SystemComparison. remark: why no difference is shown although the interval excludes zero, or how many
    rows would show one.
    """

    baseline: str
    kind: str
    judge: str
    answer: str
    rows: int
    delta: float
    delta_ci: Interval
    grades: tuple[float, float] | None
    remark: str


class Answers(_Result):
    """Three questions about a system, answered separately.

    originals: is it better than the originals? One answer per judge whose win rates may be shown.
    baselines: is it better than the baselines? One answer per baseline and judge.
    unjudged: the baselines that no such judge gave a verdict on.
    missing: what is missing before one may claim that it improves? The checks that are missing or failed.
    """

    system: str
    originals: list[BaselineAnswer]
    baselines: list[BaselineAnswer]
    unjudged: list[str]
    missing: list[str]


class ShownRow(_Result):
    """One row of a system, shown in the report for a person to read.

    p_better: by the system's gap model. judged: P(better) by the first judge. edits: as pit explain writes them; empty
    if the row is not explained.
    """

    system: str
    prompt: str
    original_response: str
    response: str
    p_better: float | None
    judged: float | None
    edits: list[dict[str, Any]] = []


class Evaluation(_Result):
    """The whole evaluation."""

    pit_version: str
    settings: dict[str, Any]
    answers: list[Answers] = []
    judges: list[JudgeResult]
    systems: list[EvaluatedSystem]
    comparisons: list[SystemComparison]
    iterations: list[SystemIterations]
    controls: list[Control]
    claims: list[Claim]
    samples: list[ShownRow]


def delta_text(comparison: SystemComparison | BaselineAnswer) -> str:
    """Delta with its interval, in points."""
    return f"{comparison.delta:+.1f} [{comparison.delta_ci[0]:+.1f}, {comparison.delta_ci[1]:+.1f}]"


def controlled_delta_text(comparison: SystemComparison) -> str:
    """The length-controlled delta with its interval, in points."""
    if comparison.length_controlled_delta is None or comparison.length_controlled_ci is None:
        return "not identified"
    low, high = comparison.length_controlled_ci
    return f"{comparison.length_controlled_delta:+.1f} [{low:+.1f}, {high:+.1f}]"

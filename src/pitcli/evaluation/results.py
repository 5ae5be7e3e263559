"""What an evaluation found: the content of evaluation.json, and all that report.html is made from."""

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


class Comparison(_Result):
    """One system against one baseline by one judge. Deltas are win% - lose%, in points, with 95% intervals.

    dataset: the value of --by, else "all". seed: the place of a training seed's file, None for all of them together.
    Lengths are in characters, edit_size is the share of the words that changed, generated_tokens are means a row.
    length_controlled_delta: None where no row is near an equal length, so that nothing can be read there.
    grades: mean quality of the system and of the baseline, where the judge grades single responses.
    deciles: the rows by the baseline's grade, where there is one, the worst baselines first.
    p_value: 1 where there are fewer than 20 prompts.
    rows_needed: how many would show a delta of this size with 80% power, where none is shown; of several seeds too few,
    because more rows do not bring the seeds together.
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

    independent: False where it has seen what the reward has seen, or where that is not known.
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
        """Whether its win rates may be shown: on human labels it beats length, or it was not held against any."""
        return all(one.beats_length for one in self.validation if one.dataset == "all")


class Iteration(_Result):
    """The responses after so many iterations, against the originals.

    worse_than_before: the share that is worse than after the iteration before. reached: the share of rows that went so
    far; the others stand with what they had. copy_rate, edit_size: against the iteration before. strength, elo: None
    where no iterations were judged against one another.
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


class Bin(_Result):
    """Improvements whose p_better lies in one bin: what the gap model said, and how often the judge said better."""

    p_better: float
    judged_better: float
    judged_better_ci: Interval
    rows: int


class Iterations(_Result):
    """A system's iterations by one judge; strengths are Bradley-Terry's, in logits, the originals at 0."""

    system: str
    judge: str
    by_iteration: list[Iteration]
    calibration: list[Bin]


class Control(_Result):
    """A negative control and whether the evaluation found it out."""

    name: str
    judge: str
    wanted: str
    seen: str
    passed: bool


class System(_Result):
    """A system that was evaluated: where its rows are from, and what they were made with (the record beside them).

    training: the last metrics of its improver's RL run (kl, reward, gap), empty where there is none.
    """

    name: str
    files: list[str]
    rows: int
    record: dict[str, Any]
    training: dict[str, float]


class Claim(_Result):
    """Does a system improve on the originals? Only where all that EVALUATION asks for holds; reasons: what does not."""

    system: str
    improves: bool
    reasons: list[str]


class Sample(_Result):
    """One row, to be read by a person."""

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
    systems: list[System]
    comparisons: list[Comparison]
    iterations: list[Iterations]
    controls: list[Control]
    claims: list[Claim]
    samples: list[Sample]

"""Print an evaluation on stderr: its tables, then the answers to the three questions."""

from collections.abc import Sequence

from pitcli.console import note, table, warn
from pitcli.evaluation.answers import answer_lines
from pitcli.evaluation.judge import ORACLE
from pitcli.evaluation.results import (
    Control,
    Evaluation,
    Interval,
    JudgeResult,
    SystemComparison,
    SystemIterations,
    controlled_delta_text,
    delta_text,
)

COMPARISON_COLUMNS = (
    *("system", "baseline", "judge", "W/T/L", "delta [95%]", "length-controlled [95%]"),
    *("characters", "harm", "copies", "tokens", "grade", "verdict"),
)
ITERATION_COLUMNS = (
    *("iteration", "reached", "delta [95%]", "grade", "harm"),
    *("worse than before", "tokens", "Bradley-Terry [95%]", "Elo"),
)


def print_evaluation(evaluation: Evaluation) -> None:
    """Print the tables, without win rates of judges that do not beat length on human labels, then the three answers."""
    refused = {judge.name for judge in evaluation.judges if not judge.usable}
    print_judges(evaluation.judges)
    if comparisons := [comparison for comparison in evaluation.comparisons if comparison.judge not in refused]:
        print_comparisons(comparisons)
    for iterations in evaluation.iterations:
        if iterations.judge not in refused:
            print_iterations(iterations)
    if evaluation.controls:
        print_controls(evaluation.controls, refused)
    for answers in evaluation.answers:
        for line in answer_lines(answers):
            note(line)


def print_judges(judges: Sequence[JudgeResult]) -> None:
    for judge in judges:
        consistent = f"; both orders agree in {judge.consistency:.0%}" if judge.consistency is not None else ""
        note(f"judge {judge.name}: {judge.independence}{consistent}")
        if not (judge.validation or judge.name == ORACLE):
            warn(f"judge {judge.name}: not checked against human labels (--validate-on)")
        if not judge.usable:
            warn(
                f"judge {judge.name}: not better on human labels than choosing the longest or the shortest response; "
                "its win rates are not shown"
            )
    lines = [
        (
            judge.name,
            validation.file,
            validation.dataset,
            validation.rows,
            _estimate(validation.agreement, validation.agreement_ci, "{:.3f}"),
            validation.longest,
            validation.shortest,
        )
        for judge in judges
        for validation in judge.validation
    ]
    if lines:
        columns = ("judge", "file", "data set", "pairs", "agreement [95%]", "longest", "shortest")
        table("Judges on human labels", columns, lines)


def print_comparisons(comparisons: Sequence[SystemComparison]) -> None:
    lines = [_comparison_line(comparison) for comparison in comparisons]
    table("Comparisons (delta = win% - lose%, in points; a/b: system/baseline)", COMPARISON_COLUMNS, lines)


def _comparison_line(comparison: SystemComparison) -> tuple[object, ...]:
    c = comparison
    needs = f", {c.rows_needed:,} rows needed" if c.rows_needed and c.rows_needed > c.rows else ""
    return (
        c.system + (f", seed {c.seed}" if c.seed is not None else ""),
        c.baseline,
        c.judge + ("" if c.dataset == "all" else f", {c.dataset}"),
        f"{c.wins}/{c.ties}/{c.losses}",
        delta_text(c),
        controlled_delta_text(c),
        f"{c.mean_length:.1f}/{c.baseline_mean_length:.1f}",
        f"{c.harm_rate:.1%}",
        f"{c.copy_rate:.1%}",
        _number(c.generated_tokens, "{:.1f}") + "/" + _number(c.baseline_generated_tokens, "{:.1f}"),
        "" if c.grades is None else f"{c.grades[0]:.3f}/{c.grades[1]:.3f}",
        c.verdict + needs,
    )


def print_iterations(iterations: SystemIterations) -> None:
    lines = [
        (
            step.iteration,
            f"{step.reached:.1%}",
            _estimate(step.delta, step.delta_ci, "{:+.1f}"),
            _number(step.grade, "{:.3f}"),
            f"{step.harm_rate:.1%}",
            f"{step.worse_than_before:.1%}",
            f"{step.generated_tokens:.1f}",
            _estimate(step.strength, step.strength_ci, "{:+.2f}"),
            _number(step.elo, "{:.0f}"),
        )
        for step in iterations.by_iteration
    ]
    table(f"{iterations.system} by iteration, judge {iterations.judge}", ITERATION_COLUMNS, lines)


def print_controls(controls: Sequence[Control], refused: set[str]) -> None:
    lines = [
        (
            control.name,
            control.judge,
            control.expected,
            "not shown" if control.judge in refused else control.seen,
            "passed" if control.passed else "FAILED",
        )
        for control in controls
    ]
    table("Negative controls", ("control", "judge", "expected", "seen", "result"), lines)


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)


def _estimate(value: float | None, interval: Interval | None, form: str) -> str:
    if value is None or interval is None:
        return ""
    return f"{form.format(value)} [{form.format(interval[0])}, {form.format(interval[1])}]"

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
    """Print three tables per judge, each narrow enough for 80 columns."""
    for judge in dict.fromkeys(comparison.judge for comparison in comparisons):
        own = [comparison for comparison in comparisons if comparison.judge == judge]
        labels = [_comparison_label(comparison) for comparison in own]
        results = [(delta_text(c), f"{c.harm_rate:.1%}", c.verdict) for c in own]
        _labelled_table(
            f"Comparisons by judge {judge}, delta = win% - lose%",
            columns=("system vs baseline", "delta [95%]", "harm", "verdict"),
            labels=labels,
            rows=results,
        )
        lengths = [
            (
                controlled_delta_text(c),
                f"{c.mean_length:.1f}/{c.baseline_mean_length:.1f}",
                f"{c.copy_rate:.1%}",
            )
            for c in own
        ]
        _labelled_table(
            "Lengths and copies (characters: system/baseline)",
            columns=("system vs baseline", "length-controlled [95%]", "characters", "copies"),
            labels=labels,
            rows=lengths,
        )
        _labelled_table(
            "Counts, tokens and grades (system/baseline)",
            columns=("system vs baseline", "W/T/L", "tokens", "grade", "rows needed"),
            labels=labels,
            rows=[_counts(comparison) for comparison in own],
        )


def _labelled_table(title: str, columns: Sequence[str], labels: Sequence[str], rows: Sequence[tuple[str, ...]]) -> None:
    table(title, columns, [(label, *row) for label, row in zip(labels, rows, strict=True)])


def _comparison_label(comparison: SystemComparison) -> str:
    dataset = "" if comparison.dataset == "all" else f", {comparison.dataset}"
    seed = "" if comparison.seed is None else f", seed {comparison.seed}"
    return f"{comparison.system} vs {comparison.baseline}{dataset}{seed}"


def _counts(comparison: SystemComparison) -> tuple[str, ...]:
    c = comparison
    return (
        f"{c.wins}/{c.ties}/{c.losses}",
        _both(c.generated_tokens, c.baseline_generated_tokens, "{:.1f}"),
        _both(c.grades[0], c.grades[1], "{:.3f}") if c.grades else "",
        f"{c.rows_needed:,}" if c.rows_needed and c.rows_needed > c.rows else "",
    )


def print_iterations(iterations: SystemIterations) -> None:
    """Print two tables, each narrow enough for 80 columns."""
    title, steps = f"{iterations.system} by iteration, judge {iterations.judge}", iterations.by_iteration
    results = [
        (
            step.iteration,
            _estimate(step.delta, step.delta_ci, "{:+.1f}"),
            _number(step.grade, "{:.3f}"),
            f"{step.harm_rate:.1%}",
            f"{step.worse_than_before:.1%}",
        )
        for step in steps
    ]
    table(title, ("iteration", "delta [95%]", "grade", "harm", "worse than before"), results)
    ranks = [
        (
            step.iteration,
            f"{step.reached:.1%}",
            f"{step.generated_tokens:.1f}",
            _estimate(step.strength, step.strength_ci, "{:+.2f}"),
            _number(step.elo, "{:.0f}"),
        )
        for step in steps
    ]
    table(f"{title}: ranks", ("iteration", "reached", "tokens", "Bradley-Terry [95%]", "Elo"), ranks)


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


def _both(system: float | None, baseline: float | None, form: str) -> str:
    """The values of the system and of the baseline, of which either may be unknown."""
    return "/".join(filter(None, (_number(system, form), _number(baseline, form))))


def _estimate(value: float | None, interval: Interval | None, form: str) -> str:
    if value is None or interval is None:
        return ""
    return f"{form.format(value)} [{form.format(interval[0])}, {form.format(interval[1])}]"

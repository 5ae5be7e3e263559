"""An evaluation as tables on stderr."""

from collections.abc import Sequence

from pitcli.console import note, table, warn
from pitcli.evaluation import results
from pitcli.evaluation.claims import shown, shown_controlled
from pitcli.evaluation.verdicts import ORACLE


def print_evaluation(evaluation: results.Evaluation) -> None:
    """The tables; win rates of a judge that does not beat length on human labels are not among them."""
    refused = set()
    for judge in evaluation.judges:
        consistent = f", both orders agree in {judge.consistency:.0%}" if judge.consistency is not None else ""
        note(f"judge {judge.name}: {judge.independence}{consistent}")
        if not (judge.validation or judge.name == ORACLE):
            warn(f"{judge.name} is not held against human labels (--validate-on)")
        if not judge.usable:
            refused.add(judge.name)
            warn(
                f"{judge.name} does not beat the longest and the shortest on human labels: its win rates are not shown"
            )
    validations = [(judge.name, one) for judge in evaluation.judges for one in judge.validation]
    if validations:
        table(
            "Judges on human labels",
            ["judge", "file", "data", "rows", "agreement [95%]", "longest", "shortest"],
            [
                [
                    name,
                    one.file,
                    one.dataset,
                    one.rows,
                    f"{one.agreement:.3f} [{one.agreement_ci[0]:.3f}, {one.agreement_ci[1]:.3f}]",
                    one.longest,
                    one.shortest,
                ]
                for name, one in validations
            ],
        )
    if shown_comparisons := [one for one in evaluation.comparisons if one.judge not in refused]:
        print_comparisons(shown_comparisons)
    print_iterations([one for one in evaluation.iterations if one.judge not in refused])
    if evaluation.controls:
        table(
            "Controls",
            ["control", "judge", "wanted", "seen", ""],
            [
                [
                    c.name,
                    c.judge,
                    c.wanted,
                    "not shown" if c.judge in refused else c.seen,
                    "passed" if c.passed else "FAILED",
                ]
                for c in evaluation.controls
            ],
        )
    for one in evaluation.claims:
        note(f"{one.system}: " + ("improves" if one.improves else "not shown to improve: " + "; ".join(one.reasons)))


def print_comparisons(comparisons: Sequence[results.Comparison]) -> None:
    lines = []
    for one in comparisons:
        needs = f", {one.rows_needed} rows would be needed" if one.rows_needed and one.rows_needed > one.rows else ""
        lines.append(
            [
                one.system + (f", seed {one.seed}" if one.seed is not None else ""),
                one.baseline,
                one.judge + ("" if one.dataset == "all" else f", {one.dataset}"),
                f"{one.wins}/{one.ties}/{one.losses}",
                shown(one),
                shown_controlled(one),
                f"{one.mean_length:.1f}/{one.baseline_mean_length:.1f}",
                f"{one.harm_rate:.1%}",
                f"{one.copy_rate:.1%}",
                _number(one.generated_tokens, "{:.1f}") + "/" + _number(one.baseline_generated_tokens, "{:.1f}"),
                "" if one.grades is None else f"{one.grades[0]:.3f}/{one.grades[1]:.3f}",
                one.verdict + needs,
            ]
        )
    table(
        "Comparisons (delta = win% - lose%, in points)",
        [
            "system",
            "against",
            "judge",
            "W/T/L",
            "delta [95%]",
            "at equal lengths [95%]",
            "characters",
            "harm",
            "copies",
            "tokens",
            "grade",
            "",
        ],
        lines,
    )


def print_iterations(iterations: Sequence[results.Iterations]) -> None:
    for one in iterations:
        table(
            f"{one.system} by iteration, {one.judge}",
            [
                "iteration",
                "reached",
                "delta [95%]",
                "grade",
                "harm",
                "worse than before",
                "tokens",
                "Bradley-Terry [95%]",
                "ELO",
            ],
            [
                [
                    step.iteration,
                    f"{step.reached:.1%}",
                    f"{step.delta:+.1f} [{step.delta_ci[0]:+.1f}, {step.delta_ci[1]:+.1f}]",
                    _number(step.grade, "{:.3f}"),
                    f"{step.harm_rate:.1%}",
                    f"{step.worse_than_before:.1%}",
                    f"{step.generated_tokens:.1f}",
                    ""
                    if step.strength is None or step.strength_ci is None
                    else f"{step.strength:+.2f} [{step.strength_ci[0]:+.2f}, {step.strength_ci[1]:+.2f}]",
                    _number(step.elo, "{:.0f}"),
                ]
                for step in one.by_iteration
            ],
        )


def _number(value: float | None, form: str) -> str:
    return "" if value is None else form.format(value)

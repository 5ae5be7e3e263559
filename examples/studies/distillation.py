"""Distillation: is one response of a distilled policy as good as policy and improver? Does a second round help?

Prints a table: the mean grade of one response of the policy before (resample) and after, of its drafts after up to five
improvements by the improver that was distilled (the teacher), of best-of-n of the policy after sft with as many tokens,
and which share of the teacher's gain each keeps.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from graded import Graded, bootstrap_of, mean_with_interval, write_figures, written, written_family
from project import Study, run_study
from scales import StudyScale

from pitcli.console import table
from pitcli.evaluation.statistics import mean_of
from pitcli.evaluation.systems import ImprovedRow

METHODS = ("distill@sft", "distill@dpo", "distill@on-policy", "distill@twice", "distill@longer")
TEACHER, BEFORE = "distill@teacher", "resample"


def report(out: Path, seeds: list[int], _: StudyScale) -> None:
    graded = Graded(out, seeds)
    before = graded.rows(BEFORE)
    rows = list(before.values())
    names = (BEFORE, TEACHER, *METHODS, "distill@best-of-n")
    grades = {}
    for name in names:
        mine = graded.rows(name)
        grades[name] = graded.grades(mine[key] for key in before)
    gain_N = {name: grades[name] - grades[BEFORE] for name in names}
    less = {name: mean_with_interval(rows, grades[name] - grades[TEACHER]) for name in names}
    gains = {name: mean_with_interval(rows, gain_N[name]) for name in names}
    improved = graded.grades(graded.rows("distill@improved").values())
    figures, lines = {}, []
    for name, text in written_family(gains).items():
        kept = share_with_interval(rows, gain_N[name], gain_N[TEACHER])
        figures[name] = {"quality": float(grades[name].mean()), "gain": gains[name], "less": less[name], "kept": kept}
        shown = "{:.0%} [{:.0%}, {:.0%}]".format(*kept)
        lines.append([name, figures[name]["quality"], text, written(less[name]), shown])
    columns = [
        "system",
        "quality",
        "gain over the policy before [95%]",
        "less the teacher [95%]",
        "share kept",
    ]
    table(f"Distilled policies, {len(rows)} rows, judged by the oracle", columns, lines)
    figures["distill@improved"] = {"quality": float(improved.mean())}
    table("The teacher on the drafts of the policy after sft", ["quality"], [[float(improved.mean())]])
    write_figures(out / "distillation.json", figures)


def share_with_interval(
    rows: Sequence[ImprovedRow], part_N: np.ndarray, whole_N: np.ndarray
) -> tuple[float, float, float]:
    """The ratio of two means and its 95% interval."""
    part, whole = mean_of(part_N), mean_of(whole_N)
    interval = bootstrap_of(rows).interval(lambda weights_BN: part(weights_BN) / whole(weights_BN))
    return (float(part_N.mean() / whole_N.mean()), *interval)


STUDY = Study(
    [*METHODS, TEACHER, BEFORE, "distill@best-of-n", "distill@improved"],
    [
        *(f"--input={name},{TEACHER},{BEFORE} --out={name.replace('@', '-')}" for name in METHODS),
        f"--input=distill@best-of-n,{TEACHER} --out=distill-best-of-n",
        "--input=distill@improved --out=distill-improved",
    ],
    report=report,
)

if __name__ == "__main__":
    run_study(__doc__, lambda _: STUDY)

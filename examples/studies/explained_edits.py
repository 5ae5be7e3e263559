"""Explained edits: do their shares agree with the oracle, and does --prune-edits lower the harm?

The truth of an edit is by how much the oracle's grade falls if that edit alone is reverted. Rank correlations are those
of Spearman over the edits of all rows; their intervals resample prompts, with the ranks of the whole sample.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from graded import Graded, mean_with_interval, write_figures, written
from project import Study, run_study
from scales import StudyScale
from scipy.stats import rankdata, spearmanr

from pitcli.console import note, table
from pitcli.data.edits import reverted
from pitcli.data.reading import load_rows
from pitcli.evaluation.statistics import Bootstrap, Statistic, mean_of

PRUNED = ("pit", "pit-stop")


class JudgedEdit(NamedTuple):
    """An edit with its gap and share by the gap model, and the fall of the oracle's grade without it.

    of: edits of its row. rise: of the grade from the draft to the response.
    """

    seed: int
    prompt: str
    gap: float
    share: float | None
    fall: float
    of: int
    rise: float


def judged_rows(graded: Graded) -> Iterator[list[JudgedEdit]]:
    """Yield the edits of each row that have a gap."""
    for row in graded.rows("pit-explained").values():
        grade = graded.grade(row.prompt, row.response)
        rise = grade - graded.grade(row.prompt, row.original)
        yield [
            JudgedEdit(
                seed=row.seed,
                prompt=repr(row.prompt),
                gap=gap,
                share=share,
                fall=grade - graded.grade(row.prompt, reverted(row.response, [edit])),
                of=len(row.edits),
                rise=rise,
            )
            for edit, gap, share, *_ in row.edits
            if gap is not None
        ]


def correlation_of(one: Sequence[float], other: Sequence[float]) -> Statistic:
    """The weighted rank correlation of two values per edit, as a statistic."""
    x_N, y_N = (rankdata(values) - (len(values) + 1) / 2 for values in (one, other))
    means = [mean_of(values_N) for values_N in (x_N, y_N, x_N * y_N, x_N**2, y_N**2)]

    def statistic(weights_BN: np.ndarray) -> np.ndarray:
        x, y, xy, xx, yy = (mean(weights_BN) for mean in means)
        return (xy - x * y) / np.sqrt(np.maximum((xx - x**2) * (yy - y**2), 1e-12))

    return statistic


def with_interval(statistic: Statistic, prompts: Sequence[str], seeds: Sequence[int]) -> list[float]:
    several = len(set(seeds)) > 1
    bootstrap = Bootstrap(list(prompts), list(seeds) if several else None, draws=2000)
    return [float(statistic(np.ones((1, len(prompts))))[0]), *bootstrap.interval(statistic)]


def agreement(rows: Sequence[Sequence[JudgedEdit]]) -> dict[str, list[float]]:
    """Return the rank correlations with the oracle: how many values, the correlation and its interval."""
    edits = [edit for row in rows for edit in row]
    shared = [(edit, edit.share) for edit in edits if edit.share is not None]
    compared = {
        "share and fall": [(edit, share, edit.fall) for edit, share in shared],
        "share and fall, rows with several edits": [(edit, share, edit.fall) for edit, share in shared if edit.of > 1],
        "share and share of the rise": [(e, share, e.fall / e.rise) for e, share in shared if e.rise > 0],
        "gap and fall": [(edit, edit.gap, edit.fall) for edit in edits],
        "gap and fall, rows with several edits": [(edit, edit.gap, edit.fall) for edit in edits if edit.of > 1],
    }
    found = {}
    for name, values in compared.items():
        if len(values) < 3:
            continue
        of, ours, truth = zip(*values, strict=True)
        correlation = with_interval(correlation_of(ours, truth), [e.prompt for e in of], [e.seed for e in of])
        found[name] = [len(values), *correlation]
    ranked = [row for row in rows if len(row) > 2 and len({edit.fall for edit in row}) > 1]
    if not ranked:
        return found
    within = [float(spearmanr([e.gap for e in row], [e.fall for e in row])[0]) for row in ranked]
    first = [row[0] for row in ranked]
    mean = with_interval(mean_of(within), [edit.prompt for edit in first], [edit.seed for edit in first])
    return {**found, "gap and fall, mean within rows with 3 or more edits": [len(within), *mean]}


def by_gap(edits: Sequence[JudgedEdit]) -> list[list[object]]:
    """Return what the oracle finds of the edits with a gap of at most some values: its grade without them."""
    lines: list[list[object]] = []
    for most in (float("inf"), 0.0, -0.1, -0.2, -0.3):
        falls = np.sign([edit.fall for edit in edits if edit.gap <= most])
        shares = [f"{np.mean(falls == sign):.1%}" for sign in (-1, 0, 1)]
        lines.append(["all" if most > 0 else f"at most {most:g}", len(falls), *shares])
    return lines


def dropped_edits(file: Path) -> list[int]:
    rows = load_rows(file, lambda row, *_: row)
    return [sum(step.get("pruned_edits", 0) for step in row["iterations"]) for row in rows]


def harm_and_grade(graded: Graded, name: str) -> dict[str, Any]:
    """Return harm rate and mean grade of a system with and without --prune-edits, and the differences."""
    plain = graded.rows(name)
    pruned = graded.rows(f"{name}-pruned")
    rows = list(plain.values())
    drafts_N = graded.grades(rows, 0)
    grade_2N = np.array([graded.grades(rows), graded.grades(pruned[key] for key in plain)])
    harm_2N = (grade_2N < drafts_N).astype(float)
    dropped = [count for folder in graded.folders for count in dropped_edits(folder / f"{name}-pruned.jsonl")]
    return {
        "rows": len(rows),
        "rows_pruned": sum(count > 0 for count in dropped),
        "edits_dropped": sum(dropped),
        "harm": list(harm_2N.mean(1)),
        "harm_difference": mean_with_interval(rows, harm_2N[1] - harm_2N[0]),
        "grade": list(grade_2N.mean(1)),
        "grade_difference": mean_with_interval(rows, grade_2N[1] - grade_2N[0]),
    }


def report(out: Path, seeds: list[int], _: StudyScale) -> None:
    graded = Graded(out, seeds)
    rows = list(judged_rows(graded))
    agreements, counts = agreement(rows), by_gap([edit for row in rows for edit in row])
    lines = [[name, count, f"{r:.3f} [{low:.3f}, {high:.3f}]"] for name, (count, r, low, high) in agreements.items()]
    table("Rank correlation with the oracle", ["of", "values", "Spearman [95%]"], lines)
    table("The oracle's grade without an edit", ["gap of the edit", "edits", "rises", "is the same", "falls"], counts)
    systems = {name: harm_and_grade(graded, name) for name in PRUNED}
    lines = []
    for name, found in systems.items():
        for field in ("harm", "grade"):
            before, after = found[field]
            difference = written(found[f"{field}_difference"], 4)
            lines.append([name, field, f"{before:.4f}", f"{after:.4f}", difference])
        note(f"{name}: {found['edits_dropped']} edits dropped in {found['rows_pruned']} of {found['rows']} rows")
    columns = ["system", "figure", "plain", "--prune-edits", "difference [95%]"]
    table("Harm rate and mean grade by the oracle", columns, lines)
    figures = {"agreement": agreements, "by_gap": counts, **systems}
    write_figures(out / "explained-edits.json", figures)


STUDY = Study(
    ["pit", "pit-explained", "pit-pruned", "pit-stop", "pit-stop-pruned"],
    ["--input=pit-pruned,pit --out=pruned", "--input=pit-stop-pruned,pit-stop --out=pruned-stop"],
    report=report,
)

if __name__ == "__main__":
    run_study(__doc__, lambda _: STUDY)

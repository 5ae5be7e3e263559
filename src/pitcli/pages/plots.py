"""Draw the plots of an evaluation: Δ by iteration, temperature, length and KL, and the gap model's calibration."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from pitcli.evaluation.results import Decile, EvaluatedSystem, Interval, SystemComparison, SystemIterations
from pitcli.pages.figures import GREY, Plot, blank_axes, legend_entry, style_of, svg_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVE_POINTS = 3  # fewer settings do not make a curve
LABEL_CHARACTERS = 34
_DELTA = "Δ against the originals, points"
Key = TypeVar("Key")
Item = TypeVar("Item")
# by caption, which contains the judge and the data set
ComparisonsByCaption = Mapping[str, Sequence[SystemComparison]]
IterationsByCaption = Mapping[str, Sequence[SystemIterations]]


class _Point(NamedTuple):
    x: float
    y: float
    interval: Interval | None = None


class _Series(NamedTuple):
    label: str
    points: list[_Point]


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """Group items by key; keys and items keep their order."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def forest(comparisons: ComparisonsByCaption) -> list[Plot]:
    """Plot delta and length-controlled delta of every comparison, with intervals, by baseline."""
    return [_forest(caption, group) for caption, group in comparisons.items()]


def _forest(caption: str, comparisons: Sequence[SystemComparison]) -> Plot:
    rows: list[tuple[str, SystemComparison | None]] = []
    for baseline, group in grouped(comparisons, lambda comparison: comparison.baseline).items():
        rows.append((f"against {_label(baseline)}", None))
        rows += [(_label(comparison.system), comparison) for comparison in group]
    # Enough pixels for the labels in most fonts.
    left = 24 + max(sum(7 if character.isascii() else 12 for character in label) for label, _ in rows)
    figure, axes = blank_axes(720, 30 * len(rows) + 56, left=left, top=6)
    for y, (_, comparison) in enumerate(rows):
        if comparison:
            _estimate(axes, comparison.delta, ends=comparison.delta_ci, y=y - 0.14, number=0)
            controlled, ends = comparison.length_controlled_delta, comparison.length_controlled_ci
            if controlled is not None and ends:
                _estimate(axes, controlled, ends=ends, y=y + 0.14, number=1)
    axes.axvline(0, color=GREY, linewidth=1.2)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    for text, (_, comparison) in zip(axes.get_yticklabels(), rows, strict=True):
        text.set_fontstyle("normal" if comparison else "italic")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0, pad=8)
    axes.spines["left"].set_visible(False)
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel="points, with 95% intervals")
    legend = [legend_entry(0, "Δ"), legend_entry(1, "Δ, length-controlled")]
    return Plot(svg_of(figure, f"Forest plot. {caption}"), caption, legend)


def _estimate(axes: "Axes", x: float, ends: Interval, y: float, number: int) -> None:
    color, marker, _ = style_of(number)
    axes.plot(ends, (y, y), color=color, linewidth=2, solid_capstyle="butt")
    axes.plot(x, y, color=color, marker=marker, markersize=6)


def by_iteration(iterations: IterationsByCaption) -> list[Plot]:
    """Plot delta, and the mean grade if there is one, over the number of iterations."""
    plots = []
    for caption, group in iterations.items():
        deltas, grades = [], []
        for system in group:
            steps = system.by_iteration
            deltas.append(_Series(system.system, [_Point(s.iteration, s.delta, s.delta_ci) for s in steps]))
            graded = [_Point(s.iteration, s.grade) for s in steps if s.grade is not None]
            grades.append(_Series(system.system, graded))
        for name, lines, finish in ((_DELTA, deltas, _zero_line), ("mean grade", grades, None)):
            ticks = sorted({point.x for line in lines for point in line.points})
            if ticks:
                plots.append(_curves(caption, lines, labels=("iterations", name), finish=finish, ticks=ticks))
    return plots


def by_temperature(originals: ComparisonsByCaption, temperatures: dict[str, dict[str, float]]) -> list[Plot]:
    """Plot delta against the originals over the sampling temperature. temperatures: by method and system."""
    plots = []
    for caption, group in originals.items():
        series = []
        for method, by_system in temperatures.items():
            points = [_Point(by_system[c.system], c.delta, c.delta_ci) for c in group if c.system in by_system]
            if len({point.x for point in points}) >= CURVE_POINTS:
                series.append(_Series(method, points))
        if series:
            plots.append(_curves(caption, series, labels=("temperature", _DELTA), finish=_zero_line))
    return plots


def by_length(comparisons: ComparisonsByCaption) -> list[Plot]:
    """Plot delta over the change in length, one plot per baseline."""
    plots = []
    labels = ("mean length, change in %", "Δ, points")
    for caption, group in comparisons.items():
        for baseline, against in grouped(group, lambda comparison: comparison.baseline).items():
            known = [(c, c.mean_length / c.baseline_mean_length) for c in against if c.baseline_mean_length]
            series = [_Series(c.system, [_Point(100 * ratio - 100, c.delta, c.delta_ci)]) for c, ratio in known]
            plots.append(_curves(f"{caption}: against {baseline}", series, labels=labels, finish=_origin))
    return plots


def calibration(iterations: IterationsByCaption) -> list[Plot]:
    """Plot how often the judge finds improvements better over the gap model's P(better)."""
    plots = []
    for caption, group in iterations.items():
        series = []
        for system in group:
            bins = [(100 * b.p_better, 100 * b.judged_better, b.judged_better_ci) for b in system.calibration]
            points = [_Point(x, y, (100 * low, 100 * high)) for x, y, (low, high) in bins]
            if points:
                series.append(_Series(system.system, points))
        if series:
            labels = ("gap model: P(better), %", "judge: better, %")
            plots.append(_curves(caption, series, labels=labels, finish=_diagonal))
    return plots


def over_optimisation(systems: Sequence[EvaluatedSystem], originals: ComparisonsByCaption) -> list[Plot]:
    """Plot the training objective, and how the same systems compare with the originals, over KL."""
    kl = {system.name: system.training["kl"] for system in systems if "kl" in system.training}
    if len(kl) < CURVE_POINTS:
        return []
    rewarded = "gap" if any("gap" in system.training for system in systems) else "reward"
    ends = [system.training for system in systems if {"kl", rewarded} <= system.training.keys()]
    trained = [_Series("at the end of training", [_Point(end["kl"], end[rewarded]) for end in ends])] if ends else []
    deltas, grades = [], []
    for caption, group in originals.items():
        compared = [comparison for comparison in group if comparison.system in kl]
        if compared:
            deltas.append(_Series(caption, [_Point(kl[c.system], c.delta, c.delta_ci) for c in compared]))
        gains = [(c, c.grades[0] - c.grades[1]) for c in compared if c.grades]
        if gains:
            grades.append(_Series(caption, [_Point(kl[c.system], gain, c.grade_difference_ci) for c, gain in gains]))
    drawn = ((f"training {rewarded}", trained), (_DELTA, deltas), ("grade minus the originals'", grades))
    return [_curves("", series, ("KL from the start of RL", name)) for name, series in drawn if series]


def by_decile(comparisons: ComparisonsByCaption) -> list[Plot]:
    """Plot harm, copies and edits of each comparison whose baseline was graded."""
    return [
        _deciles(f"{caption}: {comparison.system} against {comparison.baseline}", comparison.deciles)
        for caption, group in comparisons.items()
        for comparison in group
        if comparison.deciles
    ]


def _deciles(caption: str, deciles: Sequence[Decile]) -> Plot:
    series = [
        _Series(label, [_Point(number, 100 * getattr(decile, name)) for number, decile in enumerate(deciles, 1)])
        for name, label in (("harm_rate", "made worse"), ("copy_rate", "copies"), ("edit_size", "words changed"))
    ]
    return _curves(caption, series, labels=("decile of the baseline's grade", "%"), finish=_zero_line)


def _curves(
    caption: str,
    series: Sequence[_Series],
    labels: tuple[str, str],
    finish: Callable[["Axes"], None] | None = None,
    ticks: Sequence[float] = (),
) -> Plot:
    """Draw lines through points with intervals; with `ticks`, shift the series a little, because they share each x."""
    figure, axes = blank_axes(460, 300)
    for number, line in enumerate(series):
        color, marker, _ = style_of(number)
        shift = 0.05 * (number - (len(series) - 1) / 2) if ticks else 0.0
        points = [point._replace(x=point.x + shift) for point in sorted(line.points, key=lambda point: point.x)]
        for x, _, interval in points:
            if interval:
                axes.plot((x, x), interval, color=color, linewidth=1.6, alpha=0.7, solid_capstyle="butt")
        xs, ys = [point.x for point in points], [point.y for point in points]
        axes.plot(xs, ys, color=color, marker=marker, markersize=6.5, linewidth=1.4)
    axes.set(xlabel=labels[0], ylabel=labels[1])
    if ticks:
        axes.set_xticks(ticks)
    if finish:
        finish(axes)
    legend = [legend_entry(number, line.label) for number, line in enumerate(series)]
    return Plot(svg_of(figure, f"{labels[1]} over {labels[0]}. {caption}"), caption, legend)


def _zero_line(axes: "Axes") -> None:
    axes.axhline(0, color=GREY, linewidth=1.2)


def _origin(axes: "Axes") -> None:
    _zero_line(axes)
    axes.axvline(0, color=GREY, linewidth=1.2)


def _diagonal(axes: "Axes") -> None:
    axes.plot((0, 100), (0, 100), color=GREY, linewidth=1.2, linestyle="--")
    axes.set(xlim=(0, 100), ylim=(0, 100))


def _label(name: str) -> str:
    name = " ".join(name.split())
    return name if len(name) <= LABEL_CHARACTERS else f"{name[: LABEL_CHARACTERS - 1]}…"

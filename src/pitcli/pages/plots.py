"""The plots of an evaluation: what was compared, against iterations, temperature, length, calibration and KL."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from pitcli.evaluation.results import Comparison, Decile, Interval, Iterations, System
from pitcli.pages.figures import GREY, Plot, blank_axes, mark, style_of, svg_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVE_POINTS = 3  # fewer settings than this are no curve
LABEL_CHARACTERS = 34
_DELTA = "Δ against the originals, points"
Key = TypeVar("Key")
Item = TypeVar("Item")
# by what a caption says of the judge and the data set
Places = Mapping[str, Sequence[Comparison]]


class _Point(NamedTuple):
    x: float
    y: float
    interval: Interval | None = None


class _Series(NamedTuple):
    label: str
    points: list[_Point]


def grouped(items: Iterable[Item], key: Callable[[Item], Key]) -> dict[Key, list[Item]]:
    """The items by key, both in the order in which they came."""
    groups: dict[Key, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def forest(places: Places) -> list[Plot]:
    """Delta and length-controlled delta of every comparison, with intervals, by baseline."""
    return [_forest(place, of_place) for place, of_place in places.items()]


def _forest(place: str, comparisons: Sequence[Comparison]) -> Plot:
    rows: list[tuple[str, Comparison | None]] = []
    for baseline, of_baseline in grouped(comparisons, lambda one: one.baseline).items():
        rows.append((f"against {_label(baseline)}", None))
        rows += [(_label(one.system), one) for one in of_baseline]
    # Pixels that are enough for the labels in most fonts.
    left = 24 + max(sum(7 if character.isascii() else 12 for character in label) for label, _ in rows)
    figure, axes = blank_axes(720, 30 * len(rows) + 56, left=left, top=6)
    for at, (_, one) in enumerate(rows):
        if one:
            _estimate(axes, one.delta, one.delta_ci, at - 0.14, 0)
            if one.length_controlled_delta is not None and one.length_controlled_ci:
                _estimate(axes, one.length_controlled_delta, one.length_controlled_ci, at + 0.14, 1)
    axes.axvline(0, color=GREY, linewidth=1.2)
    axes.set_yticks(range(len(rows)), [label for label, _ in rows])
    for text, (_, one) in zip(axes.get_yticklabels(), rows, strict=True):
        text.set_fontstyle("normal" if one else "italic")
    axes.grid(visible=False, axis="y")
    axes.tick_params(axis="y", length=0, pad=8)
    axes.spines["left"].set_visible(False)
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlabel="points, with 95% intervals")
    return Plot(svg_of(figure, f"Forest plot. {place}"), place, [mark(0, "Δ"), mark(1, "Δ, length-controlled")])


def _estimate(axes: "Axes", x: float, ends: Interval, y: float, number: int) -> None:
    color, marker, _ = style_of(number)
    axes.plot(ends, (y, y), color=color, linewidth=2, solid_capstyle="butt")
    axes.plot(x, y, color=color, marker=marker, markersize=6)


def by_iteration(places: Mapping[str, Sequence[Iterations]]) -> list[Plot]:
    """Delta, and grade where there is one, against the number of iterations."""
    plots = []
    for place, of_place in places.items():
        deltas, grades = [], []
        for one in of_place:
            steps = one.by_iteration
            deltas.append(_Series(one.system, [_Point(s.iteration, s.delta, s.delta_ci) for s in steps]))
            graded = [_Point(s.iteration, s.grade) for s in steps if s.grade is not None]
            grades.append(_Series(one.system, graded))
        for name, series, finish in ((_DELTA, deltas, _zero_line), ("mean grade", grades, None)):
            ticks = sorted({point.x for one in series for point in one.points})
            if ticks:
                plots.append(_curves(place, series, ("iterations", name), finish, ticks))
    return plots


def by_temperature(originals: Places, temperatures: dict[str, dict[str, float]]) -> list[Plot]:
    """Delta over the sampling temperature; originals: comparisons with them; temperatures: by method, then system."""
    plots = []
    for place, of_place in originals.items():
        series = []
        for method, by_system in temperatures.items():
            points = [_Point(by_system[c.system], c.delta, c.delta_ci) for c in of_place if c.system in by_system]
            if len({point.x for point in points}) >= CURVE_POINTS:
                series.append(_Series(method, points))
        if series:
            plots.append(_curves(place, series, ("temperature", _DELTA), _zero_line))
    return plots


def by_length(places: Places) -> list[Plot]:
    """Delta against how much longer the responses became, a plot for each baseline."""
    plots = []
    for place, of_place in places.items():
        for baseline, of_baseline in grouped(of_place, lambda one: one.baseline).items():
            known = [(c, c.mean_length / c.baseline_mean_length) for c in of_baseline if c.baseline_mean_length]
            series = [_Series(c.system, [_Point(100 * ratio - 100, c.delta, c.delta_ci)]) for c, ratio in known]
            caption = f"{place}: against {baseline}"
            plots.append(_curves(caption, series, ("mean length, change in %", "Δ, points"), _origin))
    return plots


def calibration(places: Mapping[str, Sequence[Iterations]]) -> list[Plot]:
    """How often the judge says better against how sure the gap model was."""
    plots = []
    for place, of_place in places.items():
        series = []
        for one in (one for one in of_place if one.calibration):
            bins = [(100 * b.p_better, 100 * b.judged_better, b.judged_better_ci) for b in one.calibration]
            points = [_Point(x, y, (100 * low, 100 * high)) for x, y, (low, high) in bins]
            series.append(_Series(one.system, points))
        if series:
            plots.append(_curves(place, series, ("gap model: better, %", "judge: better, %"), _diagonal))
    return plots


def over_optimisation(systems: Sequence[System], originals: Places) -> list[Plot]:
    """What training maximised, and how the same systems compare with the originals, against KL."""
    kl = {system.name: system.training["kl"] for system in systems if "kl" in system.training}
    if len(kl) < CURVE_POINTS:
        return []
    rewarded = "gap" if any("gap" in system.training for system in systems) else "reward"
    ends = [one.training for one in systems if {"kl", rewarded} <= one.training.keys()]
    trained = [_Series("at the end of training", [_Point(end["kl"], end[rewarded]) for end in ends])] if ends else []
    deltas, grades = [], []
    for place, of_place in originals.items():
        compared = [one for one in of_place if one.system in kl]
        if compared:
            deltas.append(_Series(place, [_Point(kl[c.system], c.delta, c.delta_ci) for c in compared]))
        gains = [(c, c.grades[0] - c.grades[1]) for c in compared if c.grades]
        if gains:
            grades.append(_Series(place, [_Point(kl[c.system], gain, c.grade_difference_ci) for c, gain in gains]))
    drawn = ((f"training {rewarded}", trained), (_DELTA, deltas), ("grade above the originals", grades))
    return [_curves("", series, ("KL from the start of RL", name)) for name, series in drawn if series]


def by_decile(places: Places) -> list[Plot]:
    """Harm, copies and edits of each comparison whose baseline was graded."""
    return [
        _deciles(f"{place}: {one.system} against {one.baseline}", one.deciles)
        for place, of_place in places.items()
        for one in of_place
        if one.deciles
    ]


def _deciles(caption: str, deciles: Sequence[Decile]) -> Plot:
    series = [
        _Series(label, [_Point(place, 100 * getattr(one, name)) for place, one in enumerate(deciles, 1)])
        for name, label in (("harm_rate", "made worse"), ("copy_rate", "copies"), ("edit_size", "words changed"))
    ]
    return _curves(caption, series, ("decile of the baseline's grade", "%"), _zero_line)


def _curves(
    caption: str,
    series: Sequence[_Series],
    labels: tuple[str, str],
    finish: Callable[["Axes"], None] | None = None,
    ticks: Sequence[float] = (),
) -> Plot:
    """Lines through points with intervals. Where x is only one of `ticks`, the series stand a little apart."""
    figure, axes = blank_axes(460, 300)
    for number, one in enumerate(series):
        color, marker, _ = style_of(number)
        shift = 0.05 * (number - (len(series) - 1) / 2) if ticks else 0.0
        points = [point._replace(x=point.x + shift) for point in sorted(one.points, key=lambda point: point.x)]
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
    legend = [mark(number, one.label) for number, one in enumerate(series)]
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

"""report.html: an evaluation as one page that a person reads, with its plots in it and nothing to fetch."""

import json
import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from importlib.resources import files
from typing import Any, NamedTuple

from jinja2 import Environment, StrictUndefined
from markupsafe import Markup

from pitcli.console import visible
from pitcli.evaluation import plots
from pitcli.evaluation.plots import Plot, grouped
from pitcli.evaluation.results import Comparison, Evaluation, Interval, JudgeResult, Sample, System, Validation
from pitcli.evaluation.systems import ORIGINAL

SAMPLE_CHARACTERS = 4000
DEFAULT_METHOD = "pit"


class _Table(NamedTuple):
    """The comparisons by one judge on one data set; by_baseline and seeds: baseline and its rows."""

    place: str
    by_baseline: list[tuple[str, list[Comparison]]]
    seeds: list[Comparison]


class _Figure(NamedTuple):
    """A section that is a sentence and plots."""

    anchor: str
    title: str
    text: str
    plots: list[Plot]


class _Row(NamedTuple):
    """A sample whose original and response are marked where they differ."""

    sample: Sample
    prompt: str
    original: Markup
    response: Markup


def render(evaluation: Evaluation) -> str:
    """The page. Of a judge that is not shown to beat length, no win rate is on it."""
    withheld = {judge.name: failing for judge in evaluation.judges if (failing := _failing(judge))}
    comparisons = [one for one in evaluation.comparisons if one.judge not in withheld]
    iterations = [one for one in evaluation.iterations if one.judge not in withheld]
    shown = evaluation.model_copy(update={"comparisons": comparisons, "iterations": iterations})
    with plots.plotting():
        figures = {figure.anchor: figure for figure in _figures(shown) if figure.plots}
    page = _template().render(
        evaluation=shown,
        withheld=withheld,
        tables=_tables(comparisons),
        figures=figures,
        samples=[_row(sample) for sample in evaluation.samples],
    )
    # Rows are untrusted, and a page full of bidirectional overrides does not say what it seems to say.
    return visible(page.lstrip())


def differences(before: str, after: str) -> tuple[Markup, Markup]:
    """Both texts as HTML: the words that only the first has in <del>, those that only the second has in <ins>."""
    old, new = (re.findall(r"\s*\S+|\s+$", text) for text in (before, after))
    matcher = SequenceMatcher(None, [word.strip() for word in old], [word.strip() for word in new])
    marked_old, marked_new = [], []
    for kind, old_start, old_end, new_start, new_end in matcher.get_opcodes():
        marked_old.append(_marked("del", kind != "equal", "".join(old[old_start:old_end])))
        marked_new.append(_marked("ins", kind != "equal", "".join(new[new_start:new_end])))
    return Markup("").join(marked_old), Markup("").join(marked_new)


def _marked(tag: str, differs: bool, text: str) -> Markup:
    words = text.strip()
    if not differs or not words:
        return Markup("{}").format(text)
    before, _, after = text.partition(words)
    return Markup("{}<{}>{}</{}>{}").format(before, Markup(tag), words, Markup(tag), after)


def _row(sample: Sample) -> _Row:
    texts = (sample.prompt, sample.original_response, sample.response)
    prompt, original, response = (_shortened(text.replace("\r\n", "\n").strip()) for text in texts)
    return _Row(sample, prompt, *differences(original, response))


def _shortened(text: str) -> str:
    more = len(text) - SAMPLE_CHARACTERS
    return text if more <= 0 else f"{text[:SAMPLE_CHARACTERS]} … ({more} more characters)"


def _failing(judge: JudgeResult) -> list[Validation]:
    return [] if judge.usable else [one for one in judge.validation if not one.beats_length]


def _place(judge: str, dataset: str = "all") -> str:
    return f"Judge {judge}" if dataset == "all" else f"Judge {judge}, data set {dataset}"


def _by_place(comparisons: Sequence[Comparison]) -> dict[str, list[Comparison]]:
    return grouped(comparisons, lambda one: _place(one.judge, one.dataset))


def _tables(comparisons: Sequence[Comparison]) -> list[_Table]:
    tables = []
    for place, of_place in _by_place(comparisons).items():
        together = [one for one in of_place if one.seed is None]
        by_baseline = grouped(together, lambda one: one.baseline)
        tables.append(_Table(place, list(by_baseline.items()), [one for one in of_place if one.seed is not None]))
    return tables


def _figures(shown: Evaluation) -> Iterator[_Figure]:
    together = [one for one in shown.comparisons if one.seed is None]
    places = _by_place(together)
    originals = _by_place([one for one in together if one.baseline == ORIGINAL])
    iterations = grouped(shown.iterations, lambda one: _place(one.judge))
    yield _Figure(
        "forest",
        "Δ with its intervals",
        "Each system against each baseline. An interval that includes zero shows no difference.",
        plots.forest(places),
    )
    yield _Figure(
        "iterations",
        "Quality by iteration",
        "The responses after so many iterations, against the originals. Rows that stopped earlier stand with what "
        "they had. Strengths are a Bradley–Terry fit over all iterations, in logits, with the originals at 0; Elo "
        "depends on the order of the games and is there for comparison with the paper.",
        plots.by_iteration(iterations),
    )
    yield _Figure(
        "temperature",
        "Temperature",
        "Δ against the originals for systems that differ in the sampling temperature.",
        plots.by_temperature(originals, _temperatures(shown.systems)),
    )
    yield _Figure(
        "length",
        "Length against Δ",
        "Where gains come with longer responses, a preference for length could explain them.",
        plots.by_length(places),
    )
    yield _Figure(
        "calibration",
        "Calibration of the gap",
        "What the gap model said of an improvement (p_better) against how often the judge found it better. On the "
        "dashed line both agree; below it, the gap model is too sure.",
        plots.calibration(iterations),
    )
    yield _Figure(
        "over-optimisation",
        "Over-optimisation",
        "What training maximised, and what the judges say of the same systems, against KL. Quality that falls while "
        "the gap rises is a gap model being exploited.",
        plots.over_optimisation(shown.systems, originals),
    )
    yield _Figure(
        "deciles",
        "By the baseline's quality",
        "Rows made worse, rows copied and the share of words changed, by decile of the baseline's grade, from the "
        "worst baselines to the best.",
        plots.by_decile(places),
    )


def _temperatures(systems: Sequence[System]) -> dict[str, dict[str, float]]:
    """By method, the temperature of each system that has one."""
    found: dict[str, dict[str, float]] = {}
    for system in systems:
        settings = system.record.get("settings", {})
        temperature = settings.get("temperature")
        if isinstance(temperature, int | float):
            found.setdefault(str(settings.get("method", DEFAULT_METHOD)), {})[system.name] = temperature
    return found


def _template() -> Any:
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    formats = {"points": _points, "between": _between, "share": _share, "number": _number, "json": _json}
    environment.filters.update(formats)
    return environment.from_string(files("pitcli").joinpath("assets/report.html.jinja").read_text(encoding="utf-8"))


def _points(value: float | None) -> str:
    """One decimal and a sign, with a real minus; zero has none."""
    if value is None:
        return "–"
    text = f"{value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", "−")


def _between(interval: Interval | None, kind: str = "points", *digits: int) -> str:
    if interval is None:
        return ""
    written = {"points": _points, "share": _share, "number": _number}[kind]
    low, high = (written(end, *digits) for end in interval)
    return f"[{low}, {high}]"


def _share(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f}%"


def _number(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{value:,.{digits}f}".replace("-", "−")


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, indent=1, default=str)

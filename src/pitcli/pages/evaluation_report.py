"""report.html: an evaluation as one page that a person reads, with its plots in it and nothing to fetch."""

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

from markupsafe import Markup

from pitcli.console import visible
from pitcli.evaluation.results import Comparison, Evaluation, JudgeResult, Sample, System, Validation
from pitcli.evaluation.systems import ORIGINAL
from pitcli.pages import plots
from pitcli.pages.figures import Plot, plotting
from pitcli.pages.page import template
from pitcli.pages.plots import grouped

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
    with plotting():
        figures = {figure.anchor: figure for figure in _figures(shown) if figure.plots}
    page = template("report.html.jinja").render(
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

"""The page of pit evaluate, report.html: tables, plots and rows of an evaluation, with nothing to fetch."""

import re
from collections.abc import Iterator, Sequence
from difflib import SequenceMatcher
from typing import NamedTuple

from markupsafe import Markup

from pitcli.console import visible
from pitcli.evaluation.results import (
    EvaluatedSystem,
    Evaluation,
    JudgeResult,
    ShownRow,
    SystemComparison,
    Validation,
)
from pitcli.evaluation.systems import ORIGINAL
from pitcli.pages import plots
from pitcli.pages.figures import Plot, plotting
from pitcli.pages.page import template
from pitcli.pages.plots import grouped

SAMPLE_CHARACTERS = 4000
DEFAULT_METHOD = "pit"
# title and text of each section of plots, by its anchor
SECTIONS = {
    "forest": (
        "Δ with its intervals",
        "Each system against each baseline. An interval that includes zero shows no difference.",
    ),
    "iterations": (
        "Quality by iteration",
        "The responses after so many iterations, against the originals. Rows that stopped earlier stand with what "
        "they had. Strengths are a Bradley–Terry fit over all iterations, in logits, with the originals at 0; Elo "
        "depends on the order of the games and is there for comparison with the paper.",
    ),
    "temperature": (
        "Temperature",
        "Δ against the originals for systems that differ in the sampling temperature.",
    ),
    "length": (
        "Length against Δ",
        "Where gains come with longer responses, a preference for length could explain them.",
    ),
    "calibration": (
        "Calibration of the gap",
        "What the gap model said of an improvement (p_better) against how often the judge found it better. On the "
        "dashed line both agree; below it, the gap model is too sure.",
    ),
    "over-optimisation": (
        "Over-optimisation",
        "What training maximised, and what the judges say of the same systems, against KL. Quality that falls while "
        "the gap rises is a gap model being exploited.",
    ),
    "deciles": (
        "By the baseline's quality",
        "Rows made worse, rows copied and the share of words changed, by decile of the baseline's grade, from the "
        "worst baselines to the best.",
    ),
}


class _ComparisonTable(NamedTuple):
    """The comparisons by one judge on one data set.

    place: its caption. by_baseline: each baseline and its comparisons. seeds: those of single training seeds.
    """

    place: str
    by_baseline: list[tuple[str, list[SystemComparison]]]
    seeds: list[SystemComparison]


class _PlotSection(NamedTuple):
    """A section that is a text and plots."""

    anchor: str
    title: str
    text: str
    plots: list[Plot]


class _MarkedRow(NamedTuple):
    """A row with the differences between its original and its response marked."""

    sample: ShownRow
    prompt: str
    original: Markup
    response: Markup


def render(evaluation: Evaluation) -> str:
    """The page, without the win rates of judges that are not shown to beat length."""
    withheld = {judge.name: failing for judge in evaluation.judges if (failing := _failing(judge))}
    comparisons = [comparison for comparison in evaluation.comparisons if comparison.judge not in withheld]
    iterations = [system for system in evaluation.iterations if system.judge not in withheld]
    shown = evaluation.model_copy(update={"comparisons": comparisons, "iterations": iterations})
    with plotting():
        figures = {section.anchor: section for section in _plot_sections(shown) if section.plots}
    page = template("report.html.jinja").render(
        evaluation=shown,
        withheld=withheld,
        tables=_tables(comparisons),
        figures=figures,
        samples=[_marked_row(row) for row in evaluation.samples],
    )
    # Rows are untrusted, and bidirectional overrides could make the page read differently.
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
    return Markup("{before}<{tag}>{words}</{tag}>{after}").format(
        before=before, tag=Markup(tag), words=words, after=after
    )


def _marked_row(row: ShownRow) -> _MarkedRow:
    texts = (row.prompt, row.original_response, row.response)
    prompt, original, response = (_shortened(text.replace("\r\n", "\n").strip()) for text in texts)
    return _MarkedRow(row, prompt, *differences(original, response))


def _shortened(text: str) -> str:
    more = len(text) - SAMPLE_CHARACTERS
    return text if more <= 0 else f"{text[:SAMPLE_CHARACTERS]} … ({more} more characters)"


def _failing(judge: JudgeResult) -> list[Validation]:
    return [] if judge.usable else [validation for validation in judge.validation if not validation.beats_length]


def _caption(judge: str, dataset: str = "all") -> str:
    return f"Judge {judge}" if dataset == "all" else f"Judge {judge}, data set {dataset}"


def _by_caption(comparisons: Sequence[SystemComparison]) -> dict[str, list[SystemComparison]]:
    return grouped(comparisons, lambda comparison: _caption(comparison.judge, comparison.dataset))


def _tables(comparisons: Sequence[SystemComparison]) -> list[_ComparisonTable]:
    tables = []
    for caption, group in _by_caption(comparisons).items():
        by_baseline = grouped(_of_all_seeds(group), lambda comparison: comparison.baseline)
        of_single_seeds = [comparison for comparison in group if comparison.seed is not None]
        tables.append(_ComparisonTable(caption, list(by_baseline.items()), of_single_seeds))
    return tables


def _of_all_seeds(comparisons: Sequence[SystemComparison]) -> list[SystemComparison]:
    return [comparison for comparison in comparisons if comparison.seed is None]


def _plot_sections(shown: Evaluation) -> Iterator[_PlotSection]:
    all_seeds = _of_all_seeds(shown.comparisons)
    comparisons = _by_caption(all_seeds)
    originals = _by_caption([comparison for comparison in all_seeds if comparison.baseline == ORIGINAL])
    iterations = grouped(shown.iterations, lambda system: _caption(system.judge))
    plots_of = {
        "forest": plots.forest(comparisons),
        "iterations": plots.by_iteration(iterations),
        "temperature": plots.by_temperature(originals, _temperatures(shown.systems)),
        "length": plots.by_length(comparisons),
        "calibration": plots.calibration(iterations),
        "over-optimisation": plots.over_optimisation(shown.systems, originals),
        "deciles": plots.by_decile(comparisons),
    }
    for anchor, section_plots in plots_of.items():
        title, text = SECTIONS[anchor]
        yield _PlotSection(anchor=anchor, title=title, text=text, plots=section_plots)


def _temperatures(systems: Sequence[EvaluatedSystem]) -> dict[str, dict[str, float]]:
    """By method, the temperature of each system that has one."""
    by_method: dict[str, dict[str, float]] = {}
    for system in systems:
        settings = system.record.get("settings", {})
        temperature = settings.get("temperature")
        if isinstance(temperature, int | float):
            by_method.setdefault(str(settings.get("method", DEFAULT_METHOD)), {})[system.name] = temperature
    return by_method

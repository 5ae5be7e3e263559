"""Render report.html of pit evaluate: tables, plots and rows in one self-contained page."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from markupsafe import Markup

from pitcli.console import visible
from pitcli.data.text_units import opcodes, pieces
from pitcli.evaluation.answers import (
    answer_on_baselines,
    answer_on_missing,
    answer_on_originals,
    baseline_label,
    grade_name,
)
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
from pitcli.pages.edit_shares import with_shares
from pitcli.pages.figures import Plot, plotting
from pitcli.pages.page import template
from pitcli.pages.plots import grouped

SAMPLE_CHARACTERS = 4000
DEFAULT_METHOD = "pit"
ANSWER_TEXTS = (answer_on_originals, answer_on_baselines, answer_on_missing, baseline_label, grade_name)
# title and text of each section of plots, by anchor
SECTIONS = {
    "forest": (
        "Δ with intervals",
        "Each system compared with each baseline. An interval that includes zero shows no difference.",
    ),
    "iterations": (
        "Quality by iteration",
        "The responses after this many iterations, compared with the originals. Rows that stopped earlier keep their "
        "last response. Strengths are a Bradley–Terry fit over all iterations, in logits, with the originals at 0. Elo "
        "depends on the order of the games and is given for comparison with the paper.",
    ),
    "temperature": (
        "Temperature",
        "Δ against the originals, for systems that differ in the sampling temperature.",
    ),
    "length": (
        "Length and Δ",
        "If responses get longer as Δ rises, the judge may only prefer length.",
    ),
    "calibration": (
        "Calibration of the gap",
        "The gap model's probability that an improvement is better (p_better), and how often the judge agreed. On the "
        "dashed line, both are equal; below it, the gap model is overconfident.",
    ),
    "over-optimisation": (
        "Over-optimisation",
        "The training objective, and the judges' results for the same systems, over KL. If quality falls while the gap "
        "rises, the gap model is being exploited.",
    ),
    "deciles": (
        "By quality of the baseline",
        "Rows made worse, rows copied and the share of words changed, by decile of the baseline's grade; the worst "
        "baselines come first.",
    ),
}


class _ComparisonTable(NamedTuple):
    """The comparisons by one judge on one data set.

    by_baseline: each baseline and its comparisons over all seeds. seeds: the comparisons of single training seeds.
    """

    caption: str
    by_baseline: list[tuple[str, list[SystemComparison]]]
    seeds: list[SystemComparison]


class _PlotSection(NamedTuple):
    """A section of plots with a title and a text."""

    anchor: str
    title: str
    text: str
    plots: list[Plot]


class _MarkedRow(NamedTuple):
    """A row with marked differences between original and response."""

    sample: ShownRow
    prompt: str
    original: Markup
    response: Markup


def render(evaluation: Evaluation) -> str:
    """Render the page, without win rates of judges that are not shown to beat length."""
    withheld = {judge.name: failing for judge in evaluation.judges if (failing := _failing(judge))}
    comparisons = [comparison for comparison in evaluation.comparisons if comparison.judge not in withheld]
    iterations = [system for system in evaluation.iterations if system.judge not in withheld]
    shown = evaluation.model_copy(update={"comparisons": comparisons, "iterations": iterations})
    with plotting():
        figures = {section.anchor: section for section in _plot_sections(shown) if section.plots}
    page = template("report.html.jinja").render(
        evaluation=shown,
        answers=evaluation.answers,
        withheld=withheld,
        tables=_tables(comparisons),
        figures=figures,
        samples=[_marked_row(row) for row in evaluation.samples],
        **{function.__name__: function for function in ANSWER_TEXTS},
    )
    # Rows are untrusted: bidirectional overrides could change how the page reads.
    return visible(page.lstrip())


def differences(before: str, after: str) -> tuple[Markup, Markup]:
    """Both texts as HTML, with words that only the first has in <del>, and words that only the second has in <ins>."""
    old, new = map(pieces, (before, after))
    marked_old, marked_new = [], []
    for kind, old_start, old_end, new_start, new_end in opcodes(old, new):
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
    if row.edits and max(len(row.original_response), len(row.response)) <= SAMPLE_CHARACTERS:
        return _MarkedRow(row, _shortened(row.prompt.strip()), *with_shares(row.response, row.edits))
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
    """The temperature of each system that has one, by method."""
    by_method: dict[str, dict[str, float]] = {}
    for system in systems:
        settings = system.record.get("settings", {})
        temperature = settings.get("temperature")
        if isinstance(temperature, int | float):
            by_method.setdefault(str(settings.get("method", DEFAULT_METHOD)), {})[system.name] = temperature
    return by_method

"""Answer three questions: is a system better than the originals, than the baselines, and what is still missing?"""

from collections.abc import Iterator, Sequence

from pitcli.console import counted
from pitcli.evaluation.claims import is_best_of_n_at_equal_tokens
from pitcli.evaluation.compare_systems import FEWEST_PROMPTS, NO_DIFFERENCE
from pitcli.evaluation.judge import ORACLE
from pitcli.evaluation.results import Answers, BaselineAnswer, Claim, JudgeResult, SystemComparison, delta_text
from pitcli.evaluation.systems import ORIGINAL, System

ANSWERS = {"better": "yes", "worse": "worse"}  # any other verdict is its own answer
NO_VERDICT = "unknown: no judge whose win rates may be shown gave a verdict"
NO_BASELINE = "no baseline was given"
SAME_IMPROVER = "same improver"  # with other settings of pit improve: compared too, but not a baseline


def answers(
    claim: Claim, systems: Sequence[System], judges: Sequence[JudgeResult], comparisons: Sequence[SystemComparison]
) -> Answers:
    """The answers for the system of a claim, by the judges whose win rates may be shown, over all rows and seeds."""
    by_name = {system.name: system for system in systems}
    usable = {judge.name for judge in judges if judge.usable}
    own = [
        comparison
        for comparison in comparisons
        if comparison.system == claim.system
        and comparison.judge in usable
        and comparison.dataset == "all"
        and comparison.seed is None
    ]
    baselines = [name for name in by_name if name != claim.system]
    judged = {comparison.baseline for comparison in own}
    return Answers(
        system=claim.system,
        originals=[_answer(comparison, kind="") for comparison in own if comparison.baseline == ORIGINAL],
        baselines=[
            _answer(comparison, kind=baseline_kind(by_name[name], by_name[claim.system], comparison))
            for name in baselines
            for comparison in own
            if comparison.baseline == name
        ],
        unjudged=[name for name in baselines if name not in judged],
        missing=claim.reasons,
    )


def _answer(comparison: SystemComparison, kind: str) -> BaselineAnswer:
    return BaselineAnswer(
        baseline=comparison.baseline,
        kind=kind,
        judge=comparison.judge,
        answer=ANSWERS.get(comparison.verdict, comparison.verdict),
        rows=comparison.rows,
        delta=comparison.delta,
        delta_ci=comparison.delta_ci,
        grades=comparison.grades,
        remark=_remark(comparison),
    )


def _remark(comparison: SystemComparison) -> str:
    if comparison.verdict != NO_DIFFERENCE:
        return ""
    if comparison.delta_ci[0] <= 0 <= comparison.delta_ci[1]:
        needed = comparison.rows_needed
        return f"about {needed:,} rows would show this delta" if needed and needed > comparison.rows else ""
    if comparison.p_value == 1:
        return f"fewer than {FEWEST_PROMPTS} prompts show nothing"
    return f"p = {comparison.p_holm:.2g} after Holm's correction"


def baseline_kind(baseline: System, system: System, comparison: SystemComparison) -> str:
    """What a baseline is, by the manifest next to its rows; empty if there is none."""
    method, trained = baseline.method(), bool(baseline.training())
    if method == "best-of-n":
        equal = is_best_of_n_at_equal_tokens(baseline, system, comparison)
        return "best-of-n at equal tokens" if equal else "best-of-n, but not at equal tokens"
    if method == "resample":
        return "plain RLHF" if trained else "a fresh draw"
    if method != "pit":
        return method
    ours, theirs = (other.record().get("adapters", {}).get("improver") for other in (system, baseline))
    if theirs and theirs == ours:
        return SAME_IMPROVER
    return "another improver" if trained else "SFT only"


def answer_on_originals(found: Answers) -> str:
    """The first answer in a few words: that of all judges if they agree."""
    distinct = {answer.answer for answer in found.originals}
    if not distinct:
        return NO_VERDICT
    return distinct.pop() if len(distinct) == 1 else "the judges disagree"


def answer_on_baselines(found: Answers) -> str:
    """The second answer in a few words; empty if the lines about each baseline are the answer."""
    if not found.originals:
        return NO_VERDICT
    given = found.unjudged or any(answer.kind != SAME_IMPROVER for answer in found.baselines)
    return "" if given else NO_BASELINE


def answer_on_missing(found: Answers) -> str:
    """The third answer in a few words."""
    if not found.missing:
        return "nothing, every check passed"
    return counted(len(found.missing), "checks")


def answer_lines(found: Answers) -> Iterator[str]:
    """The three answers as lines of plain text."""
    several = len(found.originals) > 1
    by_judge = (
        f" (judge {found.originals[0].judge}, {found.originals[0].rows:,} rows)" if len(found.originals) == 1 else ""
    )
    yield f"1. Is {found.system} better than the originals? {answer_on_originals(found)}{by_judge}"
    for answer in found.originals:
        label = f"judge {answer.judge}, {answer.rows:,} rows: {answer.answer}, " if several else ""
        yield f"   {label}{_figures(answer)}"
    yield f"2. Is {found.system} better than the baselines? {answer_on_baselines(found)}".rstrip()
    for answer in found.baselines:
        label = f"{baseline_label(answer)}, judge {answer.judge}" if several else baseline_label(answer)
        yield f"   {label}: {answer.answer}, {_figures(answer)}"
    yield from (f"   {name}: no verdict" for name in found.unjudged if found.originals)
    yield f"3. What is missing before one may claim that it improves? {answer_on_missing(found)}"
    yield from (f"   {reason}" for reason in found.missing)


def baseline_label(answer: BaselineAnswer) -> str:
    """The baseline's name, and its kind unless the name is that."""
    plain_kind = answer.kind.lower().replace(" ", "-")
    return answer.baseline if plain_kind in ("", answer.baseline) else f"{answer.baseline} ({answer.kind})"


def grade_name(answer: BaselineAnswer) -> str:
    return "mean quality" if answer.judge == ORACLE else "mean grade"


def _figures(answer: BaselineAnswer) -> str:
    figures = f"delta {delta_text(answer)}"
    if answer.grades and answer.baseline == ORIGINAL:
        ours, originals = answer.grades
        figures += f", {grade_name(answer)} {originals:.3f} -> {ours:.3f}"
    return f"{figures}, {answer.remark}" if answer.remark else figures

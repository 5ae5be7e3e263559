"""Decide whether a system may be said to improve: Holm's correction, the negative controls, and every other check."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from pitcli.evaluation.compare_systems import verdict_text
from pitcli.evaluation.judge import ORACLE
from pitcli.evaluation.results import (
    Claim,
    Control,
    JudgeResult,
    SystemComparison,
    controlled_delta_text,
    delta_text,
)
from pitcli.evaluation.statistics import holm
from pitcli.evaluation.systems import MADE, ORIGINAL, System

EQUAL_TOKENS = (0.95, 2.0)  # best-of-n's tokens over the system's: the last draw may be long
WIDEST = 40.0  # points: a control with a wider interval shows nothing


def corrected(comparisons: Sequence[SystemComparison]) -> list[SystemComparison]:
    """Holm over data sets x judges, for each system and baseline; single seeds are not tested by themselves."""
    families: dict[tuple[str, str], list[int]] = defaultdict(list)
    for index, comparison in enumerate(comparisons):
        if comparison.seed is None:
            families[comparison.system, comparison.baseline].append(index)
    after = list(comparisons)
    for family in families.values():
        for index, p in zip(family, holm([comparisons[index].p_value for index in family]), strict=True):
            verdict = verdict_text(comparisons[index].delta_ci, p)
            after[index] = comparisons[index].model_copy(update={"p_holm": p, "verdict": verdict})
    return after


def gains_under_length_control(comparison: SystemComparison) -> bool:
    return comparison.length_controlled_ci is not None and comparison.length_controlled_ci[0] > 0


def control_result(comparison: SystemComparison) -> Control:
    """Of a control against its baseline. padded: no gain under length control; constant: must lose; others: no gain."""
    low, high = comparison.delta_ci
    seen = delta_text(comparison)
    if comparison.system == "padded":
        expected, passed = "no gain under length control", not gains_under_length_control(comparison)
        seen += f", under length control {controlled_delta_text(comparison)}"
    elif comparison.system == "constant":
        expected, passed = "must lose", high < 0
    else:
        expected, passed = f"no gain over {comparison.baseline}", low <= 0
    if high - low > WIDEST:
        passed, seen = False, f"{seen}: too few rows to tell"
    return Control(name=comparison.system, judge=comparison.judge, wanted=expected, seen=seen, passed=passed)


def claim(
    system: System,
    systems: Sequence[System],
    judges: Sequence[JudgeResult],
    comparisons: Sequence[SystemComparison],
    controls: Sequence[Control],
    harm_cap: float,
) -> Claim:
    """The system improves only if every check passes; the reasons are those that do not."""
    usable = {judge.name for judge in judges if judge.usable}
    own = [
        comparison
        for comparison in comparisons
        if comparison.system == system.name and comparison.dataset == "all" and comparison.judge in usable
    ]
    over_originals = [comparison for comparison in own if comparison.baseline == ORIGINAL]
    reasons = [*_against_judges(judges), *_against_gains(over_originals, harm_cap)]
    if usable and not over_originals:
        reasons.append("no judge gave a verdict")
    if all(control.name in MADE for control in controls):
        reasons.append("no control of a gap model on shuffled labels (--control)")
    if usable:
        reasons += _against_best_of_n(system, systems, [comparison for comparison in own if comparison.seed is None])
    reasons += [
        f"control {control.name} failed ({control.judge}: {control.seen}; {control.wanted})"
        for control in controls
        if control.judge in usable and not control.passed
    ]
    return Claim(system=system.name, improves=not reasons, reasons=reasons)


def _against_judges(judges: Sequence[JudgeResult]) -> Iterator[str]:
    for judge in judges:
        if not judge.usable:
            yield f"{judge.name} does not beat length on human labels"
    for judge in judges:
        if not (judge.validation or judge.name == ORACLE):
            yield f"{judge.name}: not held against human labels"
    for judge in judges:
        if not judge.independent:
            yield f"{judge.name}: {judge.independence}"


def _against_gains(over_originals: Sequence[SystemComparison], harm_cap: float) -> Iterator[str]:
    """Each seed must gain under length control; all seeds together must be better and do little harm."""
    several = any(comparison.seed is not None for comparison in over_originals)
    for comparison in over_originals:
        single = comparison.seed is not None
        label = f"{comparison.judge}, seed {comparison.seed}" if single else comparison.judge
        if (single or not several) and not gains_under_length_control(comparison):
            yield f"{label}: length-controlled delta {controlled_delta_text(comparison)}"
        if not single and comparison.verdict != "better":
            yield f"{label}: {comparison.verdict} in {comparison.rows} rows"
        if not single and comparison.harm_rate > harm_cap:
            yield f"{label}: harm rate {comparison.harm_rate:.1%}, over {harm_cap:.0%}"


def _against_best_of_n(system: System, systems: Sequence[System], comparisons: Sequence[SystemComparison]) -> list[str]:
    rivals = {other.name: other for other in systems if other.method() == "best-of-n"}
    file_names = {Path(file).name for file in system.files}
    at_equal_tokens = [
        comparison
        for comparison in comparisons
        if (rival := rivals.get(comparison.baseline))
        and _equal_tokens(comparison, named=rival.equal_tokens() in file_names)
    ]
    if not at_equal_tokens:
        return ["best-of-n at equal tokens was not compared"]
    return [
        f"{comparison.judge}: over {comparison.baseline} {delta_text(comparison)}"
        for comparison in at_equal_tokens
        if comparison.delta_ci[0] <= 0
    ]


def _equal_tokens(comparison: SystemComparison, named: bool) -> bool:
    """Whether the baseline spent as many tokens as the system; any number above counts if --equal-tokens named it."""
    if not comparison.generated_tokens or comparison.baseline_generated_tokens is None:
        return False
    share = comparison.baseline_generated_tokens / comparison.generated_tokens
    return share >= EQUAL_TOKENS[0] and (named or share <= EQUAL_TOKENS[1])

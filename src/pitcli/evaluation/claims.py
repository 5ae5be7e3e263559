"""Decide whether one may claim that a system improves: Holm's correction, negative controls and all other checks."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from pitcli.data.splits import HASH, conversation_key
from pitcli.evaluation.compare_systems import verdict_text
from pitcli.evaluation.harm import clopper_pearson_upper
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

EQUAL_TOKENS = (0.95, 2.0)  # range of best-of-n's tokens over the system's: its last draw may be long
WIDEST = 40.0  # points: a control with a wider interval is inconclusive, so it fails


def corrected(comparisons: Sequence[SystemComparison]) -> list[SystemComparison]:
    """Apply Holm's correction for each system: over baselines x judges on all rows, and apart from that on their parts.

    So asking for the figures of each data set costs the figures of all rows nothing. Single seeds are not tested.
    """
    families: dict[tuple[str, bool], list[int]] = defaultdict(list)
    for index, comparison in enumerate(comparisons):
        if comparison.seed is None:
            families[comparison.system, comparison.dataset == "all"].append(index)
    after = list(comparisons)
    for family in families.values():
        for index, p in zip(family, holm([comparisons[index].p_value for index in family]), strict=True):
            verdict = verdict_text(comparisons[index].delta_ci, p)
            after[index] = comparisons[index].model_copy(update={"p_holm": p, "verdict": verdict})
    return after


def gains_under_length_control(comparison: SystemComparison) -> bool:
    return comparison.length_controlled_ci is not None and comparison.length_controlled_ci[0] > 0


def control_result(comparison: SystemComparison) -> Control:
    """Check a control: padded must not gain under length control, constant must lose, others must not gain."""
    low, high = comparison.delta_ci
    seen = delta_text(comparison)
    if comparison.system == "padded":
        expected, passed = "no length-controlled gain", not gains_under_length_control(comparison)
        seen += f", length-controlled {controlled_delta_text(comparison)}"
    elif comparison.system == "constant":
        expected, passed = "a loss", high < 0
    else:
        expected, passed = f"no gain over {comparison.baseline}", low <= 0
    if high - low > WIDEST:
        passed, seen = False, f"{seen}: interval too wide, evaluate more rows"
    return Control(name=comparison.system, judge=comparison.judge, expected=expected, seen=seen, passed=passed)


def claim(
    system: System,
    systems: Sequence[System],
    judges: Sequence[JudgeResult],
    comparisons: Sequence[SystemComparison],
    controls: Sequence[Control],
    harm_cap: float,
) -> Claim:
    """Decide whether one may claim that the system improves; the reasons are the missing or failed checks."""
    usable = {judge.name for judge in judges if judge.usable}
    own = [
        comparison
        for comparison in comparisons
        if comparison.system == system.name and comparison.dataset == "all" and comparison.judge in usable
    ]
    over_originals = [comparison for comparison in own if comparison.baseline == ORIGINAL]
    reasons = [*_judge_reasons(judges), *_gain_reasons(over_originals, harm_cap)]
    if known := rows_seen_in_training(system):
        reasons.append(f"{known} of {len(system.rows)} rows have prompts that its models were trained on")
    if usable and not over_originals:
        reasons.append("no judge gave a verdict")
    if all(control.name in MADE for control in controls):
        reasons.append("no control with a gap model trained on shuffled labels (--control)")
    if usable:
        reasons += _best_of_n_reasons(system, systems, [comparison for comparison in own if comparison.seed is None])
    reasons += [
        f"control {control.name} failed (judge {control.judge}): expected {control.expected}, got {control.seen}"
        for control in controls
        if control.judge in usable and not control.passed
    ]
    return Claim(system=system.name, improves=not reasons, reasons=reasons)


def rows_seen_in_training(system: System) -> int:
    """How many rows have a prompt that their writer or a gap model was trained on, as far as its sketch shows."""
    origins = system.origins()
    known = [origin.get("trained_on", []) for origin in origins]
    known += [data["prompts"] for origin in origins for data in origin.get("gap_data", [])]
    seen = {prompt for prompts in known for prompt in prompts}
    return sum(conversation_key(row.prompt)[:HASH] in seen for row in system.rows.values())


def _judge_reasons(judges: Sequence[JudgeResult]) -> Iterator[str]:
    for judge in judges:
        if not judge.usable:
            yield f"judge {judge.name}: does not beat length on human labels"
    for judge in judges:
        if not (judge.validation or judge.name == ORACLE):
            yield f"judge {judge.name}: not checked against human labels (--validate-on)"
    for judge in judges:
        if not judge.independent:
            yield f"judge {judge.name}: {judge.independence}"


def _gain_reasons(over_originals: Sequence[SystemComparison], harm_cap: float) -> Iterator[str]:
    """Each seed must have a length-controlled gain; all seeds together must be better, and the harm rate low."""
    several = any(comparison.seed is not None for comparison in over_originals)
    for comparison in over_originals:
        single = comparison.seed is not None
        label = f"judge {comparison.judge}" + (f", seed {comparison.seed}" if single else "")
        if (single or not several) and not gains_under_length_control(comparison):
            yield f"{label}: length-controlled delta not shown above zero: {controlled_delta_text(comparison)}"
        if not single and comparison.verdict != "better":
            yield f"{label}: not shown better than the originals: {comparison.verdict}, {comparison.rows} rows"
        if not single and (most := most_harm(comparison)) > harm_cap:
            seen = f"{comparison.harm_rate:.1%} of {comparison.rows} rows, so up to {most:.1%} with 95% confidence"
            yield f"{label}: harm rate not shown to be at most {harm_cap:.0%}: {seen}"


def most_harm(comparison: SystemComparison) -> float:
    """The upper bound of the harm rate, by Clopper and Pearson; of nothing harmed in few rows it is not 0."""
    return clopper_pearson_upper(comparison.losses, comparison.rows, 0.95)


def _best_of_n_reasons(system: System, systems: Sequence[System], comparisons: Sequence[SystemComparison]) -> list[str]:
    by_name = {other.name: other for other in systems}
    at_equal_tokens = [
        comparison
        for comparison in comparisons
        if (baseline := by_name.get(comparison.baseline)) and is_best_of_n_at_equal_tokens(baseline, system, comparison)
    ]
    if not at_equal_tokens:
        return ["best-of-n at equal tokens, temperature and gap model was not compared"]
    return [
        f"judge {comparison.judge}: not shown better than best-of-n at equal tokens ({comparison.baseline}): "
        + delta_text(comparison)
        for comparison in at_equal_tokens
        if comparison.verdict != "better"
    ]


def made_alike(baseline: System, system: System) -> bool:
    """Whether both drew at one temperature and were ranked by one gap model, as far as their manifests say."""
    ours, theirs = system.record(), baseline.record()
    drawn = [[record.get("settings", {}).get(name) for name in ("temperature", "top_p")] for record in (ours, theirs)]
    ranked = [
        {role: digest for role, digest in record.get("adapters", {}).items() if role.startswith("gap")}
        for record in (ours, theirs)
    ]
    return drawn[0] == drawn[1] and (not all(ranked) or ranked[0] == ranked[1])


def is_best_of_n_at_equal_tokens(baseline: System, system: System, comparison: SystemComparison) -> bool:
    """Whether the baseline is best-of-n with as many tokens as the system, its temperature and its gap model.

    It may have used more tokens if it was made with --equal-tokens and the system's file, because its last draw may be
    long.
    """
    if baseline.method() != "best-of-n" or not made_alike(baseline, system):
        return False
    if not comparison.generated_tokens or comparison.baseline_generated_tokens is None:
        return False
    ratio = comparison.baseline_generated_tokens / comparison.generated_tokens
    matched = baseline.has_tokens_of(system)
    return ratio >= EQUAL_TOKENS[0] and (matched or ratio <= EQUAL_TOKENS[1])

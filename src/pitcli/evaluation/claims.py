"""May a system be said to improve? Holm's correction, the negative controls, and all that must hold."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from pitcli.evaluation import results
from pitcli.evaluation.comparing import verdict
from pitcli.evaluation.statistics import holm
from pitcli.evaluation.systems import MADE, ORIGINAL, System
from pitcli.evaluation.verdicts import ORACLE

EQUAL_TOKENS = (0.95, 2.0)  # of the system's tokens, what a best-of-n has spent: its last draw may be long
WIDEST = 40.0  # points: a control whose interval is wider says nothing


def corrected(comparisons: Sequence[results.Comparison]) -> list[results.Comparison]:
    """Holm over data sets x judges, for each system and baseline; single seeds are not tested by themselves."""
    families: dict[tuple[str, str], list[int]] = defaultdict(list)
    for place, one in enumerate(comparisons):
        if one.seed is None:
            families[one.system, one.baseline].append(place)
    after = list(comparisons)
    for places in families.values():
        for place, p in zip(places, holm([comparisons[place].p_value for place in places]), strict=True):
            one = comparisons[place]
            after[place] = one.model_copy(update={"p_holm": p, "verdict": verdict(one.delta_ci, p)})
    return after


def shown(one: results.Comparison | None) -> str:
    """Delta with its interval, in points."""
    if one is None:
        return "no verdicts"
    return f"{one.delta:+.1f} [{one.delta_ci[0]:+.1f}, {one.delta_ci[1]:+.1f}]"


def shown_controlled(one: results.Comparison) -> str:
    """The length-controlled delta with its interval, in points."""
    if one.length_controlled_delta is None or one.length_controlled_ci is None:
        return "not identified"
    low, high = one.length_controlled_ci
    return f"{one.length_controlled_delta:+.1f} [{low:+.1f}, {high:+.1f}]"


def gains_under_length_control(one: results.Comparison) -> bool:
    return one.length_controlled_ci is not None and one.length_controlled_ci[0] > 0


def control_result(name: str, baseline: str, one: results.Comparison) -> results.Control:
    """padded: no gain under length control; constant: must lose; any other: no gain."""
    if name == "padded":
        wanted, passed = "no gain under length control", not gains_under_length_control(one)
        seen = f"{shown(one)}, under length control {shown_controlled(one)}"
    elif name == "constant":
        wanted, passed, seen = "must lose", one.delta_ci[1] < 0, shown(one)
    else:
        wanted, passed, seen = f"no gain over {baseline}", one.delta_ci[0] <= 0, shown(one)
    if one.delta_ci[1] - one.delta_ci[0] > WIDEST:
        passed, seen = False, f"{seen}: too few rows to tell"
    return results.Control(name=name, judge=one.judge, wanted=wanted, seen=seen, passed=passed)


def claim(
    system: System,
    systems: Sequence[System],
    judges: Sequence[results.JudgeResult],
    comparisons: Sequence[results.Comparison],
    controls: Sequence[results.Control],
    harm_cap: float,
) -> results.Claim:
    """May it be said? Only where everything holds; else each thing that does not."""
    usable = [judge.name for judge in judges if judge.usable]
    reasons = [f"{judge.name} does not beat length on human labels" for judge in judges if judge.name not in usable]
    reasons += [
        f"{judge.name}: not held against human labels"
        for judge in judges
        if not (judge.validation or judge.name == ORACLE)
    ]
    reasons += [f"{judge.name}: {judge.independence}" for judge in judges if not judge.independent]
    mine = [one for one in comparisons if one.system == system.name and one.dataset == "all" and one.judge in usable]
    over_originals = [one for one in mine if one.baseline == ORIGINAL]
    several = any(one.seed is not None for one in over_originals)
    for one in over_originals:
        where = f"{one.judge}, seed {one.seed}" if one.seed is not None else one.judge
        if (one.seed is not None or not several) and not gains_under_length_control(one):
            reasons.append(f"{where}: length-controlled delta {shown_controlled(one)}")
        if one.seed is None and one.verdict != "better":
            reasons.append(f"{where}: {one.verdict} in {one.rows} rows")
        if one.seed is None and one.harm_rate > harm_cap:
            reasons.append(f"{where}: harm rate {one.harm_rate:.1%}, over {harm_cap:.0%}")
    if usable and not over_originals:
        reasons.append("no judge gave a verdict")
    if all(one.name in MADE for one in controls):
        reasons.append("no control of a gap model on shuffled labels (--control)")
    if usable:
        reasons += _over_best_of_n(system, systems, [one for one in mine if one.seed is None])
    reasons += [
        f"control {one.name} failed ({one.judge}: {one.seen}; {one.wanted})"
        for one in controls
        if one.judge in usable and not one.passed
    ]
    return results.Claim(system=system.name, improves=not reasons, reasons=reasons)


def _over_best_of_n(system: System, systems: Sequence[System], comparisons: Sequence[results.Comparison]) -> list[str]:
    rivals = {other.name: other for other in systems if other.method() == "best-of-n"}
    mine = {Path(file).name for file in system.files}
    against = [
        one
        for one in comparisons
        if (rival := rivals.get(one.baseline)) and _equal_tokens(one, rival.equal_tokens() in mine)
    ]
    if not against:
        return ["best-of-n at equal tokens was not compared"]
    return [f"{one.judge}: over {one.baseline} {shown(one)}" for one in against if one.delta_ci[0] <= 0]


def _equal_tokens(one: results.Comparison, named: bool) -> bool:
    """Whether the rival spent what the system did; no matter how much more, if --equal-tokens named its rows."""
    if not one.generated_tokens or one.baseline_generated_tokens is None:
        return False
    share = one.baseline_generated_tokens / one.generated_tokens
    return share >= EQUAL_TOKENS[0] and (named or share <= EQUAL_TOKENS[1])

"""pit agree: how far people agree with one another, and judges with them."""

import sys
from collections import defaultdict
from itertools import combinations
from typing import Any, NamedTuple

from pitcli.console import note, table
from pitcli.data.records import file_label, write_row
from pitcli.errors import InputError
from pitcli.evaluation.agreement import (
    Alpha,
    Annotator,
    Item,
    JudgeAgreement,
    Label,
    Share,
    alpha,
    describe_annotator,
    judge_agreement,
    load,
    majority,
    pairwise_agreement,
    parse_call,
    parse_label,
    wins,
)
from pitcli.evaluation.statistics import PairedComparison
from pitcli.settings.tools import AgreeConfig


class Agreement(NamedTuple):
    """What stands on stdout. agreement: over all annotators; pairs: of each two of them, by name."""

    labels: int
    items: int
    annotators: list[Annotator]
    alpha: Alpha | None
    agreement: Share
    pairs: list[tuple[str, str, Share]]
    majority: PairedComparison
    judges: list[JudgeAgreement]
    notes: list[str]


def run(config: AgreeConfig) -> int:
    """Tables for people on stderr, one JSON object on stdout."""
    labels = [label for path in config.labels for label in load(path, parse_label)]
    if not labels:
        raise InputError(f"{', '.join(map(file_label, config.labels))}: no labels")
    last = {(label.annotator, label.item): label for label in labels}
    found = agreement(list(last.values()), read_calls(config.judge_verdicts))
    if repeated := len(labels) - len(last):
        found.notes.append(f"{repeated} labels came more than once from one annotator; the last one counts")
    report(found)
    write_row(plain(found), sys.stdout)
    return 0


def read_calls(path: str | None) -> dict[str, dict[Item, str | None]]:
    """What each judge says of each item."""
    calls: dict[str, dict[Item, str | None]] = defaultdict(dict)
    for call in load(path, parse_call) if path else []:
        calls[call.judge][call.item] = call.preferred
    return calls


def agreement(labels: list[Label], calls: dict[str, dict[Item, str | None]]) -> Agreement:
    by_annotator: dict[str, dict[Item, Label]] = defaultdict(dict)
    by_item: dict[Item, list[str]] = defaultdict(list)
    for label in labels:
        by_annotator[label.annotator][label.item] = label
        by_item[label.item].append(label.preferred)
    majorities = {item: majority(preferences) for item, preferences in by_item.items()}
    judges = [judge_agreement(judge, said, majorities) for judge, said in calls.items()]
    units = list(by_item.values())
    between = alpha(units)
    return Agreement(
        len(labels),
        len(by_item),
        [describe_annotator(name, list(own.values())) for name, own in by_annotator.items()],
        between,
        pairwise_agreement(units),
        [(a, b, agreement_of_two(by_annotator[a], by_annotator[b])) for a, b in combinations(by_annotator, 2)],
        wins(majorities),
        judges,
        [*notes_on_people(between, units, len(by_annotator)), *notes_on_judges(judges)],
    )


def agreement_of_two(first: dict[Item, Label], second: dict[Item, Label]) -> Share:
    return pairwise_agreement([(first[item].preferred, second[item].preferred) for item in first if item in second])


def notes_on_people(between: Alpha | None, units: list[list[str]], annotators: int) -> list[str]:
    if between is not None:
        return []
    if annotators < 2:
        return ["no alpha: it takes two annotators"]
    if all(len(unit) < 2 for unit in units):
        return ["no alpha: no pair was labelled by two annotators"]
    return ["no alpha: all labels are the same, so that nothing tells agreement from chance"]


def notes_on_judges(judges: list[JudgeAgreement]) -> list[str]:
    missing = [f"{j.judge}: no verdict is about a labelled pair" for j in judges if not j.agreement.n + j.failed]
    failed = [f"{j.judge}: no verdict on {j.failed} labelled pairs" for j in judges if j.failed]
    return missing + failed


def report(found: Agreement) -> None:
    rows = [(a.annotator, a.labels, a.ties, shown_share(a.chose_first)) for a in found.annotators]
    table("annotators", ("annotator", "labels", "ties", "chose the first shown"), rows)
    pairs = [(f"{a} and {b}", between.n, shown_share(between)) for a, b, between in found.pairs]
    people = ("all", found.agreement.n, shown_share(found.agreement))
    alphas = ("Krippendorff's alpha", found.agreement.n, shown_alpha(found.alpha))
    table("agreement between annotators", ("", "pairs", "value [95%]"), [alphas, people, *pairs])
    by = found.majority
    delta = f"{by.delta:+.1f} [{by.delta_ci[0]:+.1f}, {by.delta_ci[1]:+.1f}]"
    columns = ("pairs", "wins", "ties", "losses", "delta [95%]")
    table("response against original, by majority", columns, [(found.items, by.wins, by.ties, by.losses, delta)])
    if found.judges:
        heads = ("judge", "pairs", "agreement [95%]", "without ties", "agreement [95%]", "alpha [95%]")
        table("judges against the majority", heads, [judge_row(judge) for judge in found.judges])
    for line in found.notes:
        note(line)


def judge_row(judge: JudgeAgreement) -> tuple[object, ...]:
    every, decided = judge.agreement, judge.without_ties
    return judge.judge, every.n, shown_share(every), decided.n, shown_share(decided), shown_alpha(judge.alpha)


def shown_share(found: Share) -> str:
    if found.share is None or found.ci is None:
        return "-"
    return f"{100 * found.share:.1f}% [{100 * found.ci[0]:.1f}, {100 * found.ci[1]:.1f}]"


def shown_alpha(found: Alpha | None) -> str:
    return f"{found.value:.3f} [{found.ci[0]:.3f}, {found.ci[1]:.3f}]" if found else "-"


def plain(value: Any) -> Any:
    """Named tuples as objects, all the way down."""
    if hasattr(value, "_asdict"):
        return {name: plain(inner) for name, inner in value._asdict().items()}
    return [plain(inner) for inner in value] if isinstance(value, list | tuple) else value

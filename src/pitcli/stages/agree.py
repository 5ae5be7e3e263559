"""pit agree: measures how well annotators agree with one another, and judges with the majority of annotators."""

from collections import defaultdict
from itertools import combinations
from typing import Any, NamedTuple

from pitcli.console import counted, note, table
from pitcli.data.reading import file_label, load_rows
from pitcli.data.strict_json import encode
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
    majority,
    pairwise_agreement,
    parse_judge_choice,
    parse_label,
    wins,
)
from pitcli.evaluation.statistics import PairedComparison
from pitcli.settings.tools import AgreeConfig


class Agreement(NamedTuple):
    """The JSON object on stdout. agreement: over all annotators; pairs: for each two annotators, by name."""

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
    """Print tables on stderr and one JSON object on stdout."""
    labels = [label for path in config.labels for label in load_rows(path, parse_label)]
    if not labels:
        raise InputError(f"{', '.join(map(file_label, config.labels))}: no labels; pit annotate writes them")
    last = {(label.annotator, label.item): label for label in labels}
    result = agreement(list(last.values()), read_choices(config.judge_verdicts))
    if repeated := len(labels) - len(last):
        result.notes.append(f"{counted(repeated, 'repeated labels')} (same annotator, same pair); the last one counts")
    report(result)
    print(encode(as_json(result)))
    return 0


def read_choices(path: str | None) -> dict[str, dict[Item, str | None]]:
    """Return which response each judge prefers, by judge and item."""
    choices: dict[str, dict[Item, str | None]] = defaultdict(dict)
    for choice in load_rows(path, parse_judge_choice) if path else []:
        choices[choice.judge][choice.item] = choice.preferred
    return choices


def agreement(labels: list[Label], choices: dict[str, dict[Item, str | None]]) -> Agreement:
    by_annotator: dict[str, dict[Item, Label]] = defaultdict(dict)
    by_item: dict[Item, list[str]] = defaultdict(list)
    for label in labels:
        by_annotator[label.annotator][label.item] = label
        by_item[label.item].append(label.preferred)
    majorities = {item: majority(preferences) for item, preferences in by_item.items()}
    judges = [judge_agreement(judge, own, majorities) for judge, own in choices.items()]
    units = list(by_item.values())
    alpha_of_all = alpha(units)
    return Agreement(
        labels=len(labels),
        items=len(by_item),
        annotators=[describe_annotator(name, list(own.values())) for name, own in by_annotator.items()],
        alpha=alpha_of_all,
        agreement=pairwise_agreement(units),
        pairs=[(a, b, agreement_of_two(by_annotator[a], by_annotator[b])) for a, b in combinations(by_annotator, 2)],
        majority=wins(majorities),
        judges=judges,
        notes=[*notes_on_people(alpha_of_all, units, len(by_annotator)), *notes_on_judges(judges)],
    )


def agreement_of_two(first: dict[Item, Label], second: dict[Item, Label]) -> Share:
    return pairwise_agreement([(first[item].preferred, second[item].preferred) for item in first if item in second])


def notes_on_people(alpha_of_all: Alpha | None, units: list[list[str]], annotators: int) -> list[str]:
    if alpha_of_all is not None:
        return []
    if annotators < 2:
        return ["no alpha: it needs two annotators"]
    if all(len(unit) < 2 for unit in units):
        return ["no alpha: no pair was labelled by two annotators"]
    return ["no alpha: all labels are the same, so agreement cannot be distinguished from chance"]


def notes_on_judges(judges: list[JudgeAgreement]) -> list[str]:
    missing = [f"{j.judge}: none of its verdicts is on a labelled pair" for j in judges if not j.agreement.n + j.failed]
    failed = [f"{j.judge}: gave no verdict on {j.failed} labelled pairs" for j in judges if j.failed]
    return missing + failed


def report(result: Agreement) -> None:
    rows = [(a.annotator, a.labels, a.ties, share_text(a.chose_first)) for a in result.annotators]
    table("annotators", ("annotator", "labels", "ties", "chose the response shown first [95%]"), rows)
    pairs = [(f"agreement of {a} and {b}", share.n, share_text(share)) for a, b, share in result.pairs]
    everyone = ("agreement of all annotators", result.agreement.n, share_text(result.agreement))
    alphas = ("Krippendorff's alpha", result.agreement.n, alpha_text(result.alpha))
    table("agreement between annotators", ("measure", "pairs", "value [95%]"), [alphas, everyone, *pairs])
    by = result.majority
    delta = f"{by.delta:+.1f} [{by.delta_ci[0]:+.1f}, {by.delta_ci[1]:+.1f}]"
    columns = ("pairs", "wins", "ties", "losses", "wins - losses, % of pairs [95%]")
    title = "response against original, by majority of annotators"
    table(title, columns, [(result.items, by.wins, by.ties, by.losses, delta)])
    if result.judges:
        heads = ("judge", "pairs", "agreement [95%]", "pairs without ties", "agreement [95%]", "alpha [95%]")
        table("judges against the majority of annotators", heads, [judge_row(judge) for judge in result.judges])
    for line in result.notes:
        note(line)


def judge_row(judge: JudgeAgreement) -> tuple[object, ...]:
    every, decided = judge.agreement, judge.without_ties
    return judge.judge, every.n, share_text(every), decided.n, share_text(decided), alpha_text(judge.alpha)


def share_text(share: Share) -> str:
    if share.share is None or share.ci is None:
        return "-"
    return f"{100 * share.share:.1f}% [{100 * share.ci[0]:.1f}, {100 * share.ci[1]:.1f}]"


def alpha_text(estimate: Alpha | None) -> str:
    return f"{estimate.value:.3f} [{estimate.ci[0]:.3f}, {estimate.ci[1]:.3f}]" if estimate else "-"


def as_json(value: Any) -> Any:
    """Turn named tuples into dicts at every depth."""
    if hasattr(value, "_asdict"):
        return {name: as_json(inner) for name, inner in value._asdict().items()}
    return [as_json(inner) for inner in value] if isinstance(value, list | tuple) else value

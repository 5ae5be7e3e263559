"""Agreement on human labels: between annotators, and between judges and the annotators' majority."""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Sequence
from itertools import combinations
from typing import Any, NamedTuple, TypeVar

import numpy as np

from pitcli.data.drafts import parse_draft
from pitcli.data.improved_rows import improved_draft
from pitcli.data.rows import Prompt
from pitcli.data.strict_json import RowProblem, describe
from pitcli.evaluation.statistics import PairedComparison, compare, mean_interval

RESPONSE, ORIGINAL_RESPONSE, TIE = "response", "original_response", "tie"
PREFERENCES = (RESPONSE, ORIGINAL_RESPONSE, TIE)

Interval = tuple[float, float]
Parsed = TypeVar("Parsed")


class Item(NamedTuple):
    """Two responses to one prompt, to be labelled."""

    prompt: Prompt
    original_response: str
    response: str

    @property
    def key(self) -> str:
        """A hash of the texts alone, so it is the same in every file."""
        return hashlib.sha256(json.dumps(self).encode("utf-8")).hexdigest()[:16]


class Label(NamedTuple):
    """One decision of an annotator. chose_first: whether the preferred response was shown first; None for a tie."""

    annotator: str
    item: Item
    preferred: str
    chose_first: bool | None


class JudgeChoice(NamedTuple):
    """One decision of a judge. preferred: None if the judge gave no verdict."""

    judge: str
    item: Item
    preferred: str | None


class Share(NamedTuple):
    """A share of n items, pairs or labels with its 95% interval; both None if n is 0."""

    n: int
    share: float | None
    ci: Interval | None


class Alpha(NamedTuple):
    """Krippendorff's alpha for nominal data with its 95% interval."""

    value: float
    ci: Interval


class Annotator(NamedTuple):
    """How one annotator labelled. chose_first: about one half if the order of the responses does not matter."""

    annotator: str
    labels: int
    ties: int
    chose_first: Share


class JudgeAgreement(NamedTuple):
    """A judge's agreement with the majority of the annotators. without_ties: over items that neither calls a tie."""

    judge: str
    failed: int
    agreement: Share
    without_ties: Share
    alpha: Alpha | None


def parse_item(row: dict[str, Any], file: str, line: int) -> Item:
    draft = parse_draft(row, file, line)
    return Item(draft.prompt, improved_draft(row, file, line).response, draft.response)


def parse_label(row: dict[str, Any], file: str, line: int) -> Label:
    preferred = _one_of(row, "preferred", PREFERENCES)
    shown_first = _one_of(row, "shown_first", (RESPONSE, ORIGINAL_RESPONSE))
    chose_first = None if preferred == TIE else preferred == shown_first
    return Label(
        annotator=_field(row, "annotator", str),
        item=parse_item(row, file, line),
        preferred=preferred,
        chose_first=chose_first,
    )


def parse_judge_choice(row: dict[str, Any], file: str, line: int) -> JudgeChoice:
    judge, item = _field(row, "judge", str), parse_item(row, file, line)
    if row.get("p_better", 0) is None:
        return JudgeChoice(judge, item, None)
    p_better = _field(row, "p_better", int | float)
    if not 0 <= p_better <= 1:
        raise RowProblem("p_better", f"expected a number from 0 to 1, got {p_better}")
    return JudgeChoice(judge, item, RESPONSE if p_better > 0.5 else ORIGINAL_RESPONSE if p_better < 0.5 else TIE)


def majority(preferences: Iterable[str]) -> str:
    """The most frequent preference; a tie if two are equally frequent."""
    ranked = Counter(preferences).most_common(2)
    return TIE if len(ranked) == 2 and ranked[0][1] == ranked[1][1] else ranked[0][0]


def alpha(units: Sequence[Sequence[str]], draws: int = 10_000, seed: int = 0) -> Alpha | None:
    """Krippendorff's alpha over the labels of each item (units); the interval resamples items with at least two labels.

    None if alpha is undefined: no item has two labels, or all labels are the same.
    """
    pairable = [unit for unit in units if len(unit) >= 2]
    domain = sorted({value for unit in pairable for value in unit})
    if len(domain) < 2:
        return None
    counts_NV = np.array([[list(unit).count(value) for value in domain] for unit in pairable])
    items = len(pairable)
    [value] = resampled_alphas(counts_NV, np.ones((1, items)))
    picked_DN = np.random.default_rng(seed).multinomial(items, np.full(items, 1 / items), size=draws)
    low, high = np.nanquantile(resampled_alphas(counts_NV, picked_DN), [0.025, 0.975])
    return Alpha(float(value), (float(low), float(high)))


def resampled_alphas(counts_NV: np.ndarray, picked_DN: np.ndarray) -> np.ndarray:
    """Krippendorff's nominal alpha of many resamples at once; NaN if a resample has one value only.

    counts_NV: how often each of N items was given each of V values. picked_DN: how often each draw contains each item.
    """
    labels_N = counts_NV.sum(axis=1)
    disagreeing_N = (labels_N**2 - (counts_NV**2).sum(axis=1)) / (labels_N - 1)
    values_DV = picked_DN @ counts_NV
    total_D = values_DV.sum(axis=1)
    by_chance_D = total_D**2 - (values_DV**2).sum(axis=1)
    with np.errstate(invalid="ignore"):
        return 1 - (total_D - 1) * (picked_DN @ disagreeing_N) / by_chance_D


def share(hits: Sequence[float]) -> Share:
    if not hits:
        return Share(0, None, None)
    return Share(len(hits), sum(hits) / len(hits), mean_interval(hits))


def pairwise_agreement(units: Iterable[Sequence[str]]) -> Share:
    """The share of equal pairs among the pairs of labels of an item, over items with at least two labels."""
    pairs = [list(combinations(unit, 2)) for unit in units if len(unit) >= 2]
    return share([sum(a == b for a, b in unit) / len(unit) for unit in pairs])


def describe_annotator(annotator: str, labels: Sequence[Label]) -> Annotator:
    firsts = [label.chose_first for label in labels if label.chose_first is not None]
    ties = len(labels) - len(firsts)
    return Annotator(annotator=annotator, labels=len(labels), ties=ties, chose_first=share(firsts))


def wins(majorities: dict[Item, str]) -> PairedComparison:
    """Compare responses with originals by the majority; the interval resamples prompts."""
    sign = {RESPONSE: 1.0, ORIGINAL_RESPONSE: -1.0, TIE: 0.0}
    signs = [sign[preferred] for preferred in majorities.values()]
    return compare(signs, [0.0] * len(signs), [json.dumps(item.prompt) for item in majorities])


def judge_agreement(judge: str, choices: dict[Item, str | None], majorities: dict[Item, str]) -> JudgeAgreement:
    """Compare a judge with the majority, over the items that both decided."""
    labelled = [item for item in choices if item in majorities]
    pairs = [(choice, majorities[item]) for item in labelled if (choice := choices[item]) is not None]
    decided = [pair for pair in pairs if TIE not in pair]
    return JudgeAgreement(
        judge=judge,
        failed=len(labelled) - len(pairs),
        agreement=share([choice == people for choice, people in pairs]),
        without_ties=share([choice == people for choice, people in decided]),
        alpha=alpha(pairs),
    )


def _field(row: dict[str, Any], field: str, kind: Any) -> Any:
    if field not in row:
        raise RowProblem(field, "missing")
    value = row[field]
    if not isinstance(value, kind) or isinstance(value, bool):
        raise RowProblem(field, f"expected {'text' if kind is str else 'a number'}, got {describe(value)}")
    if kind is str and not value.strip():
        raise RowProblem(field, "empty")
    return value


def _one_of(row: dict[str, Any], field: str, choices: Sequence[str]) -> str:
    value: str = _field(row, field, str)
    if value not in choices:
        raise RowProblem(field, f"expected one of {', '.join(choices)}, got {value[:40]!r}")
    return value

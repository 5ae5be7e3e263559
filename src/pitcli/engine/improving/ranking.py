"""Scores and ranks candidates: the gaps, the P(better) and the ranks that pit score writes."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from pitcli.data.candidates import Candidates
from pitcli.data.rows import Comparison, Row
from pitcli.engine.improving.scoring import GapModel
from pitcli.engine.models.gaps import Responses
from pitcli.equations import bounded_gap

FIELDS = ("gap", "p_better", "gap_std", "rank", "gaps")  # that pit score adds to a row, and replaces


class Scores(NamedTuple):
    """What is known of each of K responses: lists with one value per response.

    gap, p_better: over the reference, or the mean over the other responses. gap_std: over the members of an ensemble.
    rank: 1 is the best, equals share a rank; None for a single response. gaps: over each of the responses.
    """

    gap: list[float]
    p_better: list[float]
    gap_std: list[float] | None
    rank: list[int] | None
    gaps: list[list[float]] | None = None

    def are_finite(self) -> bool:
        return bool(torch.tensor(self.gap).isfinite().all())

    def rows(self, candidates: Candidates) -> list[Row]:
        """Return the rows of the candidates with these scores; null if they are not finite."""
        found = {name: values for name in FIELDS if (values := getattr(self, name)) is not None}
        if not self.are_finite():
            found = {name: [None] * len(values) for name, values in found.items()}
        fields: list[dict[str, Any]] = (
            [found]
            if candidates.are_listed
            else [{name: values[index] for name, values in found.items()} for index in range(len(self.gap))]
        )
        return [without_scores(row) | scores for row, scores in zip(candidates.rows, fields, strict=True)]


def without_scores(row: Row) -> Row:
    """Return a row without what an earlier pit score has added."""
    return {name: value for name, value in row.items() if name not in FIELDS}


def score(gap_model: GapModel, window: Sequence[Candidates], pairwise: bool = False) -> list[Scores]:
    """Return the scores of each of the candidates. pairwise: also the gaps over each of the responses."""
    with_reference = [candidates for candidates in window if candidates.reference is not None]
    comparisons = [
        Comparison(candidates.prompt, response, str(candidates.reference))
        for candidates in with_reference
        for response in candidates.responses
    ]
    sizes = [len(candidates.responses) for candidates in with_reference]
    over_reference = iter(gap_model.member_gaps(comparisons).split(sizes, dim=1) if sizes else ())
    groups = [_different(candidates) for candidates in window if candidates.reference is None]
    matrices = iter(gap_model.member_gap_matrices(groups))
    scores = []
    for candidates in window:
        if candidates.reference is None:
            texts = list(dict.fromkeys(candidates.responses))
            places = torch.tensor([texts.index(response) for response in candidates.responses])
            scores.append(_over_others(gap_model, next(matrices)[:, places][:, :, places], pairwise))
        else:
            scores.append(_over_reference(gap_model, next(over_reference)))
    return scores


def _different(candidates: Candidates) -> Responses:
    """Return the different texts: equal ones have the gap 0, and the model does not score them."""
    return Responses(candidates.prompt, list(dict.fromkeys(candidates.responses)))


def _over_reference(gap_model: GapModel, gaps_MK: Tensor) -> Scores:
    gaps_K = bounded_gap(gaps_MK, gap_model.bound)
    return Scores(gaps_K.tolist(), gaps_K.sigmoid().tolist(), _stds(gaps_MK), _ranks(gaps_K))


def _over_others(gap_model: GapModel, gaps_MKK: Tensor, pairwise: bool) -> Scores:
    """Return the scores of responses that are compared with one another; P(better) is the mean of P over the others."""
    others = gaps_MKK.shape[-1] - 1
    means_MK = gaps_MKK.sum(-1) / others
    gaps_K = bounded_gap(means_MK, gap_model.bound)
    gaps_KK = bounded_gap(gaps_MKK, gap_model.bound)
    p_KK = gaps_KK.sigmoid().fill_diagonal_(0.0)
    all_gaps = gaps_KK.tolist() if pairwise else None
    return Scores(gaps_K.tolist(), (p_KK.sum(-1) / others).tolist(), _stds(means_MK), _ranks(gaps_K), all_gaps)


def _stds(gaps_MK: Tensor) -> list[float] | None:
    return gaps_MK.std(0, correction=0).tolist() if len(gaps_MK) > 1 else None


def _ranks(gaps_K: Tensor) -> list[int] | None:
    return (1 + (gaps_K[None] > gaps_K[:, None]).sum(-1)).tolist() if len(gaps_K) > 1 else None

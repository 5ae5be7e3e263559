"""Gaps, P(better) and ranks of candidates, computed by hand from the gaps of pairs."""

import math

import pytest
import torch
from torch import Tensor

from pitcli.data.candidates import Candidates
from pitcli.data.rows import Comparison, Message
from pitcli.data.templates import ChatFormat
from pitcli.engine.improving.ranking import score
from pitcli.engine.improving.scoring import GapModel
from pitcli.engine.models.gaps import Responses, score_all_pairs, score_comparisons
from pitcli.engine.models.loading import load_base
from pitcli.engine.models.roles import GAP, gap_roles
from pitcli.settings.base import GapBound, GapLoss
from tests.conftest import WithRoles

PROMPT = (Message("user", "Write 3 animals."),)
TEXTS = ("cat dog", "fox", "cat axe owl", "owl")


def candidates(*texts: str, reference: str | None = None, are_listed: bool = False) -> Candidates:
    rows = ({"n": 0},) if are_listed else tuple({"n": number} for number in range(len(texts)))
    return Candidates(PROMPT, texts, reference, rows, tuple(range(len(rows))), are_listed)


def sigmoid(gap: float) -> float:
    return 1 / (1 + math.exp(-gap))


class ByLength(GapModel):
    """The gap is the difference in length; of a second member, twice as much."""

    def member_gaps(self, comparisons: list[Comparison]) -> Tensor:
        gaps_B = torch.tensor([float(len(c.response) - len(c.reference_response)) for c in comparisons])
        return torch.stack([gaps_B * factor for factor in self.temperatures.values()])

    def member_gap_matrices(self, groups: list[Responses]) -> list[Tensor]:
        lengths = [torch.tensor([float(len(text)) for text in group.texts]) for group in groups]
        gaps = [lengths_K[:, None] - lengths_K for lengths_K in lengths]
        return [torch.stack([gaps_KK * factor for factor in self.temperatures.values()]) for gaps_KK in gaps]


def by_length(*factors: float, bound: GapBound = GapBound.mean) -> ByLength:
    roles = dict(zip(gap_roles(len(factors)), factors, strict=True))
    return ByLength(None, None, roles, 8, GapLoss.five_term, bound)  # type: ignore[arg-type]


def test_each_response_is_compared_with_the_mean_of_the_others() -> None:
    """A copy counts as an equal response, and equals share a rank."""
    (scores,) = score(by_length(1.0), [candidates("a", "abc", "abc")], pairwise=True)
    assert scores.gap == [-2, 1, 1]
    assert scores.p_better == pytest.approx([sigmoid(-2), (sigmoid(2) + 0.5) / 2, (sigmoid(2) + 0.5) / 2])
    assert scores.rank == [3, 1, 1]
    assert scores.gap_std is None
    assert scores.gaps == [[0, -2, -2], [2, 0, 0], [2, 0, 0]]


def test_responses_against_a_reference_next_to_others() -> None:
    window = [candidates("a", "abc"), candidates("abcd", reference="ab"), candidates("a", "abc", "", reference="ab")]
    among, alone, three = score(by_length(1.0), window)
    assert (among.gap, among.rank, among.gaps) == ([-2, 2], [2, 1], None)
    assert (alone.gap, alone.rank) == ([2], None)
    assert (three.gap, three.rank) == ([-1, 1, -2], [2, 1, 3])
    assert three.p_better == pytest.approx([sigmoid(-1), sigmoid(1), sigmoid(-2)])


def test_members_of_an_ensemble() -> None:
    (mean,), (least,) = (
        score(by_length(1, 3, bound=bound), [candidates("a", "abc")]) for bound in (GapBound.mean, GapBound.least)
    )
    assert (mean.gap, mean.gap_std) == ([-4, 4], [2, 2])
    assert least.gap == [-6, 2]
    assert least.p_better == pytest.approx([sigmoid(-6), sigmoid(2)])


def test_rows_keep_their_fields_and_lose_earlier_scores() -> None:
    of_rows, listed = candidates("a", "abc"), candidates("a", "abc", are_listed=True)
    of_rows.rows[0]["gap_std"] = 9
    for each, expected in (
        (of_rows, [{"n": 0, "gap": -2.0, "rank": 2}, {"n": 1, "gap": 2.0, "rank": 1}]),
        (listed, [{"n": 0, "gap": [-2.0, 2.0], "rank": [2, 1]}]),
    ):
        (scores,) = score(by_length(1.0), [each])
        rows = scores.rows(each)
        assert [{name: value for name, value in row.items() if name != "p_better"} for row in rows] == expected
    (endless,) = score(by_length(math.inf), [of_rows])
    assert not endless.are_finite()
    assert endless.rows(of_rows)[1] == {"n": 1, "gap": None, "p_better": None, "rank": None}


@pytest.mark.parametrize("loss", [GapLoss.five_term, GapLoss.pointwise])
@pytest.mark.parametrize("micro_batch_size", [1, 3, 7, 64])
def test_all_pairs_in_one_tree_score_as_each_by_itself(
    micro_batch_size: int, loss: GapLoss, with_roles: WithRoles, tiny_chat: ChatFormat, tiny_folder: object
) -> None:
    base = load_base(tiny_folder, False, torch.device("cpu"))
    model = with_roles(base, tiny_chat.tokenizer.pad_token_id, GAP)
    groups = [Responses(PROMPT, TEXTS), Responses(PROMPT, TEXTS[:1]), Responses(PROMPT, TEXTS[1:3])]
    found = score_all_pairs(model, tiny_chat, loss, groups, micro_batch_size)
    for group, gaps_KK in zip(groups, found, strict=True):
        for i, response in enumerate(group.texts):
            for j, reference in enumerate(group.texts):
                comparison = Comparison(PROMPT, response, reference)
                expected = score_comparisons(model, tiny_chat, loss, [comparison], 2)[0, 0] if i != j else 0.0
                assert float(gaps_KK[i, j]) == pytest.approx(float(expected), abs=1e-5)
    assert found[0].abs().max() > 0.1
    assert score_all_pairs(model, tiny_chat, loss, [], 8) == []


def test_a_merged_role_scores_as_before(with_roles: WithRoles, tiny_chat: ChatFormat, tiny_folder: object) -> None:
    model = with_roles(load_base(tiny_folder, False, torch.device("cpu")), tiny_chat.tokenizer.pad_token_id, GAP)
    before, without = (
        score_all_pairs(model, tiny_chat, GapLoss.five_term, [Responses(PROMPT, TEXTS)], 8) for _ in "ab"
    )
    assert torch.equal(before[0], without[0])
    model.merge(GAP)
    for _ in range(2):
        (merged,) = score_all_pairs(model, tiny_chat, GapLoss.five_term, [Responses(PROMPT, TEXTS)], 8)
        assert (merged - before[0]).abs().max() < 1e-5
    weight = next(module for module in model.base.modules() if getattr(module, "merged", False))
    assert weight.merged_adapters == [GAP]

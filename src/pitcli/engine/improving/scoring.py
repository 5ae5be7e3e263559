"""Gaps as pit uses them: symmetrised and calibrated."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from pitcli.data.rows import Comparison
from pitcli.data.templates import ChatFormat
from pitcli.engine.models.gaps import Responses, score_all_pairs, score_comparisons, scoring_tree
from pitcli.engine.models.roles import RoleModel
from pitcli.equations import bounded_gap, symmetrised_gap
from pitcli.errors import is_out_of_memory
from pitcli.settings.base import GapBound, GapLoss

Item = TypeVar("Item")
Result = TypeVar("Result")


class GapModel(NamedTuple):
    """The gap model, or an ensemble of several, with its calibration.

    temperatures: T of P(better) = sigmoid(gap / T), by role; one role per member. micro_batch_size: sequences per pass.
    loss: what the models were trained with, which decides what they read. bound: how the gaps of the members become one
    (equations.bounded_gap). max_length: longest conversation in tokens, for responses of a writer that counts other
    tokens (None: they are known to fit); a longer one gets the gap NaN.
    """

    model: RoleModel
    chat: ChatFormat
    temperatures: Mapping[str, float]
    micro_batch_size: int
    loss: GapLoss
    bound: GapBound = GapBound.mean
    max_length: int | None = None

    def gaps(self, comparisons: Sequence[Comparison]) -> Tensor:
        """Return gap(response, reference_response) / T of each comparison, shape (B,): the bound on the members'."""
        return bounded_gap(self.member_gaps(comparisons), self.bound)

    def gaps_with_std(self, comparisons: Sequence[Comparison]) -> tuple[list[float], list[float] | None]:
        """Return the gaps, and the standard deviation over the members (None: there is one member)."""
        gaps_MB = self.member_gaps(comparisons)
        stds = gaps_MB.std(0, correction=0).tolist() if len(gaps_MB) > 1 else None
        return bounded_gap(gaps_MB, self.bound).tolist(), stds

    def member_gaps(self, comparisons: Sequence[Comparison]) -> Tensor:
        """Return gap / T of each comparison by each of the M members, shape (M, B), fp32, on the CPU.

        gap(y, y_ref) = 1/2 [r_gap(x, y, y_ref) - r_gap(x, y_ref, y)] (equations.symmetrised_gap), and the sigmoid of
        gap / T is P(better).
        """
        scores_MB2 = self.member_scores(comparisons)
        return symmetrised_gap(scores_MB2[..., 0], scores_MB2[..., 1])

    def member_scores(self, comparisons: Sequence[Comparison]) -> Tensor:
        """Return the two r_gap / T of each comparison by each member, shape (M, B, 2), fp32, on the CPU.

        First r_gap(x, y, y_ref), then r_gap(x, y_ref, y). Two equal responses have the scores 0, as the model does not
        read them; too long ones NaN.
        """
        indices = [index for index, c in enumerate(comparisons) if c.response != c.reference_response]
        scores_MB2 = torch.zeros(len(self.temperatures), len(comparisons), 2)
        if self.max_length is not None:
            too_long = [i for i in indices if self._longest(comparisons[i]) > self.max_length]
            scores_MB2[:, too_long] = torch.nan
            indices = [index for index in indices if index not in too_long]
        different = [comparisons[index] for index in indices]
        for scores_B2, (role, temperature) in zip(scores_MB2, self.temperatures.items(), strict=True):
            scores_N2 = score_comparisons(self.model, self.chat, self.loss, different, self.micro_batch_size, role)
            scores_B2[indices] = scores_N2 / temperature
        return scores_MB2

    def _longest(self, comparison: Comparison) -> int:
        """Return the tokens of the longest conversation of a comparison."""
        prompt, response, reference = comparison
        trees = scoring_tree(prompt, [response], reference, self.chat, self.loss)
        return max(map(len, trees.conversations()))

    def member_gap_matrices(self, groups: Sequence[Responses]) -> list[Tensor]:
        """Return gap(y_i, y_j) / T of all responses of each group by each of the M members, shape (M, K, K)."""
        by_member = [
            [
                symmetrised_gap(scores_KK, scores_KK.T) / temperature
                for scores_KK in score_all_pairs(self.model, self.chat, self.loss, groups, self.micro_batch_size, role)
            ]
            for role, temperature in self.temperatures.items()
        ]
        return [torch.stack(gaps) for gaps in zip(*by_member, strict=True)]


def within_memory(
    gap_model: GapModel, items: Sequence[Item], score: Callable[[GapModel, Sequence[Item]], Iterable[Result]]
) -> Iterator[Result | None]:
    """Yield the result of each item, in smaller parts if memory runs out; None: even one is too large."""
    try:
        yield from score(gap_model, items)
        return
    except (MemoryError, RuntimeError) as problem:
        if not is_out_of_memory(problem):
            raise
    if len(items) == 1 and gap_model.micro_batch_size == 1:
        yield None
        return
    smaller = gap_model._replace(micro_batch_size=max(1, gap_model.micro_batch_size // 2))
    middle = max(1, len(items) // 2)
    for part in (items[:middle], items[middle:]):
        if part:
            yield from within_memory(smaller, part, score)

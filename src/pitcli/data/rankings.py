"""Several pairs of one prompt, taken together."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from pitcli.data.rows import PreferencePair, Prompt


def by_prompt(pairs: Sequence[PreferencePair]) -> list[list[int]]:
    """Return the indices of the pairs of each prompt, in the order in which the prompts first occur."""
    groups: dict[Prompt, list[int]] = {}
    for index, pair in enumerate(pairs):
        groups.setdefault(pair.prompt, []).append(index)
    return [*groups.values()]


def towards_best(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    """Return pairs of the best response to each prompt, chosen, with each of the others, rejected.

    The best has the most wins less losses over the pairs of its prompt (Copeland's rule), the first of equals. Pairs
    that are the only ones of their prompts stay as they are.
    """
    return [pair for group in by_prompt(pairs) for pair in _of_best([pairs[index] for index in group])]


def _of_best(pairs: Sequence[PreferencePair]) -> list[PreferencePair]:
    score: Counter[str] = Counter()
    is_truncated: dict[str, bool] = {}
    for pair in pairs:
        score[pair.chosen] += 1
        score[pair.rejected] -= 1
        is_truncated[pair.chosen], is_truncated[pair.rejected] = pair.chosen_truncated, pair.rejected_truncated
    best = max(score, key=lambda text: score[text])
    return [
        replace(
            pairs[0],
            id=f"{pairs[0].id}-{number}" if number else pairs[0].id,
            chosen=best,
            rejected=other,
            chosen_truncated=is_truncated[best],
            rejected_truncated=is_truncated[other],
        )
        for number, other in enumerate(text for text in score if text != best)
    ]

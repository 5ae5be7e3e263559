"""Prompt lookup (arXiv 2304.04487), a form of speculative decoding: guess that what followed before follows again.

An improvement repeats much of what it improves. So if the last two tokens occurred together before, the ones after them
are guessed and read in the same pass. A guess is kept only if it is what is drawn, and every token has a random number
of its own to be drawn with: but for rounding, guesses change the time alone.
"""

from itertools import pairwise

MOST_GUESSES = 8  # tokens that are read ahead at most
MORE_GUESSES = 2  # than were right the last time


class PromptLookup:
    """The tokens of a conversation, and what followed each pair of neighbours the last time."""

    def __init__(self, prompt: list[int]) -> None:
        self._tokens = list(prompt)
        self._follows: dict[tuple[int, ...], int] = {
            pair: index + 2 for index, pair in enumerate(pairwise(self._tokens[:-1]))
        }

    def add(self, token: int) -> None:
        self._follows[tuple(self._tokens[-2:])] = len(self._tokens)
        self._tokens.append(token)

    def guess(self, right: int, limit: int) -> list[int]:
        """The next tokens: some more than were right the last time, and no more than `limit`."""
        start = self._follows.get(tuple(self._tokens[-2:]), len(self._tokens))
        return self._tokens[start : start + min(right + MORE_GUESSES, MOST_GUESSES, limit)]

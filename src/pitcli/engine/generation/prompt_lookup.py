"""Prompt lookup (arXiv 2304.04487): speculative decoding that guesses tokens from the conversation so far.

An improvement repeats much of the response that it improves. So if the last two tokens occurred together before, the
tokens that followed them are guessed and read in the same pass. A guess is accepted only if it equals the token drawn,
and every token is drawn with its own random number. So guesses change the speed only, except for rounding.
"""

from itertools import pairwise

MOST_GUESSES = 8  # per pass
MORE_GUESSES = 2  # guesses beyond as many as were accepted the last time


class PromptLookup:
    """The tokens of a conversation, and where each pair of neighbouring tokens last occurred."""

    def __init__(self, prompt: list[int]) -> None:
        self._tokens = list(prompt)
        self._follows: dict[tuple[int, ...], int] = {
            pair: index + 2 for index, pair in enumerate(pairwise(self._tokens[:-1]))
        }

    def add(self, token: int) -> None:
        """Append a drawn token to the conversation."""
        self._follows[tuple(self._tokens[-2:])] = len(self._tokens)
        self._tokens.append(token)

    def guess(self, accepted: int, limit: int) -> list[int]:
        """Return guesses of the next tokens: MORE_GUESSES more than the last time were accepted, at most `limit`."""
        start = self._follows.get(tuple(self._tokens[-2:]), len(self._tokens))
        return self._tokens[start : start + min(accepted + MORE_GUESSES, MOST_GUESSES, limit)]

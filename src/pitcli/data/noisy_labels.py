"""Noisy preference labels from grades, as the tasks with a known truth draw them."""

import math
import random

SHARPNESS = 10.0  # Bradley-Terry: P(a preferred to b) = sigmoid(SHARPNESS * (grade(a) - grade(b)))


def first_is_chosen(difference: float, flipped: float, rng: random.Random) -> bool:
    """Whether the first of two responses is labelled as chosen, by Bradley-Terry.

    difference: the grade of the first minus that of the second. flipped: the share of labels that are turned around
    after that.
    """
    first_wins = rng.random() < 1 / (1 + math.exp(-SHARPNESS * difference))
    return first_wins != (rng.random() < flipped)

"""Learning rates by the size of the base."""

import pytest

from pitcli.engine.training.schedule import default_learning_rate


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [(1_000_000, 1e-3), (135_000_000, 1e-3), (500_000_000, 1e-3), (1_000_000_000, 7.1e-4), (8_000_000_000, 2.5e-4)],
)
def test_the_default_learning_rate_falls_with_the_square_root_of_the_size(parameters: int, expected: float) -> None:
    assert default_learning_rate(parameters) == expected

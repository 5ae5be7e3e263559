"""Learning rates by the size of the base."""

import pytest

from pitcli.engine.training.schedule import default_learning_rate, member_seed, rows_of_step


@pytest.mark.parametrize(
    ("parameters", "expected"),
    [(1_000_000, 1e-3), (135_000_000, 1e-3), (500_000_000, 1e-3), (1_000_000_000, 7.1e-4), (8_000_000_000, 2.5e-4)],
)
def test_the_default_learning_rate_falls_with_the_square_root_of_the_size(parameters: int, expected: float) -> None:
    assert default_learning_rate(parameters) == expected


def test_each_member_of_an_ensemble_sees_the_rows_in_its_own_order() -> None:
    """The first as if it were the only one."""
    orders = [rows_of_step(0, 40, 8, member_seed(3, member)) for member in range(3)]
    assert orders[0] == rows_of_step(0, 40, 8, seed=3)
    assert len({tuple(order) for order in orders}) == 3
    assert member_seed(2**32 - 1, 1) < 2**32

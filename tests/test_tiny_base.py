"""The base that ships sees every demand of the synthetic task, so that a gap model can learn any of them."""

import sys
from pathlib import Path

from pitcli.data.synthetic import GENERAL, SPECIAL

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import tiny_gate


def test_a_gap_model_sees_each_demand_that_is_broken(tmp_path: Path) -> None:
    shares = tiny_gate.shares("tiny", tmp_path, seed=0, pairs=1000, tasks=60)
    assert set(shares) == {*GENERAL, *SPECIAL}
    assert {name: share for name, share in shares.items() if share < tiny_gate.LEAST} == {}

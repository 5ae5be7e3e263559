"""The report on a gap model: what pairs that share a prompt say about its accuracy."""

from pathlib import Path

import numpy as np
import pytest

from pitcli.engine.training.finish import rl_command
from pitcli.engine.training.reward_report import effective_count
from pitcli.stages.score import accuracy


def test_pairs_of_one_prompt_that_are_right_together_count_once() -> None:
    right = np.repeat([True, False, True, True, False, True, False, True], 5)
    alike = effective_count(right, [str(number) for number in np.repeat(np.arange(8), 5)])
    assert alike == pytest.approx(7)  # 8 prompts, less the one degree of freedom that their mean costs
    assert effective_count(right, [str(number) for number in range(40)]) == 40


def test_if_all_are_right_prompts_are_counted() -> None:
    assert effective_count(np.ones(12, bool), list("aabbccddeeff")) == 6


def test_the_next_command_names_the_fold_and_a_run_elsewhere(tmp_path: Path) -> None:
    assert rl_command(str(tmp_path / "reward.jsonl"), reward=Path("runs/reward")) == "pit rl --curriculum"
    (tmp_path / "rl.jsonl").touch()
    found = rl_command(str(tmp_path / "reward.jsonl"), reward=Path("runs/b"))
    assert found == f"pit rl --curriculum --data {tmp_path / 'rl.jsonl'} --reward runs/b"
    assert rl_command("pairs.jsonl", sft=Path("runs/c")) == "pit rl --curriculum --sft runs/c"


def test_no_pairs_have_no_accuracy() -> None:
    assert set(accuracy([]).values()) == {0, None}

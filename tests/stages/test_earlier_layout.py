"""Runs and rows written before the present layout (commit c6b6764) still load, verify and give the same rows.

They were made from 40 synthetic pairs and 11 drafts with OMP_NUM_THREADS=1, on `base`, the tiny base of that time;
`runs/interrupted` is `runs/rl`, killed in its sixth step. Their adapters name the base `tiny`; the old code wrote the
path of its folder instead. On the machine that made them, the rows are equal byte for byte; other processors round gaps
differently.
"""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from pitcli import cli
from pitcli.engine.models import bases

FIXTURE = Path(__file__).parents[1] / "fixtures" / "before_the_house"
IMPROVE = "improve --input drafts.jsonl --output improved.jsonl --max-iters 3 --temperature 0 --max-new-tokens 24"
RL = (
    "rl --force --curriculum --device cpu --batch-size 4 --micro-batch-size 8 --learning-rate 1e-3 --max-steps 8 "
    "--updates-per-rollout 2 --rollout-max-new-tokens 8 --save-every 4 --out runs/interrupted --resume"
)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    locate = bases._locate
    monkeypatch.setattr(bases, "_locate", lambda base: FIXTURE / "base" if base == "tiny" else locate(base))
    return tmp_path


def rounded(value: Any) -> Any:
    """The value with floats compared to four digits, because processors differ in the last ones."""
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item) for item in value]
    return pytest.approx(value, abs=1e-4) if isinstance(value, float) else value


def rows(text: str) -> list[Any]:
    """The rows without `finished`, which was added later."""
    return [{name: v for name, v in json.loads(line).items() if name != "finished"} for line in text.splitlines()]


@pytest.mark.parametrize("run", ["sft", "reward", "rl"])
def test_earlier_runs_verify(run: str, folder: Path) -> None:
    assert cli.main(["verify", f"runs/{run}", "--device", "cpu"]) == 0


def test_greedy_rows_are_the_same(folder: Path) -> None:
    expected = rows((folder / "improved.jsonl").read_text())
    assert cli.main([*IMPROVE.split(), "--device", "cpu", "--overwrite"]) == 0
    assert rows((folder / "improved.jsonl").read_text()) == rounded(expected)


def test_partly_written_rows_are_completed(folder: Path) -> None:
    output = folder / "improved.jsonl"
    whole = output.read_text()
    output.write_text(whole[: len(whole) // 2])
    assert cli.main([*IMPROVE.split(), "--device", "cpu", "--resume"]) == 0
    assert rows(output.read_text()) == rounded(rows(whole))


def test_a_run_of_the_earlier_training_is_not_resumed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """RL had another schedule and another penalty, so the rest of its steps would not be those of that run."""
    assert cli.main(RL.split()) == 2
    assert "--resume: eos_penalty_unit was None in runs/interrupted and is now 'spread'" in capsys.readouterr().err

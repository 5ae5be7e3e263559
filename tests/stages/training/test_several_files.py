"""--data takes several files: the stages train on the rows of all of them."""

import json
import shutil
from pathlib import Path

import pytest

from pitcli import cli
from pitcli.errors import InputError
from pitcli.settings.preparing import PrepareConfig
from pitcli.settings.training import RewardConfig, SftConfig
from pitcli.stages import prepare, sft, train_reward
from tests.stages.training.conftest import SMALL, read_rows, write_rows


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pairs of the project, in two files."""
    shutil.copy("pairs.jsonl", tmp_path / "pairs.jsonl")
    monkeypatch.chdir(tmp_path)
    rows = read_rows(Path("pairs.jsonl"))
    write_rows(Path("a.jsonl"), rows[:25])
    write_rows(Path("b.jsonl"), rows[25:])


def data_of(run: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(Path(run, "manifest.json").read_text())["data"]
    return found


def test_two_files_train_as_one(files: None, capsys: pytest.CaptureFixture[str]) -> None:
    """The next stage inherits both, and an earlier run's path names both."""
    train_reward.run(RewardConfig(data="pairs.jsonl", out=Path("whole"), max_steps=1, **SMALL))
    train_reward.run(RewardConfig(data="a.jsonl,b.jsonl", max_steps=1, **SMALL))
    whole, both = data_of("whole"), data_of("runs/reward")
    assert (both.pop("path"), whole.pop("path")) == ("a.jsonl,b.jsonl", "pairs.jsonl")
    assert both == whole
    assert "a.jsonl: 25 pairs\nb.jsonl: 15 pairs\n" in capsys.readouterr().err
    sft.run(SftConfig(max_steps=1, **{**SMALL, "model": None, "load_in_4bit": None}))
    assert data_of("runs/sft") == {"path": "a.jsonl,b.jsonl", **both}


def test_errors_name_the_right_file(files: None) -> None:
    write_rows(Path("b.jsonl"), [{"prompt": "word " * 1500, "chosen": "a", "rejected": "b"}])
    with pytest.raises(InputError) as problem:
        sft.run(SftConfig(data="a.jsonl,b.jsonl", long_rows="error", **SMALL))
    assert problem.value.problems[0].startswith("b.jsonl:1:prompt: expected a conversation of at most")
    with pytest.raises(InputError, match=r"^c.jsonl: no such file$"):
        sft.run(SftConfig(data="a.jsonl,c.jsonl", **SMALL))


def test_prepare_splits_the_rows_of_all_files(files: None, capsys: pytest.CaptureFixture[str]) -> None:
    prepare.run(PrepareConfig(data="a.jsonl,b.jsonl", folds="all=1", out=Path("out")))
    assert len(read_rows(Path("out/all.jsonl"))) == 40
    assert cli.main(["prepare", "--data", "a.jsonl,b.jsonl", "--folds", "b=1", "--out", "."]) == 2
    assert "--out: fold b would overwrite --data b.jsonl; choose another folder" in capsys.readouterr().err

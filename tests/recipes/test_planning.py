"""A recipe plans with the runs, the base and the data that each command would find by itself."""

import shutil
from pathlib import Path

import pytest

from pitcli.engine.models.opening import open_base
from pitcli.recipes.planning import PlannedStage, plan
from pitcli.runs.earlier import find_run
from pitcli.settings.default_runs import GAP_RUN, IMPROVER_RUN
from pitcli.settings.generating import ImproveConfig
from pitcli.settings.tools import PipelineConfig
from pitcli.settings.training import RlConfig, SftConfig

FIXTURE = Path(__file__).parents[1] / "fixtures" / "before_the_house"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(FIXTURE, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def planned(text: str) -> list[PlannedStage]:
    Path("recipe.yaml").write_text(text)
    return plan(PipelineConfig(recipe=Path("recipe.yaml"), out=Path())).stages


@pytest.mark.parametrize("settings", ["", "data: pairs.jsonl", "load_in_4bit: false"])
def test_sft_inherits_the_base_of_an_existing_gap_model(settings: str) -> None:
    """No stage of the recipe writes runs/reward; `pit sft` finds its base there, and so does the recipe."""
    (stage,) = planned(f"stages:\n  - sft: {{{settings}}}\n")
    reward = find_run(None, GAP_RUN)
    assert reward is not None
    assert (stage.config.model, stage.config.data) == ("tiny", "pairs.jsonl")  # type: ignore[attr-defined]
    given = {"load_in_4bit": False} if "4bit" in settings else {}
    assert stage.config.load_in_4bit is (False if given else reward.manifest.base.load_in_4bit)  # type: ignore[attr-defined]
    if not given:  # otherwise both the recipe's stage and the command refuse the two together
        found_by_command = open_base(SftConfig(), [reward]).identity
        assert open_base(stage.config, []).identity == found_by_command  # type: ignore[arg-type]


def test_with_its_own_model_sft_inherits_only_the_data() -> None:
    (stage,) = planned("stages:\n  - sft: {model: smollm2}\n")
    assert isinstance(stage.config, SftConfig)
    assert (stage.config.model, stage.config.load_in_4bit, stage.config.data) == ("smollm2", None, "pairs.jsonl")


def test_runs_that_exist_are_found_in_their_default_folders() -> None:
    rl, improve = planned(
        "stages:\n  - rl: {out: runs/other}\n  - improve: {input: drafts.jsonl, output: rows.jsonl}\n"
    )
    assert isinstance(rl.config, RlConfig)
    assert (rl.config.sft, rl.config.reward, rl.config.policy) == (Path("runs/sft"), Path("runs/reward"), None)
    assert isinstance(improve.config, ImproveConfig)
    found = find_run(None, IMPROVER_RUN)
    assert found is not None
    assert improve.config.run == found.folder == Path("runs/rl")
    assert improve.config.reward is None  # the gap model inside the RL run

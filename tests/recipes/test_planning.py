"""A recipe plans with the runs, the base and the data that each command would find by itself."""

import json
import shlex
import shutil
from contextlib import chdir
from pathlib import Path

import pytest

from pitcli import cli
from pitcli.data.synthetic import preference_rows
from pitcli.engine.improving.models import find_models
from pitcli.engine.models.opening import open_base
from pitcli.errors import SettingsError
from pitcli.recipes.paths import PlannedStage
from pitcli.recipes.planning import plan
from pitcli.runs.earlier import find_run
from pitcli.settings.default_runs import GAP_RUN, IMPROVER_RUN
from pitcli.settings.distill import DistillConfig
from pitcli.settings.dpo import DpoConfig
from pitcli.settings.generating import ImproveConfig
from pitcli.settings.tools import PipelineConfig
from pitcli.settings.training import RlConfig, SftConfig
from tests.conftest import Share


@pytest.fixture(scope="session")
def trained(share: Share) -> Path:
    """A folder with pairs, drafts, and runs of the embedded base: an SFT improver, a gap model, and RL from both."""

    def fill(folder: Path) -> None:
        with chdir(folder):
            Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in preference_rows(12, seed=3)))
            Path("drafts.jsonl").touch()
            shared = "--data pairs.jsonl --max-steps 1 --batch-size 4"
            for command in ("sft --model tiny", "train-reward --model tiny", "rl --force --rollout-max-new-tokens 4"):
                assert cli.main([*command.split(), *shared.split()]) == 0

    return share("planning", fill)


@pytest.fixture(autouse=True)
def folder(trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
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


@pytest.mark.parametrize("without_reward", [False, True])
def test_a_writer_at_an_endpoint_uses_the_gap_model_of_the_rl_run(folder: Path, without_reward: bool) -> None:
    """As `pit improve` does, whether or not there is a gap model by itself."""
    if without_reward:
        shutil.rmtree("runs/reward")
    endpoint = "writer: 'openai:m', base_url: 'http://localhost:1/v1'"
    (stage,) = planned(f"stages:\n  - improve: {{input: drafts.jsonl, output: out.jsonl, {endpoint}}}\n")
    assert isinstance(stage.config, ImproveConfig)
    models = find_models(ImproveConfig(writer="openai:m", base_url="http://localhost:1/v1"))
    assert models.gap_run is not None
    assert (stage.config.run, stage.config.reward) == (models.gap_run.folder, None)


def test_stages_that_use_the_data_of_a_planned_gap_model_read_it_in_the_same_way() -> None:
    named = "prompt=p,chosen=c,rejected=r"
    reward = f"train-reward: {{data: pairs.jsonl, skip_bad: true, fields: '{named}', out: runs/reward}}"
    _, inherits, own = planned(
        f"stages:\n  - {reward}\n  - sft: {{out: a}}\n  - name: own\n    sft: {{out: b, data: pairs.jsonl}}\n"
    )
    assert isinstance(inherits.config, SftConfig)
    assert isinstance(own.config, SftConfig)
    assert (inherits.config.data, inherits.config.skip_bad, inherits.config.fields) == ("pairs.jsonl", True, named)
    assert (own.config.data, own.config.skip_bad, own.config.fields) == ("pairs.jsonl", None, None)


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


def test_several_files_of_data_are_inputs_each() -> None:
    Path("more.jsonl").touch()
    Path("out").mkdir()
    Path("recipe.yaml").write_text("stages:\n  - sft: {model: tiny, data: 'pairs.jsonl, more.jsonl'}\n")
    (stage,) = plan(PipelineConfig(recipe=Path("recipe.yaml"), out=Path("out"))).stages
    here = [str(Path(name).resolve()) for name in ("pairs.jsonl", "more.jsonl")]
    assert stage.reads == tuple(here)
    assert stage.config.data == ",".join(here)  # type: ignore[attr-defined]


def test_a_quoted_file_of_a_command_is_found_in_a_folder_with_a_space(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my project").mkdir()
    monkeypatch.chdir(tmp_path / "my project")
    Path("verify.py").touch()
    Path("recipe.yaml").write_text(
        """stages:\n  - label: {judge: 'cmd:python "verify.py"', input: drafts.jsonl, output: made.jsonl}\n"""
    )
    Path("drafts.jsonl").touch()
    (label,) = plan(PipelineConfig(recipe=Path("recipe.yaml"), out=Path("out"))).stages
    assert shlex.split(label.config.judge) == ["cmd:python", str(Path("verify.py").resolve())]  # type: ignore[attr-defined]


def test_files_that_a_command_names_are_inputs_and_are_found_from_the_out_folder() -> None:
    Path("verify.py").touch()
    Path("out").mkdir()
    command = "cmd:python verify.py --words 'verify.py' pairs.jsonl,x | tee made.jsonl"
    Path("recipe.yaml").write_text(
        "stages:\n"
        f'  - rl: {{sft: runs/sft, data: pairs.jsonl, reward: "{command}"}}\n'
        f'  - label: {{judge: "{command}", input: drafts.jsonl, output: made.jsonl}}\n'
        f'  - evaluate: {{judge: "oracle, {command}", input: drafts.jsonl}}\n'
        "  - label: {judge: 'labels:verify.py,pairs.jsonl', input: drafts.jsonl, output: by-people.jsonl}\n"
        "    name: people\n"
    )
    rl, label, evaluate, people = plan(PipelineConfig(recipe=Path("recipe.yaml"), out=Path("out"))).stages
    script = str(Path("verify.py").resolve())
    found = command.replace("verify.py", script)
    assert rl.config.reward == found  # type: ignore[attr-defined]
    assert evaluate.config.judge == ("oracle", found)  # type: ignore[attr-defined]
    assert script in rl.reads and script in label.reads and script in evaluate.reads
    assert "made.jsonl" in evaluate.reads, "written by an earlier stage"
    assert people.config.judge == f"labels:{script},{Path('pairs.jsonl').resolve()}"  # type: ignore[attr-defined]


def test_improve_takes_another_gap_model_if_a_program_rewarded_the_improver() -> None:
    rl, improve = planned(
        "stages:\n  - rl: {reward: 'cmd:true', data: pairs.jsonl, out: runs/new}\n"
        "  - improve: {run: runs/new, input: drafts.jsonl, output: rows.jsonl}\n"
    )
    assert (rl.config.reward, rl.config.sft) == ("cmd:true", Path("runs/sft"))  # type: ignore[attr-defined]
    assert improve.config.reward == Path("runs/reward")  # type: ignore[attr-defined]


def test_a_stage_that_starts_from_another_run_reads_it_and_takes_its_base() -> None:
    """Both from a stage before it and from a run that exists."""
    shutil.rmtree("runs/reward")
    policy, gap, again = planned(
        "shared: {data: pairs.jsonl}\nstages:\n  - sft: {role: policy, model: tiny}\n"
        "  - train-reward: {init: runs/policy}\n  - name: again\n    sft: {init: runs/sft, out: runs/again}\n"
    )
    assert isinstance(again.config, SftConfig)
    assert (gap.config.init, again.config.init) == (Path("runs/policy"), Path("runs/sft"))  # type: ignore[attr-defined]
    assert "runs/policy" in gap.reads
    assert gap.config.model is None, "the base of runs/policy"  # type: ignore[attr-defined]
    assert policy.config.init is None  # type: ignore[attr-defined]


def test_dpo_starts_from_the_sft_of_an_earlier_stage_and_improve_uses_it() -> None:
    shutil.rmtree("runs/rl")
    _, dpo, improve = planned(
        "stages:\n  - sft: {out: runs/sft, data: pairs.jsonl}\n  - dpo: {}\n"
        "  - improve: {input: drafts.jsonl, output: rows.jsonl, stop: none}\n"
    )
    assert isinstance(dpo.config, DpoConfig)
    assert (dpo.config.sft, dpo.config.model, dpo.writes) == (Path("runs/sft"), None, ("runs/dpo",))
    assert "runs/sft" in dpo.reads
    assert isinstance(improve.config, ImproveConfig)
    assert improve.config.run == Path("runs/dpo")


def test_dpo_without_a_start_is_a_problem_of_the_recipe() -> None:
    with pytest.raises(SettingsError) as problem:
        planned("stages:\n  - dpo: {role: policy}\n  - name: base\n    dpo: {from_base: true, out: runs/base}\n")
    start, data = problem.value.problems
    assert "dpo: sft: no earlier stage writes runs/policy, and it is not in" in start
    assert data.endswith("base: data: must be given")


@pytest.mark.parametrize("method", ["sft", "on-policy"])
def test_distill_starts_from_the_policy_and_on_policy_finds_the_improver(method: str) -> None:
    shutil.rmtree("runs/rl")
    _, stage = planned(
        "stages:\n  - name: policy\n    sft: {role: policy, data: pairs.jsonl}\n"
        f"  - distill: {{method: {method}, data: drafts.jsonl}}\n"
    )
    assert isinstance(stage.config, DistillConfig)
    assert (stage.config.policy, stage.config.model, stage.writes) == (Path("runs/policy"), None, ("runs/distill",))
    assert stage.config.run == (Path("runs/sft") if method == "on-policy" else None)
    assert "drafts.jsonl" in stage.reads


def test_distill_needs_data_and_on_policy_an_improver() -> None:
    for run in ("runs/rl", "runs/sft", "runs/policy"):
        shutil.rmtree(run, ignore_errors=True)
    with pytest.raises(SettingsError) as problem:
        planned(
            "stages:\n  - distill: {}\n  - name: other\n    distill: {method: on-policy, data: drafts.jsonl, out: b}\n"
        )
    data, improver = problem.value.problems
    assert data.endswith("distill: data: must be given")
    assert "other: run: no earlier stage writes runs/rl or runs/dpo or runs/sft" in improver

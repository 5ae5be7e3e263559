"""pit run: which stages run again, which are skipped, and why."""

import fcntl
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pitcli.engine.models.bases import resolve_base
from tests.stages.recipes.conftest import NAMES, SMALL, decisions, outputs, pit, ran, recipe


def test_a_finished_recipe_runs_nothing_again(whole: Path, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Checks the outputs of the stages, and that a second run skips every stage."""
    assert (done / "made/runs/rl/improver/adapter_model.safetensors").is_file()
    assert len((done / "made/improved.jsonl").read_text().splitlines()) == 4
    assert json.loads((done / "made/evaluation/evaluation.json").read_text())["judges"][0]["name"] == "oracle"
    assert [record["command"] for record in json.loads((done / "made/pipeline.json").read_text()).values()] == [
        "prepare",
        "sft",
        *NAMES[2:],
    ]
    before = outputs(done / "made")
    stamps = {path: path.stat().st_mtime_ns for path in (done / "made").rglob("*") if path.is_file()}
    err = pit(capsys, "recipe.yaml")
    assert decisions(err) == dict.fromkeys(NAMES, ("skip", "nothing changed"))
    rows = [line.split() for line in err.splitlines() if " skipped " in line]
    assert [[row[0], row[-1]] for row in rows] == [
        ["prepare", "data"],
        ["policy", "runs/policy"],
        ["train-reward", "runs/reward"],
        ["sft", "runs/sft"],
        ["rl", "runs/rl"],
        ["sample", "rows/drafts.jsonl"],
        ["improve", "improved.jsonl"],
        ["evaluate", "evaluation"],
        ["export", "exported"],
    ]
    assert outputs(done / "made") == before
    written = {path for path, stamp in stamps.items() if path.stat().st_mtime_ns != stamp}
    assert {path.name for path in written} <= {".pipeline.lock"}


def test_torch_is_not_imported_if_there_is_nothing_to_do(done: Path) -> None:
    code = "import sys; from pitcli.cli import main; main(['run', 'recipe.yaml']); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_changed_setting_runs_its_stage_and_the_stages_that_depend_on_it(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe(SMALL.replace("role: policy, max_steps: 1", "role: policy, max_steps: 2, learning_rate: 0.01"))
    dry = pit(capsys, "recipe.yaml", "--dry-run")
    changed = ["policy", "rl", "sample", "improve", "evaluate", "export"]
    assert ran(dry) == changed
    assert decisions(dry)["policy"][1] == "learning_rate was None, is 0.01, max_steps was 1, is 2"
    assert decisions(dry)["sample"][1] == "unless the output of policy stays the same"
    assert "--role policy --overwrite\n" in dry
    before = outputs(done / "made")
    err = pit(capsys, "recipe.yaml")
    assert ran(err) == changed
    assert decisions(err)["sample"][1] == "input changed: runs/policy"
    now = outputs(done / "made")
    same = {name for name in before if before[name] == now.get(name)}
    assert {"data/sft.jsonl", "runs/reward/manifest.json", "runs/sft/manifest.json"} <= same
    assert not {"runs/policy/manifest.json", "runs/rl/manifest.json"} & same
    assert ran(pit(capsys, "recipe.yaml")) == []


def test_changed_settings_that_do_not_affect_results_run_nothing(
    done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe(SMALL.replace("save_every: 1", "save_every: 9").replace("micro_batch_size: 2", "micro_batch_size: 3"))
    assert ran(pit(capsys, "recipe.yaml")) == []


def test_renaming_a_stage_runs_nothing(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe(SMALL.replace("name: policy", "name: drafter"))
    assert ran(pit(capsys, "recipe.yaml")) == []


def test_another_version_of_pit_runs_everything(
    done: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pitcli.stages.run.__version__", "9.9.9")
    err = pit(capsys, "recipe.yaml", "--dry-run")
    assert ran(err) == NAMES
    assert decisions(err)["sft"][1].startswith("pit was ")


@pytest.mark.parametrize(
    ("path", "stage"),
    [("made/runs/sft/improver/adapter_model.safetensors", "sft"), ("made/rows/drafts.jsonl", "sample")],
)
@pytest.mark.parametrize("damage", ["changed", "gone"])
def test_only_the_stage_of_a_damaged_output_runs_again(
    path: str, stage: str, damage: str, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The stages that depend on it are skipped, because its new output is the same as before."""
    before = outputs(done / "made")
    Path(path).unlink() if damage == "gone" else Path(path).write_bytes(Path(path).read_bytes()[:-1])
    err = pit(capsys, "recipe.yaml")
    assert ran(err) == [stage]
    assert decisions(err)[stage][1].startswith("output missing or changed: ")
    assert outputs(done / "made") == before


def test_a_changed_input_file_runs_the_stages_that_read_it(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The user's file, in the folder where pit is started, first gets another name and then another content."""
    pairs = (done / "made/data/sft.jsonl").read_text().splitlines(keepends=True)
    Path("pairs.jsonl").write_text("".join(pairs))
    text = SMALL.replace("- sft: {data: data/sft.jsonl,", "- sft: {data: pairs.jsonl,")
    assert decisions(pit(capsys, recipe(text)))["sft"][1].startswith("data was data/sft.jsonl, is /")
    assert ran(pit(capsys, "recipe.yaml")) == []
    Path("pairs.jsonl").write_text("".join(pairs[:-1]))
    err = pit(capsys, "recipe.yaml", "--dry-run")
    assert ran(err) == ["sft", "rl", "improve", "evaluate", "export"]
    assert decisions(err)["sft"][1] == f"input changed: {done / 'pairs.jsonl'}"


def test_a_changed_base_runs_the_stages_that_use_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(resolve_base("tiny"), "base")
    stages = "stages: [prepare: {synthetic: 20, folds: sft=1}, sft: {data: data/sft.jsonl, max_steps: 1}]"
    assert ran(pit(capsys, recipe("out: o\nshared: {model: base}\n" + stages))) == ["prepare", "sft"]
    assert ran(pit(capsys, "recipe.yaml")) == []
    Path("base/config.json").write_text(Path("base/config.json").read_text() + "\n")
    err = pit(capsys, "recipe.yaml", "--dry-run")
    assert decisions(err) == {
        "prepare": ("skip", "nothing changed"),
        "sft": ("run", f"input changed: base {folder / 'base'}"),
    }


def test_files_that_pit_run_did_not_write_are_never_replaced(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("made/runs/mine").mkdir()
    Path("made/runs/mine/notes").write_text("")
    Path("made/other.jsonl").write_text("{}\n")
    shutil.rmtree("made/runs/rl")
    shutil.copytree("made/runs/sft", "made/runs/rl")
    text = SMALL.replace("role: policy,", "role: policy, out: runs/mine,").replace("output: improved", "output: other")
    before = outputs(done / "made")
    err = pit(capsys, recipe(text.replace("pit=improved", "pit=other")), code=2)
    reason = "exists and pit run did not make it; move it, or name another output"
    assert err.splitlines()[-3:] == [
        f"error: policy: runs/mine {reason}",
        f"error: rl: runs/rl {reason}",
        f"error: improve: other.jsonl {reason}",
    ]
    assert outputs(done / "made") == before


def test_a_second_pit_run_in_the_same_folder_is_refused(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Path("made/.pipeline.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert pit(capsys, "recipe.yaml", code=3).endswith(
            "another pit run is working in this folder; wait until it ends\n"
        )


def test_a_damaged_record_is_refused(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("made/pipeline.json").write_text('{"runs/sft": 3}')
    err = pit(capsys, "recipe.yaml", code=3)
    assert err.splitlines()[-1].startswith(f"error: {done / 'made/pipeline.json'}: damaged")


def test_a_new_calibration_of_its_run_runs_improve_again(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is the default threshold."""
    (done / "made/runs/rl/calibration.json").write_text("{}")
    err = pit(capsys, "recipe.yaml", "--dry-run")
    assert "improve" in ran(err)
    assert "rl" not in ran(err)

"""pit run: a recipe's problems all at once, what is skipped and what runs again, and going on after a kill."""

import fcntl
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import typer

from pitcli import cli
from pitcli.engine.models.bases import resolve_base
from pitcli.recipes.planning import writes_of
from pitcli.runs.files import file_digest
from pitcli.settings.commands import COMMANDS, DISTRIBUTED, IN_RECIPES
from pitcli.settings.flags import command_of
from pitcli.stages import run

RECIPES = Path(__file__).parents[2] / "examples" / "recipes"
SMALL = """
out: made
shared: {model: tiny, seed: 0, max_steps: 2, batch_size: 4, lora_rank: 2, max_new_tokens: 4, save_every: 1}
stages:
  - prepare: {synthetic: 60, folds: "sft=1,reward=1,rl=1,test=1"}
  - name: policy
    sft: {data: data/sft.jsonl, role: policy, max_steps: 1}
  - train-reward: {data: data/reward.jsonl}
  - sft: {data: data/sft.jsonl, micro_batch_size: 2}
  - rl: {data: data/rl.jsonl, curriculum: true, rollout_max_new_tokens: 4}
  - sample: {data: data/test.jsonl, output: rows/drafts.jsonl, max_rows: 4}
  - improve: {input: rows/drafts.jsonl, output: improved.jsonl, max_iters: 1}
  - evaluate: {input: pit=improved.jsonl, judge: oracle, out: evaluation, draws: 100}
  - export: {run: runs/rl, out: exported, adapter: true, base_name: some/tiny, evaluation: evaluation/evaluation.json}
"""
NAMES = ["prepare", "policy", "train-reward", "sft", "rl", "sample", "improve", "evaluate", "export"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PIT_DEBUG", raising=False)
    return tmp_path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What an uninterrupted run of SMALL made."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("recipe.yaml").write_text(SMALL)
        assert cli.main(["run", "recipe.yaml"]) == 0
        assert Path.cwd() == folder
    return folder


@pytest.fixture
def done(whole: Path, folder: Path) -> Path:
    """A copy of it, to change."""
    return Path(shutil.copytree(whole, folder, dirs_exist_ok=True))


def outputs(made: Path) -> dict[str, str]:
    """Digests of all that stages made; which checkpoints are left depends on where a run was stopped, no more."""
    paths = [path for path in made.rglob("*") if path.is_file() and not path.name.startswith(".")]
    names = {path.relative_to(made).as_posix(): path for path in paths}
    return {name: file_digest(path) for name, path in names.items() if name != "pipeline.json"}


def pit(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    """stderr of `pit run`; nothing of it may be on stdout."""
    capsys.readouterr()
    ended = cli.main(["run", *arguments])
    out, err = capsys.readouterr()
    assert ended == code, err
    assert out == ""
    return err


def decisions(err: str) -> dict[str, tuple[str, str]]:
    """By stage: (run, go on or skip; why)."""
    return {name: (did, why) for name, did, why in re.findall(r"^([\w-]+): (run|go on|skip) \((.*)\)$", err, re.M)}


def ran(err: str) -> list[str]:
    return [name for name, (did, _) in decisions(err).items() if did != "skip"]


def recipe(text: str) -> str:
    Path("recipe.yaml").write_text(text)
    return "recipe.yaml"


def test_a_whole_recipe(whole: Path, done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What it made, and that nothing is done twice."""
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


def test_nothing_heavy_is_imported_where_nothing_is_to_be_done(done: Path) -> None:
    code = "import sys; from pitcli.cli import main; main(['run', 'recipe.yaml']); print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_a_changed_setting_runs_its_stage_and_those_after_it(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe(SMALL.replace("role: policy, max_steps: 1", "role: policy, max_steps: 2, learning_rate: 0.1"))
    dry = pit(capsys, "recipe.yaml", "--dry-run")
    changed = ["policy", "rl", "sample", "improve", "evaluate", "export"]
    assert ran(dry) == changed
    assert decisions(dry)["policy"][1] == "learning_rate was 0.0002, is 0.1, max_steps was 1, is 2"
    assert decisions(dry)["sample"][1] == "unless policy makes what it made before"
    assert "--role policy --overwrite\n" in dry
    before = outputs(done / "made")
    err = pit(capsys, "recipe.yaml")
    assert ran(err) == changed
    assert decisions(err)["sample"][1] == "changed: runs/policy"
    now = outputs(done / "made")
    same = {name for name in before if before[name] == now.get(name)}
    assert {"data/sft.jsonl", "runs/reward/manifest.json", "runs/sft/manifest.json"} <= same
    assert not {"runs/policy/manifest.json", "runs/rl/manifest.json"} & same
    assert ran(pit(capsys, "recipe.yaml")) == []


def test_settings_that_change_no_result_run_nothing(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe(SMALL.replace("save_every: 1", "save_every: 9").replace("micro_batch_size: 2", "micro_batch_size: 3"))
    assert ran(pit(capsys, "recipe.yaml")) == []


def test_another_name_of_a_stage_runs_nothing(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe(SMALL.replace("name: policy", "name: drafter"))
    assert ran(pit(capsys, "recipe.yaml")) == []


def test_another_version_of_pit_runs_all(
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
def test_a_damaged_output_is_made_again(
    path: str, stage: str, damage: str, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """And as it comes out as before, what depends on it is left alone."""
    before = outputs(done / "made")
    Path(path).unlink() if damage == "gone" else Path(path).write_bytes(Path(path).read_bytes()[:-1])
    err = pit(capsys, "recipe.yaml")
    assert ran(err) == [stage]
    assert decisions(err)[stage][1].startswith("missing, or not as it was made: ")
    assert outputs(done / "made") == before


def test_a_changed_input_file_runs_what_reads_it(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file of the user's, found where pit is started; another content of the same name."""
    pairs = (done / "made/data/sft.jsonl").read_text().splitlines(keepends=True)
    Path("pairs.jsonl").write_text("".join(pairs))
    text = SMALL.replace("- sft: {data: data/sft.jsonl,", "- sft: {data: pairs.jsonl,")
    assert decisions(pit(capsys, recipe(text)))["sft"][1].startswith("data was data/sft.jsonl, is /")
    assert ran(pit(capsys, "recipe.yaml")) == []
    Path("pairs.jsonl").write_text("".join(pairs[:-1]))
    err = pit(capsys, "recipe.yaml", "--dry-run")
    assert ran(err) == ["sft", "rl", "improve", "evaluate", "export"]
    assert decisions(err)["sft"][1] == f"changed: {done / 'pairs.jsonl'}"


def test_a_changed_base_runs_what_uses_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copytree(resolve_base("tiny"), "base")
    stages = "stages: [prepare: {synthetic: 20, folds: sft=1}, sft: {data: data/sft.jsonl, max_steps: 1}]"
    assert ran(pit(capsys, recipe("out: o\nshared: {model: base}\n" + stages))) == ["prepare", "sft"]
    assert ran(pit(capsys, "recipe.yaml")) == []
    Path("base/config.json").write_text(Path("base/config.json").read_text() + "\n")
    err = pit(capsys, "recipe.yaml", "--dry-run")
    assert decisions(err) == {
        "prepare": ("skip", "nothing changed"),
        "sft": ("run", f"changed: base {folder / 'base'}"),
    }


KILL = """
import os, signal, sys
from pitcli import cli
from pitcli.engine.training import loop as training
step = training._one_step
def dying(trained, batch, number):
    if (trained.task.role, number) == ({role!r}, 1):
        os.kill(os.getpid(), signal.{number})
    return step(trained, batch, number)
training._one_step = dying
sys.exit(cli.main(["run", "recipe.yaml"]))
"""


def killed(role: str, number: str) -> subprocess.CompletedProcess[str]:
    """`pit run` that sends itself a signal in the second step of training a role."""
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)" + KILL.format(
        role=role, number=number
    )
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("role", "number", "code"), [("improver", "SIGKILL", -9), ("gap", "SIGINT", 130)])
def test_stopped_and_gone_on_with_equals_uninterrupted(
    role: str, number: str, code: int, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopped = {"improver": "sft", "gap": "train-reward"}[role]
    recipe(SMALL)
    ended = killed(role, number)
    assert ended.returncode == code, ended.stderr
    assert "Traceback" not in ended.stderr
    if number == "SIGINT":
        assert f"{stopped} was stopped; the same command goes on from there\ninterrupted\n" in ended.stderr
    dry = decisions(pit(capsys, "recipe.yaml", "--dry-run"))
    err = pit(capsys, "recipe.yaml")
    assert decisions(err)[stopped] == dry[stopped] == ("go on", "it was stopped")
    assert " --resume\n" in err
    place = NAMES.index(stopped)
    assert ran(err) == NAMES[place:]
    assert outputs(Path("made")) == outputs(whole / "made")
    assert ran(pit(capsys, "recipe.yaml")) == []


def test_improve_goes_on_with_the_rows_that_there_are(
    whole: Path, done: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in Path("made").glob("improved.jsonl*"):
        path.unlink()
    code = """
import os, sys
from pitcli import cli
from pitcli.stages import improve
write, rows = improve.write_row, []
def dying(row, stream):
    rows.append(row)
    if len(rows) == 3:
        os.kill(os.getpid(), 9)
    write(row, stream)
improve.write_row = dying
sys.exit(cli.main(["run", "recipe.yaml"]))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == -9
    assert len(Path("made/improved.jsonl").read_text().splitlines()) == 2
    err = pit(capsys, "recipe.yaml")
    assert decisions(err)["improve"] == ("go on", "it was stopped")
    assert ran(err) == ["improve"]
    assert "$ pit improve" in err
    assert " --resume\n" in err
    assert outputs(Path("made")) == outputs(whole / "made")


def test_stopped_while_old_output_was_to_be_replaced(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The old run stands as it was: it is replaced, not gone on with."""
    recipe(SMALL.replace("micro_batch_size: 2", "learning_rate: 1e-3"))
    code = """
import os, sys
from pitcli import cli
import pitcli.stages.sft as sft
def open_base(*arguments): os.kill(os.getpid(), 9)
sft.open_base = open_base
sys.exit(cli.main(["run", "recipe.yaml"]))
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == -9
    assert json.loads((done / "made/pipeline.json").read_text())["runs/sft"]["outputs"] is None
    err = pit(capsys, "recipe.yaml")
    assert decisions(err)["sft"] == ("run", "it was stopped")
    assert ran(err) == ["sft", "rl", "improve", "evaluate", "export"]
    assert "learning_rate: 0.001" in (done / "made/runs/sft/config.yaml").read_text()


def test_what_pit_run_did_not_make_is_never_replaced(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("made/runs/mine").mkdir()
    Path("made/runs/mine/notes").write_text("")
    Path("made/other.jsonl").write_text("{}\n")
    shutil.rmtree("made/runs/rl")
    shutil.copytree("made/runs/sft", "made/runs/rl")
    text = SMALL.replace("role: policy,", "role: policy, out: runs/mine,").replace("output: improved", "output: other")
    before = outputs(done / "made")
    err = pit(capsys, recipe(text.replace("pit=improved", "pit=other")), code=2)
    said = "is there, and pit run did not make it; move it, or write elsewhere"
    assert err.splitlines()[-3:] == [
        f"error: policy: runs/mine {said}",
        f"error: rl: runs/rl {said}",
        f"error: improve: other.jsonl {said}",
    ]
    assert outputs(done / "made") == before


def test_two_pit_runs_in_one_folder(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with Path("made/.pipeline.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert pit(capsys, "recipe.yaml", code=3).endswith("another pit run is at work there\n")


def test_a_damaged_record(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("made/pipeline.json").write_text('{"runs/sft": 3}')
    err = pit(capsys, "recipe.yaml", code=3)
    assert err.splitlines()[-1].startswith(f"error: {done / 'made/pipeline.json'}: damaged")


WRONG = """
processes: 0
out: o
extra: 1
shared: {sed: 1, seed: -1, data: nowhere.jsonl}
stages:
  - prepare: {folds: "sft=1,rl=x"}
  - sft: {lerning_rate: 1, epochs: none, resume: true, data: data/none.jsonl}
  - name: again
    sft: {data: data/none.jsonl}
  - trian-reward: {}
  - rl: {curriculum: true, curriculum_stages: [dataset], policy: runs/later}
  - name: later
    sft: {role: policy, out: runs/later, model: no-such-model}
  - improve:
  - evaluate: {input: a=improved.jsonl}
  - doctor
  - sample: [1]
  - {}
  - improve: {}
"""


def test_all_problems_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    err = pit(capsys, recipe(WRONG), "--set", "again.max-steps=0", "--set", "x.seed=1", "--set", "model", code=2)
    here = f"no stage before makes it, and it is neither here nor in {folder / 'o'}"
    later = "which comes later; put that first, or give it another place"
    assert sorted(line.removeprefix("error: ").removeprefix("recipe.yaml: ") for line in err.splitlines()) == sorted(
        [
            "extra: no such part of a recipe; out, processes, shared, stages are",
            "processes: a number of 1 or more is wanted",
            "shared: sed: no stage here has such a setting; did you mean seed?",
            "shared: seed: must be greater than or equal to 0, got -1",
            f"shared: data: nowhere.jsonl: {here}",
            "prepare: folds: share 'rl=x': NAME=NUMBER above 0 is wanted, as in sft=1,test=0.2",
            "sft: lerning_rate: no such setting; did you mean learning_rate?",
            "sft: epochs: must be a valid integer, got none",
            "sft: resume: not for recipes: pit run sees to it",
            f"sft: data: data/none.jsonl: {here}",
            f"again: data: data/none.jsonl: {here}",
            "again: writes runs/sft, as sft does; give one of them another place",
            "trian-reward: trian-reward is no command of recipes; did you mean train-reward?",
            "rl: --curriculum is --curriculum-stages dataset,policy: give only one of the two",
            "--set: again: max_steps: must be greater than or equal to 1, got 0",
            f"rl: policy: runs/later is made by later, {later}",
            "later: model: no-such-model: neither a folder, a .gguf file, tiny, smollm2 nor a hub name",
            "improve: input: name a file",
            "improve: output: name a file",
            "evaluate: judge: must be given",
            f"evaluate: input: improved.jsonl: {here}",
            f"doctor: doctor is no command of recipes; {', '.join(IN_RECIPES)} are",
            "sample: `setting: value` lines are wanted",
            "sample: output: name a file",
            "stage 11: one command is wanted, and `name: ...` beside it where it needs one",
            "improve: two stages are called so; give one `name: ...` beside its command",
            "--set: x.seed=1: no stage is called x",
            "--set: model: KEY=VALUE or STAGE.KEY=VALUE is wanted",
        ]
    )
    assert not Path("o").exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "recipe.yaml: stages: a list of commands is wanted, such as `- sft: {data: pairs.jsonl}`"),
        ("stages: [sft: {", "recipe.yaml:1: not YAML: "),
        ("stages:\n- sft: {seed: 1, data: a,\n    seed: 2}", "recipe.yaml:3: seed is already given in line 2"),
        ("stages: [rl: {sft: a, reward: b}]\n", "recipe.yaml: rl: sft: a: no stage before makes it"),
        ("stages: [rl: ]\n", "recipe.yaml: rl: sft: no stage before makes runs/sft, and it is not in "),
        ("stages: [train-reward]\n", "recipe.yaml: train-reward: data: must be given"),
        ("stages: [sft]\n", "recipe.yaml: sft: data: must be given"),
    ],
)
def test_a_problem(text: str, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert pit(capsys, recipe(text), code=2).startswith(f"error: {problem}")


def test_a_recipe_that_is_not_there(capsys: pytest.CaptureFixture[str]) -> None:
    assert pit(capsys, "none.yaml", code=2) == "error: none.yaml: No such file or directory\n"


def test_a_second_run_finds_what_the_first_one_did(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A default folder that a later stage makes would be there the second time only."""
    Path("p.jsonl").touch()
    text = "stages: [sample: {data: p.jsonl, output: d.jsonl}, sft: {role: policy, data: p.jsonl}]"
    err = pit(capsys, recipe(text), "--dry-run", code=2)
    assert err.startswith("error: recipe.yaml: sample: policy: runs/policy is made by sft, which comes later")


@pytest.fixture
def noted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Any]]:
    """Commands that only note their settings and write what they would."""
    ran: list[tuple[str, Any]] = []

    def start(name: str, config: Any) -> int:
        ran.append((name, config))
        for path in writes_of(config):
            place = Path(path) if Path(path).suffix else Path(path, "manifest")
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_text(config.model_dump_json())
        return int(name == "sample")

    monkeypatch.setattr(run, "start", start)
    return ran


def test_shared_settings_and_set(noted: list[tuple[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    """They go where such a setting is; a stage's own value comes first, --set replaces what is shared."""
    Path("mine.jsonl").touch()
    recipe(SMALL)
    changes = ["seed=7", "rl.seed=8", "evaluate.validate-on=mine.jsonl", "micro_batch_size=4"]
    pit(capsys, "recipe.yaml", *(word for change in changes for word in ("--set", change)), "--out", "there", code=1)
    configs = [config for _, config in noted]
    assert [getattr(config, "seed", None) for config in configs] == [7, 7, 7, 7, 8, 7, 7, 7, None]
    assert [getattr(config, "micro_batch_size", None) for config in configs] == [
        *(None, 4, 4, 2, 4, None, None, 4, None)
    ]
    assert configs[-2].validate_on == (str(Path("mine.jsonl").resolve()),)
    assert Path("there/improved.jsonl").is_file()


def test_some_rows_failed_is_told_each_time(noted: list[tuple[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    err = pit(capsys, recipe(SMALL), code=1)
    assert len(noted) == len(NAMES)
    assert "ran, some rows failed" in err
    assert "skipped, some rows failed" in pit(capsys, "recipe.yaml", code=1)


def test_the_printed_lines_do_the_same(noted: list[tuple[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    """Each line that is printed, given to pit in the recipe's folder, has the settings that the stage had."""
    text = SMALL.replace("improved.jsonl", "my rows.jsonl")
    lines = [line[2:] for line in pit(capsys, recipe(text), code=1).splitlines() if line.startswith("$ ")]
    ran = list(noted)
    noted.clear()
    os.chdir("made")
    for line, (name, config) in zip(lines, ran, strict=True):
        program, command, *words = shlex.split(line)
        assert (program, command) == ("pit", name)
        app = typer.Typer()
        app.command()(command_of(type(config), partial(run.start, name)))
        app(words, standalone_mode=False)
    assert noted == ran


@pytest.mark.parametrize(("more", "processes"), [((), 3), (("--processes", "2"), 2), (("--processes", "1"), 1)])
def test_stages_as_several_processes(
    more: tuple[str, ...],
    processes: int,
    noted: list[tuple[str, Any]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    launched: list[tuple[str, int]] = []

    def launch(arguments: list[str], count: int) -> int:
        """In this process, which is enough to see what the processes would be given."""
        name, *words = arguments
        launched.append((name, count))
        app = typer.Typer()
        app.command()(command_of(COMMANDS[name].settings, partial(run.start, name)))
        return int(app(words, standalone_mode=False) or 0)

    monkeypatch.setattr("pitcli.stages.run.launch", launch)
    pit(capsys, recipe(SMALL), "--processes", "1", "--out", "alone", code=1)
    alone = list(noted)
    noted.clear()
    pit(capsys, recipe(f"processes: 3{SMALL}"), *more, code=1)
    spread = [] if processes == 1 else [name for name, _ in alone if name in DISTRIBUTED]
    assert launched == [(name, processes) for name in spread]
    assert noted == alone


def test_the_exit_code_of_several_processes(folder: Path) -> None:
    """The one that failed says why, once; what the launcher has to say is left out."""
    start = "import sys; from pitcli.processes.launch import launch; sys.exit(launch(sys.argv[1:], 2))"
    words = ["sft", "--model", "tiny", "--data", "none.jsonl"]
    ended = subprocess.run([sys.executable, "-c", start, *words], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == "error: none.jsonl: no such file\n"


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("hh.jsonl").touch()
    err = pit(capsys, str(path), "--dry-run")
    assert len(decisions(err)) >= 9
    assert {did for did, _ in decisions(err).values()} == {"run"}
    assert [entry.name for entry in Path().iterdir()] == ["hh.jsonl"]


def test_the_recipe_of_the_readme_is_valid(capsys: pytest.CaptureFixture[str]) -> None:
    readme = (RECIPES.parents[1] / "README.md").read_text()
    (text,) = re.findall(r"```yaml\n(out: .*?)```", readme, re.DOTALL)
    Path("hh.jsonl").touch()
    assert list(decisions(pit(capsys, recipe(text), "--dry-run"))) == ["train-reward", "sft", "rl", "sample", "improve"]


def test_data_of_ones_own(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(RECIPES / "smollm2-hh.yaml")
    assert "error: recipe" not in (err := pit(capsys, path, "--dry-run", code=2))
    assert re.fullmatch(r"error: .*smollm2-hh.yaml: shared: data: hh.jsonl: no stage before makes it, .*\n", err)
    Path("mine.jsonl").touch()
    err = pit(capsys, path, "--dry-run", "--set", "data=mine.jsonl")
    assert f"$ pit prepare --data {Path('mine.jsonl').resolve()} " in err

"""pit run: the problems of a recipe, reported all at once, and recipes without problems."""

import re
import shutil
from importlib.resources import files
from pathlib import Path

import pytest

from pitcli.settings.commands import IN_RECIPES
from tests.stages.recipes.conftest import RECIPES, decisions, pit, recipe

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


def test_all_problems_are_reported_at_once(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    err = pit(capsys, recipe(WRONG), "--set", "again.max-steps=0", "--set", "x.seed=1", "--set", "model", code=2)
    missing = f"not found, here or in {folder / 'o'}, and no earlier stage writes it"
    later = "written by later, a later stage; move later up, or change its output"
    assert sorted(line.removeprefix("error: ").removeprefix("recipe.yaml: ") for line in err.splitlines()) == sorted(
        [
            "extra: not a key of a recipe; expected one of out, processes, shared, stages",
            "processes: expected a whole number of at least 1, got 0",
            "shared: sed: no stage of this recipe has this setting; did you mean seed?",
            "shared: seed: must be greater than or equal to 0, got -1",
            f"shared: data: nowhere.jsonl: {missing}",
            "prepare: folds: share 'rl=x': expected NAME=NUMBER with a number above 0, as in sft=1,test=0.2",
            "sft: lerning_rate: no such setting; did you mean learning_rate?",
            "sft: epochs: must be a valid integer, got none",
            "sft: resume: remove it; pit run sets it",
            f"sft: data: data/none.jsonl: {missing}",
            f"again: data: data/none.jsonl: {missing}",
            "again: writes runs/sft, as does sft; give one of them another output",
            "trian-reward: trian-reward is not a recipe stage; did you mean train-reward?",
            "rl: --curriculum means --curriculum-stages dataset,policy: give only one of the two",
            "--set: again: max_steps: must be greater than or equal to 1, got 0",
            f"rl: policy: runs/later is {later}",
            "later: model: expected a folder, a .gguf file, tiny, smollm2 or a hub name, got no-such-model",
            "improve: input: name a file; a stage of a recipe cannot read stdin",
            "improve: output: name a file; a stage of a recipe cannot write to stdout",
            "evaluate: judge: must be given",
            f"evaluate: input: improved.jsonl: {missing}",
            f"doctor: doctor is not a recipe stage; expected one of {', '.join(IN_RECIPES)}",
            "sample: expected `setting: value` lines, got [1]",
            "sample: output: name a file; a stage of a recipe cannot write to stdout",
            "stage 11: expected one command, with an optional `name: ...`, got none",
            "improve: duplicate stage name; give one of the stages its own `name: ...`",
            "--set: x.seed=1: no stage is named x",
            "--set: expected KEY=VALUE or STAGE.KEY=VALUE, got model",
        ]
    )
    assert not Path("o").exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "recipe.yaml: stages: expected a list of commands, such as `- sft: {data: pairs.jsonl}`"),
        ("stages: [sft: {", "recipe.yaml:1: not YAML: "),
        (
            "stages:\n- sft: {seed: 1, data: a,\n    seed: 2}",
            "recipe.yaml:3: duplicate key seed, first given in line 2",
        ),
        ("stages: [rl: {sft: a, reward: b}]\n", "recipe.yaml: rl: sft: a: not found, here or in "),
        ("stages: [rl: ]\n", "recipe.yaml: rl: sft: no earlier stage writes runs/sft, and it is not in "),
        ("stages: [train-reward]\n", "recipe.yaml: train-reward: data: must be given"),
        ("stages: [sft]\n", "recipe.yaml: sft: data: must be given"),
    ],
)
def test_a_problem_is_reported(text: str, problem: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert pit(capsys, recipe(text), code=2).startswith(f"error: {problem}")


def test_a_missing_recipe_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert pit(capsys, "none.yaml", code=2) == "error: none.yaml: No such file or directory\n"


def test_a_default_run_that_a_later_stage_writes_is_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only a second `pit run` would find a default folder that a later stage writes."""
    Path("p.jsonl").touch()
    text = "stages: [sample: {data: p.jsonl, output: d.jsonl}, sft: {role: policy, data: p.jsonl}]"
    err = pit(capsys, recipe(text), "--dry-run", code=2)
    assert err.startswith("error: recipe.yaml: sample: policy: runs/policy is written by sft, a later stage")


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["hh.jsonl", "pairs.jsonl", "english", "examples"]
    Path("hh.jsonl").touch()
    Path("pairs.jsonl").touch()
    # what english-baselines.yaml reads of english.yaml
    for name in (
        "english/drafts.jsonl",
        "english/improved.jsonl",
        "english/data/sft.jsonl",
        "examples/oracle_grades.py",
    ):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    for run in ("sft", "reward"):
        shutil.copytree(files("pitcli") / "assets/runs/instructions", f"english/runs/{run}")  # type: ignore[arg-type]
    err = pit(capsys, str(path), "--dry-run", "--out", "made")
    assert len(decisions(err)) >= 6
    assert {action for action, _ in decisions(err).values()} == {"run"}
    assert sorted(entry.name for entry in Path().iterdir()) == sorted(names)


def test_recipes_of_readme_and_docs_are_valid(capsys: pytest.CaptureFixture[str]) -> None:
    root = RECIPES.parents[1]
    pages = [(root / "README.md").read_text(), *(page.read_text() for page in sorted((root / "docs").glob("*.md")))]
    texts = [text for page in pages for text in re.findall(r"```yaml\n(out: .*?)```", page, re.DOTALL)]
    assert texts
    Path("hh.jsonl").touch()
    for text in texts:
        found = list(decisions(pit(capsys, recipe(text), "--dry-run")))
        assert found == ["train-reward", "sft", "rl", "sample", "improve"]


def test_the_data_of_a_shipped_recipe_can_be_replaced(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(RECIPES / "smollm2-hh.yaml")
    assert "error: recipe" not in (err := pit(capsys, path, "--dry-run", code=2))
    assert re.fullmatch(r"error: .*smollm2-hh.yaml: shared: data: hh.jsonl: not found, here or in .*\n", err)
    Path("mine.jsonl").touch()
    err = pit(capsys, path, "--dry-run", "--set", "data=mine.jsonl")
    assert f"$ pit prepare --data {Path('mine.jsonl').resolve()} " in err

"""pit run: a recipe's problems, all at once, and recipes that have none."""

import re
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
            "rl: --curriculum means --curriculum-stages dataset,policy: give only one of the two",
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
        (
            "stages:\n- sft: {seed: 1, data: a,\n    seed: 2}",
            "recipe.yaml:3: duplicate key seed, first given in line 2",
        ),
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

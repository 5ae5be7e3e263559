"""A small recipe that `pit run` has run once, and functions that parse what it prints about stages."""

import re
import shutil
from contextlib import chdir
from pathlib import Path

import pytest

from pitcli import cli
from pitcli.runs.files import file_digest
from tests.conftest import Share

RECIPES = Path(__file__).parents[3] / "examples" / "recipes"
SMALL = """
out: made
shared: {model: tiny, seed: 0, max_steps: 2, batch_size: 4, lora_rank: 2, max_new_tokens: 4, save_every: 1}
stages:
  - prepare: {synthetic: 60, folds: "sft=1,reward=1,rl=1,test=1"}
  - name: policy
    sft: {data: data/sft.jsonl, role: policy, max_steps: 1}
  - train-reward: {data: data/reward.jsonl}
  - sft: {data: data/sft.jsonl, micro_batch_size: 2}
  - rl: {data: data/rl.jsonl, curriculum: true, force: true, rollout_max_new_tokens: 4}
  - sample: {data: data/test.jsonl, output: rows/drafts.jsonl, max_rows: 4}
  - improve: {input: rows/drafts.jsonl, output: improved.jsonl, max_iters: 1}
  - evaluate: {input: pit=improved.jsonl, judge: oracle, out: evaluation, bootstrap_draws: 100}
  - export: {run: runs/rl, out: exported, adapter: true, base_name: some/tiny, evaluation: evaluation/evaluation.json}
"""
NAMES = ["prepare", "policy", "train-reward", "sft", "rl", "sample", "improve", "evaluate", "export"]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PIT_DEBUG", raising=False)
    return tmp_path


@pytest.fixture(scope="session")
def whole(share: Share) -> Path:
    """The folder of an uninterrupted run of SMALL."""

    def fill(folder: Path) -> None:
        with chdir(folder):
            Path("recipe.yaml").write_text(SMALL)
            assert cli.main(["run", "recipe.yaml"]) == 0
            assert Path.cwd() == folder

    return share("recipe", fill)


@pytest.fixture
def done(whole: Path, folder: Path) -> Path:
    """A copy of that folder that a test may change."""
    return Path(shutil.copytree(whole, folder, dirs_exist_ok=True))


def outputs(made: Path) -> dict[str, str]:
    """Digests of all outputs of stages, except hidden files and pipeline.json."""
    paths = [path for path in made.rglob("*") if path.is_file() and not path.name.startswith(".")]
    names = {path.relative_to(made).as_posix(): path for path in paths}
    return {name: file_digest(path) for name, path in names.items() if name != "pipeline.json"}


def pit(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> str:
    """The stderr of `pit run`, which must print nothing on stdout."""
    capsys.readouterr()
    ended = cli.main(["run", *arguments])
    out, err = capsys.readouterr()
    assert ended == code, err
    assert out == ""
    return err


def decisions(err: str) -> dict[str, tuple[str, str]]:
    """By stage: (run, resume or skip; the reason)."""
    return {name: (did, why) for name, did, why in re.findall(r"^([\w-]+): (run|resume|skip) \((.*)\)$", err, re.M)}


def ran(err: str) -> list[str]:
    return [name for name, (action, _) in decisions(err).items() if action != "skip"]


def recipe(text: str) -> str:
    Path("recipe.yaml").write_text(text)
    return "recipe.yaml"

"""Small runs of every kind to export, and a role as pit runs it, for comparison."""

import json
import re
import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BitsAndBytesConfig

from pitcli import cli
from pitcli.data.synthetic import preference_rows
from pitcli.engine.models.adapters import load_role
from pitcli.engine.models.loading import load_base
from pitcli.engine.models.roles import RoleModel
from tests.conftest import Share

CPU = torch.device("cpu")
NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
)
SMALL = "--model tiny --load-in-4bit --lora-rank 4 --batch-size 8 --learning-rate 1e-2 --max-steps 6"
TRAINED = f"--data data/pairs.jsonl {SMALL}"
RoleOf = Callable[..., RoleModel]
Out = pytest.CaptureFixture[str]


def pit(line: str, code: int = 0) -> None:
    assert cli.main(line.split()) == code


@pytest.fixture(scope="module")
def project(share: Share, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with small runs of every kind, rows written by the RL run's improver, and their evaluation."""
    return Path(shutil.copytree(share("export", run_every_stage), tmp_path_factory.mktemp("exported") / "work"))


def run_every_stage(folder: Path) -> None:
    with chdir(folder):
        Path("data").mkdir()
        Path("data/pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in preference_rows(40, seed=3)))
        drafts = [{"prompt": row["prompt"], "response": row["rejected"]} for row in preference_rows(24, seed=8)]
        Path("drafts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in drafts))
        pit(f"sft {TRAINED}")
        pit(f"sft {TRAINED.replace('--load', '--no-load')} --out runs/whole")
        pit(f"train-reward {TRAINED}")
        pit(f"train-reward {TRAINED} --gap-loss pointwise --out runs/pointwise")
        pit("rl --force --max-steps 2 --batch-size 4 --learning-rate 1e-3 --rollout-max-new-tokens 10")
        pit("improve --input drafts.jsonl --output pit.jsonl --stop none --max-iters 1 --max-new-tokens 10")
        pit("evaluate --input pit.jsonl --judge oracle --bootstrap-draws 200 --out seen")


@pytest.fixture(autouse=True)
def in_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.delenv("PIT_DEBUG", raising=False)


@pytest.fixture
def role_of(tiny_folder: Path) -> RoleOf:
    """Loads a role of a run as pit runs it."""

    def load(run: str, role: str) -> RoleModel:
        model = RoleModel(load_base(tiny_folder, run != "whole", CPU), 0)
        load_role(model, role, Path("runs", run, role))
        model.use(role)
        return model

    return load


def result(capsys: Out) -> dict[str, Any]:
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def error(capsys: Out) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def card_code(folder: Path) -> str:
    """The example code of the model card, pointed at this folder."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return str(code).replace('"FOLDER"', repr(str(folder))).replace("max_new_tokens=256", "max_new_tokens=40")

"""One small run of every training stage on the embedded model, made once, and a copy of it for each test file."""

import json
import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from pitcli.data.synthetic import preference_rows
from pitcli.settings.base import Role
from pitcli.settings.generating import SampleConfig
from pitcli.settings.training import RewardConfig, RlConfig, SftConfig
from pitcli.stages import rl, sample, sft, train_reward
from tests.conftest import Share

SMALL = {
    "model": "tiny",
    "load_in_4bit": True,
    "lora_rank": 4,
    "batch_size": 8,
    "micro_batch_size": 4,
    "learning_rate": 1e-3,
}
RL_SMALL = {"force": True, "batch_size": 4, "micro_batch_size": 8, "learning_rate": 1e-3, "rollout_max_new_tokens": 10}
SMALL_FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items() if value is not True]
SMALL_FLAGS += ["--load-in-4bit"]


@pytest.fixture(scope="module")
def project(share: Share, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 40 pairs and, in runs/, one small run of every training stage."""
    return Path(shutil.copytree(share("training", run_every_stage), tmp_path_factory.mktemp("project") / "work"))


def run_every_stage(folder: Path) -> None:
    with chdir(folder):
        write_rows(folder / "pairs.jsonl", list(preference_rows(40, seed=3)))
        sft.run(SftConfig(role=Role.policy, data="pairs.jsonl", max_steps=3, **SMALL))
        sft.run(SftConfig(data="pairs.jsonl", max_steps=3, **SMALL))
        train_reward.run(RewardConfig(data="pairs.jsonl", max_steps=3, **SMALL))
        sample.run(SampleConfig(data="pairs.jsonl", max_rows=6, max_new_tokens=10, output="drafts.jsonl"))
        rl.run(RlConfig(curriculum=True, max_steps=4, **RL_SMALL))


@pytest.fixture(autouse=True)
def in_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def run_files(*roles: str) -> set[str]:
    adapter = ("adapter_config.json", "adapter_model.safetensors", "digests.json")
    return {".lock", "config.yaml", "manifest.json", "metrics.jsonl"} | {
        f"{role}/{name}" for role in roles for name in adapter
    }

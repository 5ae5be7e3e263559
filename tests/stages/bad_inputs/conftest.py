"""A small project; its model is loaded once for all tests of bad inputs, or not at all."""

import json
import shutil
from contextlib import chdir
from pathlib import Path

import pytest

from pitcli import cli
from pitcli.data.synthetic import preference_rows
from pitcli.engine.models.opening import Base
from pitcli.engine.models.roles import GAP, IMPROVER, RoleModel
from tests.conftest import Share
from tests.stages.bad_inputs.rows import Loaded


@pytest.fixture(scope="session")
def trained(share: Share) -> Path:
    """A folder with pairs, an improver and a gap model of the embedded base."""

    def fill(folder: Path) -> None:
        with chdir(folder):
            Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in preference_rows(12, seed=3)))
            small = "--data pairs.jsonl --model tiny --max-steps 1 --lora-rank 2 --batch-size 4"
            for command in ("sft", "train-reward"):
                assert cli.main([command, *small.split()]) == 0

    return share("bad_inputs", fill)


@pytest.fixture(scope="module")
def project(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the folder `trained`."""
    return Path(shutil.copytree(trained, tmp_path_factory.mktemp("project") / "work"))


@pytest.fixture(autouse=True)
def in_project(project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(project)
    monkeypatch.delenv("PIT_DEBUG", raising=False)
    capfd.readouterr()  # discard what the fixtures printed


@pytest.fixture(scope="session")
def loaded_models() -> list[RoleModel]:
    return []


@pytest.fixture(autouse=True)
def loaded_once(loaded_models: list[RoleModel], tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Loads the embedded base and the adapters of the project once for all tests, which do not change them."""
    load = Base.load

    def load_once(self: Base, adapters: dict[str, Path] | None = None) -> RoleModel:
        if self.folder != tiny_folder or adapters is None:  # None: a training, which adds adapters of its own
            return load(self, adapters)
        # both at once: none can be loaded after the first command has packed the weights
        both = {IMPROVER: Path("runs/sft/improver"), GAP: Path("runs/reward/gap")}
        loaded_models[:] = loaded_models or [load(self, both)]
        return loaded_models[0]

    monkeypatch.setattr(Base, "load", load_once)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Base) -> RoleModel:
        raise Loaded

    monkeypatch.setattr(Base, "load", load)

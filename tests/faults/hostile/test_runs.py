"""Malicious run folders, and a base with code and pickles next to its weights."""

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from pitcli import cli
from pitcli.data.synthetic import preference_rows
from pitcli.engine.models.loading import ADAPTER_CONFIG, WEIGHTS
from pitcli.engine.models.roles import GAP, IMPROVER
from pitcli.runs.folder import RunFolder
from pitcli.runs.manifest import load_manifest
from tests.faults.hostile.payloads import (
    CANARY,
    SPOKEN,
    Change,
    MakesCanary,
    base_with,
    content,
    digests,
    own_code,
    own_tokenizer,
    pickles,
    pit,
    python_code,
    settings,
)
from tests.faults.warm import Warm


@pytest.fixture(scope="module")
def hostile_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drafts and very small runs on a base that has pickles and code next to its weights."""
    folder = tmp_path_factory.mktemp("project")
    base_with(folder, own_code("llama"), own_tokenizer("TokenizersBackend"), pickles)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in preference_rows(8, seed=3)))
    (folder / "drafts.jsonl").write_text(json.dumps({"prompt": "Write 3 foods.", "response": "pie"}) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        small = ("--model", "base", "--data", "pairs.jsonl", "--max-steps", "1", "--lora-rank", "2")
        for command in ("sft", "train-reward"):
            assert cli.main([command, *small]) == 0
    assert not CANARY.exists()
    return folder


@pytest.fixture
def runs(hostile_project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The runs in a copy of the project that a test may change."""
    folder = tmp_path / "project"
    shutil.copytree(hostile_project, folder)
    monkeypatch.chdir(folder)
    return folder / "runs"


IMPROVE = ("improve", "--input", "drafts.jsonl", "--max-iters", "1", "--max-new-tokens", "2")


def resealed(run: Path, role: str, *changes: Change) -> None:
    """Changes an adapter and makes the manifest match it, as an attacker would."""
    manifest = load_manifest(run, "")
    for change in changes:
        change(run / role)
    RunFolder(run, manifest).complete(dict(manifest.results), [role], manifest.probes)


def without_head(folder: Path) -> None:
    tensors = load_file(folder / WEIGHTS)
    del tensors["base_model.model.score.weight"]
    save_file(tensors, folder / WEIGHTS)


def other_weights(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][5, 7] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def test_a_run_on_a_hostile_base_improves(runs: Path, capfd: Any, no_harm: None) -> None:
    ended = pit(capfd, *IMPROVE)
    assert ended.code == 0, ended.err
    assert len(ended.out.splitlines()) == 1


BROKEN_RUNS: dict[str, tuple[Change, str]] = {
    "no manifest": (lambda runs: (runs / "sft/manifest.json").unlink(), "runs/sft: no finished run in this folder"),
    "a changed manifest": (
        content("sft/manifest.json", lambda old: old.replace(b'"rows": 8', b'"rows": 9')),
        "manifest.json: changed since it was written",
    ),
    "a manifest that is not text": (content("sft/manifest.json", lambda _: b"\xff"), "runs/sft/manifest.json"),
    "a manifest that is a list": (content("sft/manifest.json", lambda _: b"[]"), "runs/sft/manifest.json"),
    "a changed adapter": (
        content(f"sft/improver/{WEIGHTS}", lambda old: old[:-1] + bytes([old[-1] ^ 1])),
        f"runs/sft/improver/{WEIGHTS}: missing or changed",
    ),
    "a pickle in an adapter": (
        content("sft/improver/adapter_model.bin", lambda _: pickle.dumps(MakesCanary())),
        "runs/sft/improver/adapter_model.bin: not part of an adapter",
    ),
    "code in an adapter": (
        content("reward/gap/modeling_evil.py", lambda _: python_code().encode()),
        "runs/reward/gap/modeling_evil.py: not part of an adapter",
    ),
    "a field of another kind of adapter, resealed": (
        lambda runs: resealed(runs / "sft", IMPROVER, settings(ADAPTER_CONFIG, init_lora_weights="corda")),
        "init_lora_weights 'corda' is not supported",
    ),
    "an adapter cut short, resealed": (
        lambda runs: resealed(runs / "sft", IMPROVER, content(WEIGHTS, lambda old: old[:-9])),
        f"runs/sft/improver/{WEIGHTS}: not usable",
    ),
    "no head, resealed": (
        lambda runs: resealed(runs / "reward", GAP, without_head),
        "runs/reward/gap: expected a gap model for the role gap, got an adapter",
    ),
    "a base that needs its code": (lambda runs: own_code("evil")(runs.parent / "base"), "own code (auto_map)"),
    "a tokenizer that needs its code": (
        lambda runs: own_tokenizer("EvilTokenizer")(runs.parent / "base"),
        "project/base: needs its own code (auto_map)",
    ),
    "other weights in the base": (lambda runs: other_weights(runs.parent / "base"), "trained on the base base"),
}


@pytest.mark.parametrize(("change", "problem"), BROKEN_RUNS.values(), ids=BROKEN_RUNS.keys())
def test_a_hostile_run_is_refused(change: Change, problem: str, runs: Path, capfd: Any, no_harm: None) -> None:
    change(runs)
    before = digests(runs.parent)
    ended = pit(capfd, *IMPROVE)
    assert ended.code == 3
    lines = ended.err.splitlines()
    assert problem in lines[0], ended.err
    assert all(line.startswith("error: ") for line in lines)  # several runs may have the wrong base
    assert len(lines) == (2 if "trained on" in problem else 1)
    assert ended.out == ""
    assert digests(runs.parent) == before


def test_rows_that_say_yes_do_not_give_consent(runs: Path, tmp_path: Path, warm: Warm) -> None:
    """Runs in a separate process, on a base with code: the first rows are what a prompt for consent would read.

    A prompt that waited for more would reach the end of stdin.
    """
    rows = [json.dumps({"id": f"row {number}", "prompt": "Write 3 foods.", "response": "pie"}) for number in range(2)]
    lines = [*SPOKEN.splitlines(), *rows]
    (tmp_path / "stdin").write_text("\n".join(lines))
    command = ["improve", "--max-iters", "1", "--max-new-tokens", "2"]
    ended = warm.run(runs.parent, *command, stdin=str(tmp_path / "stdin"))
    assert ended.code == 1
    assert [json.loads(line)["id"] for line in ended.out.splitlines()] == ["row 0", "row 1"]
    for number in range(1, 4):
        assert f"error: <stdin>:{number}: " in ended.err
    assert "Traceback" not in ended.err
    assert not CANARY.exists()

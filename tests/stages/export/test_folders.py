"""What pit export refuses, and what it leaves in the folder if it fails."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError
from transformers import PreTrainedModel

from tests.stages.export.conftest import Out, error, pit


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("runs/sft --out x --merge --adapter", "give one of --merge and --adapter"),
        ("runs/sft --out x --no-merge", "give one of --merge and --adapter"),
        (
            "runs/sft --out x --adapter --dtype fp16",
            "--dtype is for --merge: an adapter is written in the type that it was trained in",
        ),
        ("runs/sft --out x --public", "--public is for --push-to-hub"),
        ("runs/sft --out x --push-to-hub tiny", "--push-to-hub: expected OWNER/NAME, got tiny"),
        ("runs/sft --out x --base-name /a/b", "--base-name: expected OWNER/NAME, got /a/b"),
        ("runs/sft --out x --role gap", "--role: runs/sft holds improver, no gap"),
        ("runs/rl --out x --role policy", "--role: runs/rl holds improver and gap, no policy"),
        (
            "runs/sft --out x --adapter",
            "--base-name: others cannot load the base tiny by that name; give its OWNER/NAME",
        ),
        (
            "runs/sft --out data",
            "--out: {here}/data is not empty; --overwrite replaces an export there, or name another",
        ),
        ("runs/sft --out data --overwrite", "--overwrite: {here}/data holds what is not of an export, the first pairs"),
        ("runs/sft --out runs/rl/gap --overwrite", "--overwrite: {here}/runs/rl/gap holds what is not of an export"),
        ("runs/sft --out runs/rl --overwrite", "--overwrite: {here}/runs/rl holds what is not of an export, the first"),
        ("runs/sft --out pit.jsonl --overwrite", "--out: {here}/pit.jsonl is no folder"),
        ("runs/sft --out x --evaluation none.json", "--evaluation: none.json: No such file or directory"),
        (
            "runs/sft --out x --evaluation pit.jsonl",
            "--evaluation: pit.jsonl: expected evaluation.json of pit evaluate (Invalid JSON",
        ),
        (
            "runs/sft --out x --evaluation seen/evaluation.json",
            "--evaluation: seen/evaluation.json: none of the systems (pit) is known to be made with this improver",
        ),
    ],
)
def test_refusals(line: str, said: str, project: Path, capsys: Out) -> None:
    before = sorted(project.rglob("*"))
    pit(f"export {line}", code=2)
    assert error(capsys).startswith("error: " + said.format(here=Path.cwd()))
    assert sorted(project.rglob("*")) == before


def test_an_export_is_replaced_only_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    pit(f"export runs/sft --out {tmp_path}/model")
    pit(f"export runs/rl --out {tmp_path}/model --overwrite --dtype fp32")
    kept = {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}

    def failing(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", failing)
    pit(f"export runs/sft --out {tmp_path}/model --overwrite", code=3)
    assert error(capsys) == (
        f"error: {tmp_path}: the weights were not written (I/O error: No space left on device (os error 28))"
    )
    assert {path: path.read_bytes() for path in (tmp_path / "model").iterdir()} == kept
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / "model/notes.txt").write_text("mine")
    pit(f"export runs/sft --out {tmp_path}/model --overwrite", code=2)
    assert error(capsys).endswith("holds what is not of an export, the first notes.txt")


def test_a_disk_that_is_too_small_is_an_error_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", lambda *_, **__: pytest.fail("written"))
    pit(f"export runs/sft --out {tmp_path}/model --dtype fp32", code=3)
    assert "needs 0.00 GiB; 0.00 GiB free" in error(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_verified_first(tmp_path: Path, capsys: Out) -> None:
    shutil.copytree("runs/sft", tmp_path / "run")
    weights = tmp_path / "run/improver/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    pit(f"export {tmp_path}/run --out {tmp_path}/model", code=3)
    assert "changed since it was written" in error(capsys)
    pit(f"export {tmp_path} --out {tmp_path}/model", code=3)
    assert "no finished run in this folder" in error(capsys)
    assert not (tmp_path / "model").exists()

"""What pit export refuses, and what it leaves in the output folder if it fails."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from safetensors import SafetensorError
from transformers import PreTrainedModel

from tests.stages.export.conftest import Out, error, pit


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (
            "runs/sft --out x --adapter --dtype fp16",
            "--dtype is not for --adapter, which is written in the type that it was trained in",
        ),
        ("runs/sft --out x --public", "--public is for --push-to-hub"),
        ("runs/sft --out x --push-to-hub tiny", "--push-to-hub: expected OWNER/NAME, got tiny"),
        ("runs/sft --out x --base-name /a/b", "--base-name: expected OWNER/NAME, got /a/b"),
        ("runs/sft --out x --role gap", "--role: expected improver, got gap, which runs/sft does not contain"),
        (
            "runs/rl --out x --role policy",
            "--role: expected improver or gap, got policy, which runs/rl does not contain",
        ),
        (
            "runs/sft --out x --adapter",
            "--base-name: required, because others cannot load the base tiny by that name; give its OWNER/NAME",
        ),
        (
            "runs/sft --out data",
            "--out: {here}/data is not empty; use --overwrite to replace an earlier export, or name another folder",
        ),
        (
            "runs/sft --out data --overwrite",
            "--overwrite: {here}/data contains files that no export wrote, first pairs",
        ),
        ("runs/sft --out runs/rl/gap --overwrite", "--overwrite: {here}/runs/rl/gap contains files that no export"),
        (
            "runs/sft --out runs/rl --overwrite",
            "--overwrite: {here}/runs/rl contains files that no export wrote",
        ),
        ("runs/sft --out pit.jsonl --overwrite", "--out: expected a folder, got {here}/pit.jsonl, a file or a link"),
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
def test_a_refused_export_changes_nothing(line: str, message: str, project: Path, capsys: Out) -> None:
    before = sorted(project.rglob("*"))
    pit(f"export {line}", code=2)
    assert error(capsys).startswith("error: " + message.format(here=Path.cwd()))
    assert sorted(project.rglob("*")) == before


def test_a_failed_overwrite_leaves_the_earlier_export_untouched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
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
    assert error(capsys).endswith("files that no export wrote, first notes.txt; move them, or name another")


def test_too_little_disk_space_is_an_error_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", lambda *_, **__: pytest.fail("written"))
    pit(f"export runs/sft --out {tmp_path}/model --dtype fp32", code=3)
    assert "needs 0.00 GiB; 0.00 GiB free" in error(capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_or_missing_run_is_refused(tmp_path: Path, capsys: Out) -> None:
    shutil.copytree("runs/sft", tmp_path / "run")
    weights = tmp_path / "run/improver/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    pit(f"export {tmp_path}/run --out {tmp_path}/model", code=3)
    assert "changed since it was written" in error(capsys)
    pit(f"export {tmp_path} --out {tmp_path}/model", code=3)
    assert "no finished run in this folder" in error(capsys)
    assert not (tmp_path / "model").exists()

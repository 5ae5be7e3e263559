"""pit sample of a model in this process: a file appears when it is whole, and a stopped command can be resumed."""

import json
from pathlib import Path
from typing import Any

import pytest

from pitcli.cli import main
from pitcli.stages import sample

LINE = "sample --model tiny --no-load-in-4bit --data pairs.jsonl --max-rows 9 --draws 2 --max-new-tokens 8 --seed 3"
COMMAND = [*LINE.split(), "--sample-batch-size", "2", "--output", "drafts.jsonl"]


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> bytes:
    """What the command writes if nothing stops it; the folder is then as before."""
    pairs = Path("pairs.jsonl").read_bytes()
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_bytes(pairs)
    assert main(COMMAND) == 0
    written = Path("drafts.jsonl").read_bytes()
    assert {path.name for path in Path().iterdir()} == {"pairs.jsonl", "drafts.jsonl"}
    Path("drafts.jsonl").unlink()
    return written


def stop_after(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write = sample.Drafts.row

    def row(self: sample.Drafts, *arguments: Any) -> Any:
        if self.rows == rows:
            raise KeyboardInterrupt
        return write(self, *arguments)

    monkeypatch.setattr(sample.Drafts, "row", row)


def test_a_stopped_command_is_resumed_to_the_same_bytes(whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as stopped:
        stop_after(7, stopped)
        assert main(COMMAND) == 130
    assert not Path("drafts.jsonl").exists()
    assert len(Path("drafts.jsonl.partial").read_bytes().splitlines()) == 7
    assert main([*COMMAND, "--resume"]) == 0
    assert Path("drafts.jsonl").read_bytes() == whole
    assert {path.name for path in Path().iterdir()} == {"pairs.jsonl", "drafts.jsonl"}


def test_without_resume_it_starts_again(whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as stopped:
        stop_after(3, stopped)
        assert main(COMMAND) == 130
    assert main(COMMAND) == 0
    assert Path("drafts.jsonl").read_bytes() == whole


def test_resume_with_other_settings_is_refused(
    whole: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as stopped:
        stop_after(3, stopped)
        assert main(COMMAND) == 130
    assert main([*COMMAND, "--resume", "--temperature", "0.9"]) == 2
    assert "--resume: temperature was 0.5" in capsys.readouterr().err
    assert len(Path("drafts.jsonl.partial").read_bytes().splitlines()) == 3


def test_nothing_is_left_if_no_row_was_written(whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as stopped:
        stop_after(0, stopped)
        assert main(COMMAND) == 130
    assert {path.name for path in Path().iterdir()} == {"pairs.jsonl"}


def test_an_earlier_file_is_replaced_once_the_new_one_is_whole(whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("drafts.jsonl").write_text(json.dumps({"prompt": "p", "response": "r"}) + "\n")
    with monkeypatch.context() as stopped:
        stop_after(3, stopped)
        assert main(COMMAND) == 130
    assert len(Path("drafts.jsonl").read_bytes().splitlines()) == 1
    assert main([*COMMAND, "--resume"]) == 0
    assert Path("drafts.jsonl").read_bytes() == whole

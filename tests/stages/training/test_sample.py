"""pit sample of a model in this process: a stopped command can be resumed, and nothing is replaced unasked."""

import json
from pathlib import Path
from typing import Any

import pytest

from pitcli.cli import main
from pitcli.data.streams import open_growing
from pitcli.stages import sample

LINE = "sample --model tiny --no-load-in-4bit --data pairs.jsonl --max-rows 9 --draws 2 --max-new-tokens 8 --seed 3"
COMMAND = [*LINE.split(), "--sample-batch-size", "2", "--output", "drafts.jsonl"]
WRITTEN = ("drafts.jsonl", "drafts.jsonl.manifest.json", "drafts.jsonl.progress")


def complete() -> bool:
    return bool(json.loads(Path("drafts.jsonl.manifest.json").read_bytes())["complete"])


@pytest.fixture
def whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> bytes:
    """What the command writes if nothing stops it; the folder is then as before."""
    pairs = Path("pairs.jsonl").read_bytes()
    monkeypatch.chdir(tmp_path)
    Path("pairs.jsonl").write_bytes(pairs)
    assert main(COMMAND) == 0
    written = Path("drafts.jsonl").read_bytes()
    assert {path.name for path in Path().iterdir()} == {"pairs.jsonl", *WRITTEN}
    for name in WRITTEN:
        Path(name).unlink()
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
    assert len(Path("drafts.jsonl").read_bytes().splitlines()) == 7
    assert not complete()
    assert main([*COMMAND, "--resume"]) == 0
    assert Path("drafts.jsonl").read_bytes() == whole
    assert complete()
    assert main([*COMMAND, "--resume"]) == 0, "there is nothing left to do"
    assert Path("drafts.jsonl").read_bytes() == whole


def test_without_resume_or_overwrite_nothing_is_lost(
    whole: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as stopped:
        stop_after(3, stopped)
        assert main(COMMAND) == 130
    before = Path("drafts.jsonl").read_bytes()
    assert main(COMMAND) == 2
    assert "--output: drafts.jsonl already contains rows; use --resume to continue it" in capsys.readouterr().err
    assert Path("drafts.jsonl").read_bytes() == before


def test_resume_with_other_settings_is_refused(
    whole: bytes, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as stopped:
        stop_after(3, stopped)
        assert main(COMMAND) == 130
    assert main([*COMMAND, "--resume", "--temperature", "0.9"]) == 2
    assert "--resume: temperature was 0.5" in capsys.readouterr().err
    assert len(Path("drafts.jsonl").read_bytes().splitlines()) == 3


def test_bad_rows_are_listed_although_max_rows_ends_the_reading(whole: bytes) -> None:
    pairs = Path("pairs.jsonl").read_text().splitlines()
    Path("pairs.jsonl").write_text("\n".join(['{"prompt": 7}', *pairs]) + "\n")
    line = LINE.replace("--max-rows 9", "--max-rows 2")
    assert main([*line.split(), "--output", "drafts.jsonl", "--list-bad", "bad.jsonl"]) == 1
    assert len(Path("drafts.jsonl").read_text().splitlines()) == 4
    assert len(Path("bad.jsonl").read_text().splitlines()) == 1


def test_nothing_is_left_if_no_row_was_written(whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as stopped:
        stop_after(0, stopped)
        assert main(COMMAND) == 130
    assert {path.name for path in Path().iterdir()} == {"pairs.jsonl"}


def test_an_earlier_file_is_there_until_the_first_new_row(whole: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    earlier = json.dumps({"prompt": "p", "response": "r"}) + "\n"
    Path("drafts.jsonl").write_text(earlier)
    assert main([*COMMAND, "--overwrite", "--policy", "none"]) == 2
    with monkeypatch.context() as stopped:
        stop_after(0, stopped)
        assert main([*COMMAND, "--overwrite"]) == 130
    assert Path("drafts.jsonl").read_text() == earlier
    assert main([*COMMAND, "--overwrite"]) == 0
    assert Path("drafts.jsonl").read_bytes() == whole


def test_a_second_command_leaves_the_rows_of_the_first_alone(whole: bytes, capsys: pytest.CaptureFixture[str]) -> None:
    """Also before the first row is written."""
    with open_growing("drafts.jsonl", resume=False, overwrite=False) as stream:
        assert main([*COMMAND, "--overwrite"]) == 3
        assert "another command is writing to this file" in capsys.readouterr().err
        stream.write("{}\n")
    assert Path("drafts.jsonl").read_text() == "{}\n"

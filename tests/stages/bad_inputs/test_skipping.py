"""--skip-bad, --list-bad and --fields in every command that reads pairs, and drafts that share an id."""

import json
from pathlib import Path
from typing import Any

import pytest

from pitcli import cli
from pitcli.data.synthetic import preference_rows
from tests.stages.bad_inputs.rows import Loaded

FIELDS = "prompt=ask.text,chosen=replies.0,rejected=replies.1"
RENAMED = [
    {"ask": {"text": row["prompt"]}, "replies": [row["chosen"], row["rejected"]]} for row in preference_rows(12, seed=5)
]
BAD: dict[str, Any] = {"ask": {"text": "Write 3 foods."}, "replies": ["pie", None]}
REASON = "1 row skipped: rejected: expected text, got null"


def write(name: str, *rows: object) -> str:
    Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return name


def pit(*arguments: str) -> int:
    return cli.main([*arguments])


def listed(name: str = "bad.jsonl") -> list[tuple[str, int]]:
    return [(row["file"], row["line"]) for row in map(json.loads, Path(name).read_text().splitlines())]


@pytest.mark.parametrize("command", ["sft", "train-reward"])
def test_training_skips_bad_rows_and_finds_named_fields(
    command: str, no_model: None, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    data = write("named.jsonl", *RENAMED, BAD)
    flags = ["--data", data, "--model", "tiny", "--out", str(tmp_path / "run"), "--fields", FIELDS]
    assert pit(command, *flags) == 2
    assert f"error: {data}:13:rejected: expected text, got null\nerror: use --skip-bad" in capfd.readouterr().err
    with pytest.raises(Loaded):
        pit(command, *flags, "--skip-bad", "--list-bad", "bad.jsonl")
    assert f"{data}: {REASON}\n" in capfd.readouterr().err
    assert listed() == [(data, 13)]


def test_the_bad_rows_of_both_files_of_train_reward_are_listed(no_model: None, tmp_path: Path) -> None:
    data = write("named.jsonl", *RENAMED, BAD)
    other = write("fresh.jsonl", BAD, {"ask": {"text": "New?"}, "replies": ["a", "b"]})
    flags = ["--data", data, "--eval-data", other, "--model", "tiny", "--out", str(tmp_path / "run")]
    with pytest.raises(Loaded):
        pit("train-reward", *flags, "--fields", FIELDS, "--skip-bad", "--list-bad", "bad.jsonl")
    assert listed() == [(data, 13), (other, 1)]


def test_prepare_suggests_fields_and_reads_them(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    rows = [{"meta": {"query": f"q{n}"}, "good": "a", "bad": "b"} for n in range(4)]
    data = write("unknown.jsonl", *rows, {**rows[0], "good": " "})
    assert pit("prepare", "--data", data, "--dry-run", "--folds", "all=1") == 2
    err = capfd.readouterr().err
    suggested = next(line for line in err.splitlines() if line.startswith("next: "))
    assert suggested == f"next: pit prepare --data {data} --fields prompt=meta.query,chosen=good,rejected=bad --dry-run"
    assert "--fields prompt=meta.query,chosen=good,rejected=bad; its texts: meta.query, good, bad" in err
    command = suggested.split()[2:-1]
    assert pit(*command, "--skip-bad", "--out", str(tmp_path), "--folds", "all=1") == 0
    assert "rows skipped: chosen: empty: 1" in capfd.readouterr().err
    assert len((tmp_path / "all.jsonl").read_text().splitlines()) == 4


def test_misspelt_fields_exit_2(capfd: pytest.CaptureFixture[str]) -> None:
    assert pit("prepare", "--data", "x.jsonl", "--fields", "promt=a,chosen=b,rejected=c") == 2
    assert capfd.readouterr().err == (
        "error: --fields: expected NAME=PATH with a name of prompt, chosen, rejected, system, history, got promt=a; "
        "did you mean prompt?\n"
    )


def test_evaluate_reads_labelled_pairs_as_training_does(capfd: pytest.CaptureFixture[str]) -> None:
    data = write("named.jsonl", *RENAMED, BAD)
    flags = ["--judge", "oracle", "--validate-on", data, "--out", "evaluation", "--fields", FIELDS]
    assert pit("evaluate", *flags) == 2
    capfd.readouterr()
    assert pit("evaluate", *flags, "--skip-bad", "--list-bad", "bad.jsonl") == 0
    assert f"{data}: {REASON}\n" in capfd.readouterr().err
    assert listed() == [(data, 13)]


def test_sample_skips_bad_rows(capfd: pytest.CaptureFixture[str]) -> None:
    data = write("asked.jsonl", *RENAMED[:2], {"ask": {"text": ""}})
    flags = ["--data", data, "--model", "tiny", "--max-new-tokens", "2", "--fields", "prompt=ask.text"]
    assert pit("sample", *flags) == 1
    assert f"error: {data}:3:prompt: empty\n" in capfd.readouterr().err
    assert pit("sample", *flags, "--skip-bad") == 0
    out, err = capfd.readouterr()
    assert [json.loads(line)["prompt"] for line in out.splitlines()] == [row["ask"]["text"] for row in RENAMED[:2]]
    assert f"{data}: 1 row skipped: prompt: empty\n" in err


def test_later_stages_read_the_data_as_the_gap_model_did(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    data = write("named.jsonl", *RENAMED, BAD)
    small = ["--model", "tiny", "--max-steps", "1", "--lora-rank", "2", "--batch-size", "4"]
    train = ["train-reward", "--data", data, "--fields", FIELDS, "--skip-bad", *small]
    assert pit(*train) == 0
    capfd.readouterr()
    assert pit("sft", "--dry-run", *small) == 0
    assert f"{data}: 12 pairs\n" in capfd.readouterr().err
    # how rows are read may change as long as the rows are the same
    write("named.jsonl", *RENAMED)
    assert pit("train-reward", "--data", data, "--fields", FIELDS, *small, "--resume") == 0
    assert "is finished" in capfd.readouterr().err
    # rows of its own are read by its own flags
    assert pit("sft", "--dry-run", "--data", write("own.jsonl", *preference_rows(3, seed=1)), *small) == 0


def test_drafts_with_one_id_are_improved_and_resumed_by_their_content(capfd: pytest.CaptureFixture[str]) -> None:
    """The rows of two drafts with one id, and of two equal drafts, are all written; --resume continues after any."""
    drafts = [
        {"id": "q", "prompt": "Write 3 foods.", "response": "pie"},
        {"id": "q", "prompt": "Write 3 foods.", "response": "jam pie"},
        {"id": "q", "prompt": "Write 3 foods.", "response": "pie"},
        {"id": 2.5, "prompt": "Write 3 tools.", "response": "saw"},
    ]
    data = write("drafts.jsonl", *drafts)
    command = ["improve", "--input", data, "--output", "improved.jsonl", "--max-iters", "1", "--max-new-tokens", "4"]
    assert pit(*command, "--overwrite") == 0
    written = Path("improved.jsonl").read_text()
    rows = [json.loads(line) for line in written.splitlines()]
    assert [{**row, "response": row["original_response"]} | draft for row, draft in zip(rows, drafts, strict=True)] == [
        {**row, "response": row["original_response"]} for row in rows
    ]
    lines = written.splitlines(keepends=True)
    for kept in range(1, 5):
        Path("improved.jsonl").write_text("".join(lines[:kept]))
        assert pit(*command, "--resume") == 0
        assert Path("improved.jsonl").read_text() == written
    controls = ["--input", "improved.jsonl", "--judge", "oracle", "--out", "evaluation"]
    capfd.readouterr()
    pit("evaluate", "--overwrite", *controls)
    assert "4 rows of improved" in capfd.readouterr().err

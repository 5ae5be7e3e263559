"""pit improve --output-format and --only-changed on the embedded model: what is written, and resumed byte for byte."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from pitcli.data.pair_reading import load_pairs
from pitcli.errors import InputError, SettingsError
from pitcli.settings.base import Method
from pitcli.settings.generating import ImproveConfig, SampleConfig
from pitcli.settings.judging import CalibrateConfig
from pitcli.settings.tools import AnnotateConfig, EvaluateConfig, LabelConfig
from pitcli.stages import annotate, calibrate, evaluate, improve, label, sample
from tests.faults.warm import Warm
from tests.stages.training.conftest import read_rows, write_rows

SMALL: dict[str, Any] = {"max_iters": 2, "max_new_tokens": 8, "sample_batch_size": 2, "stop": "none"}
FORMATS: dict[str, dict[str, Any]] = {
    "rows": {},
    "only changed rows": {"only_changed": True},
    "same": {"output_format": "same"},
    "messages": {"output_format": "messages"},
    "text": {"output_format": "text"},
    "same, CSV": {"output_format": "same", "input": "drafts.csv"},
    "same, only changed, TSV": {"output_format": "same", "only_changed": True, "input": "drafts.tsv"},
}


@pytest.fixture(autouse=True)
def drafts(in_project: None) -> list[dict[str, Any]]:
    """Eleven drafts: as rows, as CSV and TSV with the columns in another order."""
    rows = read_rows(Path("pairs.jsonl"))[:11]
    drafts = [
        {"id": f"q {n}", "prompt": row["prompt"], "response": f'{row["rejected"]}\n"it"'} for n, row in enumerate(rows)
    ]
    write_rows(Path("some.jsonl"), drafts)
    for name, delimiter in (("drafts.csv", ","), ("drafts.tsv", "\t")):
        with open(name, "w", newline="") as stream:
            writer = csv.writer(stream, delimiter=delimiter)
            writer.writerows([("response", "id", "prompt"), *((d["response"], d["id"], d["prompt"]) for d in drafts)])
    return drafts


def run(output: Path, **settings: Any) -> int:
    return improve.run(ImproveConfig(**{"input": "some.jsonl", "output": str(output), **SMALL, **settings}))


def test_every_format_has_the_same_responses(tmp_path: Path, drafts: list[dict[str, Any]]) -> None:
    run(tmp_path / "rows", output_format="rows")
    rows = read_rows(tmp_path / "rows")
    assert {row["response"] == row["original_response"] for row in rows} == {True, False}
    run(tmp_path / "same", output_format="same")
    expected = [draft | {"response": row["response"]} for draft, row in zip(drafts, rows, strict=True)]
    assert read_rows(tmp_path / "same") == expected
    run(tmp_path / "messages", output_format="messages")
    assert read_rows(tmp_path / "messages") == [
        {
            "id": row["id"],
            "messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}],
        }
        for row in rows
    ]
    run(tmp_path / "text", output_format="text")
    assert (tmp_path / "text").read_text() == "".join(f"{row['response']}\n" for row in rows)
    run(tmp_path / "csv", output_format="same", input="drafts.csv")
    with (tmp_path / "csv").open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert list(table[0]) == ["response", "id", "prompt"]
    assert table == expected
    run(tmp_path / "changed", only_changed=True)
    assert read_rows(tmp_path / "changed") == [row for row in rows if row["response"] != row["original_response"]]


@pytest.mark.parametrize("settings", FORMATS.values(), ids=FORMATS.keys())
def test_a_stopped_command_is_resumed_to_the_same_bytes(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Stopped within a text, between a text and its line in the journal, within such a line, or without power."""
    output, journal = tmp_path / "out", tmp_path / "out.progress"
    run(output, **settings)
    whole = output.read_bytes()
    lines = journal.read_bytes().splitlines(keepends=True) if journal.exists() else []
    assert len(lines) == (0 if settings == {} else 11)
    moments = [(0, 5, 0), (4, 3, 0), (4, 60, 4), (7, -9, 0), (11, 0, 0)]
    number = [*FORMATS.values()].index(settings)
    # all moments in one format, two of them in each other
    for done, size, of_line in moments if number == 1 else (moments * 2)[number % 5 :][:2]:
        written = whole
        if lines:
            end = int(lines[done - 1].split()[1]) if done else 0
            journal.write_bytes(b"".join(lines[:done]) + (lines[done][:of_line] if of_line else b""))
            written = whole[: max(0, end + size)]
        output.write_bytes(written if lines else whole[: len(whole) * done // 11 + size])
        assert run(output, resume=True, **settings) == 0
        assert output.read_bytes() == whole
        if lines:
            assert journal.read_bytes() == b"".join(lines)


def test_a_finished_draft_is_not_improved_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tmp_path / "out", output_format="text")
    monkeypatch.setattr(improve.Scheduler, "improve", lambda self, drafts: pytest.fail("improved again"))
    run(tmp_path / "out", output_format="text", resume=True)


def test_thoughts_of_a_draft_add_no_cell_to_its_line_of_csv(tmp_path: Path) -> None:
    texts = ["ham ham", "<think>two foods</think>ham nail"]
    with (tmp_path / "in.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("prompt", "response"), *(("Write 2 foods.", text) for text in texts)])
    run(tmp_path / "out.csv", output_format="same", input=str(tmp_path / "in.csv"), max_iters=0)
    with (tmp_path / "out.csv").open(newline="") as stream:
        assert [len(cells) for cells in csv.reader(stream)] == [2, 2, 2]


def test_resume_needs_the_journal_and_the_same_format(tmp_path: Path) -> None:
    run(tmp_path / "out", output_format="same")
    with pytest.raises(SettingsError, match=r"--resume: output_format was 'same' in .* and is now None"):
        run(tmp_path / "out", resume=True)
    (tmp_path / "out.progress").unlink()
    with pytest.raises(SettingsError, match=r"--resume: .*out.progress is missing, so which rows are done is unknown"):
        run(tmp_path / "out", output_format="same", resume=True)
    with pytest.raises(SettingsError, match="already contains rows; use --resume"):
        run(tmp_path / "out", output_format="same")
    run(tmp_path / "out", output_format="rows", overwrite=True)
    assert not (tmp_path / "out.progress").exists()
    assert len(read_rows(tmp_path / "out")) == 11


def test_plain_text_in_and_out(project: Path, tmp_path: Path, warm: Warm) -> None:
    (tmp_path / "draft.txt").write_text("ham ham nail\n")
    line = ("improve", "--prompt", "Write 3 foods.", "--stop", "none", "--max-iters", "1", "--max-new-tokens", "10")
    ended = warm.run(project, *line, "--diff", stdin=str(tmp_path / "draft.txt"))
    assert ended.code == 0, ended.err
    assert ended.out.strip() not in ("", "ham ham nail")
    assert ended.out.count("\n") == 1
    assert ended.err.startswith("<stdin>:1\n")
    assert "{+" in ended.err
    unchanged = warm.run(project, *line, "--max-iters", "0", stdin=str(tmp_path / "draft.txt"))
    assert (unchanged.code, unchanged.out) == (0, "ham ham nail\n")
    empty = warm.run(project, *line)
    assert (empty.code, empty.err) == (2, "error: <stdin>: empty\n")
    without = warm.run(project, "improve", stdin=str(tmp_path / "draft.txt"))
    assert without.code == 1
    assert "<stdin>:1: not JSON: Expecting value (column 1); to improve a plain text, give --prompt TEXT" in without.err


def test_a_prompt_is_for_plain_text_only() -> None:
    for name in ("a.jsonl", "a.CSV", "a.jsonl.gz", "hub:OWNER/NAME"):
        with pytest.raises(ValueError, match=f"--prompt is for one plain text, and --input {name} has rows"):
            ImproveConfig(prompt="Write.", input=name)
    with pytest.raises(ValueError, match="--prompt: must not be empty"):
        ImproveConfig(prompt=" ")


def test_truncated_responses_are_counted_and_no_draft_is_replaced(tmp_path: Path, capfd: Any) -> None:
    settings = {"max_new_tokens": 1, "max_iters": 1}
    for method in Method:
        run(tmp_path / method, method=method, **settings, stop="gap" if method is Method.best_of_n else "none")
        rows = read_rows(tmp_path / method)
        assert all(row["response"] == row["original_response"] for row in rows)
        assert not any(step["accepted"] or step["finished"] for row in rows for step in row["iterations"])
        assert {row["finished"] for row in rows} == {None}
        expected = "--max-new-tokens 1 cut 11 improvements before the end; they were not accepted"
        assert expected in capfd.readouterr().err
    run(tmp_path / "accepted", accept_truncated=True, **settings)
    rows = read_rows(tmp_path / "accepted")
    assert {row["finished"] for row in rows} == {False}
    assert all(row["response"] != row["original_response"] for row in rows)


def test_samples_say_whether_they_are_whole(tmp_path: Path, capfd: Any) -> None:
    settings: dict[str, Any] = {"data": "some.jsonl", "max_rows": 4}
    sample.run(SampleConfig(output=str(tmp_path / "cut"), max_new_tokens=1, **settings))
    assert [row["finished"] for row in read_rows(tmp_path / "cut")] == [False] * 4
    assert "--max-new-tokens 1 cut 4 of the drafts" in capfd.readouterr().err
    sample.run(SampleConfig(output=str(tmp_path / "long"), max_new_tokens=40, temperature=0.1, **settings))
    assert True in [row["finished"] for row in read_rows(tmp_path / "long")]


def test_the_shape_of_a_sampled_draft_says_whether_the_new_response_is_whole(tmp_path: Path) -> None:
    rows = [row | {"finished": False} for row in read_rows(Path("some.jsonl"))]
    write_rows(tmp_path / "sampled.jsonl", rows)
    run(tmp_path / "out", input=str(tmp_path / "sampled.jsonl"), output_format="same")
    written = read_rows(tmp_path / "out")
    changed = [new["response"] != old["response"] for new, old in zip(written, rows, strict=True)]
    assert [row["finished"] for row in written] == changed
    assert set(changed) == {True, False}


@pytest.mark.parametrize("output_format", ["same", "messages", "text"])
def test_other_commands_refuse_other_formats_than_rows(tmp_path: Path, output_format: str) -> None:
    file = str(tmp_path / "out.jsonl")
    run(Path(file), output_format=output_format, max_iters=1)
    expected = f"expected rows of pit improve, got --output-format {output_format}; improve with rows"
    for command, settings in (
        (evaluate, EvaluateConfig(input=(file,), judge=("oracle",), out=tmp_path / "evaluation")),
        (label, LabelConfig(input=file, judge="oracle", output=str(tmp_path / "pairs"))),
        (annotate, AnnotateConfig(input=file, output=str(tmp_path / "labels"), annotator="ada")),
        (calibrate, CalibrateConfig(input=file, judge="oracle")),
    ):
        with pytest.raises(InputError, match=expected):
            command.run(settings)  # type: ignore[attr-defined]


def test_rates_are_not_computed_from_changed_rows_alone(tmp_path: Path) -> None:
    file = str(tmp_path / "out.jsonl")
    run(Path(file), only_changed=True, max_iters=1)
    for command, settings in (
        (evaluate, EvaluateConfig(input=(file,), judge=("oracle",), out=tmp_path / "evaluation")),
        (calibrate, CalibrateConfig(input=file, judge="oracle")),
    ):
        with pytest.raises(InputError, match="expected a row of each draft, got those of pit improve --only-changed"):
            command.run(settings)  # type: ignore[attr-defined]
    assert label.run(LabelConfig(input=file, judge="oracle", output=str(tmp_path / "pairs"))) == 0
    assert read_rows(tmp_path / "pairs")


def test_rows_of_conversations_are_evaluated_labelled_and_learned_from(tmp_path: Path) -> None:
    chats = [
        {
            "id": row["id"],
            "messages": [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"]}],
        }
        for row in read_rows(Path("some.jsonl"))
    ]
    write_rows(tmp_path / "chats.jsonl", chats)
    file = tmp_path / "out.jsonl"
    run(file, input=str(tmp_path / "chats.jsonl"))
    evaluate.run(EvaluateConfig(input=(str(file),), judge=("oracle",), out=tmp_path / "evaluation"))
    assert json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["comparisons"]
    label.run(LabelConfig(input=str(file), judge="oracle", output=str(tmp_path / "pairs.jsonl")))
    pairs = load_pairs(tmp_path / "pairs.jsonl")
    assert {pair.prompt[-1].content for pair in pairs} <= {chat["messages"][0]["content"] for chat in chats}

"""pit annotate is blind, in random order, writes one label per decision, and resumes after an interruption."""

import fcntl
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from pitcli import cli
from pitcli.data.rows import Message
from pitcli.evaluation.agreement import ORIGINAL_RESPONSE, RESPONSE, Item
from pitcli.settings.tools import AnnotateConfig
from pitcli.stages.annotate import show, shown_order

Row = dict[str, Any]
Annotate = Callable[..., int]
PIT = [sys.executable, "-c", "import sys; from pitcli.cli import main; sys.exit(main())"]


def row(number: int) -> Row:
    return {"prompt": f"p{number}", "original_response": f"old{number}", "response": f"new{number}"}


def write(path: str, rows: list[Row]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


def labels(path: str = "labels.jsonl") -> list[Row]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture
def annotate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Annotate:
    """Runs the command with these answers on stdin, on rows.jsonl, which has 8 rows unless a test rewrites it."""
    monkeypatch.chdir(tmp_path)
    write("rows.jsonl", [row(number) for number in range(8)])

    def run(answers: str | bytes, *flags: str, annotator: str = "ada") -> int:
        typed = answers if isinstance(answers, bytes) else "".join(f"{answer}\n" for answer in answers).encode()
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed)))
        files = ["--input", "rows.jsonl", "--output", "labels.jsonl"]
        return cli.main(["annotate", *files, "--annotator", annotator, *flags])

    return run


def test_a_label_records_the_choice_and_the_response_it_means(annotate: Annotate) -> None:
    assert annotate("12t12t12") == 0
    other = {RESPONSE: ORIGINAL_RESPONSE, ORIGINAL_RESPONSE: RESPONSE}
    by_prompt = {}
    for label, choice in zip(labels(), "12t12t12", strict=True):
        first = label["shown_first"]
        assert label["preferred"] == {"1": first, "2": other[first], "t": "tie"}[choice]
        assert (label["choice"], label["annotator"]) == (choice, "ada")
        assert label["time"].endswith("+00:00")
        by_prompt[label["prompt"]] = {field: label[field] for field in ("prompt", ORIGINAL_RESPONSE, RESPONSE)}
    assert by_prompt == {f"p{number}": row(number) for number in range(8)}
    assert len({label["key"] for label in labels()}) == 8


def test_a_label_records_which_response_was_shown_first(annotate: Annotate, capsys: pytest.CaptureFixture[str]) -> None:
    annotate("11111111")
    err = capsys.readouterr().err
    for label in labels():
        first, second = [label[RESPONSE], label[ORIGINAL_RESPONSE]][:: 1 if label["shown_first"] == RESPONSE else -1]
        assert f"prompt\n    {label['prompt']}" in (shown := "\n".join(map(str.rstrip, err.splitlines())))
        assert f"response 1\n    {first}\nresponse 2\n    {second}\n" in shown
    assert [label["prompt"] for label in labels()] != [f"p{number}" for number in range(8)]


def test_the_screen_does_not_reveal_which_response_is_the_original() -> None:
    def shown(original: str, response: str, order: tuple[str, str]) -> str:
        stream = io.StringIO()
        show(Console(file=stream), Item((Message("user", "p"),), original, response), order)
        return stream.getvalue()

    assert shown("a", "b", (ORIGINAL_RESPONSE, RESPONSE)) == shown("b", "a", (RESPONSE, ORIGINAL_RESPONSE))


def test_sides_are_balanced_and_differ_by_annotator_and_seed() -> None:
    items = [Item((Message("user", f"p{number}"),), "old", "new") for number in range(1000)]

    def sides(annotator: str, seed: int) -> list[bool]:
        config = AnnotateConfig(input="i", output="o", annotator=annotator, seed=seed)
        return [shown_order(config, item)[0] == RESPONSE for item in items]

    ada = sides("ada", 0)
    assert ada == sides("ada", 0)
    for other in (sides("ben", 0), sides("ada", 1)):
        assert 450 < sum(other) < 550
        assert 450 < sum(a == b for a, b in zip(ada, other, strict=True)) < 550


def test_it_resumes_after_the_last_label_of_this_annotator(
    annotate: Annotate, capsys: pytest.CaptureFixture[str]
) -> None:
    assert annotate("12q") == 0
    assert "2 labels by ada, 0 skipped, 6 pairs left" in capsys.readouterr().err
    assert annotate("1" * 20) == 0
    assert "pair 1 of 6" in capsys.readouterr().err
    assert len(labels()) == len({label["key"] for label in labels()}) == 8
    assert annotate("1" * 20, annotator="ben") == 0
    assert [label["annotator"] for label in labels()] == ["ada"] * 8 + ["ben"] * 8
    ada, ben = labels()[:8], labels()[8:]
    assert [label["key"] for label in ada] != [label["key"] for label in ben]
    assert annotate("1") == 0
    assert len(labels()) == 16


def test_a_skipped_pair_gets_no_label_and_comes_back(annotate: Annotate, capsys: pytest.CaptureFixture[str]) -> None:
    annotate("s1")
    assert len(labels()) == 1
    assert "1 label by ada, 1 skipped, 7 pairs left" in capsys.readouterr().err
    annotate("1" * 8)
    assert len(labels()) == 8


def test_a_typo_repeats_the_question(annotate: Annotate, capsys: pytest.CaptureFixture[str]) -> None:
    assert annotate(b"3\n\n\xff\xfe\n T \nq\n1\n") == 0
    assert [label["choice"] for label in labels()] == ["t"]
    err = capsys.readouterr().err
    assert err.count("please answer 1, 2, t, s, q") == 3
    assert err.count("response 1\n") == 2, "the texts are not shown again after a typo"


def test_an_answer_without_a_newline_counts(annotate: Annotate) -> None:
    assert annotate(b"1\n2") == 0
    assert [label["choice"] for label in labels()] == ["1", "2"]


def test_a_label_is_written_before_the_next_question_and_survives_ctrl_c(
    annotate: Annotate, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[int] = []

    class Keyboard(io.BytesIO):
        def readline(self, size: int | None = -1, /) -> bytes:
            seen.append(len(labels()))
            if len(seen) == 3:
                raise KeyboardInterrupt
            return b"1\n"

    files = ["--input", "rows.jsonl", "--output", "labels.jsonl", "--annotator", "ada"]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(Keyboard()))
    assert cli.main(["annotate", *files]) == 130
    assert seen == [0, 1, 2]
    assert len(labels()) == 2
    assert "2 labels by ada" in capsys.readouterr().err


def test_identical_texts_and_duplicates_are_counted_and_bad_rows_named(
    annotate: Annotate, capsys: pytest.CaptureFixture[str]
) -> None:
    same = {"prompt": "p", "original_response": "x", "response": "x"}
    write("rows.jsonl", [same, row(1), {**row(1), "id": "other"}, {"prompt": "p", "response": "x"}])
    assert annotate("11") == 1
    assert [label["prompt"] for label in labels()] == ["p1"]
    out, err = capsys.readouterr()
    assert out == ""
    assert "rows.jsonl:4:original_response: missing" in err
    assert "rows.jsonl: 1 pair of identical texts skipped\n" in err
    assert "rows.jsonl: 1 duplicate row skipped\n" in err


def test_no_pair_to_label_is_an_error(annotate: Annotate, capsys: pytest.CaptureFixture[str]) -> None:
    write("rows.jsonl", [])
    assert annotate("1") == 2
    assert "rows.jsonl: no pair to label" in capsys.readouterr().err
    assert not Path("labels.jsonl").exists()


def test_rows_cannot_steer_the_terminal_or_imitate_headings(
    annotate: Annotate, capsys: pytest.CaptureFixture[str]
) -> None:
    long = "word " * 15 + "response 2"
    write(
        "rows.jsonl", [{"prompt": "a\x1b[2Jb [bold]c[/bold]", "original_response": "x\nresponse 2", "response": long}]
    )
    annotate("q")
    err = capsys.readouterr().err
    assert "\x1b" not in err
    assert "a\\x1b[2Jb [bold]c[/bold]" in err
    assert [line.rstrip() for line in err.splitlines()].count("response 2") == 1


def test_max_rows_selects_the_same_pairs_for_every_annotator(annotate: Annotate) -> None:
    annotate("1" * 9, "--max-rows", "3", "--seed", "5")
    annotate("1" * 9, "--max-rows", "3", "--seed", "5", annotator="ben")
    ada, ben = ({label["key"] for label in labels() if label["annotator"] == name} for name in ("ada", "ben"))
    assert ada == ben
    assert len(labels()) == 6
    annotate("1" * 9, "--max-rows", "5", "--seed", "5")
    assert len(labels()) == 8, "a larger --max-rows includes the pairs of a smaller one"


def test_a_truncated_label_is_asked_for_again(annotate: Annotate) -> None:
    annotate("12")
    whole = Path("labels.jsonl").read_text()
    Path("labels.jsonl").write_text(whole[:-20])
    annotate("t")
    assert Path("labels.jsonl").read_text().startswith(whole.splitlines()[0] + "\n")
    assert [label["choice"] for label in labels()] == ["1", "t"]
    assert labels()[1]["key"] == json.loads(whole.splitlines()[1])["key"]


@pytest.mark.parametrize("text", ["notes of mine", '{"prompt": "p", "response": "x"}', "\n"])
def test_a_file_without_labels_is_not_changed(
    text: str, annotate: Annotate, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("labels.jsonl").write_text(text)
    assert annotate("1") == 2
    assert "--output: expected a file of labels, got labels.jsonl" in capsys.readouterr().err
    assert Path("labels.jsonl").read_text() == text


def test_two_annotators_cannot_write_to_a_file_at_once(annotate: Annotate, capsys: pytest.CaptureFixture[str]) -> None:
    with Path("labels.jsonl").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert annotate("1") == 3
    assert "another command is writing to this file" in capsys.readouterr().err
    assert labels() == []


@pytest.mark.parametrize("flags", [("--input", "-"), ("--output", "-"), ("--output", "rows.jsonl")])
def test_unusable_files_are_refused(flags: tuple[str, str], annotate: Annotate) -> None:
    before = Path("rows.jsonl").read_text()
    assert annotate("1", *flags) == 2
    assert Path("rows.jsonl").read_text() == before


def test_a_process_reads_answers_from_a_pipe_and_keeps_stdout_clean(annotate: Annotate) -> None:
    command = [*PIT, "annotate", "--input", "rows.jsonl", "--output", "labels.jsonl", "--annotator", "ada"]
    done = subprocess.run(command, input=b"1\n2\n", capture_output=True, check=True)
    assert done.stdout == b""
    assert b"2 labels by ada, 0 skipped, 6 pairs left" in done.stderr
    assert [label["choice"] for label in labels()] == ["1", "2"]


def test_labels_of_rows_with_a_system_message_are_read_back(
    annotate: Annotate, capsys: pytest.CaptureFixture[str]
) -> None:
    write("rows.jsonl", [{**row(number), "system": "Be brief.", "history": [["hi", "hello"]]} for number in range(3)])
    assert annotate("12q") == 0
    assert annotate("1") == 0
    assert "1 label by ada, 0 skipped, 0 pairs left" in capsys.readouterr().err
    assert [message["role"] for message in labels()[0]["prompt"]] == ["system", "user", "assistant", "user"]

"""pit label turns rows into preference pairs, by any judge; the pairs are read back as they were written."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pitcli import cli
from pitcli.data.pair_reading import load_pairs
from pitcli.evaluation import command_judge
from tests.conftest import cmd

Row = dict[str, Any]
Label = Callable[..., list[Row]]
LONGEST = cmd("import json, sys\nfor line in sys.stdin: print(len(json.loads(line)['response']))")
WRITTEN = {"stop_reason": "max_iters", "generated_tokens": 9}


def iteration(response: str, accepted: bool = True) -> Row:
    return {"response": response, "accepted": accepted, "p_better": 0.6, "generated_tokens": 3}


def improved(prompt: str, original: str, *iterations: Row, **fields: Any) -> Row:
    return {
        **{"prompt": prompt, "response": "last", "original_response": original},
        **{"iterations": list(iterations), **WRITTEN, **fields},
    }


def write(path: str, rows: list[Any]) -> None:
    Path(path).write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture
def label(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Label:
    """Labels rows in an empty folder; returns the pairs written."""
    monkeypatch.chdir(tmp_path)

    def run(rows: list[Any], *flags: str, judge: str = LONGEST, code: int = 0) -> list[Row]:
        write("rows.jsonl", rows)
        given = ["label", "--judge", judge, "--input", "rows.jsonl", "--output", "pairs.jsonl"]
        assert cli.main([*given, *flags]) == code
        written = Path("pairs.jsonl")  # without a pair there is no file
        return [json.loads(line) for line in written.read_text().splitlines()] if written.exists() else []

    return run


def test_iterations_are_compared_with_the_response_that_they_improve(label: Label) -> None:
    """A rejected iteration is a pair too; the next iteration starts again from the best response."""
    steps = [iteration("aaa"), iteration("b", accepted=False), iteration("cccc")]
    pairs = label([improved("p", "aa", *steps, id=7, topic="t")])
    extra = {"topic": "t", "judge": LONGEST, "p_chosen": 1.0}
    assert pairs == [
        {"id": "7.1", "prompt": "p", "chosen": "aaa", "rejected": "aa", **extra},
        {"id": "7.2", "prompt": "p", "chosen": "aaa", "rejected": "b", **extra},
        {"id": "7.3", "prompt": "p", "chosen": "cccc", "rejected": "aaa", **extra},
    ]
    loaded = load_pairs("pairs.jsonl")
    assert [pair.extra["p_chosen"] for pair in loaded] == [1, 1, 1]


def test_neighbouring_samples_of_a_prompt_are_compared(label: Label) -> None:
    samples = [("p", "a"), ("p", "bb"), ("p", "bb"), ("p", "c"), ("q", "d"), ("p", "eee")]
    pairs = label([{"prompt": prompt, "response": response} for prompt, response in samples])
    assert [(pair["prompt"], pair["chosen"], pair["rejected"]) for pair in pairs] == [
        ("p", "bb", "a"),
        ("p", "bb", "c"),
    ]
    assert "id" not in pairs[0]


def test_what_is_skipped_is_counted(label: Label, capsys: pytest.CaptureFixture[str]) -> None:
    steps = [iteration(""), iteration("aa "), iteration("bb"), iteration("ccc")]
    assert len(label([improved("p", "aa", *steps[1:]), improved("q", "aa", steps[0])])) == 1
    err = capsys.readouterr().err
    for count, text in [(1, "a response is empty"), (1, "the responses are equal"), (1, "a tie")]:
        assert f"rows.jsonl: {count} pair skipped: {text}\n" in err
    assert "rows.jsonl: 1 pair written\n" in err


def test_bad_rows_are_reported_and_the_others_labelled(label: Label, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [improved("p", "a", iteration("bb")), {"prompt": "p"}, improved("q", "a", iterations=3), [1]]
    assert len(label(rows, code=1)) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert [line.split(":")[2] for line in errors] == ["2", "3", "4"]
    assert "not in the format that pit improve writes" in errors[1]


@pytest.mark.parametrize("rows", [[{"prompt": "p", "response": "a"}], []])
def test_rows_without_two_responses_are_refused(rows: list[Row], label: Label, capsys: Any) -> None:
    assert label(rows, code=2) == []
    assert "no two responses to compare; give rows of pit improve" in capsys.readouterr().err


def test_a_program_gets_the_fields_of_the_row(label: Label) -> None:
    score = cmd("import json, sys\nfor r in map(json.loads, sys.stdin): print(int(r['response'] == r['answer']))")
    rows = [improved(f"p{number}", "1", iteration("2"), answer=str(1 + number % 2)) for number in range(4)]
    pairs = label(rows, judge=score)
    assert [pair["chosen"] for pair in pairs] == ["1", "2", "1", "2"]
    assert pairs[0]["answer"] == "1"


def test_a_program_that_fails_leaves_the_pairs_before_it(label: Label, capsys: pytest.CaptureFixture[str]) -> None:
    assert label([improved("p", "a", iteration("bb"))], judge="cmd:exit 9", code=3) == []
    assert "error: cmd:exit 9: the program ended with exit code 9: nothing on stderr\n" in capsys.readouterr().err


def people(choices: list[tuple[str, str]]) -> list[Row]:
    """Labels of one pair, a and bb: (annotator, what is preferred)."""
    return [
        improved("p", "a", response="bb", annotator=annotator, preferred=preferred, shown_first="response")
        for annotator, preferred in choices
    ]


@pytest.mark.parametrize(
    ("choices", "p_chosen"),
    [
        (["response", "response", "original_response", "response"], ("bb", 0.75)),
        (["original_response", "tie"], ("a", 0.75)),
        (["original_response", "response"], None),
    ],
)
def test_people_judge_the_responses_that_they_labelled(
    choices: list[str], p_chosen: tuple[str, float] | None, label: Label, capsys: pytest.CaptureFixture[str]
) -> None:
    for number, choice in enumerate(choices):
        write(f"{number}.jsonl", people([(str(number), choice)]))
    judge = "labels:" + ",".join(f"{number}.jsonl" for number in range(len(choices)))
    rows = [improved("p", "a", iteration("x"), iteration("bb"), response="bb"), improved("other", "a", response="bb")]
    pairs = label(rows, judge=judge)
    assert [(pair["chosen"], pair["p_chosen"]) for pair in pairs] == ([p_chosen] if p_chosen else [])
    err = capsys.readouterr().err
    assert "rows.jsonl: 1 pair skipped: no verdict\n" in err
    assert ("1 pair skipped: a tie" in err) == (p_chosen is None)


def test_min_confidence_is_twice_p_chosen_minus_one(label: Label, capsys: pytest.CaptureFixture[str]) -> None:
    write("0.jsonl", people([(str(number), "response") for number in range(3)]))
    write("1.jsonl", people([("x", "original_response")]))
    rows, judge = [improved("p", "a", response="bb")], "labels:0.jsonl,1.jsonl"
    assert len(label(rows, "--min-confidence", "0.5", judge=judge)) == 1
    assert label(rows, "--min-confidence", "0.51", "--overwrite", judge=judge) == []
    assert "rows.jsonl: 1 pair skipped: below --min-confidence\n" in capsys.readouterr().err


def test_rows_stream_from_stdin_to_stdout(
    label: Label, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = "".join(json.dumps({"prompt": "Write 1 animals.", "response": text}) + "\n" for text in ("cat", "saw"))
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines.encode())))
    assert cli.main(["label", "--judge", "oracle"]) == 0
    pair = json.loads(capsys.readouterr().out)
    assert (pair["chosen"], pair["rejected"], pair["judge"]) == ("cat", "saw", "oracle")


DRAWS = [{"prompt": f"p{number}", "response": text} for number in range(40) for text in ("a" * (number % 7 + 1), "bbb")]


def uninterrupted(label: Label) -> str:
    """The output of DRAWS labelled in one go: some pairs are ties."""
    label(DRAWS)
    return Path("pairs.jsonl").read_text()


@pytest.mark.parametrize("kept", [0, 1, 5, 33, 34])
def test_a_stopped_command_is_resumed(label: Label, kept: int, capsys: pytest.CaptureFixture[str]) -> None:
    whole = uninterrupted(label)
    lines = whole.splitlines(keepends=True)
    assert len(lines) == 34
    Path("pairs.jsonl").write_text("".join(lines[:kept]) + '{"prompt": "p9", "cho')
    capsys.readouterr()
    label(DRAWS, "--resume")
    assert Path("pairs.jsonl").read_text() == whole
    if kept:
        assert f"rows.jsonl: {kept} pair{'s' * (kept > 1)} already written\n" in capsys.readouterr().err


def test_pairs_that_are_written_are_not_judged_again(
    label: Label, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command_judge, "PER_CALL", 8)
    asked = tmp_path / "asked"
    judge = cmd(
        "import json, sys\n"
        "for line in sys.stdin:\n"
        f"    open({str(asked)!r}, 'a').write(line); print(len(json.loads(line)['response']))"
    )
    label(DRAWS, judge=judge)
    whole, first = Path("pairs.jsonl").read_text(), asked.read_text().count("\n")
    asked.unlink()
    lines = whole.splitlines(keepends=True)
    Path("pairs.jsonl").write_text("".join(lines[:-3]))
    label(DRAWS, "--resume", judge=judge)
    assert Path("pairs.jsonl").read_text() == whole
    assert asked.read_text().count("\n") < first / 3  # the ties, and the three that are missing


def test_a_missing_verdict_is_asked_for_again(label: Label) -> None:
    rows = [improved(prompt, "a", response="bb") for prompt in ("p", "q", "r")]
    labels = [{**people([("ada", "response")])[0], "prompt": prompt} for prompt in ("p", "q", "r")]
    write("labels.jsonl", labels[::2])
    before = label(rows, judge="labels:labels.jsonl")
    assert [pair["prompt"] for pair in before] == ["p", "r"]
    write("labels.jsonl", labels)
    after = label(rows, "--resume", judge="labels:labels.jsonl")
    assert after[:-1] == before and after[-1]["prompt"] == "q"


def test_what_cannot_be_resumed_is_refused(label: Label, capsys: pytest.CaptureFixture[str]) -> None:
    whole = uninterrupted(label)
    capsys.readouterr()
    label(DRAWS, code=2)
    assert "--output: pairs.jsonl already contains rows; use --resume" in capsys.readouterr().err
    label(DRAWS, "--resume", "--min-confidence", "0.5", code=2)
    assert "--resume: min_confidence was 0.0 in pairs.jsonl.manifest.json and is now 0.5" in capsys.readouterr().err
    label(DRAWS[:20], "--resume", code=2)
    assert "--resume: pairs.jsonl: 26 pairs not from rows.jsonl" in capsys.readouterr().err
    assert Path("pairs.jsonl").read_text() == whole
    label(DRAWS, "--overwrite")
    assert Path("pairs.jsonl").read_text() == whole
    Path("pairs.jsonl.manifest.json").unlink()
    label(DRAWS, "--resume", code=2)
    assert "pairs.jsonl.manifest.json is missing" in capsys.readouterr().err


def test_overwrite_keeps_the_old_pairs_if_the_judge_cannot_be_used(
    label: Label, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    before = label([improved("p", "aa", iteration("aaa"))])
    assert before
    assert label([improved("p", "aa", iteration("aaa"))], "--overwrite", judge="openai:m", code=2) == before

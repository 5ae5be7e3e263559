"""The instruction task through the commands: requests, several draws per prompt, and pairs of edited samples."""

import json
from pathlib import Path
from typing import Any

import pytest

from pitcli import cli
from pitcli.data.instructions.grading import grade

SAMPLE = (
    "sample --model tiny --data instructions:train --max-rows 4 --draws 2 --max-new-tokens 8 --output samples.jsonl"
)
PREPARE = "prepare --data samples.jsonl --task instructions --out pairs --overwrite --folds sft=1"
BOTH = ("chosen", "rejected")
TEXTS = [
    "A garden needs time. First, you choose a place with sun. Then you dig the soil. Many people plant beans.",
    "It is fun to plan. You should think about the light. Leave some space between the rows. Ask a neighbour.",
]


def rows(path: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(path).read_text().splitlines()]


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_requests_are_sampled_and_their_edited_samples_become_pairs() -> None:
    assert cli.main(SAMPLE.split()) == 0
    drafts = rows("samples.jsonl")
    assert [row["id"] for row in drafts] == [f"train-0-{row}.{draw}" for row in range(4) for draw in (1, 2)]
    assert drafts[0]["prompt"] == drafts[1]["prompt"] and drafts[0]["instructions"]
    assert len({row["response"] for row in drafts}) > 4, "each draw has its own seed"

    # the tiny model writes no English, so these texts replace its samples
    written = [{**row, "response": TEXTS[number % 2]} for number, row in enumerate(drafts)]
    Path("samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    assert cli.main(PREPARE.split()) == 0
    pairs = rows("pairs/sft.jsonl")
    assert 4 <= len(pairs) <= 8
    assert {pair["prompt"] for pair in pairs} <= {row["prompt"] for row in drafts}
    assert all(pair["instructions"] and pair["chosen"] != pair["rejected"] for pair in pairs)

    def ties(fold: str) -> int:
        made = rows(f"pairs/{fold}.jsonl")
        tied = [pair for pair in made if pair.get("tie")]
        for pair in tied:
            assert len({grade(pair[name], pair["subject"], pair["instructions"]) for name in BOTH}) == 1
        return len(tied)

    folds = "--folds sft=1,reward=1 --ties-in reward --pairs-per-prompt 15 --seed 1"
    assert cli.main(f"{PREPARE} {folds}".split()) == 0
    assert ties("sft") == 0 < ties("reward")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("sample --model tiny --data instructions:train", "--data instructions:train has no end: give --max-rows"),
        ("sample --model tiny --data instructions:x --max-rows 1", "instructions:x: expected instructions:train, "),
        ("prepare --synthetic 4 --task instructions", "--task needs --data, with samples of a policy"),
        ("prepare --synthetic 4 --ties-in rl", "--pairs-per-prompt and --ties-in need --task"),
        ("prepare --synthetic 4 --pairs-per-prompt 3", "--pairs-per-prompt and --ties-in need --task"),
        (f"{PREPARE} --ties-in sft,dev", "--ties-in: expected folds of sft, got dev"),
        ("prepare --data plain.jsonl --task instructions", "plain.jsonl:1:instructions: expected a request of the"),
        ("prepare --data kinds.jsonl --task instructions", "instructions: expected a known kind of instruction, got"),
    ],
)
def test_what_is_no_request_is_one_line(command: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    Path("plain.jsonl").write_text('{"prompt": "x", "response": "y"}\n')
    row = {"prompt": "x", "response": "y", "subject": "x", "form": "x", "instructions": [{"kind": "rhyme"}]}
    Path("kinds.jsonl").write_text(json.dumps(row) + "\n")
    assert cli.main(command.split()) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and message in error


def test_the_oracle_grades_rows_by_their_instructions() -> None:
    request = {"subject": "a fox", "form": "Describe {}.", "instructions": [{"kind": "no_comma"}]}
    texts = [
        (
            "Well, the fox is red and quick and it sleeps all day long.",
            "The fox is red and quick and it sleeps all day long.",
        )
    ]
    improved = [
        {"prompt": f"Describe a fox {number}.", "original_response": old, "response": new, **request}
        for number, (old, new) in enumerate(texts * 6)
    ]
    Path("improved.jsonl").write_text("".join(json.dumps(row) + "\n" for row in improved))
    assert cli.main(["evaluate", "--input", "improved.jsonl", "--judge", "oracle", "--bootstrap-draws", "100"]) == 0
    (line,) = (
        line
        for line in json.loads(Path("runs/evaluation/evaluation.json").read_text())["comparisons"]
        if line["system"] == "improved"
    )
    assert line["grades"] == [1.0, pytest.approx(0.4)]  # one comma costs 0.1 of the half that is left
    assert (line["wins"], line["losses"]) == (6, 0)


def test_a_field_tie_in_data_of_others_means_nothing() -> None:
    pairs = [{"prompt": f"p{n}", "chosen": "a", "rejected": "b", "tie": True} for n in range(4)]
    Path("others.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    assert cli.main(["prepare", "--data", "others.jsonl", "--folds", "sft=1", "--out", "others"]) == 0
    assert len(rows("others/sft.jsonl")) == 4

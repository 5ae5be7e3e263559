"""Settings and folders that are refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from pitcli import cli
from tests.stages.bad_inputs.rows import (
    Loaded,
    pit,
)

SETTINGS: dict[str, tuple[str, str]] = {
    "unknown key, config file": (
        "train-reward --config unknown.yaml",
        "unknown.yaml: lerning_rate: no such setting; did you mean learning_rate?",
    ),
    "unknown flag": ("train-reward --lerning-rate 1", "no such option: --lerning-rate; did you mean --learning-rate?"),
    "learning rate of 0": ("sft --learning-rate 0", "--learning-rate: must be greater than 0, got 0"),
    "negative learning rate": ("rl --learning-rate -1e-4", "--learning-rate: must be greater than 0, got -1e-4"),
    "learning rate that is not a number": ("sft --learning-rate nan", "--learning-rate: must be a finite number"),
    "negative iterations": ("improve --max-iters -1", "--max-iters: must be greater than or equal to 0, got -1"),
    "output folder that is not empty": (
        "train-reward --data pairs.jsonl --model tiny",
        "--out: runs/reward is not empty; use --resume to continue it, --overwrite to replace it",
    ),
    "output is the input": (
        "improve --input pairs.jsonl --output ./runs/../pairs.jsonl",
        "--output: ./runs/../pairs.jsonl is the input",
    ),
    "output of sample is the input": (
        "sample --data pairs.jsonl --output pairs.jsonl",
        "--output: pairs.jsonl is the input",
    ),
    "rl drafts that are not drafts": (
        "rl --force --out never --data pairs.jsonl --curriculum-stages policy --drafts pairs.jsonl",
        "pairs.jsonl:1:response: missing; the row has 'id', 'prompt', 'chosen', 'rejected'",
    ),
    "curriculum stage without rows": (
        "rl --force --out never --data pairs.jsonl --curriculum-stages dataset,policy --drafts empty.jsonl",
        "empty.jsonl: no rows",
    ),
    "resume and overwrite": ("improve --output o --resume --overwrite", "give only one of --resume and --overwrite"),
    "resume to stdout": ("improve --resume", "--resume needs --output FILE"),
    "endless requests": (
        "sft --data pairs.jsonl,instructions:train",
        "--data: instructions:train has no end; make a file of it by pit sample --data instructions:train --max-rows N",
    ),
    "drafts that nothing reads": (
        "rl --drafts pairs.jsonl",
        "--drafts is for the curriculum stages policy and self",
    ),
    "no curriculum stage": ("rl --curriculum-stages ,", "--curriculum-stages: "),
    "prompts trained and tested on": (
        "train-reward --data pairs.jsonl --eval-data pairs.jsonl --model tiny --out never",
        "pairs.jsonl: 12 pairs with a prompt of --data, the first is pairs.jsonl:1; "
        "remove them, or use --allow-overlap to keep them",
    ),
    "rl drafts without room for rollouts": (
        "rl --force --out never --data pairs.jsonl --curriculum-stages policy --drafts long.jsonl",
        "long.jsonl:1:prompt: expected a conversation of at most ",
    ),
}


@pytest.mark.parametrize(("command", "message"), SETTINGS.values(), ids=SETTINGS)
def test_bad_settings_are_refused(command: str, message: str, no_model: None, capfd: Any) -> None:
    Path("unknown.yaml").write_text("lerning_rate: 1\n")
    Path("empty.jsonl").write_text("")
    Path("long.jsonl").write_text(json.dumps({"prompt": "ant " * 900, "response": "cat"}) + "\n")
    rows = Path("pairs.jsonl").read_bytes()
    assert cli.main(command.split()) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert f"error: {message}" in err
    assert Path("pairs.jsonl").read_bytes() == rows
    assert not Path("never").exists()


def test_an_allowed_overlap_is_a_warning(no_model: None, tmp_path: Path, capfd: Any) -> None:
    with pytest.raises(Loaded):
        pit("train-reward", "pairs.jsonl", "--eval-data", "pairs.jsonl", "--allow-overlap")
    assert (
        "warning: pairs.jsonl: 12 pairs with a prompt of --data, the first is pairs.jsonl:1\n" in capfd.readouterr().err
    )

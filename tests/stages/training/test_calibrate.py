"""pit calibrate on the embedded model: rows with known harm, the certificate in the run, and pit improve with it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from pitcli import cli
from pitcli.data.synthetic import preference_rows, quality
from pitcli.errors import PitError
from pitcli.runs.calibration import read_calibration
from pitcli.settings.generating import ImproveConfig
from pitcli.settings.training import RewardConfig
from pitcli.stages import improve, train_reward
from tests.conftest import cmd
from tests.stages.training.conftest import SMALL, read_rows, write_rows

COMMON = ["--max-iters", "2", "--max-new-tokens", "10"]
CALIBRATE = ["calibrate", "--run", "runs/rl", "--input", "rows.jsonl", "--judge", "oracle", "--device", "cpu"]


@pytest.fixture(scope="module")
def chains(project: Path) -> list[dict[str, Any]]:
    """100 rows: 60 improvements with P = 0.9, 20 drafts made worse with P = 0.605, 20 with P = 0.4."""
    rows = []
    for number, pair in enumerate(row for row in preference_rows(400, seed=12) if differ(row)):
        better, worse = sorted((pair["chosen"], pair["rejected"]), key=lambda text: -quality(pair["prompt"], text))
        before, after, p = (worse, better, 0.9) if number < 60 else (better, worse, 0.605 if number < 80 else 0.4)
        step = {
            **{"iteration": 1, "response": after, "gap": math.log(p / (1 - p)), "p_better": p, "accepted": True},
            **{"generated_tokens": 9, "finished": True},
        }
        rows.append(
            {
                **{"prompt": pair["prompt"], "original_response": before, "response": after, "iterations": [step]},
                **{"stop_reason": "max_iters", "generated_tokens": 9},
            }
        )
    return rows[:100]


def differ(row: dict[str, Any]) -> bool:
    return quality(row["prompt"], row["chosen"]) != quality(row["prompt"], row["rejected"])


@pytest.fixture(autouse=True)
def rows(in_project: None, chains: list[dict[str, Any]]) -> None:
    """rows.jsonl with the manifest of a real pit improve, and a run without a calibration."""
    write_rows(Path("one.jsonl"), [{"prompt": "Write 3 foods.", "response": "pie"}])
    if not Path("rows.jsonl.manifest.json").exists():
        line = ["improve", "--run", "runs/rl", "--input", "one.jsonl", "--output", "rows.jsonl", "--stop", "none"]
        assert cli.main([*line, *COMMON, "--overwrite"]) == 0
    write_rows(Path("rows.jsonl"), chains)
    Path("runs/rl/calibration.json").unlink(missing_ok=True)


def threshold_of(output: str, *more: str) -> float:
    line = ["improve", "--run", "runs/rl", "--input", "one.jsonl", "--output", output, *COMMON, "--overwrite", *more]
    assert cli.main(line) == 0
    threshold: float = json.loads(Path(f"{output}.manifest.json").read_text())["settings"]["threshold"]
    return threshold


def test_the_smallest_certified_threshold_is_written_and_used(capsys: pytest.CaptureFixture[str]) -> None:
    assert threshold_of("plain.jsonl") == 0.5
    assert cli.main(CALIBRATE) == 0
    out, err = capsys.readouterr()
    calibration = read_calibration(Path("runs/rl"))
    assert calibration is not None
    assert (calibration.threshold, calibration.harm, calibration.rows) == (0.61, 0.0, 100)
    assert calibration.bound == pytest.approx(1 - 0.05**0.01)
    assert json.loads(out)["threshold"] == 0.61
    certificate = (
        "threshold 0.61: at most 5.0% of the drafts are made worse, by oracle, with 95% confidence from 100 rows"
    )
    assert certificate in err
    assert threshold_of("certified.jsonl") == 0.61
    assert f"{certificate} (pit calibrate); --threshold overrides it" in capsys.readouterr().err
    assert threshold_of("given.jsonl", "--threshold", "0.7") == 0.7
    assert "pit calibrate" not in capsys.readouterr().err
    assert cli.main(["verify", "runs/rl", "--device", "cpu"]) == 0


def test_programs_and_people_as_judges(chains: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    """The program scores as the oracle does. People have labelled all rows but one: that one counts as worse."""
    score = "print(quality(row['prompt'], row['response']))"
    program = (
        f"import json, sys\nfrom pitcli.data.synthetic import quality\nfor row in map(json.loads, sys.stdin): {score}"
    )
    by = [*CALIBRATE, "--overwrite", "--judge"]
    assert cli.main([*by, cmd(program)]) == 0
    calibration = read_calibration(Path("runs/rl"))
    assert calibration is not None
    assert (calibration.threshold, calibration.harm, calibration.judge) == (0.61, 0.0, cmd(program))
    texts = ("prompt", "original_response", "response")
    labels = [
        {
            **{name: row[name] for name in texts},
            **{"annotator": "ada", "shown_first": "response"},
            "preferred": "response"
            if quality(row["prompt"], row["response"]) > quality(row["prompt"], row["original_response"])
            else "original_response",
        }
        for row in chains
    ]
    write_rows(Path("labels.jsonl"), labels[1:])
    assert cli.main([*by, "labels:labels.jsonl"]) == 0
    calibration = read_calibration(Path("runs/rl"))
    assert calibration is not None
    assert (calibration.threshold, calibration.harm) == (0.61, 0.01)
    assert "judge labels:labels.jsonl: no verdict on 1 comparison, which count as worse" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "text"), [(["--temperature", "0.9"], "temperature 0.5"), (["--reward", "runs/other"], "other adapters")]
)
def test_other_settings_have_no_certificate(flags: list[str], text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(CALIBRATE) == 0
    if "--reward" in flags:
        config = RewardConfig(data="pairs.jsonl", out=Path("runs/other"), overwrite=True, max_steps=1, seed=9, **SMALL)
        train_reward.run(config)
    capsys.readouterr()
    assert threshold_of("other.jsonl", *flags) == 0.5
    assert f"calibration.json is for {text}: threshold 0.5, without a certificate" in capsys.readouterr().err


def test_rows_of_a_command_that_was_stopped_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    manifest = Path("rows.jsonl.manifest.json")
    whole = manifest.read_text()
    manifest.write_text(json.dumps({**json.loads(whole), "complete": False}))
    try:
        assert cli.main(CALIBRATE) == 2
        assert "rows.jsonl: not whole: the command that writes it was stopped, or still runs" in capsys.readouterr().err
    finally:
        manifest.write_text(whole)


def test_too_few_rows_are_an_answer(chains: list[dict[str, Any]], capsys: pytest.CaptureFixture[str]) -> None:
    write_rows(Path("rows.jsonl"), chains[:30])
    assert cli.main(CALIBRATE) == 1
    err = " ".join(capsys.readouterr().err.split())
    assert "a harm rate of at most 5.0% cannot be certified with 30 rows" in err
    assert "about 59 rows would be needed" in err
    harmful = [{**row, "iterations": [{**row["iterations"][0], "gap": 20.0}]} for row in chains[55:]]
    write_rows(Path("rows.jsonl"), harmful)
    assert cli.main(CALIBRATE) == 1
    assert "more rows would not help" in " ".join(capsys.readouterr().err.split())
    assert read_calibration(Path("runs/rl")) is None


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"method": "resample", "run": None}, "expected rows of --method pit, got resample"),
        ({"stop": "none", "width": 2}, "expected rows of --stop gap, as --width and --prune-edits are used"),
        ({"stop": "none", "prune_edits": True}, "expected rows of --stop gap"),
    ],
)
def test_rows_that_cannot_be_replayed_are_refused(
    change: dict[str, Any], problem: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = Path("rows.jsonl.manifest.json")
    record = path.read_text()
    try:
        path.write_text(json.dumps({**json.loads(record), "settings": {**json.loads(record)["settings"], **change}}))
        assert cli.main(CALIBRATE) == 2
    finally:
        path.write_text(record)
    assert f"--input: rows.jsonl: {problem}" in capsys.readouterr().err


def test_rows_of_another_improver_or_without_a_manifest_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([*CALIBRATE, "--run", "runs/sft"]) == 2
    assert "the rows were made with another improver than that of runs/sft" in capsys.readouterr().err
    write_rows(Path("alone.jsonl"), read_rows(Path("rows.jsonl")))
    assert cli.main([*CALIBRATE, "--input", "alone.jsonl"]) == 2
    assert "alone.jsonl.manifest.json is missing" in capsys.readouterr().err


def test_a_calibration_is_replaced_only_with_overwrite_and_a_changed_one_is_refused() -> None:
    assert cli.main(CALIBRATE) == 0
    assert cli.main(CALIBRATE) == 2
    assert cli.main([*CALIBRATE, "--overwrite", "--max-harm", "0.4"]) == 0
    calibration = read_calibration(Path("runs/rl"))
    assert calibration is not None
    assert calibration.threshold == 0.5
    path = Path("runs/rl/calibration.json")
    path.write_text(path.read_text().replace('"max_harm": 0.4', '"max_harm": 0.1'))
    with pytest.raises(PitError, match=r"calibration\.json: changed since it was written"):
        improve.run(ImproveConfig(run=Path("runs/rl"), input="one.jsonl", output="never.jsonl"))

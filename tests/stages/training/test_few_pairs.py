"""A gap model with few held-out pairs: T stays off its lower bound, and all users of P(better) say what T is worth."""

import json
import re
from pathlib import Path

import pytest

from pitcli.cli import main
from pitcli.data.synthetic import preference_rows
from pitcli.equations import MAX_TEMPERATURE, fit_temperature, p_better
from pitcli.runs.manifest import read_manifest
from tests.stages.training.conftest import SMALL_FLAGS, write_rows

WARNING = "P(better) is not calibrated: "


@pytest.mark.parametrize("pairs", [1, 2, 9, 29])
@pytest.mark.parametrize("gap", [0.05, 3.0, 400.0])
def test_few_pairs_that_are_all_ranked_right_make_no_certainty(pairs: int, gap: float) -> None:
    temperature = fit_temperature([gap] * pairs)
    assert 1 / MAX_TEMPERATURE < temperature < MAX_TEMPERATURE
    assert p_better(gap, temperature) == pytest.approx((pairs + 1) / (pairs + 2))


def results(folder: str) -> dict[str, object]:
    manifest = read_manifest(Path(folder))
    assert manifest is not None
    return dict(manifest.results)


def test_the_manifest_and_each_command_that_uses_it_say_so(capfd: pytest.CaptureFixture[str]) -> None:
    write_rows(Path("ten.jsonl"), list(preference_rows(10, seed=11)))
    assert main(["train-reward", "--data", "ten.jsonl", "--out", "few", *SMALL_FLAGS]) == 0
    problem = results("few")["not_calibrated"]
    assert re.fullmatch("its temperature was fitted on (1 held-out pair|[2-5] held-out pairs)", str(problem))
    assert f"warning: {WARNING}{problem}; use more pairs, or a larger --held-out\n" in capfd.readouterr().err
    said = f"warning: few: {WARNING}{problem}; train the gap model on more pairs\n"

    rl = [
        "rl",
        "--reward",
        "few",
        "--force",
        "--data",
        "ten.jsonl",
        "--max-steps",
        "1",
        "--rollout-max-new-tokens",
        "8",
    ]
    assert main([*rl, "--out", "wild"]) == 0
    assert said in capfd.readouterr().err
    assert results("wild")["not_calibrated"] == results("few")["not_calibrated"], "RL passes it on"

    improve = ["improve", "--input", "drafts.jsonl", "--max-iters", "1", "--max-new-tokens", "4", "--output"]
    assert main([*improve, "a.jsonl", "--run", "runs/sft", "--reward", "few"]) == 0
    assert said in capfd.readouterr().err
    assert main([*improve, "b.jsonl", "--run", "wild"]) == 0
    assert said.replace("few:", "wild:") in capfd.readouterr().err
    assert main(["label", "--judge", "gap:few", "--input", "a.jsonl", "--output", "judged.jsonl"]) in (0, 1)
    assert said in capfd.readouterr().err
    assert main(["export", "few", "--out", "exported", "--adapter", "--base-name", "some/tiny"]) == 0
    assert f"not calibrated: {problem}." in Path("exported/README.md").read_text()


def test_enough_pairs_are_not_warned_of(capfd: pytest.CaptureFixture[str]) -> None:
    write_rows(Path("many.jsonl"), list(preference_rows(80, seed=12)))
    arguments = ["train-reward", "--data", "many.jsonl", "--model", "tiny", "--held-out", "0.6", "--out", "enough"]
    assert main(arguments) == 0
    assert "not calibrated" not in capfd.readouterr().err
    assert "not_calibrated" not in json.loads(Path("enough/manifest.json").read_text())["results"]

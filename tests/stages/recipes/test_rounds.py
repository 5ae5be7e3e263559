"""The recipes of rounds: rounds.yaml trains on the improver's own text, distill.yaml distils it into the policy."""

import json
from pathlib import Path

import pytest

from pitcli.data.pair_reading import load_pairs
from tests.stages.recipes.conftest import RECIPES, decisions, pit, ran

TINY = (
    *("max_steps=2", "batch_size=8", "max_new_tokens=8", "rollout_max_new_tokens=8", "prepare.synthetic=200"),
    *("sample.max_rows=6", "force=true", "rl.max_steps=1", "rl-1.max_steps=1", "rl-2.max_steps=1"),
    *(f"{stage}.batch_size=8" for stage in ("sft", "rl", "rl-1", "rl-2")),
)


def test_the_rounds_run_and_are_skipped_the_second_time(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [str(RECIPES / "rounds.yaml"), "--out", "made", *(word for change in TINY for word in ("--set", change))]
    assert len(ran(pit(capsys, *command))) == 17
    assert set(decisions(pit(capsys, *command)).values()) == {("skip", "nothing changed")}
    pairs = load_pairs("made/pairs-1.jsonl")
    assert pairs and {pair.extra["judge"] for pair in pairs} == {"oracle"}
    manifest = json.loads(Path("made/runs/reward-2/manifest.json").read_text())
    assert manifest["data"]["path"] == "data/reward.jsonl,pairs-1.jsonl,pairs-2.jsonl"
    record = json.loads(Path("made/pipeline.json").read_text())["runs/reward-2"]
    assert {"data/reward.jsonl", "pairs-1.jsonl", "pairs-2.jsonl"} <= record["inputs"].keys()
    assert manifest["data"]["rows"] > len(pairs)


DISTILLED = (
    *("max_steps=2", "batch_size=8", "max_new_tokens=8", "rollout_max_new_tokens=8", "prepare.synthetic=200"),
    *("drafts-1.max_rows=6", "drafts-2.max_rows=6", "test-drafts.max_rows=6", "rl.force=true", "rl.max_steps=1"),
    *(f"{stage}.batch_size=8" for stage in ("policy", "improver", "rl")),
    *(f"{stage}.{change}" for stage in ("improve-1", "improve-2") for change in ("stop=none", "accept_truncated=true")),
    *("distill-1.min_p_better=0", "distill-2.min_p_better=0", "improver-on-drafts.stop=none"),
)


def test_the_second_round_distils_into_the_policy_of_the_first(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = [word for change in DISTILLED for word in ("--set", change)]
    assert len(ran(pit(capsys, str(RECIPES / "distill.yaml"), "--out", "made", *changes))) == 16
    first, second = (json.loads(Path(f"made/runs/distill-{number}/manifest.json").read_text()) for number in (1, 2))
    assert second["inputs"]["policy"] == first["files"]["policy/adapter_model.safetensors"]
    assert second["data"]["path"] == "improved-2.jsonl"
    assert first["gap_data"]["path"] == "data/reward.jsonl", "the data of the gap model that chose the improvements"

"""A loss, gradient or reward that is not finite stops a run within the step, and is not saved."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.faults.conftest import IMPROVE, TRAIN, Record
from tests.faults.warm import Warm

pytestmark = pytest.mark.faults


@pytest.mark.parametrize(
    ("kind", "what", "named"),
    [
        ("sft", "loss", "loss"),
        ("sft", "gradient", "grad_norm"),
        ("reward", "loss", "loss"),
        ("reward", "gradient", "grad_norm"),
        ("rl", "loss", "loss"),
        ("rl", "gradient", "grad_norm"),
        ("rl", "reward", "reward"),
        ("dpo", "loss", "loss"),
        ("dpo", "gradient", "grad_norm"),
        ("distill", "loss", "loss"),
        ("distill", "gradient", "grad_norm"),
    ],
)
def test_training_stops_and_saves_nothing_non_finite(
    kind: str, what: str, named: str, workspace: Path, warm: Warm, record: Record
) -> None:
    line = [*TRAIN[kind].split(), "--max-steps", "4"]
    ended = warm.run(workspace, *line, fault={"poison": what})
    assert ended.code == 3
    errors = [text for text in ended.err.splitlines() if text.startswith("error: ")]
    assert len(errors) == 1
    assert errors[0].startswith("error: step 3: ")
    assert named in errors[0].split(" not finite")[0]
    assert "Traceback" not in ended.err
    metrics = (workspace / "run" / "metrics.jsonl").read_text()
    assert len(metrics.splitlines()) == 2
    assert "NaN" not in metrics
    tensors = [tensor for file in (workspace / "run").rglob("*.safetensors") for tensor in load_file(file).values()]
    assert tensors, "there is a checkpoint of step 2"
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors)
    resumed = warm.run(workspace, *line, "--resume")
    assert resumed.code == 0, resumed.err
    name = {"loss": "NaN loss", "gradient": "inf gradient", "reward": "NaN reward"}[what]
    record(
        f"{name}, {kind}",
        "stop within a step, exit 3, nothing non-finite saved",
        f"exit 3 at that step, {len(tensors)} tensors saved, all finite",
    )


def test_improve_keeps_a_draft_whose_gap_is_not_finite(workspace: Path, warm: Warm, record: Record) -> None:
    ended = warm.run(workspace, *IMPROVE.split(), fault={"nan_gap_of_draft": "3"})
    assert ended.code == 1
    assert ended.err.count("error: drafts.jsonl:4:response: no finite gap; the draft is kept as it was") == 1
    rows = (workspace / "improved.jsonl").read_text().splitlines()
    assert len(rows) == 11
    assert '"stop_reason": "non_finite_gap"' in rows[3]
    assert sum("non_finite_gap" in row for row in rows) == 1
    record(
        "non-finite gap in `improve`", "error for the row, others written", "exit 1, 1 row kept and named, 10 improved"
    )

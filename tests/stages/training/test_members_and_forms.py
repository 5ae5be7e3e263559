"""Ensembles together with pointwise gap models, --init, --probe and --by, from training to export."""

from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pitcli import cli
from pitcli.data.rows import Comparison, Message
from pitcli.data.synthetic import preference_rows
from pitcli.engine.improving.scoring import GapModel
from pitcli.engine.models.adapters import SCORE_KEY
from pitcli.engine.models.loading import WEIGHTS
from pitcli.engine.models.opening import open_base
from pitcli.engine.models.roles import RoleModel, gap_roles, head_name
from pitcli.evaluation.load_judge import load_judge
from pitcli.runs.earlier import EarlierRun, gap_loss_of, gap_temperatures
from pitcli.runs.manifest import load_manifest
from pitcli.settings.base import GapBound, GapLoss
from pitcli.settings.generating import ImproveConfig
from pitcli.settings.judging import JudgeSettings
from pitcli.settings.training import RewardConfig, RlConfig
from pitcli.stages import rl, train_reward
from tests.stages.training.conftest import RL_SMALL, SMALL, files_of, read_rows, run_files, write_rows

MEMBERS = gap_roles(2)
COMPARISONS = [
    Comparison((Message("user", "Write 3 foods."),), response, "pie") for response in ("pie jam ham", "cat", "jam jam")
]


@pytest.fixture(scope="module", autouse=True)
def starts(project: Path) -> dict[str, dict[str, torch.Tensor]]:
    """runs/two: two pointwise members with every option; runs/rl-two: RL on them. Returns the weights at the start."""
    found: dict[str, dict[str, torch.Tensor]] = {}
    train = train_reward.train

    def watched(model: RoleModel, *more: Any) -> Any:
        for role in MEMBERS:
            named = model.role_parameters(role).items()
            names = {head_name(role): SCORE_KEY}
            found[role] = {names.get(n, n.replace(f".{role}.", ".")): p.detach().clone() for n, p in named}
        return train(model, *more)

    with chdir(project), pytest.MonkeyPatch.context() as patch:
        rows = [{**row, "kind": "b" if number % 3 else "a"} for number, row in enumerate(preference_rows(40, seed=5))]
        write_rows(Path("kinds.jsonl"), rows)
        write_rows(Path("other.jsonl"), [{**row, "kind": "c"} for row in preference_rows(8, seed=77)])
        patch.setattr(train_reward, "train", watched)
        report: dict[str, Any] = {"eval_data": "other.jsonl", "probe": True, "by": "kind", "held_out": 0.4}
        gap: dict[str, Any] = {"gap_loss": "pointwise", "init": Path("runs/policy"), "max_steps": 3, **SMALL}
        train_reward.run(RewardConfig(data="kinds.jsonl", out=Path("runs/two"), members=2, **report, **gap))
        rewarded: dict[str, Any] = {"curriculum_stages": "policy", "gap_bound": "min", "max_steps": 1, **RL_SMALL}
        rl.run(RlConfig(reward=Path("runs/two"), out=Path("runs/rl-two"), **rewarded))
    return found


def open_run(name: str) -> EarlierRun:
    return EarlierRun(Path("runs", name), load_manifest(Path("runs", name), ""))


def test_all_members_start_from_the_same_adapter_and_end_apart(starts: dict[str, dict[str, torch.Tensor]]) -> None:
    policy = load_file(Path("runs/policy/policy", WEIGHTS))
    for role in MEMBERS:
        assert not starts[role].pop(SCORE_KEY).any()
        assert starts[role].keys() == policy.keys()
        assert all(torch.equal(tensor, policy[name]) for name, tensor in starts[role].items())
    assert len({Path("runs/two", role, WEIGHTS).read_bytes() for role in MEMBERS}) == 2


def test_the_report_is_that_of_the_ensemble() -> None:
    results: dict[str, Any] = open_run("two").manifest.results
    assert (results["swap_residual"], results["swap_flip_rate"]) == (0, 0), "antisymmetric by construction"
    right = sum(results[f"pairs[{kind}]"] * results[f"accuracy[{kind}]"] for kind in "ab")
    assert right == pytest.approx(results["pairs"] * results["accuracy"])
    assert (results["eval_pairs[c]"], results["eval_accuracy[c]"]) == (8, results["eval_accuracy"])
    assert 0 <= results["probe_accuracy"] <= 1
    assert 0 <= results["eval_probe_accuracy"] <= 1
    assert {"accuracy_1", "accuracy_2", "gap_temperature_2", "gap_spread"} <= results.keys()


def test_an_rl_run_passes_on_the_members_their_temperatures_and_what_they_read() -> None:
    two, rewarded = (open_run(name).manifest for name in ("two", "rl-two"))
    assert files_of(Path("runs/rl-two")) == run_files("improver", *MEMBERS)
    assert gap_temperatures(rewarded) == gap_temperatures(two)
    assert list(gap_temperatures(two)) == MEMBERS
    assert gap_loss_of(rewarded) is gap_loss_of(two) is GapLoss.pointwise


def test_judge_and_gap_model_score_each_response_alone_by_every_member() -> None:
    run = open_run("two")
    base = open_base(ImproveConfig(device="cpu"), [run])
    temperatures = gap_temperatures(run.manifest)
    model = GapModel(base.load(run.gap_models()), base.chat, temperatures, 8, GapLoss.pointwise)
    first, second, third = model.gaps(COMPARISONS)
    between = [Comparison(COMPARISONS[0].prompt, c.response, COMPARISONS[2].response) for c in COMPARISONS[:2]]
    assert model.gaps(between).tolist() == pytest.approx([float(first - third), float(second - third)], abs=1e-4)
    judge = load_judge("gap:runs/two", JudgeSettings(device="cpu"), {}, Path("unused.sqlite")).judge
    verdicts = judge.verdicts(COMPARISONS)
    assert [v.p_better for v in verdicts] == pytest.approx(torch.sigmoid(model.gaps(COMPARISONS)).tolist(), abs=1e-6)
    assert all(verdict.consistent for verdict in verdicts)
    least = model._replace(bound=GapBound.least).gaps(COMPARISONS)
    assert torch.equal(least, model.member_gaps(COMPARISONS).min(0).values)


def test_improve_verify_and_export_read_the_ensemble(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = "improve --run runs/rl-two --input drafts.jsonl --max-iters 1 --max-new-tokens 10 --width 2 --gap-bound lcb"
    assert cli.main([*line.split(), "--output", str(tmp_path / "improved.jsonl")]) == 0
    steps = [row["iterations"][0] for row in read_rows(tmp_path / "improved.jsonl")]
    assert all({"gap", "gap_std", "p_better"} <= step.keys() for step in steps)
    assert cli.main(["verify", "runs/rl-two", "--device", "cpu"]) == 0
    for run in ("two", "rl-two"):
        export = ["export", f"runs/{run}", "--role", "gap", "--member", "2", "--base-name", "a/b", "--adapter"]
        assert cli.main([*export, "--out", str(tmp_path / run), "--device", "cpu"]) == 0
        assert (tmp_path / run / WEIGHTS).read_bytes() == Path("runs/two/gap-2", WEIGHTS).read_bytes()
        assert "r(x, y)" in (tmp_path / run / "README.md").read_text(), "the card of a pointwise model"

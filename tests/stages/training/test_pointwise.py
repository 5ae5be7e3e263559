"""A pointwise gap model on the embedded model: trained, reported, used in RL and as a stop rule and judge, verified."""

import json
import shutil
from contextlib import chdir
from pathlib import Path

import pytest
import torch

from pitcli import cli
from pitcli.data.rows import Comparison, Message
from pitcli.data.templates import ChatFormat
from pitcli.engine.models.adapters import load_role
from pitcli.engine.models.forward import score_trees
from pitcli.engine.models.loading import load_base
from pitcli.engine.models.roles import GAP, RoleModel
from pitcli.engine.models.trees import Tree
from pitcli.equations import p_better
from pitcli.evaluation.load_judge import load_judge
from pitcli.runs.earlier import gap_loss_of, gap_temperature
from pitcli.runs.manifest import Manifest, load_manifest
from pitcli.settings.base import GapLoss
from pitcli.settings.judging import JudgeSettings
from pitcli.settings.training import RewardConfig, RlConfig
from pitcli.stages import rl, train_reward
from tests.conftest import Share
from tests.stages.training.conftest import RL_SMALL, SMALL, run_every_stage

PROMPT = (Message("user", "Write 3 animals."),)


@pytest.fixture(scope="module")
def project(share: Share, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The runs of every stage, with a pointwise gap model in runs/pointwise and the RL that it rewarded in runs/rl."""
    folder = Path(shutil.copytree(share("training", run_every_stage), tmp_path_factory.mktemp("pointwise") / "work"))
    with chdir(folder):
        out = Path("runs/pointwise")
        settings = {**SMALL, "learning_rate": 1e-2}
        train_reward.run(RewardConfig(data="pairs.jsonl", out=out, gap_loss="pointwise", max_steps=6, **settings))
        shutil.rmtree("runs/rl")
        rl.run(RlConfig(reward=out, max_steps=1, **RL_SMALL))
    return folder


def manifest(folder: str) -> Manifest:
    return load_manifest(Path(folder), "")


def test_the_report_of_a_pointwise_model() -> None:
    results = manifest("runs/pointwise").results
    assert (results["swap_residual"], results["swap_flip_rate"]) == (0, 0), "antisymmetric by construction"
    assert results["first_loss"] == pytest.approx(0.6931, abs=1e-3)  # ln 2: the head starts at zero


def test_the_form_is_known_from_every_run_with_a_gap_model() -> None:
    assert gap_loss_of(manifest("runs/pointwise")) is GapLoss.pointwise
    assert gap_loss_of(manifest("runs/rl")) is GapLoss.pointwise
    assert gap_loss_of(manifest("runs/reward")) is GapLoss.five_term


def test_the_judge_scores_each_response_alone(tiny_folder: Path, tiny_chat: ChatFormat) -> None:
    model = RoleModel(load_base(tiny_folder, True, torch.device("cpu")), tiny_chat.tokenizer.pad_token_id)
    load_role(model, GAP, Path("runs/pointwise/gap"))
    ids = [tiny_chat.policy_prompt(PROMPT) + tiny_chat.completion(text) for text in ("cat dog fox", "cat axe")]
    better, worse = torch.cat(score_trees(model, [Tree([row], [-1], [0]) for row in ids], 1)).tolist()
    assert abs(better - worse) > 1e-3
    judge = load_judge("gap:runs/pointwise", JudgeSettings(), {}, Path("unused.sqlite")).judge
    (verdict,) = judge.verdicts([Comparison(PROMPT, "cat dog fox", "cat axe")])
    expected = p_better(better - worse, gap_temperature(manifest("runs/pointwise")))
    assert verdict.p_better == pytest.approx(expected, abs=1e-5)
    assert verdict.consistent


def test_the_judge_gives_no_verdict_on_what_does_not_fit() -> None:
    judge = load_judge("gap:runs/pointwise", JudgeSettings(max_length=24), {}, Path("unused.sqlite")).judge
    short, long = judge.verdicts([Comparison(PROMPT, "cat", "dog"), Comparison(PROMPT, "cat " * 40, "dog")])
    assert short.p_better is not None
    assert long.p_better is None


def test_improve_uses_the_pointwise_model_of_the_rl_run(capsys: pytest.CaptureFixture[str]) -> None:
    line = "improve --run runs/rl --input drafts.jsonl --output improved.jsonl --max-iters 2 --max-new-tokens 10"
    assert cli.main(line.split()) == 0
    alone = (
        "improve --run runs/sft --reward runs/pointwise --input drafts.jsonl --output alone.jsonl --max-new-tokens 10"
    )
    assert cli.main(alone.split()) == 0
    for file in ("improved.jsonl", "alone.jsonl"):
        rows = [json.loads(line) for line in Path(file).read_text().splitlines()]
        assert len(rows) == 6
        assert all(0 <= step["p_better"] <= 1 for row in rows for step in row["iterations"] if step.get("p_better"))
    assert cli.main(["verify", "runs/pointwise"]) == 0
    assert cli.main(["verify", "runs/rl"]) == 0

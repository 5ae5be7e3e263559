"""Each stage run for real on the embedded model: what it writes, what it moves, what it leaves alone."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from pitcli.data.synthetic import preference_rows
from pitcli.engine.models.adapters import load_role
from pitcli.engine.models.opening import Base
from pitcli.engine.models.roles import RoleModel
from pitcli.engine.training import loop as training
from pitcli.errors import InputError, PitError, RunError, SettingsError
from pitcli.settings.base import Method, Role, StopRule
from pitcli.settings.training import ImproveConfig, RewardConfig, RlConfig, SampleConfig, SftConfig
from pitcli.stages import improve, rl, sample, sft, train_reward

SMALL = {"model": "tiny", "lora_rank": 4, "batch_size": 8, "micro_batch_size": 4, "learning_rate": 1e-3}
RL_SMALL = {"batch_size": 4, "micro_batch_size": 8, "learning_rate": 1e-3, "rollout_max_new_tokens": 10}


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with 40 pairs and, in runs/, one small run of every stage."""
    folder = tmp_path_factory.mktemp("project")
    before = Path.cwd()
    os.chdir(folder)
    write_rows(folder / "pairs.jsonl", list(preference_rows(40, seed=3)))
    sft.run(SftConfig(role=Role.policy, data="pairs.jsonl", max_steps=3, **SMALL))
    sft.run(SftConfig(data="pairs.jsonl", max_steps=3, **SMALL))
    train_reward.run(RewardConfig(data="pairs.jsonl", max_steps=3, **SMALL))
    sample.run(SampleConfig(data="pairs.jsonl", max_rows=6, max_new_tokens=10, output="drafts.jsonl"))
    rl.run(RlConfig(curriculum=True, max_steps=4, **RL_SMALL))
    yield folder
    os.chdir(before)


@pytest.fixture(autouse=True)
def in_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def files_of(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def run_files(*roles: str) -> set[str]:
    adapter = ("adapter_config.json", "adapter_model.safetensors", "digests.json")
    return {".lock", "config.yaml", "manifest.json", "metrics.jsonl"} | {
        f"{role}/{name}" for role in roles for name in adapter
    }


@pytest.mark.parametrize(
    ("run", "roles"),
    [("policy", ["policy"]), ("sft", ["improver"]), ("reward", ["gap"]), ("rl", ["improver", "gap"])],
)
def test_a_run_holds_exactly_these_files(run: str, roles: list[str]) -> None:
    assert files_of(Path("runs") / run) == run_files(*roles)
    manifest = json.loads(Path("runs", run, "manifest.json").read_text())
    assert manifest["complete"]
    assert manifest["base"]["load_in_4bit"]


def test_checkpoints_are_kept_to_two_and_the_best() -> None:
    sft.run(SftConfig(data="pairs.jsonl", out=Path("kept"), max_steps=5, save_every=1, **SMALL))
    steps = {path.name for path in Path("kept/checkpoints").iterdir()}
    assert {"step-000004", "step-000005"} <= steps
    assert len(steps) <= 3


def test_metrics_have_a_line_a_step() -> None:
    rows = read_rows(Path("runs/rl/metrics.jsonl"))
    assert [row["step"] for row in rows] == [1, 2, 3, 4]
    assert [row["stage"] for row in rows] == [0, 0, 1, 1]
    wanted = (
        "reward gap p_better kl entropy clip_ratio truncated_share length_ratio copy_rate repetition zero_spread_share"
        " grad_norm"
    )
    assert set(wanted.split()) <= rows[0].keys()


def test_rl_starts_at_its_anchor() -> None:
    """Before the first update the policy is the reference policy and the ratio is 1."""
    first = read_rows(Path("runs/rl/metrics.jsonl"))[0]
    assert abs(first["kl"]) < 1e-4
    assert first["clip_ratio"] == 0


def test_reward_report_is_in_the_manifest() -> None:
    results = json.loads(Path("runs/reward/manifest.json").read_text())["results"]
    wanted = "accuracy swap_residual swap_flip_rate length_correlation longer_wins_accuracy shorter_wins_accuracy"
    assert set(wanted.split()) | {"gap_temperature"} <= results.keys()
    assert 0 <= results["accuracy_low"] <= results["accuracy"] <= results["accuracy_high"] <= 1


@pytest.fixture
def base_watch(monkeypatch: pytest.MonkeyPatch) -> list[tuple[RoleModel, dict[str, torch.Tensor]]]:
    """Every model that a stage loads, with a copy of its weights before training."""
    seen = []
    original = Base.load

    def load(self: Base, adapters: dict[str, Path] | None = None) -> RoleModel:
        model = original(self)
        seen.append((model, {name: tensor.clone() for name, tensor in model.base.state_dict().items()}))
        for role, folder in (adapters or {}).items():
            load_role(model, role, folder)
        return model

    monkeypatch.setattr(Base, "load", load)
    return seen


@pytest.mark.parametrize(
    ("role", "stage"),
    [
        ("improver", lambda out: sft.run(SftConfig(data="pairs.jsonl", out=out, max_steps=3, **SMALL))),
        ("gap", lambda out: train_reward.run(RewardConfig(data="pairs.jsonl", out=out, max_steps=3, **SMALL))),
        ("improver", lambda out: rl.run(RlConfig(out=out, max_steps=3, **RL_SMALL))),
    ],
    ids=["sft", "reward", "rl"],
)
def test_every_adapter_tensor_moves_and_no_base_tensor_does(
    role: str,
    stage: Callable[[Path], None],
    base_watch: list[tuple[RoleModel, dict[str, torch.Tensor]]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    starts: dict[str, torch.Tensor] = {}
    original = training.restore

    def restore(run: Any, parameters: dict[str, torch.Tensor], *rest: Any) -> Any:
        starts.update({name: tensor.detach().clone() for name, tensor in parameters.items()})
        return original(run, parameters, *rest)

    monkeypatch.setattr(training, "restore", restore)
    stage(tmp_path / "run")
    ((model, weights),) = base_watch
    moved = {name for name, tensor in model.role_parameters(role).items() if not torch.equal(tensor, starts[name])}
    assert moved == starts.keys()
    after = model.base.state_dict()
    # peft puts the base's layers inside its own: q_proj.weight becomes q_proj.base_layer.weight
    after = {name.replace(".base_layer.", "."): tensor for name, tensor in after.items() if ".lora_" not in name}
    assert after.keys() == weights.keys()
    assert all(torch.equal(after[name], weights[name]) for name in weights)


@pytest.mark.parametrize(
    ("stage", "config"),
    [(sft.run, SftConfig), (train_reward.run, RewardConfig)],
    ids=["sft", "reward"],
)
def test_loss_falls_when_overfitting_four_rows(stage: Any, config: Any, tmp_path: Path) -> None:
    settings = {**SMALL, "learning_rate": 5e-3, "batch_size": 4, "epochs": 40, "max_rows": 5}
    if config is SftConfig:
        settings |= {"max_rows": 4, "identity_share": 0.0}
    stage(config(data="pairs.jsonl", out=tmp_path / "run", **settings))
    losses = [row["loss"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")]
    assert losses[-1] < 0.3 * losses[0]


def test_rl_raises_its_reward_on_four_prompts(tmp_path: Path) -> None:
    """The sign of the update: with the same prompts over and over, the gap that it trains on goes up."""
    settings = {**RL_SMALL, "samples_per_prompt": 16, "learning_rate": 5e-3, "epochs": 16, "max_rows": 4} | {
        "micro_batch_size": 64
    }
    rl.run(RlConfig(data="pairs.jsonl", out=tmp_path / "run", kl_coef=0.0, **settings))
    gaps = [row["gap"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")]
    assert sum(gaps[-4:]) > sum(gaps[:4])


def test_resumed_sft_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    """Killed by SIGKILL in the middle of an epoch in its own process; tolerance 0."""
    common = [*SMALL_FLAGS, "--data", "pairs.jsonl", "--epochs", "3", "--save-every", "2"]
    pit("sft", *common, "--out", str(tmp_path / "whole"))
    killed = subprocess.Popen(
        [sys.executable, "-c", KILLED_AT_STEP_7, "sft", *common, "--out", str(tmp_path / "killed")],
        stderr=subprocess.PIPE,
    )
    killed.communicate(timeout=120)
    assert killed.returncode == -signal.SIGKILL
    assert not json.loads((tmp_path / "killed" / "manifest.json").read_text())["complete"]
    pit("sft", *common, "--out", str(tmp_path / "killed"), "--resume")
    weights = [load_file(tmp_path / run / "improver" / "adapter_model.safetensors") for run in ("whole", "killed")]
    assert weights[0].keys() == weights[1].keys()
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    metrics = [(tmp_path / run / "metrics.jsonl").read_text() for run in ("whole", "killed")]
    assert metrics[0] == metrics[1]


SMALL_FLAGS = [f"--{name.replace('_', '-')}={value}" for name, value in SMALL.items()]
KILLED_AT_STEP_7 = """
import os, signal, sys
from pitcli import cli
from pitcli.runs.folder import RunFolder
log = RunFolder.log
def log_then_die(self, step, values):
    log(self, step, values)
    if step == 7:
        os.kill(os.getpid(), signal.SIGKILL)
RunFolder.log = log_then_die
sys.exit(cli.main(sys.argv[1:]))
"""


def pit(*arguments: str, stdin: str | None = None, code: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "pitcli", *arguments], input=stdin, capture_output=True, text=True, check=False
    )
    assert done.returncode == code, done.stderr
    return done


def test_saved_settings_repeat_the_run(tmp_path: Path) -> None:
    sft.run(SftConfig(data="pairs.jsonl", out=tmp_path / "first", max_steps=3, **SMALL))
    pit("sft", "--config", str(tmp_path / "first" / "config.yaml"), "--out", str(tmp_path / "again"))
    names = ("metrics.jsonl", "improver/adapter_model.safetensors")
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "again" / name).read_bytes()


def test_rl_stops_when_the_kl_runs_away_and_keeps_a_checkpoint(tmp_path: Path, capsys: Any) -> None:
    settings = {**RL_SMALL, "learning_rate": 5e-2, "save_every": 1, "max_kl": 0.5, "runaway_patience": 2}
    rl.run(RlConfig(out=tmp_path / "run", max_steps=30, epochs=4, **settings))
    results = json.loads((tmp_path / "run" / "manifest.json").read_text())["results"]
    assert "KL" in results["stopped"]
    assert results["steps"] < 30
    assert "keeping the best checkpoint" in capsys.readouterr().err


def test_rl_takes_drafts_and_the_self_stage(tmp_path: Path) -> None:
    stages = {"curriculum_stages": "policy,self", "drafts": "drafts.jsonl"}
    rl.run(RlConfig(out=tmp_path / "run", max_steps=2, **stages, **RL_SMALL))
    assert [row["stage"] for row in read_rows(tmp_path / "run" / "metrics.jsonl")] == [0, 1]


def test_rl_reuses_a_rollout_for_several_updates(tmp_path: Path) -> None:
    rl.run(RlConfig(out=tmp_path / "run", max_steps=4, updates_per_rollout=2, **RL_SMALL))
    rows = read_rows(tmp_path / "run" / "metrics.jsonl")
    assert rows[0]["reward"] == rows[1]["reward"] != rows[2]["reward"] == rows[3]["reward"]


def test_improve_keeps_order_and_fields() -> None:
    drafts = read_rows(Path("drafts.jsonl"))
    for number, draft in enumerate(drafts):
        draft |= {"note": {"number": number}, "response": draft["response"] or "ant"}
    lines = "".join(json.dumps(draft) + "\n" for draft in drafts)
    done = pit("improve", "--max-iters", "2", "--max-new-tokens", "10", stdin=lines)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    assert [row["id"] for row in rows] == [draft["id"] for draft in drafts]
    for row, draft in zip(rows, drafts, strict=True):
        assert row["original_response"] == draft["response"]
        assert row["note"] == draft["note"]
        assert row["stop_reason"] in {"max_iters", "not_better", "copy", "cycle", "empty"}
        accepted = [step for step in row["iterations"] if step["accepted"]]
        assert row["response"] == (accepted[-1]["response"] if accepted else draft["response"])
        assert all(step["p_better"] > 0.5 for step in accepted)
        assert len(row["iterations"]) <= 2


def test_improve_is_the_same_whatever_the_batch_and_order() -> None:
    drafts = [{**draft, "response": draft["response"] or "ant"} for draft in read_rows(Path("drafts.jsonl"))]
    write_rows(Path("some.jsonl"), drafts)
    write_rows(Path("turned.jsonl"), drafts[::-1])
    common = {"max_iters": 2, "max_new_tokens": 10}
    improve.run(ImproveConfig(input="some.jsonl", output="one.jsonl", sample_batch_size=1, **common))
    improve.run(ImproveConfig(input="turned.jsonl", output="six.jsonl", sample_batch_size=6, **common))
    one, six = read_rows(Path("one.jsonl")), read_rows(Path("six.jsonl"))[::-1]
    assert [row["response"] for row in one] == [row["response"] for row in six]
    assert [row["stop_reason"] for row in one] == [row["stop_reason"] for row in six]


def test_improve_without_stop_takes_every_iteration() -> None:
    write_rows(Path("plain.jsonl"), [{"prompt": "Write 3 foods.", "response": "pie"}])
    improve.run(
        ImproveConfig(input="plain.jsonl", output="k.jsonl", stop=StopRule.none, max_iters=3, max_new_tokens=10)
    )
    (row,) = read_rows(Path("k.jsonl"))
    assert len(row["iterations"]) == 3
    assert row["response"] == row["iterations"][-1]["response"]


def test_improve_with_no_iterations_gives_the_drafts_back() -> None:
    write_rows(Path("plain.jsonl"), [{"prompt": "Write 3 foods.", "response": " pie  jam"}])
    assert improve.run(ImproveConfig(input="plain.jsonl", output="none.jsonl", max_iters=0)) == 0
    (row,) = read_rows(Path("none.jsonl"))
    assert (row["response"], row["iterations"], row["stop_reason"]) == (" pie  jam", [], "max_iters")


BAD = [
    ('{"prompt": "p", "chosen": "a"}', "bad.jsonl:1:rejected: missing"),
    ('{"prompt": "p", "chosen": "a", "rejected": "a"}', "bad.jsonl:1:rejected: the same text as chosen"),
    ("", "bad.jsonl: no rows"),
    ('{"prompt": "' + "word " * 1500 + '", "chosen": "a", "rejected": "b"}', "bad.jsonl:1:prompt: the conversation"),
]


@pytest.mark.parametrize(("line", "message"), BAD, ids=["no rejected", "same", "empty", "long"])
@pytest.mark.parametrize("stage", ["sft", "reward"])
def test_bad_rows_end_in_one_line_before_a_model_is_loaded(
    line: str, message: str, stage: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(Base, "load", lambda self: pytest.fail("the model was loaded"))
    Path("bad.jsonl").write_text(line + "\n" if line else "")
    settings = {"data": "bad.jsonl", "out": tmp_path / "run", **SMALL}
    with pytest.raises(InputError) as problem:
        sft.run(SftConfig(**settings)) if stage == "sft" else train_reward.run(RewardConfig(**settings))
    assert problem.value.problems[0].startswith(message)
    assert problem.value.exit_code == 2
    assert not (tmp_path / "run").exists()


def test_long_rows_are_left_out_on_request(tmp_path: Path, capsys: Any) -> None:
    rows = [*preference_rows(6, seed=5), {"prompt": "word " * 1500, "chosen": "a", "rejected": "b"}]
    write_rows(Path("mixed.jsonl"), rows)
    sft.run(SftConfig(data="mixed.jsonl", out=tmp_path / "run", max_steps=1, skip_long=True, **SMALL))
    assert "1 rows longer than 1024 tokens left out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": "nowhere.jsonl"}, "nowhere.jsonl"),
        ({"model": "no such model"}, "--model"),
        ({"max_length": 5000}, "--max-length"),
    ],
)
def test_bad_settings_end_in_one_line(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises((InputError, SettingsError)) as problem:
        sft.run(SftConfig(**{"data": "pairs.jsonl", "out": tmp_path / "run", **SMALL, **change}))
    assert message in problem.value.problems[0]


def test_a_run_of_another_kind_or_base_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="a reward run of the gap is wanted"):
        rl.run(RlConfig(reward=Path("runs/sft"), out=tmp_path / "run", **RL_SMALL))
    with pytest.raises(RunError, match="--load-in-4bit"):
        rl.run(RlConfig(load_in_4bit=False, out=tmp_path / "run", **RL_SMALL))


def test_rl_does_not_go_on_from_another_gap_model(tmp_path: Path) -> None:
    rl.run(RlConfig(out=tmp_path / "run", max_steps=1, **RL_SMALL))
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert manifest["inputs"].keys() == {"gap", "improver", "policy"}
    train_reward.run(RewardConfig(data="pairs.jsonl", max_steps=1, out=tmp_path / "other", **SMALL))
    with pytest.raises(SettingsError, match="--resume: inputs was"):
        rl.run(RlConfig(reward=tmp_path / "other", out=tmp_path / "run", resume=True, max_steps=1, **RL_SMALL))


def test_changed_adapter_is_refused(tmp_path: Path) -> None:
    sft.run(SftConfig(data="pairs.jsonl", out=tmp_path / "run", max_steps=1, **SMALL))
    weights = tmp_path / "run" / "improver" / "adapter_model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(PitError, match=r"adapter_model\.safetensors: missing or changed"):
        rl.run(RlConfig(sft=tmp_path / "run", out=tmp_path / "rl", **RL_SMALL))


def test_eval_data_is_reported_beside_the_held_out_pairs() -> None:
    write_rows(Path("other.jsonl"), list(preference_rows(12, seed=77)))
    config = RewardConfig(data="pairs.jsonl", eval_data="other.jsonl", out=Path("evaluated"), max_steps=1, **SMALL)
    train_reward.run(config)
    results = json.loads(Path("evaluated/manifest.json").read_text())["results"]
    assert results["eval_pairs"] == 12
    assert 0 <= results["eval_accuracy_low"] <= results["eval_accuracy"] <= results["eval_accuracy_high"] <= 1


def test_eval_data_that_was_trained_on_is_refused() -> None:
    rows = [*preference_rows(12, seed=77), read_rows(Path("pairs.jsonl"))[4]]
    write_rows(Path("overlapping.jsonl"), rows)
    with pytest.raises(InputError, match=r"overlapping.jsonl: 1 prompts are in --data too, the first on line 13"):
        train_reward.run(RewardConfig(data="pairs.jsonl", eval_data="overlapping.jsonl", out=Path("never"), **SMALL))
    assert not Path("never").exists()


def test_rl_of_a_policy_sees_no_reference_and_moves_the_policy(tmp_path: Path) -> None:
    rl.run(RlConfig(role=Role.policy, max_steps=2, out=tmp_path / "rlhf", **RL_SMALL))
    assert files_of(tmp_path / "rlhf") >= run_files("policy", "gap")
    first = read_rows(tmp_path / "rlhf" / "metrics.jsonl")[0]
    assert abs(first["kl"]) < 1e-4
    assert first["clip_ratio"] == 0
    before, after = (
        load_file(folder / "policy" / "adapter_model.safetensors")
        for folder in (Path("runs/policy"), tmp_path / "rlhf")
    )
    assert any(not torch.equal(before[name], after[name]) for name in before)
    sample.run(
        SampleConfig(
            data="pairs.jsonl", max_rows=2, max_new_tokens=8, policy=tmp_path / "rlhf", output=str(tmp_path / "d.jsonl")
        )
    )
    assert len(read_rows(tmp_path / "d.jsonl")) == 2


@pytest.mark.parametrize("change", [{"curriculum": True}, {"sft": Path("runs/sft")}, {"drafts": "drafts.jsonl"}])
def test_rl_of_a_policy_takes_no_references(change: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="--role policy has no references"):
        RlConfig(role=Role.policy, **change)


def improved(tmp_path: Path, name: str, **settings: Any) -> list[dict[str, Any]]:
    output = tmp_path / f"{name}.jsonl"
    improve.run(ImproveConfig(input="drafts.jsonl", output=str(output), max_new_tokens=10, overwrite=True, **settings))
    return read_rows(output)


def test_best_of_n_takes_the_response_with_the_greatest_gap_over_the_draft(tmp_path: Path) -> None:
    for row in improved(tmp_path, "n", method=Method.best_of_n, max_iters=4):
        assert len(row["iterations"]) == 4
        best = max(row["iterations"], key=lambda iteration: iteration["gap"])
        wanted = best["response"] if best["gap"] > 0 else row["original_response"]
        assert row["response"] == wanted
        assert row["generated_tokens"] == sum(iteration["generated_tokens"] for iteration in row["iterations"])


def test_best_of_n_spends_at_least_the_tokens_of_another_method_and_less_than_a_draw_more(tmp_path: Path) -> None:
    pit = improved(tmp_path, "pit", stop=StopRule.none, max_iters=2)
    rows = improved(tmp_path, "n", method=Method.best_of_n, equal_tokens=str(tmp_path / "pit.jsonl"))
    for theirs, ours in zip(pit, rows, strict=True):
        last = ours["iterations"][-1]["generated_tokens"]
        assert theirs["generated_tokens"] <= ours["generated_tokens"] < theirs["generated_tokens"] + last


def test_equal_tokens_wants_the_rows_of_the_same_drafts(tmp_path: Path, capfd: Any) -> None:
    write_rows(tmp_path / "plain.jsonl", [{"prompt": "Write 3 foods.", "response": "pie"}])
    settings = {"input": "drafts.jsonl", "output": str(tmp_path / "n.jsonl"), "method": Method.best_of_n}
    with pytest.raises(InputError, match=r"plain.jsonl:1:original_response: missing"):
        improve.run(ImproveConfig(equal_tokens=str(tmp_path / "plain.jsonl"), **settings))
    other = {"prompt": "Write 3 foods.", "original_response": "pie", "response": "jam", "generated_tokens": 4}
    write_rows(tmp_path / "other.jsonl", [other])
    assert improve.run(ImproveConfig(equal_tokens=str(tmp_path / "other.jsonl"), overwrite=True, **settings)) == 1
    assert f"drafts.jsonl:1: not among the rows of --equal-tokens {tmp_path / 'other.jsonl'}" in capfd.readouterr().err
    assert read_rows(tmp_path / "n.jsonl") == []


def test_resampling_does_not_look_at_the_draft(tmp_path: Path) -> None:
    once = {"method": Method.resample, "stop": StopRule.none, "max_iters": 1, "temperature": 0.0}
    rows = improved(tmp_path, "resample", **once)
    others = [{**row, "response": "cat dog"} for row in read_rows(Path("drafts.jsonl"))]
    write_rows(tmp_path / "others.jsonl", others)
    improve.run(
        ImproveConfig(input=str(tmp_path / "others.jsonl"), output=str(tmp_path / "o.jsonl"), max_new_tokens=10, **once)
    )
    assert [row["response"] for row in read_rows(tmp_path / "o.jsonl")] == [row["response"] for row in rows]


def test_self_refine_writes_feedback_first_and_pays_for_it(tmp_path: Path) -> None:
    rows = improved(tmp_path, "refine", method=Method.self_refine, stop=StopRule.none, max_iters=1)
    for row in rows:
        (only,) = row["iterations"]
        assert only["feedback"]
        assert only["generated_tokens"] >= 4  # two calls, each with a word and an end at least


def test_the_record_says_what_the_gap_models_were_trained_on_and_how_rl_ended(tmp_path: Path) -> None:
    improved(tmp_path, "pit", max_iters=1)
    origin = json.loads((tmp_path / "pit.jsonl.manifest.json").read_text())["origin"]
    (data,) = origin["gap_data"]
    assert data["path"] == "pairs.jsonl"
    assert len(data["prompts"]) == len({row["prompt"] for row in read_rows(Path("pairs.jsonl"))})
    assert {"kl", "gap", "reward"} <= origin["training"].keys()

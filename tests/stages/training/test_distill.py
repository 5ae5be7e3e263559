"""pit distill on the embedded model."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file

from pitcli.cli import main
from pitcli.data.synthetic import preference_rows
from pitcli.data.templates import Example
from pitcli.engine.models.forward import completion_logprobs
from pitcli.engine.models.loading import WEIGHTS
from pitcli.engine.models.roles import RoleModel
from pitcli.engine.models.trees import completion_batch
from pitcli.engine.training.loop import StepBatch, Task
from pitcli.equations import p_better
from pitcli.errors import InputError, RunError, SettingsError
from pitcli.runs.manifest import load_manifest
from pitcli.settings.distill import Distillation, DistillConfig
from pitcli.stages import distill
from tests.stages.training.conftest import read_rows, write_rows

PAIRS = list(preference_rows(24, seed=5))
FAST = {"batch_size": 4, "micro_batch_size": 4, "learning_rate": 1e-3, "max_steps": 3}
ON_POLICY = {"method": Distillation.on_policy, "data": "drafts.jsonl", "rollout_max_new_tokens": 10, **FAST}


def improved(pair: dict[str, Any], *gaps: float, response: str | None = None) -> dict[str, Any]:
    """A row of pit improve whose accepted iterations have these gaps, each over the one before."""
    written = pair["chosen"] if response is None else response
    iterations = [
        {"response": written, "gap": gap, "p_better": 0.5, "accepted": True, "generated_tokens": 5} for gap in gaps
    ]
    return {
        "prompt": pair["prompt"],
        "response": written,
        "original_response": pair["rejected"],
        "p_better": p_better(sum(gaps), 1.0) if gaps else None,
        "iterations": iterations,
        "finished": True,
    }


def trained(out: Path, **settings: Any) -> list[dict[str, Any]]:
    """The metrics of a run."""
    distill.run(DistillConfig(out=out, **{**FAST, **settings}))
    return read_rows(out / "metrics.jsonl")


def weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "policy" / WEIGHTS)


@pytest.fixture(autouse=True)
def rows(in_project: None) -> None:
    write_rows(Path("improved.jsonl"), [improved(pair, 2.0) for pair in PAIRS])
    write_rows(
        Path("same-pairs.jsonl"), [{key: pair[key] for key in ("prompt", "chosen", "rejected")} for pair in PAIRS]
    )


@pytest.mark.parametrize(
    ("method", "same"),
    [
        (Distillation.sft, "sft --role policy --init runs/policy --lora-rank 4"),
        (Distillation.dpo, "dpo --role policy --sft runs/policy"),
    ],
)
def test_it_trains_as_sft_or_dpo_of_a_policy_does(method: Distillation, same: str, tmp_path: Path) -> None:
    """On the pairs of improvement and draft, to the last bit."""
    trained(tmp_path / "distilled", method=method, data="improved.jsonl")
    line = f"{same} --data same-pairs.jsonl --batch-size 4 --micro-batch-size 4 --learning-rate 1e-3 --max-steps 3"
    assert main([*line.split(), "--out", str(tmp_path / "same")]) == 0
    found, expected = weights(tmp_path / "distilled"), weights(tmp_path / "same")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    manifest = load_manifest(tmp_path / "distilled", "")
    assert (manifest.kind, manifest.role, manifest.config["lora_rank"]) == ("distill", "policy", 4)
    assert manifest.inputs == {"policy": load_manifest(Path("runs/policy"), "").files[f"policy/{WEIGHTS}"]}


def test_only_improvements_over_the_threshold_are_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, *others = PAIRS[:8]
    rows = [
        improved(first, 1.0, 1.0),  # P(better) of both steps together: sigmoid(2) = 0.88
        improved(others[0], 1.0),  # sigmoid(1) = 0.73
        improved(others[1], -1.0, 3.0),  # 0.88
        improved(others[2], response=f" {others[2]['rejected']} "),  # not improved
        {**improved(others[3], -5.0), "p_better": 0.9},  # pit score --against original_response
        {**improved(others[4], 5.0), "p_better": 0.1},
    ]
    write_rows(Path("mixed.jsonl"), rows)
    trained(tmp_path / "run", data="mixed.jsonl", min_p_better=0.8, max_steps=1)
    err = capsys.readouterr().err
    assert "1 row skipped: not improved" in err
    assert "2 rows skipped: P(better) of at most 0.8" in err
    assert load_manifest(tmp_path / "run", "").data.rows == 3


@pytest.mark.parametrize("settings", [{"method": "on-policy", "min_p_better": 0.8}, {"beta": 1.0}])
def test_a_setting_of_another_method_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="is for --method"):
        DistillConfig(data="rows.jsonl", **settings)


def test_a_truncated_improvement_does_not_teach_to_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_rows(Path("cut.jsonl"), [{**improved(PAIRS[0], 2.0), "finished": False}, improved(PAIRS[1], 2.0)])
    seen: list[Task] = []

    def only_the_task(model: RoleModel, task: Task, *rest: Any) -> Any:
        seen.append(task)
        raise KeyboardInterrupt

    monkeypatch.setattr(distill, "train", only_the_task)
    with pytest.raises(KeyboardInterrupt):
        trained(tmp_path / "run", data="cut.jsonl")
    both = seen[0].planned_rows().build([[0], [1]]).micro_batches
    ends = {int(micro_batch.batch.targets_N[-1]) for micro_batch in both}
    assert len(ends) == 2, "one ends with the stop token, the other with a word"


def test_the_data_of_the_gap_model_that_chose_the_improvements_is_kept(tmp_path: Path) -> None:
    reward = load_manifest(Path("runs/reward"), "").data
    record = {"settings": {"method": "pit"}, "origin": {"gap_data": [reward.model_dump()]}}
    Path("improved.jsonl.manifest.json").write_text(json.dumps(record))
    try:
        trained(tmp_path / "run", data="improved.jsonl", max_steps=1)
    finally:
        Path("improved.jsonl.manifest.json").unlink()
    assert load_manifest(tmp_path / "run", "").gap_data == reward


def rollout(monkeypatch: pytest.MonkeyPatch, out: Path, **settings: Any) -> tuple[RoleModel, StepBatch]:
    """The first rollout of on-policy distillation."""
    found: list[tuple[RoleModel, StepBatch]] = []

    def only_the_rollout(model: RoleModel, task: Task, *rest: Any) -> Any:
        found.append((model, task.batch(0)))
        raise KeyboardInterrupt

    monkeypatch.setattr(distill, "train", only_the_rollout)
    with pytest.raises(KeyboardInterrupt):
        trained(out, **ON_POLICY, **settings)
    return found[0]


@pytest.mark.parametrize("sample_drafts", [False, True])
def test_advantages_are_those_of_separate_passes(
    sample_drafts: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[list[int], list[int]]] = []
    lay_out = distill.lay_out

    def watched(model: RoleModel, prompts: Any, completions: Any, config: Any) -> Any:
        k = config.samples_per_prompt
        asked.extend((prompts[number // k], ids) for number, ids in enumerate(completions))
        return lay_out(model, prompts, completions, config)

    monkeypatch.setattr(distill, "lay_out", watched)
    model, step = rollout(monkeypatch, tmp_path / "run", sample_drafts=sample_drafts)
    count = len(asked) // 2
    expected = {}
    for (prompt, ids), (seen, same_ids) in zip(asked[:count], asked[count:], strict=True):
        assert ids == same_ids
        assert len(seen) > len(prompt), "the improver has seen a draft"
        of_role = {}
        for role, text in (("policy", prompt), ("improver", seen)):
            with model.role(role), torch.no_grad():
                of_role[role] = completion_logprobs(model, completion_batch([Example(text, ids)], model.pad_id))
        expected[tuple(prompt), tuple(ids)] = of_role["improver"] - of_role["policy"]
    found = torch.cat([micro_batch.advantages_N for micro_batch in step.micro_batches])
    assert len(found) == sum(len(ids) for _, ids in asked[:count])
    values = torch.cat(list(expected.values()))
    if len(expected) == count:  # no sample occurs twice
        assert found.sort().values == pytest.approx(values.sort().values, abs=2e-4)
    assert step.metrics["advantage"] == pytest.approx(float(found.mean()), abs=1e-5)
    assert step.metrics["kl"] == pytest.approx(-float(found.sum()) / count, abs=1e-4)


def test_drafts_of_improved_rows_are_the_originals(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []
    monkeypatch.setattr(
        distill, "distill_task", lambda config, runs, chat, pairs, model: seen.extend(pairs) or pytest.skip.Exception
    )
    with pytest.raises(AttributeError):
        trained(tmp_path / "run", **{**ON_POLICY, "data": "improved.jsonl"}, max_rows=5)
    assert [pair.rejected for pair in seen] == [pair["rejected"] for pair in PAIRS[:5]]


def test_an_on_policy_run(tmp_path: Path) -> None:
    metrics = trained(tmp_path / "run", **ON_POLICY)
    assert metrics[0]["loss"] == pytest.approx(-metrics[0]["advantage"], rel=1e-3), "every ratio is 1"
    manifest = load_manifest(tmp_path / "run", "")
    assert manifest.inputs.keys() == {"policy", "improver"}
    assert manifest.gap_data == load_manifest(Path("runs/rl"), "").gap_data


def test_micro_batches_and_layout_change_nothing(tmp_path: Path) -> None:
    runs = [
        trained(tmp_path / str(size), **{**ON_POLICY, "micro_batch_size": size}, sample_drafts=True) for size in (2, 16)
    ]
    for one, other in zip(*runs, strict=True):
        for row in (one, other):
            del row["padding_share"]
        assert one == pytest.approx(other, rel=5e-3, abs=1e-4)


def test_a_distilled_policy_is_used_as_any_other(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    trained(first, data="improved.jsonl", max_steps=1)
    trained(second, **{**ON_POLICY, "max_steps": 1}, policy=first)
    assert load_manifest(second, "").inputs["policy"] == load_manifest(first, "").files[f"policy/{WEIGHTS}"]
    assert f"next: pit sample --policy {second}" in capsys.readouterr().err
    for line in (
        f"verify {second}",
        f"sample --policy {second} --data pairs.jsonl --max-rows 3 --max-new-tokens 8 --output {tmp_path}/new.jsonl",
        f"improve --method resample --policy {second} --input {tmp_path}/new.jsonl --output {tmp_path}/out.jsonl "
        "--stop none --max-iters 1 --max-new-tokens 8",
        f"export {second} --out {tmp_path}/exported",
        f"dpo --role policy --sft {second} --data pairs.jsonl --max-steps 1 --out {tmp_path}/dpo",
        f"report {second} --out {tmp_path}/report.html",
    ):
        assert main(line.split()) == 0, line
    assert "by\ndistillation of an improver." in (tmp_path / "exported" / "README.md").read_text()
    assert "Distillation of the improver into the policy" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("method", Distillation)
def test_the_dry_run_of_each_method(method: Distillation, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["distill", "--method", method, "--data", "improved.jsonl", "--out", str(tmp_path / "run"), "--dry-run"]
    assert main([*line, "--max-steps", "2", "--rollout-max-new-tokens", "8"]) == 0
    out, err = capsys.readouterr()
    assert (yaml.safe_load(out)["method"], yaml.safe_load(out)["max_steps"]) == (method, 2)
    assert "memory at the peak" in err
    assert ("(up to 8 sampled tokens)" in err) == (method is Distillation.on_policy)
    assert not (tmp_path / "run").exists()


UNSCORED = {key: value for key, value in improved(PAIRS[0]).items() if key != "iterations"}


@pytest.mark.parametrize(
    ("rows", "settings", "problem", "message"),
    [
        ([], {}, InputError, "rows.jsonl: no rows"),
        ([PAIRS[0]], {}, InputError, "rows.jsonl:1:response: missing; give rows that pit improve wrote"),
        ([UNSCORED], {}, InputError, "rows.jsonl:1:p_better: expected a number, got null; add it by"),
        (
            [improved(PAIRS[0], response=PAIRS[0]["rejected"])],
            {},
            InputError,
            "no pairs are left: 1 row skipped: not im",
        ),
        ([improved(PAIRS[0], 2.0)], {"lora_rank": 8}, SettingsError, "--lora-rank: expected 4, as in runs/policy"),
        (
            [improved(PAIRS[0], 2.0)],
            {"policy": Path("runs/sft")},
            RunError,
            "run of the policy, got a sft run of the imp",
        ),
        ([PAIRS[0]], {"method": "on-policy"}, InputError, "rows.jsonl:1"),
        ([PAIRS[0]], {"method": "on-policy", "run": Path("runs/policy")}, RunError, "run of the improver, got"),
    ],
)
def test_bad_inputs(
    rows: list[Any], settings: dict[str, Any], problem: type[Exception], message: str, tmp_path: Path
) -> None:
    write_rows(Path("rows.jsonl"), rows)
    with pytest.raises(problem, match=message):
        trained(tmp_path / "run", data="rows.jsonl", **settings)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "--data: expected a file of rows that pit improve wrote"),
        (
            "--data improved.jsonl --run runs/sft",
            "--run and --sample-drafts are for --method on-policy, got --method sft",
        ),
        ("--data improved.jsonl --fields prompt=p,chosen=c,rejected=r", "the rows of pit improve have known fields"),
        ("--data improved.jsonl --loss ipo", "--loss is for --method dpo, got --method sft"),
        ("--data drafts.jsonl --method on-policy --skip-bad", "--skip-bad and --list-bad are for --method sft and dpo"),
        ("--data missing.jsonl", "missing.jsonl"),
        ("--method distil", "--method: must be 'sft', 'dpo' or 'on-policy', got distil"),
    ],
)
def test_bad_settings(line: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["distill", *line.split()]) == 2
    assert message in capsys.readouterr().err


def test_without_a_policy_it_starts_from_the_base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    drafts, teacher = Path("drafts.jsonl").resolve(), Path("runs/sft").resolve()
    rows = Path("improved.jsonl").resolve()
    monkeypatch.chdir(tmp_path)
    main(["distill", "--data", str(rows), "--model", "tiny", "--max-steps", "1", "--batch-size", "4"])
    assert load_manifest(Path("runs/distill"), "").inputs == {}
    line = ["distill", "--method", "on-policy", "--data", str(drafts), "--max-steps", "1", "--batch-size", "2"]
    assert main([*line, "--rollout-max-new-tokens", "8", "--overwrite"]) == 2
    assert main([*line, "--rollout-max-new-tokens", "8", "--overwrite", "--run", str(teacher)]) == 0
    assert load_manifest(Path("runs/distill"), "").inputs.keys() == {"improver"}

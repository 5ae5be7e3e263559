"""pit improve on the embedded model, with each method."""

import json
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from pitcli.engine.improving.models import find_models
from pitcli.errors import InputError, SettingsError
from pitcli.settings.base import Method, StopRule
from pitcli.settings.generating import ImproveConfig
from pitcli.stages import improve
from tests.faults.warm import Warm
from tests.stages.training.conftest import read_rows, write_rows


def test_improve_keeps_order_and_fields(project: Path, tmp_path: Path, warm: Warm) -> None:
    """From stdin to stdout in a separate process."""
    drafts = read_rows(Path("drafts.jsonl"))
    for number, draft in enumerate(drafts):
        draft |= {"note": {"number": number}, "response": draft["response"] or "ant"}
    write_rows(tmp_path / "stdin", drafts)
    ended = warm.run(project, "improve", "--max-iters", "2", "--max-new-tokens", "10", stdin=str(tmp_path / "stdin"))
    assert ended.code == 0, ended.err
    rows = [json.loads(line) for line in ended.out.splitlines()]
    assert [row["id"] for row in rows] == [draft["id"] for draft in drafts]
    for row, draft in zip(rows, drafts, strict=True):
        assert row["original_response"] == draft["response"]
        assert row["note"] == draft["note"]
        assert row["stop_reason"] in {"max_iters", "not_better", "copy", "cycle", "empty"}
        accepted = [step for step in row["iterations"] if step["accepted"]]
        assert row["response"] == (accepted[-1]["response"] if accepted else draft["response"])
        assert all(step["p_better"] > 0.5 for step in accepted)
        assert len(row["iterations"]) <= 2


def test_rows_do_not_depend_on_batch_size_or_order() -> None:
    drafts = [{**draft, "response": draft["response"] or "ant"} for draft in read_rows(Path("drafts.jsonl"))]
    write_rows(Path("some.jsonl"), drafts)
    write_rows(Path("reversed.jsonl"), drafts[::-1])
    common = {"max_iters": 2, "max_new_tokens": 10}
    improve.run(ImproveConfig(input="some.jsonl", output="by-one.jsonl", sample_batch_size=1, **common))
    improve.run(ImproveConfig(input="reversed.jsonl", output="by-six.jsonl", sample_batch_size=6, **common))
    by_one, by_six = read_rows(Path("by-one.jsonl")), read_rows(Path("by-six.jsonl"))[::-1]
    assert [row["response"] for row in by_one] == [row["response"] for row in by_six]
    assert [row["stop_reason"] for row in by_one] == [row["stop_reason"] for row in by_six]


def test_improve_without_stop_takes_every_iteration() -> None:
    write_rows(Path("plain.jsonl"), [{"prompt": "Write 3 foods.", "response": "pie"}])
    improve.run(
        ImproveConfig(input="plain.jsonl", output="k.jsonl", stop=StopRule.none, max_iters=3, max_new_tokens=10)
    )
    (row,) = read_rows(Path("k.jsonl"))
    assert len(row["iterations"]) == 3
    assert row["response"] == row["iterations"][-1]["response"]


def test_zero_iterations_return_the_drafts_unchanged() -> None:
    write_rows(Path("plain.jsonl"), [{"prompt": "Write 3 foods.", "response": " pie  jam"}])
    assert improve.run(ImproveConfig(input="plain.jsonl", output="none.jsonl", max_iters=0)) == 0
    (row,) = read_rows(Path("none.jsonl"))
    assert (row["response"], row["iterations"], row["stop_reason"]) == (" pie  jam", [], "max_iters")


def improved(tmp_path: Path, name: str, **settings: Any) -> list[dict[str, Any]]:
    output = tmp_path / f"{name}.jsonl"
    improve.run(ImproveConfig(input="drafts.jsonl", output=str(output), max_new_tokens=10, overwrite=True, **settings))
    return read_rows(output)


def test_best_of_n_chooses_the_response_with_the_largest_gap_over_the_draft(tmp_path: Path) -> None:
    for row in improved(tmp_path, "n", method=Method.best_of_n, max_iters=4):
        assert len(row["iterations"]) == 4
        best = max(row["iterations"], key=lambda iteration: iteration["gap"])
        expected = best["response"] if best["gap"] > 0 else row["original_response"]
        assert row["response"] == expected
        assert row["generated_tokens"] == sum(iteration["generated_tokens"] for iteration in row["iterations"])


def test_equal_tokens_spends_at_least_the_given_tokens_and_less_than_one_draw_more(tmp_path: Path) -> None:
    pit = improved(tmp_path, "pit", stop=StopRule.none, max_iters=2)
    rows = improved(tmp_path, "n", method=Method.best_of_n, equal_tokens=str(tmp_path / "pit.jsonl"))
    for theirs, ours in zip(pit, rows, strict=True):
        last = ours["iterations"][-1]["generated_tokens"]
        assert theirs["generated_tokens"] <= ours["generated_tokens"] < theirs["generated_tokens"] + last


def test_equal_tokens_requires_rows_of_the_same_drafts(tmp_path: Path, capfd: Any) -> None:
    write_rows(tmp_path / "plain.jsonl", [{"prompt": "Write 3 foods.", "response": "pie"}])
    settings = {"input": "drafts.jsonl", "output": str(tmp_path / "n.jsonl"), "method": Method.best_of_n}
    with pytest.raises(InputError, match=r"plain.jsonl:1:original_response: missing"):
        improve.run(ImproveConfig(equal_tokens=str(tmp_path / "plain.jsonl"), **settings))
    other = {"prompt": "Write 3 foods.", "original_response": "pie", "response": "jam", "generated_tokens": 4}
    write_rows(tmp_path / "other.jsonl", [other])
    assert improve.run(ImproveConfig(equal_tokens=str(tmp_path / "other.jsonl"), overwrite=True, **settings)) == 1
    assert (
        f"drafts.jsonl:1: expected a row for this draft in --equal-tokens {tmp_path / 'other.jsonl'}"
        in capfd.readouterr().err
    )
    assert read_rows(tmp_path / "n.jsonl") == []


def test_resampling_does_not_depend_on_the_draft(tmp_path: Path) -> None:
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
        assert only["generated_tokens"] >= 4  # two generations, each of at least one word and one stop token


def test_the_manifest_records_the_data_of_the_gap_model_and_the_end_of_rl(tmp_path: Path) -> None:
    improved(tmp_path, "pit", max_iters=1)
    origin = json.loads((tmp_path / "pit.jsonl.manifest.json").read_text())["origin"]
    (data,) = origin["gap_data"]
    assert data["path"] == "pairs.jsonl"
    assert len(data["prompts"]) == len({row["prompt"] for row in read_rows(Path("pairs.jsonl"))})
    assert {"kl", "gap", "reward"} <= origin["training"].keys()


def test_width_costs_more_tokens_and_finds_larger_gaps(tmp_path: Path) -> None:
    """The first proposal of an iteration is that of width 1, so the best of three is at least as good."""
    common: dict[str, Any] = {"stop": StopRule.none, "max_iters": 1}
    narrow, wide = improved(tmp_path, "narrow", **common), improved(tmp_path, "wide", width=3, **common)
    for one, three in zip(narrow, wide, strict=True):
        assert three["iterations"][0]["gap"] >= one["iterations"][0]["gap"] - 1e-4
        assert three["generated_tokens"] > one["generated_tokens"]
        assert three["iterations"][0].keys() == one["iterations"][0].keys()
    single = improved(tmp_path, "single", width=3, sample_batch_size=1, **common)
    assert [row["response"] for row in single] == [row["response"] for row in wide]
    equal = improved(tmp_path, "n", method=Method.best_of_n, equal_tokens=str(tmp_path / "wide.jsonl"))
    for theirs, ours in zip(wide, equal, strict=True):
        assert ours["generated_tokens"] >= theirs["generated_tokens"]


def test_width_needs_a_gap_model_and_another_method_than_best_of_n(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="--width is not for --method best-of-n"):
        ImproveConfig(width=2, method=Method.best_of_n)
    with (
        pytest.raises(SettingsError, match=r"--reward: no gap model in runs/reward; create one with pit train-reward$"),
        chdir(tmp_path),
    ):
        find_models(ImproveConfig(width=2, stop=StopRule.none, method=Method.resample))


def test_rows_of_a_width_are_completed_after_a_stop(tmp_path: Path) -> None:
    common: dict[str, Any] = {"width": 2, "max_iters": 2}
    whole = improved(tmp_path, "whole", **common)
    output = tmp_path / "whole.jsonl"
    output.write_text("".join(output.read_text().splitlines(keepends=True)[:2]))
    settings = {"input": "drafts.jsonl", "output": str(output), "max_new_tokens": 10, "resume": True}
    improve.run(ImproveConfig(**settings, **common))
    assert read_rows(output) == whole

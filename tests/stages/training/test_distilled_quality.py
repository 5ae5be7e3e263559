"""pit distill teaches the policy what the improver knows: its responses get better, by the task's oracle.

The improver learned from perfect answers, so that few steps make a good one; the policy never sees any of them.
"""

from contextlib import chdir
from pathlib import Path
from statistics import fmean

import pytest

from pitcli.cli import main
from pitcli.data.synthetic import Answer, parse_task, preference_rows, quality, render
from tests.conftest import Share
from tests.stages.training.conftest import read_rows, write_rows

SAMPLED = "--temperature 0.5 --max-new-tokens 16"
ROLLOUTS = "--sample-drafts --rollout-max-new-tokens 16 --samples-per-prompt 2 --max-steps 20 --learning-rate 2e-3"
METHODS = {"sft": "--epochs 2", "dpo": "--epochs 2 --micro-batch-size 32", "on-policy": f"{ROLLOUTS} --run runs/sft"}


def pit(line: str) -> None:
    assert main(line.split()) == 0, line


def mean_quality(file: str) -> float:
    return fmean(quality(row["prompt"], row["response"]) for row in read_rows(Path(file)))


@pytest.fixture(scope="module")
def folder(share: Share) -> Path:
    """A folder with an improver, drafts of the base, and their improvements, one per draft."""

    def fill(folder: Path) -> None:
        with chdir(folder):
            rows = list(preference_rows(800, seed=9))
            for number, row in enumerate(rows):
                row["chosen"] = render(parse_task(row["prompt"]), Answer(frozenset(), seed=number))
            write_rows(Path("clean.jsonl"), [row for row in rows[:400] if row["chosen"] != row["rejected"]])
            write_rows(Path("prompts.jsonl"), [{"prompt": row["prompt"]} for row in rows[400:]])
            write_rows(Path("test.jsonl"), [{"prompt": row["prompt"]} for row in preference_rows(120, seed=10)])
            pit("sft --data clean.jsonl --model tiny --learning-rate 3e-3 --epochs 2 --micro-batch-size 16")
            for name in ("prompts", "test"):
                pit(f"sample --data {name}.jsonl --model tiny {SAMPLED} --output {name}-drafts.jsonl")
            line = f"improve --run runs/sft --stop none --max-iters 1 {SAMPLED} --input prompts-drafts.jsonl"
            pit(f"{line} --output improved.jsonl")

    return share("distilled-quality", fill)


@pytest.mark.parametrize("method", METHODS)
def test_one_response_of_the_distilled_policy_is_better(
    method: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    data = "prompts.jsonl" if method == "on-policy" else "improved.jsonl --min-p-better 0"
    line = f"distill --method {method} --data {data} --batch-size 16 --micro-batch-size 16 {METHODS[method]}"
    pit(f"{line} {'' if method == 'on-policy' else '--model tiny'} --out {tmp_path}/run")
    pit(f"sample --policy {tmp_path}/run --data test.jsonl {SAMPLED} --output {tmp_path}/samples.jsonl")
    before, after = mean_quality("test-drafts.jsonl"), mean_quality(f"{tmp_path}/samples.jsonl")
    assert after > before + 0.05
    if method == "on-policy":
        rows = read_rows(tmp_path / "run" / "metrics.jsonl")
        assert fmean(row["kl"] for row in rows[-5:]) < 0.8 * fmean(row["kl"] for row in rows[:2])

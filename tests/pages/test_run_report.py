"""pit report: the page of finished, running, interrupted and damaged runs, and what it must not do."""

import fcntl
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pitcli.cli import main
from pitcli.data.synthetic import preference_rows
from pitcli.pages.curves import smoothed, thinned
from pitcli.pages.trained_run import concerns, read_run
from pitcli.runs.folder import RunFolder, open_run
from pitcli.runs.manifest import Manifest, write_manifest
from tests.pages.test_evaluation_report import Page, words

GOOD_RL = {
    **{"loss": 0.0, "reward": 0.5, "gap": 0.5, "kl": 2.0, "entropy": 1.0, "truncated_share": 0.0, "copy_rate": 0.1},
    **{"zero_spread_share": 0.0, "length_ratio": 1.1, "repetition": 0.0, "clip_ratio": 0.01},
}
GOOD_REWARD = {
    **{"pairs": 400, "accuracy": 0.7, "accuracy_low": 0.65, "accuracy_high": 0.75, "longer_wins_accuracy": 0.55},
    **{"shorter_wins_accuracy": 0.45, "length_correlation": 0.1, "swap_residual": 0.2, "swap_flip_rate": 0.1},
    **{"log_loss": 0.6, "gap_temperature": 1.5},
}


@pytest.fixture(autouse=True)
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def manifest(kind: str, results: dict[str, Any] | None = None, **config: Any) -> Manifest:
    return Manifest.model_validate(
        {
            "kind": kind,
            "role": {"reward": "gap"}.get(kind, "improver"),
            "config": config,
            "base": {"name": "tiny", "digest": "b" * 64, "template": "t", "load_in_4bit": True},
            "data": {"path": "pairs.jsonl", "digest": "d" * 64, "rows": 1234, "prompts": []},
            "complete": results is not None,
            "results": results or {},
        }
    )


def run_of(rows: list[dict[str, float]], about: Manifest | None = None, name: str = "run") -> Path:
    folder = Path(name)
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if about:
        write_manifest(folder, about)
    return folder


def rl_run(last: dict[str, float], steps: int = 40, **config: Any) -> list[str]:
    """The concerns about an rl run that is good except for `last`, the values of its metrics in the second half."""
    rows = [{"step": n + 1, **GOOD_RL, "gap": n / 100, **(last if n >= steps // 2 else {})} for n in range(steps)]
    return concerns(read_run(run_of(rows, manifest("rl", {"stopped": None}, max_kl=30.0, **config))))


def page_of(*arguments: str, out: str) -> Page:
    assert main(["report", *arguments]) == 0
    return Page(Path(out).read_text())


def test_a_real_run_gets_its_page_and_does_not_change(capsys: pytest.CaptureFixture[str]) -> None:
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in preference_rows(40, seed=3)))
    sft = ["sft", "--data", "pairs.jsonl", "--model", "tiny", "--max-steps", "3", "--batch-size", "4"]
    assert main(sft) == 0
    page = page_of("runs/sft", out="runs/sft/report.html")
    out, err = capsys.readouterr()
    assert out == ""
    assert "report written to runs/sft/report.html; open it in a browser" in err
    assert "Supervised fine-tuning of the improver on tiny, 3 steps, finished." in words(page)
    for expected in (
        "loss",
        "learning_rate",
        "grad_norm",
        "tokens",
        "padding_share",
        "batch_size 4",
        "pairs.jsonl, 40 rows",
        "torch 2",
    ):
        assert expected in words(page), expected
    assert page.tags.count("svg") == 5
    assert main(["verify", "runs/sft"]) == 0
    assert main([*sft, "--resume"]) == 0  # finished: nothing to do
    assert main([*sft, "--overwrite"]) == 0
    assert not Path("runs/sft/report.html").exists()


def test_the_page_fetches_nothing_and_its_ids_are_unique() -> None:
    rows = [{"step": n, "loss": float(n % 7), "kl": n / 10, "stage": float(n > 20)} for n in range(1, 50)]
    run_of(rows, manifest("rl", {}, curriculum_stages=["dataset", "policy"]))
    html = Path("run/report.html")
    page = page_of("run", out=str(html))
    assert not {"script", "link", "img", "iframe"} & set(page.tags)
    assert not re.findall(r"(?:src|href)=[\"'](?!#)|@import|url\((?!#)", html.read_text())
    ids = [value for name, value in page.attributes if name == "id"]
    assert len(ids) == len(set(ids))


def test_stages_of_a_curriculum_are_marked() -> None:
    rows = [{"step": n, "gap": 0.1, "stage": float(n > 20)} for n in range(1, 41)]
    run_of(rows, manifest("rl", {}, curriculum_stages=["dataset", "policy"]))
    page = page_of("run", out="run/report.html")
    assert "Every other curriculum stage" in words(page)
    assert page.text.count("dataset") == page.text.count("policy") == 2  # the one plot, and the settings
    assert page.tags.count("svg") == 1, "the stage itself is not a metric"


def test_a_run_of_only_metrics_with_a_truncated_last_line(capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_of([{"step": 1, "loss": 2.5}, {"step": 2, "loss": 1.5}])
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write('{"step": 3, "lo')
    page = page_of("run", out="run/report.html")
    assert "2 steps, state unknown." in words(page)
    assert "loss 2.5 → 1.5" in words(page)
    assert "warning: run: no manifest.json" in capsys.readouterr().err


def test_a_run_without_steps() -> None:
    run_of([], manifest("sft"))
    assert "no steps were logged" in words(page_of("run", out="run/report.html"))


def test_a_manifest_of_another_version_is_a_concern() -> None:
    folder = run_of([{"step": 1, "loss": 2.5}])
    (folder / "manifest.json").write_text('{"seal": "x", "kind": "ppo"}')
    assert "run/manifest.json: damaged, or not a manifest of this version" in words(
        page_of("run", out="run/report.html")
    )


def test_a_run_whose_lock_is_taken_is_running() -> None:
    with open_run(Path("run"), manifest("sft"), resume=False, overwrite=False) as folder:
        folder.log(1, {"loss": 1.0})
        assert "it is still running" in concerns(read_run(Path("run")))[0]
        page_of("run", out="run/report.html")
        folder.log(2, {"loss": 1.0})
        with Path("run/.lock").open() as lock, pytest.raises(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert "run the same command with --resume" in concerns(read_run(Path("run")))[0]
    with open_run(Path("run"), manifest("sft"), resume=True, overwrite=False) as again:
        assert isinstance(again, RunFolder)


def test_a_good_rl_run_raises_no_concern() -> None:
    assert rl_run({}) == []


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ({"kl": 16.0}, "KL 16.0 at the end, --max-kl 30"),
        ({"truncated_share": 0.25}, "25% of the rollouts have no end token"),
        ({"copy_rate": 0.5}, "50% of the rollouts copy their reference response"),
        ({"zero_spread_share": 0.4}, "40% of the prompts got the same reward"),
        ({"repetition": 0.3}, "30% of the word triples"),
        ({"clip_ratio": 0.3}, "30% of the tokens are clipped"),
        ({"length_ratio": 2.0}, "2 times as long"),
        ({"length_ratio": 0.25}, "0.25 times as long"),
        ({"gap": -0.5}, "the gap did not rise: 0.045 in the first 10 steps, -0.5 in the last"),
        ({"entropy": 0.1}, "the entropy collapsed: 1 in the first 10 steps, 0.1 in the last"),
    ],
)
def test_each_problem_of_an_rl_run_is_a_concern(last: dict[str, float], expected: str) -> None:
    (only,) = rl_run(last)
    assert expected in only


def test_a_gap_that_falls_at_the_start_of_a_stage_is_not_a_concern() -> None:
    rows = [{"step": n + 1, **GOOD_RL, "gap": n % 40 / 100, "stage": float(n >= 40)} for n in range(80)]
    rows += [{"step": n + 1, **GOOD_RL, "gap": 0.1, "stage": 2.0} for n in range(80, 85)]  # too short for a trend
    about = manifest("rl", {}, curriculum_stages=["dataset", "policy", "self"])
    assert concerns(read_run(run_of(rows, about))) == []


@pytest.mark.parametrize(
    ("results", "expected"),
    [
        ({}, None),
        ({"accuracy_low": 0.49}, "not shown to be better than chance"),
        ({"longer_wins_accuracy": 0.71}, "no better than always choosing the longer"),
        ({"shorter_wins_accuracy": 0.71}, "no better than always choosing the shorter"),
        ({"length_correlation": -0.4}, "correlates with the length difference on the held-out pairs: -0.40"),
        ({"swap_flip_rate": 0.3}, "30% of the held-out pairs get another winner"),
        ({"pairs": 20}, "only 20 held-out pairs"),
        ({"stopped": "KL 31.0 beyond --max-kl"}, "stopped early and kept its best checkpoint: KL 31.0"),
        ({"accuracy": 0.6, "accuracy_high": 0.63}, "accuracy 80% on training pairs, 60% on held-out pairs: overfitted"),
        ({f"eval_{name}": value for name, value in GOOD_REWARD.items()}, None),
        (
            {f"eval_{name}": value for name, value in GOOD_REWARD.items()} | {"eval_pairs": 3},
            "only 3 pairs of --eval-data",
        ),
    ],
)
def test_each_problem_of_a_gap_model_is_a_concern(results: dict[str, Any], expected: str | None) -> None:
    rows = [{"step": n + 1, "loss": 2 - n / 100, "accuracy": 0.8} for n in range(40)]
    found = concerns(read_run(run_of(rows, manifest("reward", GOOD_REWARD | results))))
    assert len(found) == (expected is not None), found
    assert expected is None or expected in found[0]


def test_the_report_on_held_out_pairs_is_on_the_page() -> None:
    fresh = {f"eval_{name}": value for name, value in (GOOD_REWARD | {"accuracy": 0.6789}).items()}
    rows = [{"step": 1, "loss": 2.0, "accuracy": 0.8}]
    run_of(rows, manifest("reward", {**GOOD_REWARD, **fresh}, eval_data="other.jsonl"))
    page = page_of("run", out="run/report.html")
    assert page.sections == ["concerns", "held-out", "curves", "made"]
    assert "held out other.jsonl pairs 400 400" in words(page)
    assert "70.0% [65.0%, 75.0%] 67.9% [65.0%, 75.0%]" in words(page)
    assert "gap_temperature 1.5" in words(page)


def test_a_loss_that_does_not_fall_is_a_concern() -> None:
    rows = [{"step": n + 1, "loss": 1.0} for n in range(40)]
    (only,) = concerns(read_run(run_of(rows, manifest("sft", {}))))
    assert only == "the loss did not fall: 1 in the first 10 steps, 1 in the last"


def test_several_runs_share_the_plots(capsys: pytest.CaptureFixture[str]) -> None:
    run_of([{"step": 1, "loss": 2.0, "kl": 1.0}], manifest("rl", {}, batch_size=8, seed=1), "one")
    run_of([{"step": 1, "loss": 2.0}], manifest("sft", {}, batch_size=8, seed=2), "two")
    assert main(["report", "one,two"]) == 2
    assert "--out: expected a file, because several runs share one page" in capsys.readouterr().err
    page = page_of("one,two", "--out", "pages/both.html", out="pages/both.html")
    assert page.tags.count("svg") == 2
    assert "━━ one" in words(page)
    assert "╍╍ two" in words(page)
    different = re.findall(r'<th scope="row">(\w+)</th><td class="wrap differs">', Path("pages/both.html").read_text())
    assert different == ["seed"]


def test_names_are_never_markup() -> None:
    about = manifest("sft", {}, data="<script>alert(1)</script>\u202e")
    run_of([{"step": 1, "loss": 2.0, "<b>": 1.0}], about, "<i>run")
    page = page_of("<i>run", out="<i>run/report.html")
    assert "<script>alert(1)</script>\\u202e" in words(page)
    assert "<b>" in words(page)
    assert not {"script", "b"} & set(page.tags)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[]", "metrics.jsonl:2: damaged"),
        ("{", "metrics.jsonl:2: damaged"),
        ('{"loss": 1.0}', "metrics.jsonl:2: damaged"),
        ("[" * 100_000, "metrics.jsonl:2: damaged"),
        ('{"step": 2, "loss": NaN}', "metrics.jsonl:2: loss: not a finite number"),
        ('{"step": 2, "loss": "low"}', "metrics.jsonl:2: loss: not a finite number"),
        ('{"step": 2, "loss": 1' + "0" * 5000 + "}", "metrics.jsonl:2: loss: not a finite number"),
    ],
)
def test_damaged_metrics_are_named(line: str, expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_of([{"step": 1, "loss": 2.0}])
    with (folder / "metrics.jsonl").open("a") as stream:
        stream.write(line + "\n")
    assert main(["report", "run"]) == 3
    assert expected in capsys.readouterr().err


def test_every_folder_that_is_not_a_run_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    Path("empty").mkdir()
    run_of([], name="run")
    assert main(["report", "empty,missing,run", "--out", "page.html"]) == 2
    err = capsys.readouterr().err
    assert err.count("contains neither metrics.jsonl nor manifest.json") == 2
    assert not Path("page.html").exists()
    assert main(["report", "run", "--out", "empty"]) == 2
    assert "--out: expected a file, got the folder empty" in capsys.readouterr().err


def test_smoothing_is_the_mean_of_the_neighbours() -> None:
    assert smoothed(np.array([0.0, 3.0, 6.0, 0.0]), 1).tolist() == [1.5, 3.0, 3.0, 3.0]


def test_thinning_keeps_the_spikes() -> None:
    values = np.zeros(10_000)
    values[1234], values[8765] = 5.0, -5.0
    indices = thinned(values, 100)
    assert len(indices) <= 100
    assert {1234, 8765} <= set(indices.tolist())
    assert thinned(np.zeros(7), 100).tolist() == list(range(7))

"""The commands of the studies are valid pit commands, and an evaluation compares only systems made before it."""

import importlib
import json
import pickle
import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from pitcli.data.edits import edits_between
from pitcli.data.explained import ExplainedEdit
from pitcli.recipes.planning import writes_of
from pitcli.recipes.recipe import read_recipe, validated
from pitcli.settings.tools import PipelineConfig

STUDIES = Path(__file__).parents[1] / "examples" / "studies"
sys.path.insert(0, str(STUDIES))
import changes  # noqa: E402
import project  # noqa: E402
import rl_details  # noqa: E402
import scales  # noqa: E402
import steps  # noqa: E402
import transfer  # noqa: E402
import tuning  # noqa: E402
import ways  # noqa: E402
from systems import system_steps  # noqa: E402

MODULES = ("project", "scales", "steps", "systems", "distilled", "ways", "changes", "graded")  # shared by the studies
NAMES = sorted(path.stem for path in STUDIES.glob("*.py") if path.stem not in MODULES)
SCALES = [scales.TINY, scales.ENGLISH]


def study(name: str, scale: scales.StudyScale, monkeypatch: pytest.MonkeyPatch) -> project.Study:
    """Return a study at a scale."""
    given: list[Any] = []
    monkeypatch.setattr(project, "run_study", lambda _, study_at: given.append(study_at(scale)))
    runpy.run_path(str(STUDIES / f"{name}.py"), run_name="__main__")
    return given[0]


def settings(step: str, folder: Path) -> Any:
    """Return the validated settings of a step as `pit run` reads it, without running it."""
    recipe, problems = folder / "step.yaml", list[str]()
    recipe.write_text(json.dumps({"stages": [project.as_stage(step)]}))
    [entry] = read_recipe(PipelineConfig(recipe=recipe, out=folder), problems).entries
    config = validated(entry, problems)
    assert problems == [], step
    return config


def all_steps(scale: scales.StudyScale, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The steps of all studies of a scale."""
    found = [*steps.base_steps(scale, 3), *transfer.matrix_steps(scale, 3)]
    tiny_only = ("rl_details", "tuning")
    for name in NAMES if scale is scales.TINY else (name for name in NAMES if name not in tiny_only):
        found += [step for system in study(name, scale, monkeypatch).systems for step in system_steps(scale, 3, system)]
    if scale is scales.TINY:
        found += [step for one in tuning.tries() for step in tuning.steps_of(scale, 3, *one)]
    return [*dict.fromkeys(found)]


@pytest.mark.parametrize("scale", SCALES, ids=["tiny", "english"])
@pytest.mark.parametrize("name", NAMES)
def test_every_command_of_a_study_is_valid(
    name: str, scale: scales.StudyScale, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if name in ("rl_details", "tuning") and scale is scales.ENGLISH:
        with pytest.raises(SystemExit, match="expected --model tiny"):
            study(name, scale, monkeypatch)
        return
    found = study(name, scale, monkeypatch)
    made = set()
    for step in [
        *steps.base_steps(scale, 3),
        *(s for system in found.systems for s in system_steps(scale, 3, system)),
    ]:
        config = settings(step, tmp_path)
        made.add(str(getattr(config, "output", "")))
    folders = {3: Path("seed-3")}
    for line in found.evaluations:
        words = [project.with_files(word, folders) for word in shlex.split(line)]
        config = settings(shlex.join(["pit", "evaluate", *words, "--judge", "oracle"]), tmp_path)
        compared = {file.partition("=")[0] for file in config.input} | {"original"}
        assert {file.partition("=")[0].partition("/")[2] or "original" for file in config.control} <= compared
        for file in (*config.input, *config.control):
            assert Path(file.partition("=")[2]).name in made


@pytest.mark.parametrize("scale", SCALES, ids=["tiny", "english"])
def test_every_command_of_the_transfer_matrix_is_valid(scale: scales.StudyScale, tmp_path: Path) -> None:
    configs = [settings(step, tmp_path) for step in transfer.matrix_steps(scale, 3)]
    made = {str(getattr(config, "output", "")) for config in configs}
    assert {f"transfer@sft@{source}.jsonl" for source in transfer.sources(scale)} < made


@pytest.mark.parametrize("scale", SCALES, ids=["tiny", "english"])
def test_no_two_steps_of_all_studies_write_the_same_output(
    scale: scales.StudyScale, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Otherwise each study would make the other's run again. --keep-diverged and --force do not change a run."""
    made: dict[str, Any] = {}
    for step in all_steps(scale, monkeypatch):
        config = settings(step, tmp_path)
        for path in writes_of(config):
            assert made.setdefault(path, config.identity()) == config.identity(), step


@pytest.mark.parametrize("scale", SCALES, ids=["tiny", "english"])
def test_what_the_ways_cost_is_recorded_whichever_study_ran_first(
    scale: scales.StudyScale, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Costs are found by the text of a step, so two texts of one step would lose the cost of the second."""
    texts: dict[tuple[str, ...], str] = {}
    for step in all_steps(scale, monkeypatch):
        assert texts.setdefault(writes_of(settings(step, tmp_path)), step) == step


def test_scales_reach_other_processes() -> None:
    for scale in SCALES:
        assert pickle.loads(pickle.dumps(scale)) == scale


def test_every_try_of_the_tuning_differs_only_in_its_settings(tmp_path: Path) -> None:
    assert len({run for run, _, _ in tuning.tries()}) == len(tuning.tries())
    for run, way, changed in tuning.tries():
        made = [settings(step, tmp_path) for step in tuning.steps_of(scales.TINY, 3, run, way, changed)]
        *_, training, improved = made
        assert training.out == improved.run == Path("runs", run)
        assert training.keep_diverged


def test_a_study_on_real_text_trains_its_judge_on_a_separate_fold(tmp_path: Path) -> None:
    args = project.study_parser("").parse_args(["--model=smollm2", "--data=hh.jsonl", "--steps=9", "--max-length=99"])
    commands = steps.base_steps(scales.real(args), 3)
    assert all("--max-length 99 --max-steps 9" in step for step in commands if "sft" in step.split()[1:2])
    assert not any("--max-steps" in step for step in commands if "runs/judge" in step)  # the judge uses its whole fold
    assert sum("data/judge.jsonl" in step and "runs/judge" in step and "--seed 1003" in step for step in commands) == 1
    for step in commands:
        settings(step, tmp_path)


def test_a_system_name_expands_to_the_files_of_all_seeds() -> None:
    folders = {0: Path("a/seed-0"), 1: Path("a/seed-1")}
    assert project.with_files("--input=pit", folders) == "--input=pit=seed-0/pit.jsonl,pit=seed-1/pit.jsonl"
    assert project.with_files("--control=x/y", folders) == "--control=x/y=seed-0/x.jsonl,x/y=seed-1/x.jsonl"
    assert project.with_files("--out=z", folders) == "--out=z"


def test_a_step_runs_again_only_if_its_settings_or_inputs_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "seed-0"
    made = "pit prepare --synthetic 40 --folds sft=1 --out data"
    copied = "pit prepare --data data/sft.jsonl --folds all=1 --out data-copy"
    for _ in range(2):
        project.run_steps(folder, 0, [made, copied])
    assert actions(folder) == [(made, "run"), (copied, "run")]
    cost = project.costs_of(folder, [made])
    assert 0 < cost.seconds < 60
    assert 10 < cost.peak_mib < 4000

    project.run_steps(folder, 0, [f"{made} --seed 1", copied])
    assert actions(folder)[2:] == [(f"{made} --seed 1", "run"), (copied, "run")]
    assert project.costs_of(folder, [copied]).seconds == lines_of(folder)[-1]["seconds"]  # of the last run alone
    with pytest.raises(ValueError, match="expected the cost of pit sft, got none"):
        project.costs_of(folder, [made, "pit sft"])


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "costs.jsonl").read_text().splitlines()]


def actions(folder: Path) -> list[tuple[str, str]]:
    return [(line["step"], line["action"]) for line in lines_of(folder)]


def test_a_failed_step_ends_the_study_and_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.jsonl").write_text("no JSON\n")
    for _ in range(2):
        with pytest.raises(SystemExit, match="pit prepare failed with exit code 2"):
            project.run_steps(tmp_path, 0, ["pit prepare --data pairs.jsonl --folds sft=1 --out data"])
    assert len(lines_of(tmp_path)) == 2


CHANGED = (*changes.CHANGES, *changes.ranks(scales.TINY.rank))


@pytest.mark.parametrize("ending", ["os.kill(os.getpid(), 9)", "raise KeyError"])
def test_a_step_that_is_killed_or_crashes_is_not_done(
    ending: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ends(_: list[str]) -> int:
        exec(ending)
        return 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pitcli.cli.main", ends)
    with pytest.raises(SystemExit, match=r"pit prepare failed with exit code (-9|70)"):
        project.run_steps(tmp_path, 0, ["pit prepare --synthetic 40 --folds sft=1 --out data"])
    assert [line["action"] for line in lines_of(tmp_path)] == ["run"]


RESPONSES = ("blue tan red", "red tan blue", "red tan gold")  # each better than the one before, or as good


@pytest.fixture
def two_seeds(tmp_path: Path) -> Path:
    """A folder with rows of every system that a report reads, the same for all, of two seeds."""
    rows = [improved_row(number) for number in range(4)]
    for seed in range(2):
        folder = tmp_path / f"seed-{seed}"
        folder.mkdir()
        names = {
            *("drafts", "pit", "pit-3", "pit-5", "pit-stop", "pit-pruned", "pit-stop-pruned", "resample"),
            *("distill@sft", "distill@on-policy", "distill@dpo", "distill@twice", "distill@teacher"),
            *("distill@best-of-n", "distill@improved", "distill@longer"),
            *(f"way@{name}{stop}" for name in ways.ways(scales.TINY, 0) for stop in ("", "-stop")),
            *(f"detail@{name}" for name in rl_details.DETAILS),
            *(run for run, _, _ in tuning.tries()),
            *(f"change@{name}{stop}" for name in CHANGED for stop in ("", "-stop")),
            *(
                transfer.file_of(name, source)
                for name in ("sft", transfer.FRESH, *transfer.IMPROVERS)
                for source in transfer.sources(scales.TINY)
            ),
        }
        for name in names:
            of_system = [{**row, "response": row["original_response"]} for row in rows] if name == "resample" else rows
            (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in of_system))
        explained = [{**row, "edits": edits_of(row)} for row in rows]
        (folder / "pit-explained.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in explained))
        for name in ("rl", *(f"rl-{name}" for name in rl_details.DETAILS)):
            (folder / "runs" / name).mkdir(parents=True)
            metrics = {"step": 1, "clip_ratio": 0.1, "zero_spread_share": 0.5}
            (folder / "runs" / name / "metrics.jsonl").write_text(json.dumps(metrics) + "\n")
    return tmp_path


def improved_row(number: int) -> dict[str, Any]:
    """A row of pit improve; its second attempt is better than the draft, but from the second prompt on the last not."""
    prompt = f"Write {3 + number % 2} colors. First red."
    texts = [*RESPONSES[: 1 + (number > 1)], RESPONSES[-1]]
    iterations = [
        {"response": text, "p_better": 0.6, "accepted": True, "generated_tokens": 3, "stop_reason": ""}
        for text in texts[1:]
    ]
    return {
        **{"id": str(number), "prompt": prompt, "original_response": texts[0], "response": texts[-1]},
        **{"iterations": iterations, "stop_reason": "max_iters", "generated_tokens": 3 * len(iterations)},
    }


def edits_of(row: dict[str, Any]) -> list[dict[str, Any]]:
    found = edits_between(row["original_response"], row["response"])
    return [ExplainedEdit(edit, gap=0.5 - at, share=0.5).fields() for at, edit in enumerate(found)]


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("stop_rule", "stop-rule.json"),
        ("explained_edits", "explained-edits.json"),
        ("rl_details", "rl_details.json"),
        ("transfer", "transfer.json"),
        ("tuning", "tuning.json"),
        ("distillation", "distillation.json"),
        ("ways_to_train", "ways_to_train.json"),
        ("ranks", "ranks.json"),
        ("mends", "mends.json"),
    ],
)
def test_a_report_reads_the_rows_of_two_seeds(
    name: str, file: str, two_seeds: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mends
    import ways_to_train

    monkeypatch.setattr(mends, "orders", lambda *_: (0.9, float("nan")))
    monkeypatch.setattr(ways_to_train, "costs_of", lambda *_: project.Cost(1.0, 2.0))
    monkeypatch.setattr(ways_to_train, "diverged", lambda run: run.name == "ipo")
    module = importlib.import_module(name)
    report = module.study(scales.TINY).report if hasattr(module, "study") else module.STUDY.report
    report(two_seeds, [0, 1], scales.TINY)
    assert json.loads((two_seeds / file).read_text(), parse_constant=pytest.fail)  # no NaN: it is not JSON


def test_a_study_that_needs_the_truth_refuses_real_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["mends.py", "--model=smollm2", "--data=hh.jsonl"])
    with pytest.raises(SystemExit, match="needs the true grades of a task; expected --model tiny or --english"):
        project.run_study("", lambda _: project.Study(["pit"], report=lambda *_: None))

"""The commands of the studies are valid pit commands, and an evaluation compares only systems made before it."""

import runpy
import shlex
import sys
from pathlib import Path
from typing import Any

import pytest

from pitcli.settings.commands import COMMANDS

STUDIES = Path(__file__).parents[1] / "examples" / "studies"
sys.path.insert(0, str(STUDIES))
import project  # noqa: E402
import scales  # noqa: E402
import steps  # noqa: E402
from systems import system_steps  # noqa: E402

MODULES = ("project", "scales", "steps", "systems", "ways", "changes", "graded")  # shared by the studies
NAMES = sorted(path.stem for path in STUDIES.glob("*.py") if path.stem not in MODULES)


def study(name: str, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """Return the systems and the evaluations of a study."""
    given: list[Any] = []
    monkeypatch.setattr(project, "run_study", lambda *arguments, **settings: given.extend(arguments[1:3]))
    runpy.run_path(str(STUDIES / f"{name}.py"), run_name="__main__")
    return given[0], given[1]


def settings(command: str) -> Any:
    """Return the validated settings of a command line, without running it."""
    from pitcli.settings.flags import settings_of

    stage, *words = shlex.split(command)
    config_class = COMMANDS[stage].settings
    flags: dict[str, object] = {}
    while words:
        name, equals, value = words.pop(0).removeprefix("--").partition("=")
        if not equals:
            value = words.pop(0) if words and not words[0].startswith("--") else "yes"
        flags[name.replace("-", "_")] = value
    return settings_of(config_class, flags)


@pytest.mark.parametrize("scale", [scales.TINY, scales.ENGLISH], ids=["tiny", "english"])
@pytest.mark.parametrize("name", NAMES)
def test_every_command_of_a_study_is_valid(
    name: str, scale: scales.StudyScale, monkeypatch: pytest.MonkeyPatch
) -> None:
    systems, evaluations = study(name, monkeypatch)
    if scale is scales.ENGLISH:
        systems = [*systems, "sft-policy", "verifier", "pit-3", "self-refine"]
    made = set()
    for step in [
        *steps.base_steps(scale, 3),
        *(s for system in systems for s in system_steps(scale, 3, system)),
    ]:
        config = settings(step.removeprefix("pit "))
        made.add(str(getattr(config, "output", "")))
    folders = {3: Path("seed-3")}
    for line in evaluations:
        words = [project.with_files(word, folders) for word in shlex.split(line)]
        config = settings(shlex.join(["evaluate", *words, "--judge", "oracle"]))
        compared = {file.partition("=")[0] for file in config.input} | {"original"}
        assert {file.partition("=")[0].partition("/")[2] or "original" for file in config.control} <= compared
        for file in (*config.input, *config.control):
            assert Path(file.partition("=")[2]).name in made


@pytest.mark.parametrize("scale", [scales.TINY, scales.ENGLISH], ids=["tiny", "english"])
def test_every_command_of_the_transfer_matrix_is_valid(scale: scales.StudyScale) -> None:
    from transfer import matrix_steps, sources

    configs = [settings(step.removeprefix("pit ")) for step in matrix_steps(scale, 3)]
    made = {str(getattr(config, "output", "")) for config in configs}
    assert {f"transfer@sft@{source}.jsonl" for source in sources(scale)} < made


def test_a_study_on_real_text_trains_its_judge_on_a_separate_fold() -> None:
    args = project.study_parser("").parse_args(["--model=smollm2", "--data=hh.jsonl", "--steps=9", "--max-length=99"])
    commands = steps.base_steps(scales.real(args), 3)
    assert all("--max-length 99 --max-steps 9" in step for step in commands if "sft" in step.split()[1:2])
    assert not any("--max-steps" in step for step in commands if "runs/judge" in step)  # the judge uses its whole fold
    assert sum("data/judge.jsonl" in step and "runs/judge" in step and "--seed 1003" in step for step in commands) == 1
    for step in commands:
        settings(step.removeprefix("pit "))


def test_a_system_name_expands_to_the_files_of_all_seeds() -> None:
    folders = {0: Path("a/seed-0"), 1: Path("a/seed-1")}
    assert project.with_files("--input=pit", folders) == "--input=pit=seed-0/pit.jsonl,pit=seed-1/pit.jsonl"
    assert project.with_files("--control=x/y", folders) == "--control=x/y=seed-0/x.jsonl,x/y=seed-1/x.jsonl"
    assert project.with_files("--out=z", folders) == "--out=z"


def test_a_step_runs_once_and_its_cost_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    step = "pit prepare --synthetic 40 --folds sft=1 --out data"
    for _ in range(2):
        project.run_steps(tmp_path / "seed-0", 0, [step])
    costs = (tmp_path / "seed-0" / "costs.jsonl").read_text().splitlines()
    assert len(costs) == 1
    cost = project.costs_of(tmp_path / "seed-0", [step])
    assert 0 < cost.seconds < 60
    assert 10 < cost.peak_mib < 4000


def test_a_failed_step_ends_the_study_and_runs_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        with pytest.raises(SystemExit, match="pit prepare failed with exit code 2"):
            project.run_steps(tmp_path, 0, ["pit prepare --data missing.jsonl --folds sft=1 --out data"])
    assert len((tmp_path / "costs.jsonl").read_text().splitlines()) == 2

"""pit report: a training run, finished or not, as one page with its curves and its likely problems."""

from pathlib import Path

from pitcli.console import note, warn
from pitcli.errors import InputError, SettingsError
from pitcli.pages.run_report import render
from pitcli.pages.trained_run import TrainedRun, concerns, read_run
from pitcli.runs.files import write_file
from pitcli.runs.folder import REPORT
from pitcli.settings.tools import ReportConfig


def run(config: ReportConfig) -> None:
    """Write the page, and the concerns to stderr."""
    if len(config.runs) > 1 and config.out is None:
        raise SettingsError("--out: name a file for the page of several runs")
    runs = read_runs(config.runs)
    out = config.out or Path(config.runs[0]) / REPORT
    if out.is_dir():
        raise SettingsError(f"--out: {out} is a folder; name a file")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, render(runs))
    for trained_run in runs:
        for concern in concerns(trained_run):
            warn(f"{trained_run.name}: {concern}")
    note(f"{out}: open it in a browser")


def read_runs(names: tuple[str, ...]) -> list[TrainedRun]:
    """The runs, or one InputError that names every folder that cannot be read."""
    runs, problems = [], []
    for name in names:
        try:
            runs.append(read_run(Path(name)))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return runs

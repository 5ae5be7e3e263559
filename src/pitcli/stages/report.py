"""pit report: shows training runs, finished or not, on one page with their curves and likely problems."""

from pathlib import Path

from pitcli.console import note, warn
from pitcli.errors import InputError, SettingsError
from pitcli.pages.run_report import render
from pitcli.pages.trained_run import TrainedRun, concerns, read_run
from pitcli.runs.files import write_file
from pitcli.runs.folder import REPORT
from pitcli.settings.tools import ReportConfig


def run(config: ReportConfig) -> None:
    """Write the page, and print the concerns on stderr."""
    if len(config.runs) > 1 and config.out is None:
        raise SettingsError("--out: expected a file, because several runs share one page; got none")
    runs = read_runs(config.runs)
    out = config.out or Path(config.runs[0]) / REPORT
    if out.is_dir():
        raise SettingsError(f"--out: expected a file, got the folder {out}")
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, render(runs))
    for trained_run in runs:
        for concern in concerns(trained_run):
            warn(f"{trained_run.name}: {concern}")
    note(f"report written to {out}; open it in a browser")


def read_runs(names: tuple[str, ...]) -> list[TrainedRun]:
    """Read the runs; raise one InputError that names every folder that cannot be read."""
    runs, problems = [], []
    for name in names:
        try:
            runs.append(read_run(Path(name)))
        except InputError as error:
            problems += error.problems
    if problems:
        raise InputError(problems)
    return runs

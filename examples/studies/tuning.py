"""Tuning: five settings for each way to train an improver that has settings of its own; use a seed that no study does.

Prints the mean grade after one improvement. The best of each way goes into scales.py. RL on a gap model was tuned the
same way before: five settings, one seed.
"""

import sys
from pathlib import Path

from graded import Graded, write_figures
from project import Study, run_steps, run_study
from scales import StudyScale
from steps import ONCE, improve
from ways import LOSSES, ways

from pitcli.console import table

FAST, LONG = "--learning-rate 2e-3", "--epochs 2"
# ipo aims at a margin of 1 / (2 beta): a larger beta is the gentler one
BETA = {"dpo": "--beta 0.03", "ipo": "--beta 0.3", "kto": "--beta 0.03"}
OF_RL = ("", "--kl-coef 0.02", "--kl-coef 0.01", "--learning-rate 1e-3", "--learning-rate 4e-3")
SETTINGS = {
    **{
        f"{start}{loss}": ("", BETA[loss], FAST, f"{BETA[loss]} {FAST}", LONG)
        for start in ("", "sft-")
        for loss in LOSSES
    },
    "rloo-verifier": OF_RL,
}


def tries() -> list[tuple[str, str, str]]:
    """The name of a run, its way and its settings."""
    return [
        (f"try-{way}-{number}", way, settings)
        for way, several in SETTINGS.items()
        for number, settings in enumerate(several)
    ]


def steps_of(scale: StudyScale, seed: int, run: str, way: str, settings: str) -> list[str]:
    tuned = scale._replace(tuned={way: f"{settings} --out runs/{run}".strip()})
    return [*ways(tuned, seed)[way].trainings, improve(scale, seed, run, f"--run runs/{run} {ONCE}")]


def make_tries(folder: Path, seed: int, scale: StudyScale) -> None:
    run_steps(folder, seed, [step for one in tries() for step in steps_of(scale, seed, *one)])


def report(out: Path, seeds: list[int], _: StudyScale) -> None:
    graded = Graded(out, seeds)
    found = {run: float(graded.grades(graded.rows(run).values()).mean()) for run, _, _ in tries()}
    lines = [[way, settings or "as they are", found[run]] for run, way, settings in tries()]
    table("Mean grade after one improvement, by the oracle", ["way", "settings", "quality"], lines)
    write_figures(out / "tuning.json", lines)


def study(scale: StudyScale) -> Study:
    if scale.name != "tiny":
        sys.exit("tuning: on this scale, all seeds have the requests of the test; expected --model tiny")
    return Study(more=make_tries, report=report)


if __name__ == "__main__":
    run_study(__doc__, study)

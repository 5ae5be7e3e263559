"""Ranks: LoRA of rank 4 to 64 in SFT, the gap model and RL, against the shipped rank; alpha is twice the rank."""

from functools import partial

from changes import ranks
from mends import report
from project import Study, run_study
from scales import StudyScale


def study(scale: StudyScale) -> Study:
    found = ranks(scale.rank)
    return Study([f"change@{name}" for name in found], report=partial(report, found, "ranks"))


if __name__ == "__main__":
    run_study(__doc__, study)

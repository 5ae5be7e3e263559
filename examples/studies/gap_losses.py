"""Gap loss ablation: five terms, the plain Bradley-Terry difference, the symmetric form, and a pointwise reward."""

from project import Study, run_study
from scales import StudyScale

LOSSES = ("five-term", "bradley-terry", "symmetric", "pointwise")


def study(scale: StudyScale) -> Study:
    """`pit` has the shipped loss."""
    systems = ["pit", *(f"loss@{loss}" for loss in LOSSES if loss != scale.gap_loss), "sft-only"]
    return Study(systems, [f"--input={','.join(systems)} --out=gap-losses"])


if __name__ == "__main__":
    run_study(__doc__, study)

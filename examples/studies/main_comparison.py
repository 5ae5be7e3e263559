"""Main comparison: PIT, the originals, SFT alone, best-of-n at equal tokens, a new sample of the policy, plain RLHF."""

from project import CONTROLS, Study, run_study
from scales import StudyScale

ONE = ("pit", "best-of-n", "sft-only", "resample", "rlhf")
SEVERAL = ("pit-stop", "best-of-n-stop", "sft-only", "sft-stop", "resample", "rlhf", "rlhf-best-of-n")


def study(scale: StudyScale) -> Study:
    """Self-Refine needs a model that follows instructions; a verifier and an SFT policy are compared in English."""
    more = () if scale.name == "tiny" else ("self-refine",)
    more += ("sft-policy", "verifier") if scale.name == "english" else ()
    controls = ("shuffled", "shuffled-best-of-n", "best-of-4")
    return Study(
        [*dict.fromkeys((*ONE, *SEVERAL, *controls, *more, "pit-on-rlhf"))],
        [
            f"--input={','.join((*ONE, *more))} {CONTROLS} --out=main-one-iteration",
            f"--input={','.join((*SEVERAL, *more))} {CONTROLS} --out=main-learned-stop",
            "--input=pit-on-rlhf --out=main-on-rlhf",
        ],
    )


if __name__ == "__main__":
    run_study(__doc__, study)

"""Negative controls: a gap model trained on shuffled labels, a rewriter that only pads, and a constant answer."""

from project import CONTROLS, Study, run_study

STUDY = Study(
    ["pit", "sft-only", "best-of-4", "shuffled", "shuffled-best-of-n"],
    [f"--input=pit,sft-only,best-of-4 {CONTROLS} --out=controls"],
)

if __name__ == "__main__":
    run_study(__doc__, lambda _: STUDY)

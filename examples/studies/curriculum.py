"""Curriculum ablation: references from the data alone, the policy alone, both, neither, and a third stage."""

from project import Study, run_study

SYSTEMS = ("pit", "stage@dataset", "stage@policy", "stage@dataset+policy+self", "sft-only")

if __name__ == "__main__":
    run_study(__doc__, lambda _: Study(SYSTEMS, [f"--input={','.join(SYSTEMS)} --out=curriculum"]))

"""Curriculum ablation: references from the data alone, the policy alone, both, neither, and a third stage."""

from project import run_study

if __name__ == "__main__":
    run_study(
        __doc__,
        ["pit", "stage@dataset", "stage@policy", "stage@dataset+policy+self", "sft-only"],
        ["--input=pit,stage@dataset,stage@policy,stage@dataset+policy+self,sft-only --out=curriculum"],
    )

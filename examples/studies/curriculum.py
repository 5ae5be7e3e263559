"""The curriculum ablation: RL on references of the data alone, of the policy alone, on both, on neither."""

from project import run_study

if __name__ == "__main__":
    run_study(
        __doc__,
        ["pit", "stage@dataset", "stage@policy", "sft-only"],
        ["--input=pit,stage@dataset,stage@policy,sft-only --out=curriculum"],
    )

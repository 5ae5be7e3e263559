"""Gap loss ablation: five terms, the plain Bradley-Terry difference, the symmetric form, and a pointwise reward."""

from project import run_study

if __name__ == "__main__":
    run_study(
        __doc__,
        ["pit", "loss@bradley-terry", "loss@symmetric", "loss@pointwise", "sft-only"],
        ["--input=pit,loss@bradley-terry,loss@symmetric,loss@pointwise,sft-only --out=gap-losses"],
    )

"""Gap loss ablation: five terms, the plain Bradley-Terry difference, and the symmetric form."""

from project import run_study

if __name__ == "__main__":
    run_study(
        __doc__,
        ["pit", "loss@bradley-terry", "loss@symmetric", "sft-only"],
        ["--input=pit,loss@bradley-terry,loss@symmetric,sft-only --out=gap-losses"],
    )

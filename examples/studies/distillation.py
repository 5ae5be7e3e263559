"""Distillation: is one response of a distilled policy as good as policy and improver? Does a second round help?"""

from project import run_study

METHODS = ["distill@sft", "distill@dpo", "distill@on-policy", "distill@twice"]

if __name__ == "__main__":
    run_study(
        __doc__,
        [*METHODS, "distill@best-of-n", "distill@improved", "resample", "pit", "pit-stop"],
        [
            f"--input={','.join(METHODS)},pit,resample --out=distilled",
            "--input=distill@best-of-n,pit-stop --out=distilled-best-of-n",
            "--input=distill@improved --out=distilled-improved",
        ],
    )

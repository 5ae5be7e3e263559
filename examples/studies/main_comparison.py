"""Main comparison: PIT, the originals, SFT alone, best-of-n at equal tokens, a new sample of the policy, plain RLHF."""

from project import CONTROLS, run_study

if __name__ == "__main__":
    run_study(
        __doc__,
        [
            "pit",
            "pit-stop",
            "sft-only",
            "best-of-n",
            "best-of-n-stop",
            "resample",
            "rlhf",
            "rlhf-best-of-n",
            "pit-on-rlhf",
            "shuffled",
            "shuffled-best-of-n",
            "best-of-4",
        ],
        [
            f"--input=pit,best-of-n,sft-only,resample,rlhf {CONTROLS} --out=main-one-iteration",
            f"--input=pit-stop,best-of-n-stop,sft-only,resample,rlhf,rlhf-best-of-n {CONTROLS} --out=main-learned-stop",
            "--input=pit-on-rlhf --out=main-on-rlhf",
        ],
        real_only=("self-refine",),
        english_only=("sft-policy", "verifier", "pit-3"),
    )

"""Reward and true quality as a function of KL for several betas, in a long training at a high rate."""

from project import Study, run_study

BETAS = (0, 0.02, 0.1, 0.5)

if __name__ == "__main__":
    systems = [f"beta@{value}" for value in BETAS]
    run_study(__doc__, lambda _: Study(systems, [f"--input={','.join(systems)} --out=over-optimisation"]))

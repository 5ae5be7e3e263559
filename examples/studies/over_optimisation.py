"""Reward and true quality as a function of KL for several betas, with twice the steps and twice the learning rate."""

from project import run_study

BETAS = (0, 0.02, 0.1, 0.5)

if __name__ == "__main__":
    run_study(
        __doc__,
        [f"beta@{value}" for value in BETAS],
        [f"--input={','.join(f'beta@{value}' for value in BETAS)} --out=over-optimisation"],
    )

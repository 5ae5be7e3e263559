"""Reward and true quality against KL for several betas, after twice the steps at twice the rate."""

from project import run_study

BETAS = (0, 0.02, 0.1, 0.5)

if __name__ == "__main__":
    run_study(
        __doc__,
        [f"beta@{value}" for value in BETAS],
        [f"--input={','.join(f'beta@{value}' for value in BETAS)} --out=over-optimisation"],
    )

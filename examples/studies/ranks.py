"""Ranks: LoRA of rank 4 to 64 in SFT, the gap model and RL, against the shipped rank; alpha is twice the rank."""

from functools import partial

from changes import RANKS
from mends import report
from project import run_study

if __name__ == "__main__":
    run_study(__doc__, [f"change@{name}" for name in RANKS], [], partial(report, RANKS, "ranks"))

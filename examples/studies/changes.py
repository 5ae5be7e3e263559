"""Ablations: each system is the shipped one with one setting changed."""

from typing import NamedTuple


class Change(NamedTuple):
    """Settings added to the shipped ones of each command. A command whose settings do not change is not run again.

    rl: of `pit rl`. use: of `pit improve`. labels: train the gap model also on pairs of the improver's own texts, which
    the oracle labels.
    """

    sft: str = ""
    reward: str = ""
    rl: str = ""
    use: str = ""
    labels: bool = False

    def reward_run(self) -> str:
        """The name of the run of the gap model; changes that train the same one share it."""
        return "reward" + "-labels" * self.labels + self.reward.replace(" ", "-")


MEMBERS = "--members 3"
CHANGES = {
    "shipped": Change(),
    "head-rate-1": Change(reward="--head-rate 1"),
    "rates-2e-4": Change(
        sft="--learning-rate 2e-4", reward="--learning-rate 2e-4 --head-rate 1", rl="--learning-rate 2e-4"
    ),
    "reference-temperature-1": Change(rl="--reference-temperature 1"),
    "pointwise": Change(reward="--gap-loss pointwise"),
    "members": Change(reward=MEMBERS),
    "members-least": Change(reward=MEMBERS, rl="--gap-bound min", use="--gap-bound min"),
    "members-lcb": Change(reward=MEMBERS, rl="--gap-bound lcb", use="--gap-bound lcb"),
    "width-4": Change(use="--width 4"),
    "labels": Change(labels=True),
}
RANKS = {
    rank: Change(
        sft=f"--lora-rank {rank} --lora-alpha {2 * rank}", reward=f"--lora-rank {rank} --lora-alpha {2 * rank}"
    )
    for rank in (4, 8, 16, 32, 64)
}


def changes(gap_loss: str, drafted: bool) -> dict[str, Change]:
    """The changes that change one setting. drafted: the references of RL are drafts that were written before."""
    same = {"pointwise": gap_loss == "pointwise", "reference-temperature-1": drafted}
    return {name: change for name, change in CHANGES.items() if not same.get(name)}


def ranks(shipped: int) -> dict[str, Change]:
    """Changes of the rank, by name; `shipped` has the shipped rank."""
    return {"shipped": Change(), **{f"rank-{rank}": change for rank, change in RANKS.items() if rank != shipped}}

"""The runs that a command finds by itself: one table for the stages, which open them, and for recipes, which plan.

A run is looked for in the folders in their order, if its flag is not given.
"""

from typing import Literal, NamedTuple

Kind = Literal["sft", "reward", "rl"]

POLICY_FOLDER = "runs/policy"
SFT_FOLDER = "runs/sft"
REWARD_FOLDER = "runs/reward"
RL_FOLDER = "runs/rl"
RLHF_FOLDER = "runs/rlhf"


class DefaultRun(NamedTuple):
    """What a flag may name, where it is looked for otherwise, and the command that makes it."""

    setting: str
    folders: tuple[str, ...]
    kinds: tuple[Kind, ...]
    role: str
    made_by: str

    @property
    def remedy(self) -> str:
        return f"{self.made_by} makes one"

    @property
    def missing(self) -> str:
        """The error line if there is none."""
        return f"--{self.setting}: no run in {self.folders[0]}; {self.made_by} makes one"


GAP_RUN = DefaultRun("reward", (REWARD_FOLDER,), kinds=("reward",), role="gap", made_by="pit train-reward")
SFT_RUN = DefaultRun("sft", (SFT_FOLDER,), kinds=("sft",), role="improver", made_by="pit sft --role improver")
SFT_POLICY_RUN = DefaultRun("policy", (POLICY_FOLDER,), kinds=("sft",), role="policy", made_by="pit sft --role policy")
POLICY_RUN = DefaultRun("policy", (POLICY_FOLDER,), kinds=("sft", "rl"), role="policy", made_by="pit sft --role policy")
IMPROVER_RUN = DefaultRun("run", (RL_FOLDER, SFT_FOLDER), kinds=("rl", "sft"), role="improver", made_by="pit rl")

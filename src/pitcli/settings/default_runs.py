"""The default run folders: one table for the stages, which open them, and for recipes, which plan.

If a flag is not given, its run is searched for in the folders, in their order.
"""

from typing import Literal, NamedTuple

Kind = Literal["sft", "reward", "rl", "dpo", "distill"]

POLICY_FOLDER = "runs/policy"
SFT_FOLDER = "runs/sft"
REWARD_FOLDER = "runs/reward"
RL_FOLDER = "runs/rl"
RLHF_FOLDER = "runs/rlhf"
DPO_FOLDER = "runs/dpo"
DPO_POLICY_FOLDER = "runs/dpo-policy"
DISTILL_FOLDER = "runs/distill"


class DefaultRun(NamedTuple):
    """What a flag may name, its default folders, and the command that creates such a run."""

    setting: str
    folders: tuple[str, ...]
    kinds: tuple[Kind, ...]
    role: str
    made_by: str

    @property
    def remedy(self) -> str:
        return f"create one with {self.made_by}"

    @property
    def missing(self) -> str:
        """The error line if no run is found."""
        what = "gap model" if self.role == "gap" else self.role
        return f"--{self.setting}: no {what} in {' or '.join(self.folders)}; create one with {self.made_by}"


GAP_RUN = DefaultRun("reward", (REWARD_FOLDER,), kinds=("reward",), role="gap", made_by="pit train-reward")
GAP_MODELS_RUN = DefaultRun(
    "reward", (REWARD_FOLDER, RL_FOLDER), kinds=("reward", "rl"), role="gap", made_by="pit train-reward"
)
SFT_RUN = DefaultRun(
    "sft", (SFT_FOLDER,), kinds=("sft", "dpo", "rl"), role="improver", made_by="pit sft --role improver"
)
SFT_POLICY_RUN = DefaultRun(
    "policy", (POLICY_FOLDER,), kinds=("sft", "distill"), role="policy", made_by="pit sft --role policy"
)
POLICY_RUN = DefaultRun(
    "policy", (POLICY_FOLDER,), kinds=("sft", "rl", "dpo", "distill"), role="policy", made_by="pit sft --role policy"
)
IMPROVER_RUN = DefaultRun(
    "run", (RL_FOLDER, DPO_FOLDER, SFT_FOLDER), kinds=("rl", "dpo", "sft"), role="improver", made_by="pit rl"
)
DPO_START_RUNS = {  # by role
    "improver": SFT_RUN._replace(kinds=("sft", "dpo")),
    "policy": SFT_POLICY_RUN._replace(setting="sft", kinds=("sft", "dpo", "distill")),
}

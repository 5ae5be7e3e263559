"""Settings of the commands that train, declared once: flags, help, YAML keys and manifests follow.

The settings of a command are one flat pydantic model that inherits groups of settings, so names are unique:
`--learning-rate` on the command line is `learning_rate:` in a YAML file.
"""

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, ClassVar

from pydantic import Field

from pitcli.settings.base import (
    GapBound,
    GapLoss,
    LoraSettings,
    ModelSettings,
    OptimSettings,
    Role,
    Stage,
    Stages,
)
from pitcli.settings.default_runs import POLICY_FOLDER, REWARD_FOLDER, RL_FOLDER, RLHF_FOLDER, SFT_FOLDER
from pitcli.settings.facts import Fact, Section
from pitcli.settings.pairs import DataSettings
from pitcli.settings.values import RunOrCommand


class TrainingConfig(ModelSettings, OptimSettings, DataSettings):
    """Settings that the training commands share."""

    section = Section.output

    out: Annotated[Path | None, Fact.output | Fact.own, Section.common] = Field(
        None, description="Run folder to write [default: a folder in runs/, named after what is trained]"
    )
    dry_run: Annotated[bool, Fact.start] = Field(
        False,
        description="Train nothing; show the settings, the first row, memory and time, and report the errors that "
        "training would",
    )

    default_folders: ClassVar[dict[str, str]]  # by the role that is trained
    rate_share: ClassVar[float] = 1.0  # of the learning rate that suits the size of the base

    @property
    def run_folder(self) -> Path:
        """--out, or else the folder in which later commands look for such a run."""
        return self.out or Path(self.default_folders[getattr(self, "role", "gap")])

    @property
    def responses_read(self) -> int:
        """How many responses the longest conversation has: 1 if it contains no reference response."""
        return 2

    @property
    def smallest_micro_batch(self) -> int:
        """The sequences that are always read together."""
        return 1


class AdapterSettings(LoraSettings):
    """Settings of the commands that train a new adapter."""

    section = Section.runs

    init: Annotated[Path | None, Fact.run] = Field(
        None,
        description="Run folder whose adapter to start from: of any role, with the same base and LoRA rank "
        "[default: a new adapter, which changes nothing until it is trained]",
    )


class SftTarget(StrEnum):
    chosen = "chosen"
    best = "best"


class SftConfig(TrainingConfig, AdapterSettings):
    """pit sft: fine-tune a policy or an improver on the chosen responses."""

    section = Section.training

    role: Annotated[Role, Fact.own, Section.common] = Field(
        Role.improver, description="Role to train: a policy (x -> y_w) or an improver (x, y_l -> y_w)"
    )
    target: SftTarget = Field(
        SftTarget.chosen,
        description="Response to learn: the chosen one of each pair; best: of all pairs of a prompt, the one that won "
        "most often, from each of the others",
    )
    identity_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Improver only: share of extra rows (x, y_w) -> y_w, which teach it to keep a good response",
    )

    default_folders = {"policy": POLICY_FOLDER, "improver": SFT_FOLDER}  # noqa: RUF012

    @property
    def responses_read(self) -> int:
        return 1 if self.role is Role.policy else 2


class RewardConfig(TrainingConfig, AdapterSettings):
    """pit train-reward: train the gap model, r_gap(x, y1, y2), on preference pairs."""

    section = Section.data

    head_rate: float = Field(
        10.0, gt=0, description="Learning rate of the gap head, which starts at zero, as a multiple of --learning-rate"
    )
    gap_loss: Annotated[GapLoss, Section.training] = Field(
        GapLoss.five_term,
        description="Loss over the orderings of a preference pair; pointwise: train an ordinary reward model r(x, y), "
        "and use the difference of two rewards as the gap",
    )
    pairs_together: int = Field(
        1,
        ge=1,
        description="Most pairs of one prompt to read as one row, which shares their prompt and texts (InstructGPT); "
        "--batch-size then counts such rows",
    )
    members: int = Field(
        1,
        ge=1,
        description="Gap models to train, one after another, as an ensemble; they differ in their initialisation "
        "(with --init, not) and in the order of the rows",
    )
    held_out: float = Field(
        0.1, gt=0, lt=1, description="Share of the prompts to hold out for calibration and evaluation"
    )
    eval_data: Annotated[str | None, Fact.files] = Field(
        None, description="More preference pairs to evaluate on, with other prompts than --data [default: none]"
    )
    allow_overlap: bool = Field(
        False, description="Accept prompts of --data in --eval-data; the results on them are meaningless then"
    )
    probe: Annotated[bool, Fact.execution, Section.training] = Field(
        False,
        description="Fit a linear probe on the base model's hidden states too and report its accuracy: a baseline that "
        "the gap model should beat; one more pass over all pairs",
    )
    by: Annotated[str | None, Fact.text | Fact.execution] = Field(
        None, description="Report the accuracy for each value of this field too, e.g. subset [default: none]"
    )

    default_folders = {"gap": REWARD_FOLDER}  # noqa: RUF012

    @property
    def responses_read(self) -> int:
        return self.gap_loss.responses_read

    @property
    def smallest_micro_batch(self) -> int:
        return 4 if self.gap_loss is GapLoss.five_term else 2


class RolloutSettings(OptimSettings):
    """Settings of the trainings on samples of the role that they train."""

    section = Section.rl

    samples_per_prompt: int = Field(4, ge=2, description="k: responses sampled per prompt")
    clip_range: float = Field(0.2, gt=0, lt=1, description="epsilon: PPO clip range of the probability ratio")
    updates_per_rollout: int = Field(1, ge=1, description="Optimiser steps per rollout")
    rollout_temperature: Annotated[float, Section.generation] = Field(
        1.0, gt=0, description="Sampling temperature of the rollouts"
    )
    reference_temperature: Annotated[float, Section.generation] = Field(
        0.5,
        ge=0,
        description="Sampling temperature of the reference responses that are sampled during training; use the "
        "temperature of your drafts",
    )
    rollout_max_new_tokens: Annotated[int, Section.generation] = Field(
        256, ge=1, description="Maximum length of a rollout in tokens"
    )
    max_truncated_share: Annotated[float, Section.stop] = Field(
        0.95, gt=0, le=1, description="Stop if a larger share of the rollouts than this does not end (no EOS)"
    )
    runaway_patience: Annotated[int, Section.stop] = Field(
        10, ge=1, description="Steps in a row over such a limit before training stops"
    )


TWO_STAGES = (Stage.dataset, Stage.policy)  # of --curriculum


class RlConfig(TrainingConfig, RolloutSettings):
    """pit rl: train the improver by RL to beat the reference response."""

    section = Section.rl

    role: Annotated[Role, Fact.own] = Field(
        Role.improver,
        description="Role to train; policy is plain RLHF: no reference response, and the reward is the gap over y_w",
    )
    sft: Annotated[Path | None, Fact.run, Section.runs] = Field(
        None,
        description="Run folder of the improver to start from, of SFT, DPO or RL [default: runs/sft; trained first if "
        "it is missing]",
    )
    reward: Annotated[RunOrCommand, Fact.run, Section.runs] = Field(
        None,
        description="Run folder of the gap model, or cmd:COMMAND, a program that scores rows [default: runs/reward]",
    )
    policy: Annotated[Path | None, Fact.run, Section.runs] = Field(
        None,
        description="Run folder of the policy: curriculum stage policy samples from it, --role policy starts from it "
        "[default: runs/policy; if it does not exist, stage policy samples from the base model]",
    )
    drafts: Annotated[str | None, Fact.file] = Field(
        None,
        description="File of drafts to use in curriculum stages other than dataset [default: sample from the policy]",
    )
    curriculum: Annotated[bool, Section.common] = Field(
        False, description="Train in two curriculum stages; the same as --curriculum-stages dataset,policy"
    )
    curriculum_stages: Stages = Field(
        (Stage.dataset,),
        min_length=1,
        description="Sources of the reference responses, one after another, comma-separated: dataset, policy, self. "
        "Each gets an equal part of --max-steps, at least one rollout",
    )
    learning_rate: Annotated[float | None, Fact.own] = Field(
        None, gt=0, description="Peak learning rate of AdamW [default: a tenth of the default of pit sft]"
    )
    force: Annotated[bool, Fact.execution, Section.runs] = Field(
        False, description="Train even if the gap model is no better than a coin on its held-out pairs"
    )
    batch_size: Annotated[int, Fact.own] = Field(8, ge=1, description="Prompts per rollout")
    kl_coef: float = Field(0.05, ge=0, description="beta: weight in the reward of the KL to the starting model")
    gap_bound: GapBound = Field(
        GapBound.mean,
        description="Reward of several gap models (pit train-reward --members): the mean of their gaps, the least, or "
        "lcb: mean minus standard deviation",
    )
    missing_eos_penalty: float = Field(
        1.0,
        ge=0,
        description="Penalty subtracted from the reward of a response without EOS, in units of the standard deviation "
        "of the gaps of a prompt's samples, averaged over the rollout",
    )
    max_kl: Annotated[float, Section.stop] = Field(
        30.0, gt=0, description="Stop if the mean KL per sequence, in nats, exceeds this"
    )

    default_folders = {"policy": RLHF_FOLDER, "improver": RL_FOLDER}  # noqa: RUF012
    rate_share = 0.1

    def sft_settings(self) -> SftConfig:
        """Settings of the SFT that trains the improver which RL starts from, if that run is missing."""
        shared = SftConfig.model_fields.keys() & type(self).model_fields.keys()
        inherited = shared - self.named(Fact.own) - SftConfig.named(Fact.own)
        return SftConfig(role=Role.improver, **{name: getattr(self, name) for name in inherited})

    def model_post_init(self, context: Any, /) -> None:
        """--curriculum and --curriculum-stages name the same: the one that is not given follows from the other."""
        if self.curriculum and "curriculum_stages" not in self.model_fields_set:
            self.__dict__["curriculum_stages"] = TWO_STAGES
        if "curriculum" not in self.model_fields_set:
            self.__dict__["curriculum"] = self.curriculum_stages == TWO_STAGES

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.curriculum != (self.curriculum_stages == TWO_STAGES):
            yield "--curriculum means --curriculum-stages dataset,policy: give only one of the two"
        if self.drafts and self.role is Role.improver and set(self.curriculum_stages) == {Stage.dataset}:
            yield "--drafts is for the curriculum stages policy and self; give --curriculum-stages, or remove it"
        if isinstance(self.reward, str) and self.gap_bound is not GapBound.mean:
            yield f"--gap-bound is for gap models: expected a run folder as --reward, got {self.reward}"
        if self.role is Role.policy and (self.curriculum_stages != (Stage.dataset,) or self.sft or self.drafts):
            yield "--role policy uses no references: remove --curriculum, --curriculum-stages, --sft and --drafts"


CONFIG = "config.yaml"  # the file with the settings in a run folder

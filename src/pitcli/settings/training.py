"""Settings of the commands that train and write, declared once: flags, help, YAML keys and manifests follow.

A command's settings are one flat pydantic model put together from sections, so leaf names are unique and
`--learning-rate` on the command line is `learning_rate:` in a YAML file.
"""

from pathlib import Path
from typing import Annotated, ClassVar, Self

from pydantic import Field, model_validator

from pitcli.settings.base import (
    DataSettings,
    Fact,
    GapLoss,
    LoraSettings,
    Method,
    ModelSettings,
    OptimSettings,
    Role,
    SamplingSettings,
    Stage,
    Stages,
    StopRule,
)
from pitcli.settings.default_runs import POLICY_FOLDER, REWARD_FOLDER, RL_FOLDER, RLHF_FOLDER, SFT_FOLDER


class TrainingConfig(ModelSettings, OptimSettings, DataSettings):
    """What the training commands share."""

    out: Annotated[Path | None, Fact.output | Fact.own] = Field(
        None, description="Run folder [default: in runs/, by the name of what is trained]"
    )
    dry_run: Annotated[bool, Fact.start] = Field(
        False,
        description="Train nothing; show the settings, the first row, memory and time, and fail where training would",
    )

    default_folders: ClassVar[dict[str, str]]  # by the role that is trained

    @property
    def run_folder(self) -> Path:
        """--out, else the folder in which later commands look for such a run."""
        return self.out or Path(self.default_folders[getattr(self, "role", "gap")])


class SftConfig(TrainingConfig, LoraSettings):
    """pit sft: teach a policy (x -> y_w) or an improver (x, y_l -> y_w)."""

    role: Annotated[Role, Fact.own] = Field(Role.improver, description="What to train")
    identity_share: float = Field(
        0.1,
        ge=0,
        le=1,
        description="Improver only: share of extra rows (x, y_w) -> y_w, a good answer may stay",
    )

    default_folders = {"policy": POLICY_FOLDER, "improver": SFT_FOLDER}  # noqa: RUF012


class RewardConfig(TrainingConfig, LoraSettings):
    """pit train-reward: learn r_gap(x, y1, y2), how much better y1 is than y2."""

    gap_loss: GapLoss = Field(GapLoss.five_term, description="Loss over the four orderings of a pair")
    held_out: float = Field(0.1, gt=0, lt=1, description="Share of the prompts held out for the report")
    eval_data: Annotated[str | None, Fact.file] = Field(
        None, description="Report on these pairs too, whose prompts are not in --data"
    )
    allow_overlap: bool = Field(
        False, description="Accept prompts of --data in --eval-data; the report says nothing then"
    )

    default_folders = {"gap": REWARD_FOLDER}  # noqa: RUF012


class SampleConfig(ModelSettings, SamplingSettings):
    """pit sample: drafts from the policy."""

    data: Annotated[str, Fact.file] = Field("-", description="Rows with a prompt: .jsonl or .jsonl.gz, - for stdin")
    policy: Annotated[Path | None, Fact.run] = Field(
        None, description="Run folder of the policy [default: runs/policy, else the base]"
    )
    output: Annotated[str, Fact.output] = Field("-", description="Where drafts go, - for stdout")
    max_rows: int | None = Field(None, ge=1, description="Use only the first rows of the data")
    sample_batch_size: int = Field(32, ge=1, description="Rows generated together")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of everything random")


class RlConfig(TrainingConfig):
    """pit rl: maximise the gap over y_ref, starting from the SFT improver."""

    role: Annotated[Role, Fact.own] = Field(
        Role.improver,
        description="What to train; policy is plain RLHF: it reads no reference and is rewarded by its gap over y_w",
    )
    sft: Annotated[Path | None, Fact.run] = Field(
        None, description="Run folder of the SFT improver [default: runs/sft]"
    )
    reward: Annotated[Path | None, Fact.run] = Field(
        None, description="Run folder of the gap model [default: runs/reward]"
    )
    policy: Annotated[Path | None, Fact.run] = Field(
        None,
        description="Run folder of the policy that stage 2 samples from, or that --role policy starts from "
        "[default: runs/policy, else (stage 2) the base]",
    )
    drafts: Annotated[str | None, Fact.file] = Field(
        None, description="Stage 2 takes its references from these drafts instead"
    )
    curriculum: bool = Field(False, description="Both stages: the same as --curriculum-stages dataset,policy")
    curriculum_stages: Stages = Field(
        (Stage.dataset,),
        min_length=1,
        description="Where references come from, in turn: dataset, policy, self",
    )
    learning_rate: Annotated[float, Fact.own] = Field(1e-5, gt=0, description="Peak learning rate of AdamW")
    batch_size: Annotated[int, Fact.own] = Field(8, ge=1, description="Prompts for each rollout")
    samples_per_prompt: int = Field(4, ge=2, description="k: responses sampled for each (x, y_ref)")
    kl_coef: float = Field(0.05, ge=0, description="beta: weight of the KL to the SFT improver in the reward")
    clip_range: float = Field(0.2, gt=0, lt=1, description="epsilon: PPO clip of the probability ratio")
    updates_per_rollout: int = Field(1, ge=1, description="Optimiser steps taken on each rollout")
    missing_eos_penalty: float = Field(1.0, ge=0, description="Taken off the reward of a truncated response")
    rollout_temperature: float = Field(1.0, gt=0, description="Temperature of the rollouts")
    rollout_max_new_tokens: int = Field(128, ge=1, description="Longest rollout in tokens")
    max_kl: float = Field(30.0, gt=0, description="Stop when the mean sequence KL runs beyond this")
    max_truncated_share: float = Field(
        0.95, gt=0, le=1, description="Stop when more of the rollouts than this lack an EOS"
    )
    runaway_patience: int = Field(
        10, ge=1, description="Steps in a row beyond --max-kl or --max-truncated-share before stopping"
    )

    default_folders = {"policy": RLHF_FOLDER, "improver": RL_FOLDER}  # noqa: RUF012

    def sft_settings(self) -> SftConfig:
        """Those of the SFT improver that RL starts from, if it has to be trained first."""
        shared = SftConfig.model_fields.keys() & type(self).model_fields.keys()
        inherited = shared - self.named(Fact.own) - SftConfig.named(Fact.own)
        return SftConfig(role=Role.improver, **{name: getattr(self, name) for name in inherited})

    @model_validator(mode="before")
    @classmethod
    def _curriculum_is_both_stages(cls, values: dict[str, object]) -> dict[str, object]:
        if values.get("curriculum"):
            values = {"curriculum_stages": (Stage.dataset, Stage.policy), **values}
        return values

    @model_validator(mode="after")
    def _curriculum_is_not_other_stages(self) -> "RlConfig":
        if self.curriculum and self.curriculum_stages != (Stage.dataset, Stage.policy):
            raise ValueError("--curriculum is --curriculum-stages dataset,policy: give only one of the two")
        return self

    @model_validator(mode="after")
    def _a_policy_has_no_references(self) -> "RlConfig":
        if self.role is Role.policy and (self.curriculum_stages != (Stage.dataset,) or self.sft or self.drafts):
            raise ValueError("--role policy has no references: no --curriculum, --curriculum-stages, --sft or --drafts")
        return self


class ImproveConfig(ModelSettings, SamplingSettings):
    """pit improve: rewrite drafts until the gap model says stop."""

    method: Method = Field(
        Method.pit,
        description="pit: the improver; self-refine: feedback and rewrite by the policy; best-of-n: --max-iters draws "
        "of the policy, the best by the gap; resample: draws of the policy in turn",
    )
    input: Annotated[str, Fact.file | Fact.execution] = Field(
        "-", description="Drafts (prompt, response): .jsonl or .jsonl.gz, - for stdin"
    )
    output: Annotated[str, Fact.output] = Field("-", description="Where improved rows go, - for stdout")
    resume: Annotated[bool, Fact.start] = Field(
        False, description="Go on with the rows in --output that a stopped command left"
    )
    overwrite: Annotated[bool, Fact.start] = Field(False, description="Replace what is in --output")
    run: Annotated[Path | None, Fact.run] = Field(
        None, description="Run folder of the improver [default: runs/rl, else runs/sft]"
    )
    reward: Annotated[Path | None, Fact.run] = Field(
        None, description="Run folder of the gap model [default: the one inside --run, else runs/reward]"
    )
    policy: Annotated[Path | None, Fact.run] = Field(
        None, description="Run folder of the policy for the other methods [default: runs/policy, else the base]"
    )
    max_iters: int = Field(3, ge=0, description="Most improvements of one draft")
    equal_tokens: Annotated[str | None, Fact.file] = Field(
        None,
        description="best-of-n: rows of another pit improve; each draft is drawn for until it has taken as many "
        "tokens as there, whatever --max-iters says",
    )
    stop: StopRule = Field(StopRule.gap, description="gap: keep an improvement only if it is better; none: fixed K")
    threshold: float = Field(0.5, ge=0, le=1, description="P(better) that an improvement must exceed")
    patience: int = Field(1, ge=1, description="--stop gap: improvements refused in a row that end a draft's turn")
    temperature: float = Field(0.5, ge=0, description="Sampling temperature; 0 is greedy")
    sample_batch_size: int = Field(16, ge=1, description="Drafts improved together")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed; every row draws from its own, whatever the order")

    @model_validator(mode="after")
    def _tokens_of_best_of_n(self) -> Self:
        if self.equal_tokens and self.method is not Method.best_of_n:
            raise ValueError("--equal-tokens is for --method best-of-n")
        return self


CONFIG = "config.yaml"  # where a run folder keeps its settings

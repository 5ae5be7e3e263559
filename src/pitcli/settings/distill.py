"""Settings of pit distill."""

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, ClassVar

from pydantic import Field

from pitcli.settings.base import LoraSettings, PreferenceLoss, Role
from pitcli.settings.default_runs import DISTILL_FOLDER
from pitcli.settings.dpo import PreferenceSettings
from pitcli.settings.facts import Fact, Section
from pitcli.settings.training import RolloutSettings, TrainingConfig


class Distillation(StrEnum):
    sft = "sft"
    dpo = "dpo"
    on_policy = "on-policy"


class DistillConfig(TrainingConfig, PreferenceSettings, RolloutSettings, LoraSettings):
    """pit distill: train the policy to write what the improver would."""

    section = Section.method

    role: ClassVar[Role] = Role.policy

    method: Annotated[Distillation, Section.common] = Field(
        Distillation.sft,
        description="sft: learn to write the improvements; dpo: prefer them to the drafts; on-policy: write responses, "
        "whose every token is rated by the improver, which has seen a draft",
    )
    data: Annotated[str | None, Fact.files | Fact.off_card, Section.common] = Field(
        None,
        description="Rows of pit improve (on-policy: drafts, or with --sample-drafts any rows with a prompt); several "
        "files, comma-separated, or - for stdin [required]",
    )
    policy: Annotated[Path | None, Fact.run, Section.common] = Field(
        None,
        description="Run folder of the policy to start from, which wrote the drafts; with --method dpo also the "
        "reference of the KL [default: runs/policy if it exists, otherwise the base model with a new adapter]",
    )
    min_p_better: float = Field(
        0.5,
        ge=0,
        lt=1,
        description="sft, dpo: P(better than the draft) that an improvement must exceed to be used; 0 uses all, also "
        "those without P(better)",
    )
    loss: Annotated[PreferenceLoss, Section.method] = Field(
        PreferenceLoss.dpo, description="dpo: the loss over improvement and draft, as of pit dpo"
    )
    run: Annotated[Path | None, Fact.run] = Field(
        None,
        description="on-policy: run folder of the improver "
        "[default: the first that exists of runs/rl, runs/dpo and runs/sft]",
    )
    sample_drafts: bool = Field(
        False,
        description="on-policy: sample the draft that the improver sees from the policy in training, for each rollout, "
        "instead of using the response of the row",
    )

    default_folders = {"policy": DISTILL_FOLDER}  # noqa: RUF012

    @property
    def responses_read(self) -> int:
        return 1

    @property
    def smallest_micro_batch(self) -> int:
        return 2 if self.method is Distillation.dpo else 1

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        is_on_policy = self.method is Distillation.on_policy
        if self.fields:
            yield "--fields: the rows of pit improve have known fields; train on others by pit sft or dpo"
        if not is_on_policy and (self.run or self.sample_drafts):
            yield f"--run and --sample-drafts are for --method on-policy, got --method {self.method}"
        if self.method is not Distillation.dpo and self.loss is not PreferenceLoss.dpo:
            yield f"--loss is for --method dpo, got --method {self.method}"
        if is_on_policy and self.min_p_better != 0.5:
            yield "--min-p-better is for --method sft and dpo, which read improvements; remove it"
        if self.method is not Distillation.dpo and self.beta != PreferenceSettings.model_fields["beta"].default:
            yield f"--beta is for --method dpo, got --method {self.method}"
        if is_on_policy and (self.skip_bad is not None or self.list_bad):
            yield "--skip-bad and --list-bad are for --method sft and dpo; remove them"

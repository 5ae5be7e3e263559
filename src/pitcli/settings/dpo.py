"""Settings of pit dpo."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pitcli.settings.base import LoraSettings, OptimSettings, PreferenceLoss, Role
from pitcli.settings.default_runs import DPO_FOLDER, DPO_POLICY_FOLDER, DPO_START_RUNS, DefaultRun
from pitcli.settings.facts import Fact, Section
from pitcli.settings.training import TrainingConfig


class PreferenceSettings(OptimSettings):
    """Settings of preference optimisation."""

    section = Section.training

    loss: Annotated[PreferenceLoss, Section.common] = Field(
        PreferenceLoss.dpo,
        description="dpo: logistic loss of the reward margin; ipo: squared distance of the margin from 1/(2 beta); "
        "kto: each response is rated by itself",
    )
    beta: float = Field(
        0.1, gt=0, description="Weight of the KL to the start: the smaller, the further the role moves from it"
    )


class DpoConfig(TrainingConfig, PreferenceSettings, LoraSettings):
    """pit dpo: train an improver or policy by DPO, without a gap model."""

    section = Section.training

    role: Annotated[Role, Fact.own, Section.common] = Field(
        Role.improver,
        description="Role to train: an improver (y_w over y_l, for y_l and for y_w as the response to improve) or a "
        "policy (y_w over y_l, given x)",
    )
    sft: Annotated[Path | None, Fact.run, Section.runs] = Field(
        None,
        description="Run folder of the role to start from, which is also the reference of the KL: of pit sft or pit "
        "dpo [default: runs/sft; with --role policy runs/policy]",
    )
    from_base: Annotated[bool, Section.runs] = Field(
        False, description="Start from the base model with a new adapter instead of --sft"
    )

    default_folders = {"policy": DPO_POLICY_FOLDER, "improver": DPO_FOLDER}  # noqa: RUF012

    @property
    def responses_read(self) -> int:
        return 1 if self.role is Role.policy else 2

    @property
    def smallest_micro_batch(self) -> int:
        return 2 if self.role is Role.policy else 4

    @property
    def start_run(self) -> DefaultRun:
        """The run that --sft names, and its default folder."""
        return DPO_START_RUNS[self.role.value]

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.loss is PreferenceLoss.kto and self.batch_size == 1:
            yield "--loss kto compares pairs of one step: expected --batch-size 2 or more, got 1"
        if self.from_base and self.sft:
            yield f"--from-base starts from no run: expected no --sft, got {self.sft}"

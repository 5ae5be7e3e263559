"""Settings of the commands that load a judge, and those of pit calibrate."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from pitcli.settings.base import ModelSettings
from pitcli.settings.facts import Fact, Section


class JudgeSettings(ModelSettings):
    """Settings of the commands that load a judge."""

    section = Section.judges

    model: Annotated[str | None, Fact.base | Fact.handed_on | Fact.off_card] = Field(
        None, description="gap: base model of the judge [default: the base of its run]"
    )
    base_url: Annotated[str | None, Fact.text | Fact.execution] = Field(
        None,
        description="openai: URL of the endpoint, e.g. http://localhost:8000/v1 [default: OpenAI's]",
    )
    concurrency: Annotated[int, Fact.execution] = Field(
        8, ge=1, description="openai: maximum number of requests at the same time"
    )
    micro_batch_size: Annotated[int, Fact.execution, Section.hardware] = Field(
        32, ge=1, description="gap, hf: maximum number of sequences per forward pass"
    )


class IndependentJudgeSettings(JudgeSettings):
    """Settings of the commands whose judge must be independent of the reward."""

    section = Section.judges

    allow_reward_as_judge: bool = Field(
        False,
        description="Accept a judge that was trained on prompts of the gap model used in RL or for stopping, or that "
        "was itself the reward of RL",
    )


class CalibrateConfig(IndependentJudgeSettings):
    """pit calibrate: choose a stop threshold with a certified harm rate."""

    section = Section.data

    run: Annotated[Path | None, Fact.run, Section.common] = Field(
        None,
        description="Run folder of the improver; the threshold is written to it [default: the first that exists of "
        "runs/rl, runs/dpo and runs/sft]",
    )
    input: Annotated[str, Fact.file, Section.common] = Field(
        ...,
        description="Rows of pit improve, with the manifest next to them: drafts like those that will be "
        "improved, which neither training nor the choice of settings has seen",
    )
    judge: Annotated[str, Fact.judge, Section.common] = Field(
        ...,
        description="Judge of harm: oracle (the tasks of pit itself), gap:RUN, hf:MODEL, openai:MODEL, cmd:COMMAND (a "
        "program that scores rows), or labels:FILE (label files of pit annotate, comma-separated); a change without a "
        "verdict counts as worse",
    )
    max_harm: Annotated[float, Section.common] = Field(
        0.05, gt=0, lt=1, description="Maximum harm rate: share of the drafts whose kept improvement is worse"
    )
    confidence: Annotated[float, Section.stop] = Field(
        0.95, gt=0, lt=1, description="Probability, over the rows, that the harm rate is at most --max-harm"
    )
    overwrite: Annotated[bool, Fact.start, Section.output] = Field(
        False, description="Replace the calibration of the run"
    )

"""What commands share of their settings: the choices, and sections that a command's model is put together from."""

from enum import Flag, StrEnum, auto
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.fields import FieldInfo

DEFAULT_MODEL = "smollm2"


class Role(StrEnum):
    policy = "policy"
    improver = "improver"


class GapLoss(StrEnum):
    five_term = "five-term"
    bradley_terry = "bradley-terry"
    symmetric = "symmetric"


class Stage(StrEnum):
    dataset = "dataset"
    policy = "policy"
    self_ = "self"


class StopRule(StrEnum):
    gap = "gap"
    none = "none"


class Method(StrEnum):
    pit = "pit"
    self_refine = "self-refine"
    best_of_n = "best-of-n"
    resample = "resample"


class ExportRole(StrEnum):
    policy = "policy"
    improver = "improver"
    gap = "gap"


class Dtype(StrEnum):
    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Tracker(StrEnum):
    tensorboard = "tensorboard"
    wandb = "wandb"
    trackio = "trackio"


def _split_commas(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


Stages = Annotated[tuple[Stage, ...], BeforeValidator(_split_commas)]
Trackers = Annotated[tuple[Tracker, ...], BeforeValidator(_split_commas)]
Files = Annotated[tuple[str, ...], BeforeValidator(_split_commas)]


class Fact(Flag):
    """What is known of a setting besides its type, declared on its field: `resume: Annotated[bool, Fact.start]`.

    A setting without facts is part of what a run is: it is saved, compared on --resume, shared by recipes, and handed
    to the SFT that `pit rl` starts. What a text or a path names is always declared (tests/settings/test_facts.py).
    """

    start = auto()  # how one start goes (--resume): neither saved nor for recipes
    execution = auto()  # how a run is carried out, not what it is: may differ when it is resumed
    own = auto()  # RL has its own value; not handed to the SFT that `pit rl` starts
    handed_on = auto()  # later stages take it from the run of the gap model, if it is not given
    off_card = auto()  # said on a model card in another way, or not of the model

    text = auto()  # names no file
    base = auto()  # a base model
    file = auto()  # a file that is read, or hub:OWNER/NAME
    named_file = auto()  # FILE or NAME=FILE
    run = auto()  # a run folder that is read
    judge = auto()  # oracle, gap:RUN, hf:MODEL, openai:MODEL
    output = auto()  # a file or folder that is written: where, not what

    argument = auto()  # on the command line without a flag
    repeated = auto()  # a flag that may be given several times


READ = Fact.base | Fact.file | Fact.named_file | Fact.run | Fact.judge


def facts_of(field: FieldInfo) -> Fact:
    facts = Fact(0)
    for item in field.metadata:
        if isinstance(item, Fact):
            facts |= item
    return facts


class Settings(BaseModel):
    """Base of all settings: unknown keys are refused, values are frozen once validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    @classmethod
    def named(cls, facts: Fact) -> set[str]:
        """The settings of which any of these facts is true."""
        return {name for name, field in cls.model_fields.items() if facts_of(field) & facts}

    def identity(self) -> dict[str, Any]:
        """The settings that say what a run is, as JSON: those that must be the same when it is resumed."""
        return self.model_dump(mode="json", exclude=self.named(Fact.start | Fact.execution | Fact.output))


class ModelSettings(Settings):
    model: Annotated[str | None, Fact.base | Fact.handed_on | Fact.off_card] = Field(
        None,
        description="Base model: a folder, a hub name, a .gguf file, or the short names smollm2 and tiny "
        "[default: the model of the runs given, else smollm2]",
    )
    load_in_4bit: Annotated[bool | None, Fact.handed_on | Fact.off_card] = Field(
        None, description="Hold the base in 4-bit NF4 [default: as the runs given, else on]"
    )
    device: Annotated[Device, Fact.off_card] = Field(
        Device.auto, description="Where to run: auto takes a GPU if there is one"
    )
    max_length: int | None = Field(
        None, ge=16, description="Longest conversation in tokens [default: the model's context]"
    )


class LoraSettings(Settings):
    lora_rank: int = Field(16, ge=1, description="LoRA rank, on all linear layers")
    lora_alpha: int = Field(32, ge=1, description="LoRA alpha (the update is scaled by alpha / rank)")


class OptimSettings(Settings):
    learning_rate: Annotated[float, Fact.own] = Field(2e-4, gt=0, description="Peak learning rate of AdamW")
    batch_size: Annotated[int, Fact.own] = Field(16, ge=1, description="Rows (rl: prompts) for each optimiser step")
    micro_batch_size: Annotated[int, Fact.execution] = Field(
        8, ge=1, description="Sequences at most for each forward and backward pass"
    )
    tokens_per_batch: Annotated[int | None, Fact.execution] = Field(
        None,
        ge=1,
        description="Tokens at most for each forward and backward pass, in place of --micro-batch-size",
    )
    epochs: Annotated[int, Fact.own] = Field(1, ge=1, description="Passes over the data")
    max_steps: int | None = Field(None, ge=1, description="Stop after this many optimiser steps")
    warmup_share: float = Field(0.05, ge=0, lt=1, description="Share of the steps with a rising learning rate")
    max_grad_norm: float = Field(1.0, gt=0, description="Clip the gradient to this norm")
    save_every: Annotated[int, Fact.execution] = Field(
        50, ge=1, description="Write a resumable checkpoint every so many steps"
    )
    gradient_checkpointing: Annotated[bool, Fact.execution] = Field(
        False,
        description="Do not keep what happens within the layers but compute it again on the way back: less "
        "memory, about half more time",
    )
    shard_base: Annotated[bool, Fact.execution] = Field(
        False,
        description="With several processes: each holds its part of the base's layers only (FSDP), where a base "
        "does not fit on one GPU; slower",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of everything random")
    resume: Annotated[bool, Fact.start | Fact.own] = Field(
        False, description="Go on from the newest valid checkpoint in --out"
    )
    overwrite: Annotated[bool, Fact.start | Fact.own] = Field(False, description="Replace the run in --out")
    track: Annotated[Trackers, Fact.execution] = Field(
        (), description="Log to these too, beside metrics.jsonl: tensorboard, wandb, trackio, with commas between"
    )


class DataSettings(Settings):
    data: Annotated[str | None, Fact.file | Fact.handed_on | Fact.off_card] = Field(
        None,
        description="Preference pairs: .jsonl, .csv, .tsv (or .gz of these), .parquet, hub:OWNER/NAME, - for stdin "
        "[default: as the earlier runs]",
    )
    max_rows: int | None = Field(None, ge=1, description="Use only the first rows of the data")
    skip_long: bool = Field(
        False, description="Leave out rows longer than --max-length (counted) instead of refusing them"
    )
    truncate: bool = Field(
        False, description="Cut completions that are too long for --max-length (counted) instead of refusing them"
    )

    @model_validator(mode="after")
    def _one_way_with_long_rows(self) -> Self:
        if self.skip_long and self.truncate:
            raise ValueError("give only one of --skip-long and --truncate")
        return self


class SamplingSettings(Settings):
    temperature: float = Field(1.0, ge=0, description="Sampling temperature; 0 is greedy")
    top_p: float = Field(1.0, gt=0, le=1, description="Sample from the smallest set holding this probability")
    max_new_tokens: int = Field(256, ge=1, description="Longest response in tokens")

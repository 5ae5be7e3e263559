"""Settings that several commands share: the choices, and the groups of settings."""

from collections.abc import Iterator
from enum import StrEnum
from inspect import get_annotations
from typing import Annotated, Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from pitcli.settings.facts import Fact, Section, facts_of
from pitcli.settings.values import CommaSeparated, TemplateOptions, split_commas, template_options

DEFAULT_MODEL = "smollm2"
DEVICE_HELP = "Device to run on; auto uses a CUDA or ROCm GPU if there is one; mps is an Apple GPU (untested)"
INSTRUCTIONS = "instructions:"  # names an endless stream of requests, instead of a file


class Role(StrEnum):
    policy = "policy"
    improver = "improver"


class GapLoss(StrEnum):
    five_term = "five-term"
    bradley_terry = "bradley-terry"
    symmetric = "symmetric"
    pointwise = "pointwise"

    @property
    def responses_read(self) -> int:
        """How many responses of a pair the gap model reads in one conversation."""
        return 1 if self is GapLoss.pointwise else 2


class PreferenceLoss(StrEnum):
    dpo = "dpo"
    ipo = "ipo"
    kto = "kto"


class Stage(StrEnum):
    dataset = "dataset"
    policy = "policy"
    self_ = "self"


class GapBound(StrEnum):
    mean = "mean"
    least = "min"
    lcb = "lcb"


class StopRule(StrEnum):
    gap = "gap"
    none = "none"


class OutputFormat(StrEnum):
    rows = "rows"
    same = "same"
    messages = "messages"
    text = "text"


class Method(StrEnum):
    pit = "pit"
    self_refine = "self-refine"
    best_of_n = "best-of-n"
    resample = "resample"


class Dtype(StrEnum):
    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


class Precision(StrEnum):
    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Tracker(StrEnum):
    tensorboard = "tensorboard"
    wandb = "wandb"
    trackio = "trackio"


Stages = Annotated[tuple[Stage, ...], CommaSeparated]
Trackers = Annotated[tuple[Tracker, ...], CommaSeparated]


class Settings(BaseModel):
    """Base of all settings: unknown keys are errors, and validated values are frozen."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    section: ClassVar[Section]  # of the fields that a class declares first
    reads_requests: ClassVar[bool] = False  # whether its data may be the endless requests of the instruction task

    def conflicts(self) -> Iterator[str]:
        """What is wrong with settings together; subclasses add to it, and all of it is reported at once."""
        started = vars(self)
        if started.get("resume") and started.get("overwrite"):
            yield "give only one of --resume and --overwrite"
        if started.get("resume") and started.get("output") == "-":
            yield "--resume needs --output FILE"
        for name in () if self.reads_requests else sorted(self.named(Fact.file | Fact.files | Fact.named_file)):
            named = started[name] or ""
            for source in named if isinstance(named, tuple) else split_commas(str(named)):
                if source.startswith(INSTRUCTIONS):
                    file = f"pit sample --data {source} --max-rows N --output FILE"
                    yield f"--{name.replace('_', '-')}: {source} has no end; make a file of it by {file}"

    @model_validator(mode="after")
    def _have_no_conflicts(self) -> Self:
        if problems := list(self.conflicts()):
            raise ValueError("\n".join(problems))
        return self

    @classmethod
    def named(cls, facts: Fact) -> set[str]:
        """The names of the settings that have any of these facts."""
        return {name for name, field in cls.model_fields.items() if facts_of(field) & facts}

    @classmethod
    def section_of(cls, name: str) -> Section:
        """The section on the field, or else the section of the class that declares the field first."""
        on_field = [item for item in cls.model_fields[name].metadata if isinstance(item, Section)]
        declaring = next(c for c in reversed(cls.__mro__) if issubclass(c, Settings) and name in get_annotations(c))
        section: Section = on_field[0] if on_field else vars(declaring)["section"]
        return section

    def identity(self) -> dict[str, Any]:
        """The settings that must not change when the run is resumed, as JSON."""
        return self.model_dump(mode="json", exclude=self.named(Fact.start | Fact.execution | Fact.output))


class ModelSettings(Settings):
    section = Section.model

    model: Annotated[str | None, Fact.base | Fact.handed_on | Fact.off_card, Section.common] = Field(
        None,
        description="Base model: a folder, a hub name, a .gguf file, or one of the short names smollm2 and tiny "
        "[default: the base of the earlier runs, otherwise smollm2]",
    )
    load_in_4bit: Annotated[bool | None, Fact.handed_on | Fact.off_card] = Field(
        None,
        description="Load the base model in 4-bit NF4 [default: as in the earlier runs, otherwise on "
        "for bases of 0.5B parameters or more]",
    )
    template_option: Annotated[TemplateOptions | None, Fact.text | Fact.handed_on | Fact.off_card | Fact.repeated] = (
        Field(
            None,
            description="NAME=VALUE sets a variable of the base's chat template, such as enable_thinking=false; "
            "comma-separated, or given several times [default: as in the earlier runs, otherwise none]",
        )
    )
    device: Annotated[Device, Fact.execution | Fact.off_card, Section.hardware] = Field(
        Device.auto, description=DEVICE_HELP
    )
    # the run's identity has the type in use, not what was asked for: auto may be another type on another device
    dtype: Annotated[Precision | None, Fact.execution | Fact.off_card, Section.hardware] = Field(
        None,
        description="Compute in fp32 or bf16; auto measures whether bf16 is fast and accurate on this device "
        "[default: as in the earlier runs, otherwise auto]",
    )
    max_length: int | None = Field(
        None, ge=16, description="Maximum conversation length in tokens [default: the base model's context length]"
    )

    def template_options(self) -> dict[str, bool | int | float | str | None]:
        """The variables that --template-option sets."""
        return template_options(self.template_option or ())


class LoraSettings(Settings):
    section = Section.model

    lora_rank: int = Field(16, ge=1, description="LoRA rank, on all linear layers")
    lora_alpha: int = Field(32, ge=1, description="LoRA alpha: the update is scaled by alpha / rank")


class OptimSettings(Settings):
    section = Section.training

    learning_rate: Annotated[float | None, Fact.own] = Field(
        None,
        gt=0,
        description="Peak learning rate of AdamW [default: 1e-3 for bases up to 0.5B parameters, smaller by "
        "1/sqrt(parameters) for larger ones]",
    )
    batch_size: Annotated[int, Fact.own] = Field(16, ge=1, description="Rows per optimiser step")
    micro_batch_size: Annotated[int, Fact.execution, Section.hardware] = Field(
        8, ge=1, description="Maximum number of sequences per forward and backward pass"
    )
    tokens_per_batch: Annotated[int | None, Fact.execution, Section.hardware] = Field(
        None,
        ge=1,
        description="Maximum number of tokens per forward and backward pass, instead of --micro-batch-size "
        "[default: --micro-batch-size decides]",
    )
    epochs: Annotated[int, Fact.own] = Field(1, ge=1, description="Passes over the data")
    max_steps: int | None = Field(None, ge=1, description="Stop after this many optimiser steps [default: no limit]")
    warmup_share: float = Field(
        0.05, ge=0, lt=1, description="Share of the steps during which the learning rate rises linearly"
    )
    max_grad_norm: float = Field(1.0, gt=0, description="Clip the norm of the gradient to this value")
    save_every: Annotated[int, Fact.execution, Section.output] = Field(
        50, ge=1, description="Optimiser steps between resumable checkpoints"
    )
    gradient_checkpointing: Annotated[bool, Fact.execution, Section.hardware] = Field(
        False, description="Recompute activations in the backward pass: less memory, about 50% slower"
    )
    shard_base: Annotated[bool, Fact.execution, Section.hardware] = Field(
        False,
        description="Shard the base over the processes (FSDP) if it does not fit on one GPU; slower",
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Random seed")
    resume: Annotated[bool, Fact.start | Fact.own, Section.common] = Field(
        False, description="Resume from the newest valid checkpoint in --out"
    )
    overwrite: Annotated[bool, Fact.start | Fact.own, Section.output] = Field(
        False, description="Replace the run in --out"
    )
    keep_diverged: Annotated[bool, Fact.execution] = Field(
        False,
        description="Finish the run even if training diverged; otherwise it stays unfinished, and the exit code is 3",
    )
    track: Annotated[Trackers, Fact.execution, Section.output] = Field(
        (),
        description="Trackers to log to as well as metrics.jsonl, comma-separated: tensorboard, wandb, trackio "
        "[default: none]",
    )


class SamplingSettings(Settings):
    section = Section.generation

    # one default for drafts and improvements: at two temperatures, the gain would be mostly temperature
    temperature: Annotated[float, Fact.process] = Field(
        0.5, ge=0, description="Sampling temperature; 0 is greedy decoding"
    )
    top_p: Annotated[float, Fact.process] = Field(
        1.0, gt=0, le=1, description="Nucleus sampling: sample from the fewest tokens with this total probability"
    )
    max_new_tokens: Annotated[int, Fact.process] = Field(
        256, ge=1, description="Maximum length of a response in tokens"
    )

"""Settings of the commands around them: data, checks, evaluation."""

import re
from pathlib import Path
from typing import Annotated, Self

from pydantic import Field, model_validator

from pitcli.settings.base import Device, Dtype, ExportRole, Fact, Files, ModelSettings, Settings


class DoctorConfig(Settings):
    """pit doctor: check this machine, and say what mends it."""

    model: Annotated[str, Fact.base] = Field(
        "smollm2", description="Base model to look for: as --model of the other commands"
    )


class PipelineConfig(Settings):
    """pit run: run the stages of a recipe, skipping what is done."""

    recipe: Annotated[Path, Fact.file | Fact.argument] = Field(..., description="YAML file with the stages")
    out: Annotated[Path | None, Fact.output] = Field(
        None, description="Folder in which the stages run [default: as the recipe says, else runs/ and its name]"
    )
    set: Annotated[tuple[str, ...], Fact.text | Fact.repeated] = Field(
        (),
        description="KEY=VALUE in place of what the recipe shares, STAGE.KEY=VALUE of one stage; may be repeated",
    )
    processes: int | None = Field(
        None,
        ge=1,
        description="Processes that sft, train-reward, rl and improve are, one a GPU [default: the recipe's, else 1]",
    )
    dry_run: Annotated[bool, Fact.start] = Field(
        False, description="Run nothing; say of each stage whether it would run, and why"
    )


class VerifyConfig(Settings):
    """pit verify: check that a run is what was saved, down to its scores."""

    run: Annotated[Path, Fact.run | Fact.argument] = Field(..., description="Run folder")
    device: Device = Field(Device.auto, description="Where to run: auto takes a GPU if there is one")


class ReportConfig(Settings):
    """pit report: a training run as one page: curves, results, what looks wrong."""

    runs: Annotated[Files, Fact.run | Fact.argument] = Field(
        ...,
        min_length=1,
        description="Run folder, finished or not; several with commas, to see them together",
    )
    out: Annotated[Path | None, Fact.output] = Field(
        None, description="The page [default: report.html in the run folder]"
    )


class ExportConfig(Settings):
    """pit export: what a run trained as a model that others load, with its card."""

    run: Annotated[Path, Fact.run | Fact.argument] = Field(..., description="Run folder")
    out: Annotated[Path, Fact.output] = Field(..., description="Folder to write")
    role: ExportRole | None = Field(
        None, description="Which model of the run; an RL run holds its gap model too [default: what the run trained]"
    )
    merge: bool = Field(
        True,
        description="Write one whole model, the adapter folded into the base; a 4-bit base goes in as its 4 bits hold "
        "it, which is what was trained on. Takes host memory for the base as it is loaded and the model in --dtype "
        "(7B: 4 + 14 GiB), on a CPU then for the model in fp32",
    )
    adapter: bool = Field(False, description="Write the adapter alone instead, as peft and vLLM load it")
    dtype: Dtype = Field(Dtype.bf16, description="--merge: type of the weights")
    base_name: Annotated[str | None, Fact.text] = Field(
        None, description="OWNER/NAME of the base on the hub [default: as the run says, where that is a hub name]"
    )
    evaluation: Annotated[Path | None, Fact.file] = Field(
        None, description="evaluation.json of pit evaluate, whose figures for this model go on the card"
    )
    license: Annotated[str | None, Fact.text] = Field(
        None, description="Licence of the model, as the hub spells it, e.g. apache-2.0"
    )
    push_to_hub: Annotated[str | None, Fact.text] = Field(
        None, description="Upload to OWNER/NAME, private; the token comes from hf auth login or HF_TOKEN"
    )
    public: bool = Field(False, description="--push-to-hub: for all to see")
    overwrite: Annotated[bool, Fact.start] = Field(False, description="Replace the export in --out")
    device: Device = Field(Device.auto, description="Where to run: auto takes a GPU if there is one")

    @model_validator(mode="after")
    def _one_form(self) -> Self:
        if self.adapter if "merge" in self.model_fields_set and self.merge else not (self.merge or self.adapter):
            raise ValueError("give one of --merge and --adapter")
        if self.adapter and "dtype" in self.model_fields_set:
            raise ValueError("--dtype is for --merge: an adapter is written as it was trained")
        if self.public and not self.push_to_hub:
            raise ValueError("--public is for --push-to-hub")
        return self

    @model_validator(mode="after")
    def _hub_names(self) -> Self:
        for flag, name in (("--base-name", self.base_name), ("--push-to-hub", self.push_to_hub)):
            if name is not None and not is_hub_name(name):
                raise ValueError(f"{flag}: must be OWNER/NAME, got {name}")
        return self


def is_hub_name(name: str) -> bool:
    return re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name, re.ASCII) is not None


class PrepareConfig(Settings):
    """pit prepare: preference data to canonical JSONL, in disjoint folds."""

    data: Annotated[str | None, Fact.file] = Field(
        None,
        description="Preference pairs in any known format: .jsonl, .csv, .parquet, hub:OWNER/NAME:SPLIT, - for stdin",
    )
    synthetic: int | None = Field(None, ge=1, description="Make so many rows of the synthetic task instead")
    dry_run: Annotated[bool, Fact.start] = Field(
        False, description="Write nothing; show what the data is, and fail where the command would"
    )
    model: Annotated[str | None, Fact.base | Fact.start] = Field(
        None, description="--dry-run: count the tokens of this base model instead of words"
    )
    rating_field: Annotated[str | None, Fact.text] = Field(
        None, description="Rated responses: the field of the rating that makes pairs [default: helpfulness]"
    )
    rating_margin: float = Field(
        0, ge=0, description="Rated responses: least difference from the best; equal ratings never make a pair"
    )
    out: Annotated[Path, Fact.output] = Field(Path("data"), description="Folder for the folds")
    folds: Annotated[str, Fact.text] = Field(
        "sft=1,reward=1,rl=1,test=0.3", description="Folds and their shares, disjoint by prompt"
    )
    max_rows: int | None = Field(None, ge=1, description="Use only the first rows of the data")
    shuffle_labels: bool = Field(
        False, description="Swap chosen and rejected by coin flips: a control, from which nothing can be learned"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the folds, of the synthetic task and of the coin flips")

    @model_validator(mode="after")
    def _one_source(self) -> "PrepareConfig":
        if (self.data is None) == (self.synthetic is None):
            raise ValueError("give either --data or --synthetic")
        return self

    @model_validator(mode="after")
    def _model_of_dry_run(self) -> "PrepareConfig":
        if self.model and not self.dry_run:
            raise ValueError("--model is for --dry-run")
        return self


class EvaluateConfig(ModelSettings):
    """pit evaluate: hold improved rows against originals and other systems."""

    input: Annotated[Files, Fact.named_file] = Field(
        (),
        description="Rows of pit improve, as FILE or NAME=FILE, with commas between; the first system is the one that "
        "the others are compared with; a name that stands again is another training seed of it",
    )
    judge: Annotated[Files, Fact.judge] = Field(
        ...,
        min_length=1,
        description="oracle (the synthetic task), gap:RUN, hf:MODEL, openai:MODEL; several with commas",
    )
    out: Annotated[Path, Fact.output] = Field(
        Path("runs/evaluation"), description="Folder for evaluation.json, report.html, verdicts.jsonl"
    )
    control: Annotated[Files, Fact.named_file] = Field(
        (),
        description="Systems that must show no gain over the originals, or NAME/SYSTEM=FILE over another system",
    )
    validate_on: Annotated[Files, Fact.file] = Field(
        (), description="Pairs that people labelled: a judge that does not beat longest and shortest there is not used"
    )
    by: Annotated[str | None, Fact.text] = Field(
        None, description="Compare by the values of this field too, e.g. subset"
    )
    max_rows: int | None = Field(None, ge=1, description="Use only the first rows of each file")
    rank_iterations: bool = Field(True, description="Judge every pair of iterations, to rank them")
    harm_cap: float = Field(0.05, ge=0, le=1, description="Greatest share of rows made worse that may be called better")
    allow_reward_as_judge: bool = Field(
        False, description="Accept a judge that has seen the rows of the gap model used in RL or stopping"
    )
    base_url: Annotated[str | None, Fact.text] = Field(
        None, description="openai: the endpoint, e.g. http://localhost:8000/v1"
    )
    concurrency: int = Field(8, ge=1, description="openai: requests at the same time")
    micro_batch_size: Annotated[int, Fact.execution] = Field(32, ge=1, description="gap, hf: sequences for each pass")
    draws: int = Field(10_000, ge=100, description="Bootstrap draws")
    shown: int = Field(12, ge=0, description="Rows shown in the report")
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the bootstrap and of the rows shown")

    @model_validator(mode="after")
    def _something_to_do(self) -> Self:
        if not (self.input or self.validate_on):
            raise ValueError(
                "give --input (rows to evaluate), --validate-on (pairs to hold the judges against), or both"
            )
        if self.control and not self.input:
            raise ValueError("--control needs --input")
        return self


class AnnotateConfig(Settings):
    """pit annotate: ask a person which of two responses is better, blind."""

    input: Annotated[str, Fact.file] = Field(
        ..., description="Rows with prompt, original_response and response: .jsonl or .jsonl.gz"
    )
    output: Annotated[str, Fact.output] = Field(
        ..., description="Where labels are added, one a decision; goes on with those that are there"
    )
    annotator: Annotated[str, Fact.text] = Field(..., min_length=1, description="Who answers; stands in every label")
    max_rows: int | None = Field(
        None, ge=1, description="Ask about so many pairs only, drawn at random; one --seed draws the same for everybody"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Seed of the order of the pairs and of the two responses")


class AgreeConfig(Settings):
    """pit agree: how far people agree with one another, and judges with them."""

    labels: Annotated[Files, Fact.file] = Field(
        ..., min_length=1, description="Files of pit annotate, with commas between them"
    )
    judge_verdicts: Annotated[str | None, Fact.file] = Field(
        None, description="Rows with judge, prompt, original_response, response and p_better, to be held against labels"
    )

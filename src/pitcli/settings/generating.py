"""Settings of the commands that generate: pit sample and pit improve."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from pitcli.settings.base import INSTRUCTIONS, GapBound, Method, ModelSettings, OutputFormat, SamplingSettings, StopRule
from pitcli.settings.endpoints import WriterSettings
from pitcli.settings.facts import Fact, Section
from pitcli.settings.pairs import PairRowSettings
from pitcli.settings.values import Addresses, split_commas


class SampleConfig(ModelSettings, SamplingSettings, PairRowSettings, WriterSettings):
    """pit sample: sample drafts from the policy."""

    section = Section.generation
    reads_requests = True

    data: Annotated[str, Fact.file, Section.common] = Field(
        "-",
        description="Rows with a prompt: .jsonl or .jsonl.gz; - for stdin; instructions:train or instructions:test for "
        "requests of the instruction task, instructions:sentences for sentences with their keywords, with --max-rows",
    )
    policy: Annotated[Path | None, Fact.run, Section.common] = Field(
        None, description="Run folder of the policy [default: runs/policy if it exists, otherwise the base model]"
    )
    output: Annotated[str, Fact.output, Section.common] = Field(
        "-", description="Output file for the drafts; - for stdout"
    )
    resume: Annotated[bool, Fact.start, Section.common] = Field(
        False,
        description="Resume a stopped command: skip the drafts that are already in --output",
    )
    overwrite: Annotated[bool, Fact.start, Section.output] = Field(False, description="Replace the file --output")
    max_rows: Annotated[int | None, Section.data] = Field(
        None, ge=1, description="Use at most this many rows, from the start [default: all rows]"
    )
    draws: int = Field(1, ge=1, description="Responses per prompt; each becomes a row")
    sample_batch_size: Annotated[int, Fact.execution, Section.hardware] = Field(
        32, ge=1, description="Number of rows generated together"
    )
    seed: int = Field(0, ge=0, lt=2**32, description="Random seed")

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.data.startswith(INSTRUCTIONS) and self.max_rows is None:
            yield f"--data {self.data} has no end: give --max-rows"
        if self.writer is not None and (self.policy or self.model):
            yield "--policy and --model are for a writer in this process; remove them, or --writer"


class ImprovingSettings(ModelSettings, SamplingSettings):
    """Settings of the commands that improve drafts."""

    section = Section.method

    run: Annotated[Path | None, Fact.run, Section.common] = Field(
        None,
        description="Run folder of the improver; pit:instructions comes with the package [default: the first that "
        "exists of runs/rl, runs/dpo and runs/sft]",
    )
    reward: Annotated[Path | None, Fact.run, Section.runs] = Field(
        None,
        description="Run folder with a gap model, of pit train-reward or pit rl [default: the gap model inside --run, "
        "otherwise runs/reward]",
    )
    max_iters: Annotated[int, Fact.process, Section.common] = Field(
        3, ge=0, description="Maximum number of improvements per draft"
    )
    width: Annotated[int, Fact.process] = Field(
        1,
        ge=1,
        description="Improvements per iteration; the best of them by the gap is the one that the stop rule sees. Costs "
        "this many times the tokens",
    )
    threshold: Annotated[float, Section.stop] = Field(
        0.5,
        ge=0,
        le=1,
        description="P(better than the draft) that the last improvement must exceed, otherwise the draft is kept; each "
        "must exceed 0.5 over the one before [default: that of pit calibrate, if --run has one for these settings, "
        "otherwise 0.5]",
    )
    gap_bound: Annotated[GapBound, Fact.process, Section.stop] = Field(
        GapBound.mean,
        description="Gap of several gap models (pit train-reward --members): their mean, the least, or lcb: mean minus "
        "standard deviation",
    )
    accept_truncated: Annotated[bool, Fact.process, Section.stop] = Field(
        False, description="Also accept improvements that --max-new-tokens cut before their end"
    )
    sample_batch_size: Annotated[int, Fact.execution, Section.hardware] = Field(
        16, ge=1, description="Number of drafts improved together"
    )
    seed: Annotated[int, Section.generation] = Field(
        0, ge=0, lt=2**32, description="Random seed; the samples of a row do not depend on the order of the rows"
    )


class ImproveConfig(ImprovingSettings, WriterSettings):
    """pit improve: rewrite drafts until the gap model finds no improvement."""

    section = Section.method

    method: Annotated[Method, Fact.process] = Field(
        Method.pit,
        description="pit: the improver rewrites; self-refine: the policy writes feedback and rewrites; best-of-n: the "
        "best, by the gap, of --max-iters samples of the policy; resample: samples of the policy, one after another",
    )
    input: Annotated[str, Fact.file | Fact.execution, Section.common] = Field(
        "-",
        description="Drafts: rows with prompt and response, messages of which the last is the draft, or another known "
        "shape; .jsonl, .csv, .tsv, each also as .gz, .parquet or hub:OWNER/NAME; - for stdin",
    )
    prompt: Annotated[str | None, Fact.text, Section.data] = Field(
        None,
        description="Read --input as one plain text, the response to this prompt, and write the improved text "
        "[default: --input has rows]",
    )
    output: Annotated[str, Fact.output, Section.common] = Field(
        "-", description="Output file for the improved rows; - for stdout"
    )
    output_format: Annotated[OutputFormat | None, Section.output] = Field(
        None,
        description="rows: the draft's fields, the best response and every attempt, as the other commands read them; "
        "same: the draft's row with the best response in its place; messages: a conversation that ends with it; text: "
        "the best response alone [default: rows; with --prompt text]",
    )
    only_changed: Annotated[bool, Section.output] = Field(False, description="Write only the drafts that were improved")
    diff: Annotated[bool, Fact.execution, Section.output] = Field(
        False, description="Show the words that changed in each draft, on stderr"
    )
    resume: Annotated[bool, Fact.start, Section.common] = Field(
        False, description="Resume a stopped command: skip the drafts whose rows are already in --output"
    )
    overwrite: Annotated[bool, Fact.start, Section.output] = Field(False, description="Replace the file --output")
    policy: Annotated[Path | None, Fact.run, Section.runs] = Field(
        None,
        description="Run folder of the policy, for the methods other than pit "
        "[default: runs/policy if it exists, otherwise the base model]",
    )
    equal_tokens: Annotated[str | None, Fact.file] = Field(
        None,
        description="best-of-n: output of another pit improve; sample for each draft until as many tokens are "
        "generated as there, instead of --max-iters times [default: --max-iters decides]",
    )
    stop: Annotated[StopRule, Section.stop] = Field(
        StopRule.gap,
        description="gap: keep an improvement only if the gap model finds it better; none: make "
        "--max-iters improvements and keep each of them",
    )
    prune_edits: Annotated[bool, Fact.process, Section.stop] = Field(
        False,
        description="Drop the edits of an accepted improvement that do nothing by the gap model: whose reversal does "
        "not lower its gap",
    )
    gap_url: Annotated[Addresses, Fact.text | Fact.execution, Section.endpoints] = Field(
        None,
        description="Where the exported gap model is served by vLLM (vllm serve DIR --runner pooling), e.g. "
        "http://localhost:8001, or several, comma-separated [default: the gap model runs in this process]",
    )

    def gap_urls(self) -> tuple[str, ...]:
        return tuple(split_commas(self.gap_url or ""))

    def process(self) -> dict[str, Any]:
        """The settings on which the responses depend besides the models, the draft and the threshold."""
        return self.model_dump(mode="json", include=self.named(Fact.process))

    def written_format(self) -> OutputFormat:
        if self.prompt is not None and self.output_format in (None, OutputFormat.same):
            return OutputFormat.text
        return self.output_format or OutputFormat.rows

    def rows_tell_what_is_done(self) -> bool:
        """Whether the output alone shows which drafts are done, so that it can be resumed without a journal."""
        return self.written_format() is OutputFormat.rows and not self.only_changed

    def needs_gap_model(self) -> bool:
        needs_gap = self.width > 1 or self.prune_edits
        return self.stop is StopRule.gap or self.method is Method.best_of_n or needs_gap

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.equal_tokens and self.method is not Method.best_of_n:
            yield "--equal-tokens is for --method best-of-n"
        if self.run is not None and self.method is not Method.pit and self.writer is None:
            yield f"--run is for --method pit; name the policy of --method {self.method} by --policy"
        if self.writer is not None and self.policy is not None:
            yield "--policy is for a writer in this process; remove it, or --writer"
        if self.prompt is not None and not self.prompt.strip():
            yield "--prompt: must not be empty"
        if self.prompt and re.search(r"\.(jsonl|csv|tsv|parquet)(\.gz)?$|^hub:", self.input, re.IGNORECASE):
            yield f"--prompt is for one plain text, and --input {self.input} has rows; give one of the two"
        if self.width > 1 and self.method is Method.best_of_n:
            yield "--width is not for --method best-of-n; use a larger --max-iters"
        if self.prune_edits and self.method not in (Method.pit, Method.self_refine):
            yield f"--prune-edits is not for --method {self.method}, whose samples are no edits of a draft"

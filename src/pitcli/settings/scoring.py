"""Settings of the commands that score: pit score and pit explain."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pitcli.settings.base import GapBound, ModelSettings
from pitcli.settings.facts import Fact, Section
from pitcli.settings.pairs import PairRowSettings

ORIGINAL_RESPONSE = "original_response"  # the field of the draft in improved rows
OTHERS, ALL = "others", "all"  # what --against may be besides a field


class ScoringSettings(ModelSettings):
    """Settings of the commands that score rows by the gap model."""

    output: Annotated[str, Fact.output, Section.common] = Field(
        "-", description="Output file for the rows with what was found; - for stdout"
    )
    resume: Annotated[bool, Fact.start, Section.common] = Field(
        False, description="Resume a stopped command: skip the rows that are already in --output"
    )
    overwrite: Annotated[bool, Fact.start, Section.output] = Field(False, description="Replace the file --output")
    reward: Annotated[Path | None, Fact.run, Section.runs] = Field(
        None,
        description="Run folder with the gap model, of pit train-reward or pit rl "
        "[default: runs/reward if it exists, otherwise runs/rl]",
    )
    micro_batch_size: Annotated[int, Fact.execution, Section.hardware] = Field(
        32, ge=1, description="Maximum number of sequences per forward pass"
    )


class ScoreConfig(ScoringSettings, PairRowSettings):
    """pit score: score responses by the gap model, and rank them."""

    section = Section.method

    input: Annotated[str, Fact.file | Fact.execution, Section.common] = Field(
        "-",
        description="Rows with prompt and response, in any shape that pit improve reads, or with prompt and responses, "
        "a list; .jsonl, .csv, .tsv, each also as .gz, .parquet or hub:OWNER/NAME; - for stdin",
    )
    labels: Annotated[bool, Section.common] = Field(
        False,
        description="Read --input as preference pairs, score chosen against rejected, and print the accuracy as one "
        "JSON object on stdout; the rows go to --output if it is a file",
    )
    against: Annotated[str | None, Fact.text, Section.common] = Field(
        None,
        description="What a response is compared with: a field of its row, e.g. original_response or answers.0.text; "
        f"{OTHERS}: the mean over the other responses to the prompt, in one row or in neighbouring rows; {ALL}: also "
        f"write its gap over each of them [default: original_response if the row has it, otherwise {OTHERS}]",
    )
    gap_bound: GapBound = Field(
        GapBound.mean,
        description="Gap of several gap models (pit train-reward --members): their mean, the least, or lcb: mean minus "
        "standard deviation",
    )

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if self.labels and self.against is not None:
            yield "--against is not for --labels: chosen is compared with rejected"
        pairs_only = sorted(self.model_fields_set & PairRowSettings.model_fields.keys())
        if pairs_only and not self.labels:
            yield f"--{pairs_only[0].replace('_', '-')} is for preference pairs; use it with --labels"


class ExplainConfig(ScoringSettings):
    """pit explain: show what each edit of an improvement does, by the gap model."""

    section = Section.method

    input: Annotated[str, Fact.file | Fact.execution, Section.common] = Field(
        "-",
        description="Improved rows, as pit improve writes them, or others with a prompt, a response and its draft; "
        ".jsonl, .csv, .tsv, each also as .gz, .parquet or hub:OWNER/NAME; - for stdin",
    )
    against: Annotated[str, Fact.text, Section.common] = Field(
        ORIGINAL_RESPONSE, description="The field with the draft, e.g. draft or answers.0.text"
    )
    diff: Annotated[bool, Fact.execution, Section.output] = Field(
        False, description="Show each improvement with its edits and their shares, on stderr"
    )

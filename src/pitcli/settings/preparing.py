"""Settings of pit prepare."""

from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pitcli.settings.facts import Fact, Section
from pitcli.settings.pairs import PairRowSettings


class PairTask(StrEnum):
    instructions = "instructions"


class PrepareConfig(PairRowSettings):
    """pit prepare: convert preference data to JSONL, split by prompt into folds."""

    section = Section.data

    data: Annotated[str | None, Fact.files, Section.common] = Field(
        None,
        description="Preference pairs in any known format: .jsonl, .csv, .parquet, hub:OWNER/NAME:SPLIT, or - for "
        "stdin; several, comma-separated [required unless --synthetic]",
    )
    synthetic: Annotated[int | None, Section.common] = Field(
        None, ge=1, description="Generate this many rows of the synthetic task instead [default: none]"
    )
    task: PairTask | None = Field(
        None,
        description="instructions: --data contains samples of a policy for requests of this task (pit sample --data "
        "instructions:train), and may contain sentences with their keywords (instructions:sentences); make pairs of "
        "edited samples, labelled by noisy grades [default: --data contains pairs]",
    )
    pairs_per_prompt: int = Field(2, ge=1, description="With --task: pairs made from the samples of one prompt")
    ties_in: Annotated[str | None, Fact.text] = Field(
        None,
        description="With --task: folds, comma-separated, that keep pairs of equally good texts, labelled by a coin "
        "flip, so that a gap model learns which changes are worth nothing [default: none]",
    )
    dry_run: Annotated[bool, Fact.start, Section.common] = Field(
        False, description="Write nothing; show a summary of the data, and report the errors that the command would"
    )
    model: Annotated[str | None, Fact.base | Fact.start, Section.model] = Field(
        None, description="With --dry-run: count the tokens of this base model [default: count words]"
    )
    rating_field: Annotated[str | None, Fact.text] = Field(
        None, description="Rated responses: the field with the rating by which pairs are made [default: helpfulness]"
    )
    rating_margin: float = Field(
        0,
        ge=0,
        description="Rated responses: minimum difference from the best rating; equal ratings never make a pair",
    )
    out: Annotated[Path, Fact.output, Section.common] = Field(Path("data"), description="Output folder for the folds")
    overwrite: Annotated[bool, Fact.start, Section.common] = Field(
        False, description="Replace the files of the folds in --out"
    )
    folds: Annotated[str, Fact.text, Section.common] = Field(
        "sft=1,reward=1,rl=1,test=0.3", description="Folds and their relative sizes; a prompt is in one fold only"
    )
    max_rows: int | None = Field(
        None, ge=1, description="Use at most this many rows, from the start [default: all rows]"
    )
    shuffle_labels: bool = Field(
        False, description="Swap chosen and rejected at random: a control, from which nothing can be learned"
    )
    seed: int = Field(
        0, ge=0, lt=2**32, description="Random seed of the folds, the synthetic task and --shuffle-labels"
    )

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if (self.data is None) == (self.synthetic is None):
            yield "give either --data or --synthetic"
        if self.task and self.data is None:
            yield "--task needs --data, with samples of a policy"
        # by value, because saved settings contain the defaults too
        number = self.pairs_per_prompt != type(self).model_fields["pairs_per_prompt"].default
        if not self.task and (self.ties_in or number):
            yield "--pairs-per-prompt and --ties-in need --task"
        if self.model and not self.dry_run:
            yield "--model is for --dry-run"

"""Settings of the commands that do not train: data preparation, checks, evaluation."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pitcli.settings.base import DEVICE_HELP, Device, Settings
from pitcli.settings.facts import Fact, Section
from pitcli.settings.judging import IndependentJudgeSettings, JudgeSettings
from pitcli.settings.pairs import PairRowSettings
from pitcli.settings.values import Files, Judges


class DoctorConfig(Settings):
    """pit doctor: check this machine and suggest fixes."""

    section = Section.model

    model: Annotated[str, Fact.base, Section.common] = Field(
        "smollm2", description="Base model to check: a folder, a hub name, a .gguf file, smollm2 or tiny"
    )


class PipelineConfig(Settings):
    """pit run: run the stages of a recipe; skip finished stages."""

    section = Section.output

    recipe: Annotated[Path, Fact.file | Fact.argument] = Field(..., description="YAML file with the stages")
    out: Annotated[Path | None, Fact.output, Section.common] = Field(
        None,
        description="Folder in which the stages run [default: out in the recipe, otherwise runs/RECIPE-NAME]",
    )
    set: Annotated[tuple[str, ...], Fact.text | Fact.repeated, Section.common] = Field(
        (),
        description="KEY=VALUE replaces a setting that the stages share, STAGE.KEY=VALUE a setting of one stage; "
        "may be given several times [default: none]",
    )
    processes: Annotated[int | None, Section.common] = Field(
        None,
        ge=1,
        description="Number of processes for sft, train-reward, rl, dpo, distill and improve, one per GPU "
        "[default: the recipe's number, otherwise 1]",
    )
    dry_run: Annotated[bool, Fact.start, Section.common] = Field(
        False, description="Run nothing; print for each stage whether it would run, and why"
    )


class VerifyConfig(Settings):
    """pit verify: check that a run's files and scores are as they were saved."""

    section = Section.hardware

    run: Annotated[Path, Fact.run | Fact.argument] = Field(..., description="Run folder")
    device: Annotated[Device, Section.common] = Field(Device.auto, description=DEVICE_HELP)


class ReportConfig(Settings):
    """pit report: show a training run as a page: curves, results, warnings."""

    section = Section.output

    runs: Annotated[Files, Fact.run | Fact.argument] = Field(
        ...,
        min_length=1,
        description="Run folder, finished or not; several, comma-separated, to compare them",
    )
    out: Annotated[Path | None, Fact.output, Section.common] = Field(
        None, description="Output file, an HTML page [default: report.html in the run folder]"
    )


class EvaluateConfig(IndependentJudgeSettings, PairRowSettings):
    """pit evaluate: compare improved rows with the originals and other systems."""

    section = Section.comparison

    input: Annotated[Files, Fact.named_file, Section.common] = Field(
        (),
        description="Rows of pit improve as FILE or NAME=FILE, comma-separated. The first system is compared with the "
        "others; a repeated name is another training seed of the same system [required unless --validate-on]",
    )
    judge: Annotated[Judges, Fact.judge, Section.common] = Field(
        ...,
        min_length=1,
        description="Judges, comma-separated: oracle (the tasks of pit itself), gap:RUN, hf:MODEL, openai:MODEL, and "
        "last cmd:COMMAND, a program that scores rows; its command may contain commas",
    )
    out: Annotated[Path, Fact.output, Section.common] = Field(
        Path("runs/evaluation"), description="Output folder for evaluation.json, report.html and verdicts.jsonl"
    )
    overwrite: Annotated[bool, Fact.start, Section.common] = Field(False, description="Replace the evaluation in --out")
    control: Annotated[Files, Fact.named_file, Section.common] = Field(
        (),
        description="Systems that must show no gain over the originals, as NAME=FILE, or over another system, as "
        "NAME/SYSTEM=FILE; comma-separated [default: none]",
    )
    validate_on: Annotated[Files, Fact.file, Section.judges] = Field(
        (),
        description="Pairs labelled by people, comma-separated; a judge is used only if it beats the rules longest "
        "and shortest on them [default: none]",
    )
    by: Annotated[str | None, Fact.text] = Field(
        None, description="Compare separately for each value of this field too, e.g. subset [default: none]"
    )
    max_rows: int | None = Field(
        None, ge=1, description="Use at most this many rows of each file, from the start [default: all rows]"
    )
    rank_iterations: bool = Field(True, description="Judge every pair of iterations, to rank the iterations")
    harm_cap: float = Field(
        0.05, ge=0, le=1, description="Maximum harm rate (share of rows made worse) of a system that is called better"
    )
    bootstrap_draws: int = Field(10_000, ge=100, description="Number of bootstrap draws")
    shown: int = Field(12, ge=0, description="Number of rows shown in the report")
    seed: int = Field(0, ge=0, lt=2**32, description="Random seed of the bootstrap and of the rows shown")

    def conflicts(self) -> Iterator[str]:
        yield from super().conflicts()
        if not (self.input or self.validate_on):
            yield "give --input (rows to evaluate), --validate-on (pairs to check the judges on), or both"
        if self.control and not self.input:
            yield "--control needs --input"


class LabelConfig(JudgeSettings):
    """pit label: turn rows into preference pairs, by any judge."""

    section = Section.data

    judge: Annotated[str, Fact.judge, Section.common] = Field(
        ...,
        description="One judge: oracle (the tasks of pit itself), gap:RUN, hf:MODEL, openai:MODEL, cmd:COMMAND (a "
        "program that scores rows), or labels:FILE (label files of pit annotate, comma-separated)",
    )
    input: Annotated[str, Fact.file, Section.common] = Field(
        "-",
        description="Rows of pit improve, or of pit sample --draws, with the rows of a prompt next to one another; "
        "- for stdin",
    )
    output: Annotated[str, Fact.output, Section.common] = Field(
        "-", description="Output file for the pairs; - for stdout"
    )
    resume: Annotated[bool, Fact.start, Section.common] = Field(
        False, description="Resume a stopped command: judge the pairs that are not in --output yet"
    )
    overwrite: Annotated[bool, Fact.start, Section.output] = Field(False, description="Replace the file --output")
    min_confidence: Annotated[float, Section.common] = Field(
        0, ge=0, le=1, description="Skip pairs with 2 * P(chosen is better) - 1 below this: 0 is a tie, 1 is certain"
    )
    max_rows: int | None = Field(
        None, ge=1, description="Use at most this many rows, from the start [default: all rows]"
    )


class AnnotateConfig(Settings):
    """pit annotate: ask a person which of two responses is better, blind."""

    section = Section.data

    input: Annotated[str, Fact.file, Section.common] = Field(
        ..., description="Rows with prompt, original_response and response: .jsonl or .jsonl.gz"
    )
    output: Annotated[str, Fact.output, Section.common] = Field(
        ..., description="Output file, one label per answer; new labels are appended to the existing ones"
    )
    annotator: Annotated[str, Fact.text, Section.common] = Field(
        ..., min_length=1, description="Name of the person who answers; saved in each label"
    )
    max_rows: Annotated[int | None, Section.common] = Field(
        None,
        ge=1,
        description="Ask about this many pairs, drawn at random; annotators with the same --seed get the same pairs "
        "[default: all pairs]",
    )
    seed: Annotated[int, Section.common] = Field(
        0, ge=0, lt=2**32, description="Random seed of the order of the pairs and of the two responses"
    )


class AgreeConfig(Settings):
    """pit agree: measure agreement between people, and with judges."""

    section = Section.data

    labels: Annotated[Files, Fact.file, Section.common] = Field(
        ..., min_length=1, description="Label files of pit annotate, comma-separated"
    )
    judge_verdicts: Annotated[str | None, Fact.file, Section.common] = Field(
        None,
        description="verdicts.jsonl of pit evaluate, to compare the judges with the labels; rows with judge, prompt, "
        "original_response, response and p_better [default: none]",
    )

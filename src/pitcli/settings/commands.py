"""The commands of pit: settings, purpose, examples, and whether they run in recipes or as several processes."""

from enum import StrEnum
from typing import NamedTuple

from pitcli.settings.base import Settings
from pitcli.settings.distill import DistillConfig
from pitcli.settings.dpo import DpoConfig
from pitcli.settings.exporting import ExportConfig
from pitcli.settings.generating import ImproveConfig, SampleConfig
from pitcli.settings.judging import CalibrateConfig
from pitcli.settings.preparing import PrepareConfig
from pitcli.settings.scoring import ExplainConfig, ScoreConfig
from pitcli.settings.serving import ServeConfig
from pitcli.settings.tools import (
    AgreeConfig,
    AnnotateConfig,
    DoctorConfig,
    EvaluateConfig,
    LabelConfig,
    PipelineConfig,
    ReportConfig,
    VerifyConfig,
)
from pitcli.settings.training import RewardConfig, RlConfig, SftConfig


class Purpose(StrEnum):
    """A heading over commands in `pit --help`."""

    train = "Train"
    use = "Use"
    judge = "Judge"
    inspect = "Inspect and export"


class Command(NamedTuple):
    """in_recipes: may be a stage of a recipe; distributed: may run as several processes."""

    settings: type[Settings]
    purpose: Purpose
    examples: tuple[str, ...]
    in_recipes: bool = False
    distributed: bool = False

    @property
    def summary(self) -> str:
        """What the command does: the docstring of its settings, without the command's name."""
        _, _, summary = (self.settings.__doc__ or "").partition(": ")
        return summary[:1].upper() + summary[1:]


# in the order of use
COMMANDS: dict[str, Command] = {
    "prepare": Command(
        PrepareConfig,
        Purpose.train,
        ("pit prepare --data hh.jsonl --out data", "pit prepare --data hub:OWNER/NAME:train --dry-run"),
        in_recipes=True,
    ),
    "sft": Command(
        SftConfig,
        Purpose.train,
        ("pit sft --data data/sft.jsonl", "pit sft --data data/sft.jsonl --role policy"),
        in_recipes=True,
        distributed=True,
    ),
    "train-reward": Command(
        RewardConfig,
        Purpose.train,
        (
            "pit train-reward --data data/reward.jsonl",
            "pit train-reward --data data/reward.jsonl,pairs.jsonl",
            "pit train-reward --data data/reward.jsonl --eval-data data/test.jsonl",
        ),
        in_recipes=True,
        distributed=True,
    ),
    "rl": Command(
        RlConfig,
        Purpose.train,
        ("pit rl --curriculum", "pit rl --role policy", 'pit rl --reward "cmd:python verifier.py"'),
        in_recipes=True,
        distributed=True,
    ),
    "dpo": Command(
        DpoConfig,
        Purpose.train,
        ("pit dpo --data data/reward.jsonl", "pit dpo --loss ipo", "pit dpo --role policy --loss kto"),
        in_recipes=True,
        distributed=True,
    ),
    "distill": Command(
        DistillConfig,
        Purpose.train,
        (
            "pit distill --data improved.jsonl",
            "pit distill --data improved.jsonl --method dpo",
            "pit distill --data drafts.jsonl --method on-policy",
        ),
        in_recipes=True,
        distributed=True,
    ),
    "run": Command(
        PipelineConfig,
        Purpose.train,
        ("pit run examples/recipes/quickstart.yaml", "pit run examples/recipes/quickstart.yaml --dry-run"),
    ),
    "sample": Command(
        SampleConfig, Purpose.use, ("pit sample --data prompts.jsonl --output drafts.jsonl",), in_recipes=True
    ),
    "improve": Command(
        ImproveConfig,
        Purpose.use,
        (
            "pit improve --input drafts.jsonl --output improved.jsonl --max-iters 5",
            "pit improve --input drafts.jsonl --stop none --max-iters 1",
        ),
        in_recipes=True,
        distributed=True,
    ),
    "score": Command(
        ScoreConfig,
        Purpose.use,
        (
            "pit score --input samples.jsonl --output scored.jsonl",
            "pit score --input improved.jsonl --against original_response",
            "pit score --labels --input pairs.jsonl",
        ),
        in_recipes=True,
    ),
    "explain": Command(
        ExplainConfig,
        Purpose.use,
        (
            "pit explain --input improved.jsonl --output explained.jsonl --diff",
            "pit explain --input rewrites.jsonl --against draft",
        ),
        in_recipes=True,
    ),
    "serve": Command(
        ServeConfig,
        Purpose.use,
        ("pit serve --run runs/rl", "pit serve --upstream http://localhost:11434/v1 --collect kept.jsonl"),
    ),
    "evaluate": Command(
        EvaluateConfig,
        Purpose.judge,
        (
            "pit evaluate --input improved.jsonl --judge gap:runs/judge",
            "pit evaluate --input pit=a.jsonl,refine=b.jsonl --judge openai:MODEL",
            'pit evaluate --input improved.jsonl --judge "cmd:python verifier.py"',
        ),
        in_recipes=True,
    ),
    "label": Command(
        LabelConfig,
        Purpose.judge,
        (
            "pit label --judge openai:MODEL --input improved.jsonl --output pairs.jsonl",
            'pit label --judge "cmd:python verifier.py" --input a.jsonl --output b.jsonl',
        ),
        in_recipes=True,
    ),
    "calibrate": Command(
        CalibrateConfig,
        Purpose.judge,
        (
            "pit calibrate --input rows.jsonl --judge oracle --max-harm 0.05",
            "pit calibrate --run runs/sft --input rows.jsonl --judge openai:MODEL",
        ),
    ),
    "annotate": Command(
        AnnotateConfig,
        Purpose.judge,
        ("pit annotate --input improved.jsonl --output labels.jsonl --annotator ada",),
    ),
    "agree": Command(
        AgreeConfig,
        Purpose.judge,
        (
            "pit agree --labels ada.jsonl,bob.jsonl",
            "pit agree --labels ada.jsonl --judge-verdicts verdicts.jsonl",
        ),
    ),
    "report": Command(
        ReportConfig, Purpose.inspect, ("pit report runs/rl", "pit report runs/a,runs/b --out compared.html")
    ),
    "verify": Command(VerifyConfig, Purpose.inspect, ("pit verify runs/rl",)),
    "export": Command(
        ExportConfig,
        Purpose.inspect,
        ("pit export runs/rl --out improver", "pit export runs/rl --out adapter --adapter"),
        in_recipes=True,
    ),
    "doctor": Command(DoctorConfig, Purpose.inspect, ("pit doctor", "pit doctor --model smollm2")),
}

IN_RECIPES = tuple(name for name, command in COMMANDS.items() if command.in_recipes)
DISTRIBUTED = tuple(name for name, command in COMMANDS.items() if command.distributed)

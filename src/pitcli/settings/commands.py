"""The commands of pit: their settings, an example each, and where they may run."""

from typing import NamedTuple

from pitcli.settings.base import Settings
from pitcli.settings.tools import (
    AgreeConfig,
    AnnotateConfig,
    DoctorConfig,
    EvaluateConfig,
    ExportConfig,
    PipelineConfig,
    PrepareConfig,
    ReportConfig,
    VerifyConfig,
)
from pitcli.settings.training import ImproveConfig, RewardConfig, RlConfig, SampleConfig, SftConfig


class Command(NamedTuple):
    """in_recipes: may be a stage of a recipe; distributed: may be several processes."""

    settings: type[Settings]
    example: str
    in_recipes: bool = False
    distributed: bool = False

    @property
    def summary(self) -> str:
        """What the command does: the docstring of its settings, without the command's name."""
        _, _, summary = (self.settings.__doc__ or "").partition(": ")
        return summary[:1].upper() + summary[1:]


COMMANDS: dict[str, Command] = {
    "prepare": Command(PrepareConfig, "pit prepare --data hh.jsonl --out data", in_recipes=True),
    "sft": Command(SftConfig, "pit sft --data data/sft.jsonl", in_recipes=True, distributed=True),
    "train-reward": Command(RewardConfig, "pit train-reward --data hh.jsonl", in_recipes=True, distributed=True),
    "sample": Command(SampleConfig, "pit sample --data hh.jsonl --output drafts.jsonl", in_recipes=True),
    "rl": Command(RlConfig, "pit rl --curriculum", in_recipes=True, distributed=True),
    "improve": Command(
        ImproveConfig, "pit improve --input drafts.jsonl --max-iters 5", in_recipes=True, distributed=True
    ),
    "evaluate": Command(EvaluateConfig, "pit evaluate --input improved.jsonl --judge gap:runs/judge", in_recipes=True),
    "annotate": Command(AnnotateConfig, "pit annotate --input improved.jsonl --output labels.jsonl --annotator ada"),
    "agree": Command(AgreeConfig, "pit agree --labels labels.jsonl"),
    "run": Command(PipelineConfig, "pit run examples/recipes/quickstart.yaml"),
    "verify": Command(VerifyConfig, "pit verify runs/rl"),
    "report": Command(ReportConfig, "pit report runs/rl"),
    "export": Command(ExportConfig, "pit export runs/rl --out improver", in_recipes=True),
    "doctor": Command(DoctorConfig, "pit doctor --model smollm2"),
}

IN_RECIPES = tuple(name for name, command in COMMANDS.items() if command.in_recipes)
DISTRIBUTED = tuple(name for name, command in COMMANDS.items() if command.distributed)

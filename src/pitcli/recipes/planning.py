"""Plans a recipe: finds what each stage reads and writes, and checks the whole recipe before anything runs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pitcli.data.sources import HUB
from pitcli.data.splits import parse_shares
from pitcli.errors import PitError, SettingsError
from pitcli.recipes.recipe import Entry, read_recipe, validated
from pitcli.runs.manifest import Manifest, load_manifest
from pitcli.settings.base import DEFAULT_MODEL, INSTRUCTIONS, READ, Fact, Method, Role, Settings, facts_of
from pitcli.settings.default_runs import GAP_RUN, IMPROVER_RUN, POLICY_RUN, SFT_POLICY_RUN, SFT_RUN, DefaultRun
from pitcli.settings.generating import ImproveConfig, SampleConfig
from pitcli.settings.preparing import PrepareConfig
from pitcli.settings.tools import EvaluateConfig, ExportConfig, PipelineConfig
from pitcli.settings.training import RewardConfig, RlConfig, SftConfig, TrainingConfig

BASES = ("tiny", DEFAULT_MODEL)


class PlannedStage(NamedTuple):
    """A command with settings whose paths are valid from the recipe's out folder.

    given: the settings that its command line needs; reads: files and run folders; bases: names of base models;
    writes: its outputs, the first of which is the key of its record.
    """

    name: str
    command: str
    config: Settings
    given: tuple[str, ...]
    reads: tuple[str, ...]
    bases: tuple[str, ...]
    writes: tuple[str, ...]


class Plan(NamedTuple):
    out: Path
    stages: list[PlannedStage]
    processes: int  # of each command that can run as several


def plan(config: PipelineConfig) -> Plan:
    """The stages in order; raises one SettingsError that lists all problems of the recipe."""
    problems: list[str] = []
    out, entries, processes = read_recipe(config, problems)
    configs = [validated(entry, problems) for entry in entries]
    written = [
        tuple(_relative_to(out, path) for path in _written(entry, config_of_entry, problems))
        for entry, config_of_entry in zip(entries, configs, strict=True)
    ]
    finder = _PathFinder(out, problems)
    stages = []
    for number, (entry, config_of_entry) in enumerate(zip(entries, configs, strict=True)):
        finder.begin(entry, [(other.name, *paths) for other, paths in zip(entries, written, strict=True)][number:])
        filled = _filled(finder, config_of_entry)
        settings = _with_paths(finder, config_of_entry.model_copy(update=filled))
        given = tuple(name for name in type(config_of_entry).model_fields if name in entry.settings or name in filled)
        stage = PlannedStage(
            entry.name,
            entry.command,
            config=settings,
            given=given,
            reads=(*finder.reads,),
            bases=(*finder.bases,),
            writes=written[number],
        )
        finder.add(stage)
        stages.append(stage)
    if problems:
        raise SettingsError(list(dict.fromkeys(problems)))
    return Plan(out, stages, processes)


def _written(entry: Entry, config: Settings, problems: list[str]) -> tuple[str, ...]:
    if getattr(config, "output", None) == "-":
        problems.append(entry.problem("output", "name a file; a stage of a recipe cannot write to stdout"))
        return ()
    try:
        return writes_of(config)
    except SettingsError as error:
        problems += [entry.problem("folds", problem) for problem in error.problems]
        return ()


def writes_of(config: Settings) -> tuple[str, ...]:
    """The files, or the folder, that a command writes."""
    match config:
        case PrepareConfig():
            return tuple(str(config.out / f"{fold}.jsonl") for fold in parse_shares(config.folds))
        case TrainingConfig():
            return (str(config.run_folder),)
        case SampleConfig():
            return (config.output,)
        case ImproveConfig():
            return (config.output, f"{config.output}.manifest.json")
        case EvaluateConfig():
            return tuple(str(config.out / name) for name in ("evaluation.json", "report.html", "verdicts.jsonl"))
        case ExportConfig():
            return (str(config.out),)
    raise TypeError(config)


def _relative_to(out: Path, path: str) -> str:
    """The one spelling of a path: relative to the out folder if it is inside, otherwise absolute."""
    location = os.path.normpath(out / path)
    return os.path.relpath(location, out) if Path(location).is_relative_to(out) else location


class _PathFinder:
    """Finds paths: outputs of earlier stages, or what exists in the out folder or the folder where pit was started."""

    def __init__(self, out: Path, problems: list[str]) -> None:
        self.out, self.problems = out, problems
        self.made: dict[str, PlannedStage] = {}  # by the paths that the stages write
        self.later: dict[str, str] = {}

    def begin(self, entry: Entry, later: Sequence[tuple[str, ...]]) -> None:
        """Begins the next stage. later: the names of this stage and of those after it, each with its outputs."""
        self.entry = entry
        self.later = {self.key(path): name for name, *paths in later for path in paths}
        self.reads: list[str] = []
        self.bases: list[str] = []

    def add(self, stage: PlannedStage) -> None:
        for path in stage.writes:
            if earlier := self.made.get(self.key(path)):
                self.add_problem("", f"writes {path}, as does {earlier.name}; give one of them another output")
            self.made[self.key(path)] = stage

    def key(self, path: str | Path) -> str:
        return os.path.normpath(self.out / path)

    def add_problem(self, setting: str, reason: str) -> None:
        self.problems.append(self.entry.problem(setting, reason))

    def maker(self, path: str | Path | None) -> PlannedStage | None:
        return self.made.get(self.key(path)) if path else None

    def is_later(self, setting: str, path: str) -> bool:
        name = self.later.get(self.key(path))
        if name:
            self.add_problem(
                setting, f"{path} is written by {name}, a later stage; move {name} up, or change its output"
            )
        return name is not None

    def find(self, setting: str, path: str) -> str:
        """The path of a file or run folder that a stage reads."""
        if path in ("-", ""):
            self.add_problem(setting, "name a file; a stage of a recipe cannot read stdin")
        elif not (self.maker(path) or self.is_later(setting, path) or os.path.exists(self.key(path))):
            if not os.path.exists(path):
                self.add_problem(setting, f"{path}: not found, here or in {self.out}, and no earlier stage writes it")
            path = os.path.abspath(path)
        self.reads.append(_relative_to(self.out, path))
        return path

    def find_base(self, setting: str, name: str) -> str:
        """The name or path of a base model that a stage uses."""
        path = os.path.expanduser(name)
        if name not in BASES and not os.path.exists(self.key(path)):
            if os.path.exists(path):
                name = os.path.abspath(path)
            elif name.count("/") != 1 or name.endswith(".gguf"):
                expected = f"a folder, a .gguf file, {', '.join(BASES)} or a hub name"
                self.add_problem(setting, f"expected {expected}, got {name}")
        self.bases.append(name)
        return name

    def earlier_run(self, run: DefaultRun) -> Path | None:
        """The run that a command would find: the first folder that an earlier stage writes, otherwise that exists."""
        made = [folder for folder in run.folders if self.maker(folder)]
        existing = [f for f in run.folders if self.key(f) not in self.later and os.path.exists(self.key(f))]
        return next((Path(folder) for folder in [*made, *existing]), None)

    def default_run(self, run: DefaultRun, needed: bool) -> Path | None:
        """As earlier_run; adds a problem if the run is needed and not found, or if a later stage writes it.

        The latter also if the run is optional: a second `pit run` would find a run that the first did not.
        """
        if found := self.earlier_run(run):
            return found
        if any(self.is_later(run.setting, folder) for folder in run.folders):
            return None
        if needed:
            folders = " or ".join(run.folders)
            self.add_problem(run.setting, f"no earlier stage writes {folders}, and it is not in {self.out}")
        return None

    def manifest(self, setting: str, run: Path, remedy: str) -> Manifest | None:
        """The manifest of an existing run, in the out folder or where pit was started; None if it cannot be loaded."""
        folder = next((path for path in (self.out / run, run) if path.exists()), None)
        try:
            return None if folder is None else load_manifest(folder, remedy)
        except PitError as error:
            self.add_problem(setting, error.problems[0])
            return None

    def is_rl(self, setting: str, run: Path) -> bool:
        """Whether a run is an RL run, which contains the gap model that rewarded it."""
        if maker := self.maker(run):
            return maker.command == "rl"
        manifest = self.manifest(setting, run, IMPROVER_RUN.remedy)
        return manifest is None or manifest.kind == "rl"


def _filled(finder: _PathFinder, config: Settings) -> dict[str, object]:
    """Values for settings that were not given, as the command would find them by itself."""
    found: dict[str, object] = {}
    match config:
        case SftConfig():
            found = _inherited_from_gap_model(finder, finder.earlier_run(GAP_RUN))
            if config.model is not None:
                found.pop("load_in_4bit", None)
            found["model"] = found.get("model") or DEFAULT_MODEL
        case RewardConfig():
            found["model"] = DEFAULT_MODEL
        case SampleConfig():
            found["policy"] = config.policy or finder.default_run(POLICY_RUN, needed=False)
            found["model"] = None if found["policy"] else DEFAULT_MODEL
        case RlConfig():
            improver = config.role is Role.improver
            if improver:
                found["sft"] = config.sft or finder.default_run(SFT_RUN, needed=True)
            found["policy"] = config.policy or finder.default_run(SFT_POLICY_RUN, needed=not improver)
            reward = config.reward or finder.default_run(GAP_RUN, needed=True)
            found |= {"reward": reward, "data": _inherited_from_gap_model(finder, reward).get("data")}
        case ImproveConfig():
            found = _filled_improve(finder, config)
    if isinstance(config, SftConfig | RewardConfig) and not (config.data or found.get("data")):
        finder.add_problem("data", "must be given")
    return {name: value for name, value in found.items() if value is not None and getattr(config, name) is None}


def _inherited_from_gap_model(finder: _PathFinder, run: Path | None) -> dict[str, object]:
    """The settings that later stages inherit from the gap model's run, planned or existing."""
    if run is None:
        return {}
    if maker := finder.maker(run):
        if maker.command != "train-reward":
            return {}
        return {name: getattr(maker.config, name) for name in type(maker.config).named(Fact.handed_on)}
    manifest = finder.manifest("reward", run, GAP_RUN.remedy)
    if manifest is None or manifest.kind != "reward":
        return {}
    data = manifest.data.path
    return {
        "data": data if data != "-" else None,
        "model": manifest.base.name,
        "load_in_4bit": manifest.base.load_in_4bit,
    }


def _filled_improve(finder: _PathFinder, config: ImproveConfig) -> dict[str, object]:
    pit = config.method is Method.pit
    run = IMPROVER_RUN if pit else POLICY_RUN
    writer = getattr(config, run.setting) or finder.default_run(run, needed=pit)
    if config.reward or (writer and finder.is_rl(run.setting, writer)):
        return {run.setting: writer}
    return {run.setting: writer, "reward": finder.default_run(GAP_RUN, needed=config.needs_gap_model())}


def _with_paths(finder: _PathFinder, config: Settings) -> Settings:
    """The settings with the paths where every file, run and base is found."""
    updates: dict[str, object] = {}
    for setting, field in type(config).model_fields.items():
        value, facts = getattr(config, setting, None), facts_of(field)
        if not facts & READ or value is None:
            continue
        if isinstance(value, tuple):
            updates[setting] = tuple(_found_path(finder, setting, facts, item) for item in value)
        else:
            updates[setting] = type(value)(_found_path(finder, setting, facts, str(value)))
    return config.model_copy(update=updates)


def _found_path(finder: _PathFinder, setting: str, facts: Fact, value: str) -> str:
    kind, _, rest = value.partition(":")
    system, equals, path = value.partition("=")
    if facts & Fact.base:
        return finder.find_base(setting, value)
    if facts & Fact.judge:
        if kind == "hf":
            return f"hf:{finder.find_base(setting, rest)}"
        return f"gap:{finder.find(setting, rest)}" if kind == "gap" else value
    if facts & Fact.named_file and equals:
        return f"{system}={finder.find(setting, path)}"
    if value.startswith(HUB):
        folder, colon, split = rest.partition(":")
        local = any(os.path.isdir(location) for location in (finder.key(folder), folder))
        return f"{HUB}{finder.find(setting, folder)}{colon}{split}" if folder and local else value
    return value if value.startswith(INSTRUCTIONS) else finder.find(setting, value)

"""From a recipe to its plan: what each stage reads and writes, and where that is, checked before anything runs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pitcli.data.sources import HUB
from pitcli.data.splits import parse_shares
from pitcli.errors import PitError, SettingsError
from pitcli.recipes.recipe import Entry, read_recipe, validated
from pitcli.runs.manifest import Manifest, load_manifest
from pitcli.settings.base import DEFAULT_MODEL, READ, Fact, Method, Role, Settings, StopRule, facts_of
from pitcli.settings.default_runs import GAP_RUN, IMPROVER_RUN, POLICY_RUN, SFT_POLICY_RUN, SFT_RUN, DefaultRun
from pitcli.settings.tools import EvaluateConfig, ExportConfig, PipelineConfig, PrepareConfig
from pitcli.settings.training import ImproveConfig, RewardConfig, RlConfig, SampleConfig, SftConfig, TrainingConfig

BASES = ("tiny", DEFAULT_MODEL)


class PlannedStage(NamedTuple):
    """A command with settings whose paths hold from the recipe's out folder.

    given: the settings that its command line needs; reads: files and run folders; bases: base models, by name;
    writes: what is there once it is done, the first of which is what its record is kept by.
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
    processes: int  # that each of the commands which can be several is


def plan(config: PipelineConfig) -> Plan:
    """The stages in their order; SettingsError lists all that is wrong with the recipe."""
    problems: list[str] = []
    out, entries, processes = read_recipe(config, problems)
    configs = [validated(entry, problems) for entry in entries]
    written = [
        tuple(_from(out, path) for path in _written(entry, config_of_entry, problems))
        for entry, config_of_entry in zip(entries, configs, strict=True)
    ]
    finder = _PathFinder(out, problems)
    stages = []
    for number, (entry, config_of_entry) in enumerate(zip(entries, configs, strict=True)):
        finder.turn_to(entry, [(other.name, *paths) for other, paths in zip(entries, written, strict=True)][number:])
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
        problems.append(entry.problem("output", "name a file"))
        return ()
    try:
        return writes_of(config)
    except SettingsError as error:
        problems += [entry.problem("folds", problem) for problem in error.problems]
        return ()


def writes_of(config: Settings) -> tuple[str, ...]:
    """The files, or the folder, that a command leaves."""
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


def _from(out: Path, path: str) -> str:
    """One way to write a path: from the out folder where it is in that."""
    location = os.path.normpath(out / path)
    return os.path.relpath(location, out) if Path(location).is_relative_to(out) else location


class _PathFinder:
    """Where paths are found: made by a stage before, or there already, in the out folder or where pit was started."""

    def __init__(self, out: Path, problems: list[str]) -> None:
        self.out, self.problems = out, problems
        self.made: dict[str, PlannedStage] = {}  # by the paths that they write
        self.later: dict[str, str] = {}

    def turn_to(self, entry: Entry, later: Sequence[tuple[str, ...]]) -> None:
        """The next stage; later: its name and those after it, each with what it writes."""
        self.entry = entry
        self.later = {self.key(path): name for name, *paths in later for path in paths}
        self.reads: list[str] = []
        self.bases: list[str] = []

    def add(self, stage: PlannedStage) -> None:
        for path in stage.writes:
            if earlier := self.made.get(self.key(path)):
                self.wrong("", f"writes {path}, as {earlier.name} does; give one of them another place")
            self.made[self.key(path)] = stage

    def key(self, path: str | Path) -> str:
        return os.path.normpath(self.out / path)

    def wrong(self, setting: str, what: str) -> None:
        self.problems.append(self.entry.problem(setting, what))

    def maker(self, path: str | Path | None) -> PlannedStage | None:
        return self.made.get(self.key(path)) if path else None

    def is_later(self, setting: str, path: str) -> bool:
        name = self.later.get(self.key(path))
        if name:
            self.wrong(
                setting, f"{path} is made by {name}, which comes later; put that first, or give it another place"
            )
        return name is not None

    def find(self, setting: str, path: str) -> str:
        """A file or run folder that is read."""
        if path in ("-", ""):
            self.wrong(setting, "name a file")
        elif not (self.maker(path) or self.is_later(setting, path) or os.path.exists(self.key(path))):
            if not os.path.exists(path):
                self.wrong(setting, f"{path}: no stage before makes it, and it is neither here nor in {self.out}")
            path = os.path.abspath(path)
        self.reads.append(_from(self.out, path))
        return path

    def find_base(self, setting: str, name: str) -> str:
        """A base model that is used."""
        path = os.path.expanduser(name)
        if name not in BASES and not os.path.exists(self.key(path)):
            if os.path.exists(path):
                name = os.path.abspath(path)
            elif name.count("/") != 1 or name.endswith(".gguf"):
                self.wrong(setting, f"{name}: neither a folder, a .gguf file, {', '.join(BASES)} nor a hub name")
        self.bases.append(name)
        return name

    def earlier_run(self, run: DefaultRun) -> Path | None:
        """What a command would find by itself: the first folder that a stage before makes, else that exists."""
        made = [folder for folder in run.folders if self.maker(folder)]
        there = [f for f in run.folders if self.key(f) not in self.later and os.path.exists(self.key(f))]
        return next((Path(folder) for folder in [*made, *there]), None)

    def default_run(self, run: DefaultRun, needed: bool) -> Path | None:
        """As earlier_run; wrong if it is needed and not found, or if a later stage makes it.

        The latter for optional ones too: a second `pit run` would find there what the first did not.
        """
        if found := self.earlier_run(run):
            return found
        if any(self.is_later(run.setting, folder) for folder in run.folders):
            return None
        if needed:
            self.wrong(run.setting, f"no stage before makes {' or '.join(run.folders)}, and it is not in {self.out}")
        return None

    def manifest(self, setting: str, run: Path, remedy: str) -> Manifest | None:
        """Of a run that exists already, in the out folder or where pit was started."""
        folder = next((path for path in (self.out / run, run) if path.exists()), None)
        try:
            return None if folder is None else load_manifest(folder, remedy)
        except PitError as error:
            self.wrong(setting, error.problems[0])
            return None

    def is_rl(self, setting: str, run: Path) -> bool:
        """Whether it is a run of RL, which holds the gap model that it was trained on."""
        if maker := self.maker(run):
            return maker.command == "rl"
        manifest = self.manifest(setting, run, IMPROVER_RUN.remedy)
        return manifest is None or manifest.kind == "rl"


def _filled(finder: _PathFinder, config: Settings) -> dict[str, object]:
    """Settings that were not given, as the command would find them by itself."""
    found: dict[str, object] = {}
    match config:
        case SftConfig():
            found = _of_gap_model(finder, finder.earlier_run(GAP_RUN))
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
            found |= {"reward": reward, "data": _of_gap_model(finder, reward).get("data")}
        case ImproveConfig():
            found = _filled_improve(finder, config)
    if isinstance(config, SftConfig | RewardConfig) and not (config.data or found.get("data")):
        finder.wrong("data", "must be given")
    return {name: value for name, value in found.items() if value is not None and getattr(config, name) is None}


def _of_gap_model(finder: _PathFinder, run: Path | None) -> dict[str, object]:
    """What later stages take over from the run of the gap model, made by a stage or there already."""
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
    needed = config.stop is StopRule.gap or config.method is Method.best_of_n
    return {run.setting: writer, "reward": finder.default_run(GAP_RUN, needed)}


def _with_paths(finder: _PathFinder, config: Settings) -> Settings:
    """The settings with every file, run and base where it is found."""
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
    return finder.find(setting, value)

"""Finds the files, runs and bases that a stage of a recipe reads: of earlier stages, or existing ones."""

import os
import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from pitcli.data.sources import HUB
from pitcli.engine.models.base_names import EXPECTED_MODEL, SHORT_NAMES
from pitcli.errors import PitError
from pitcli.evaluation.systems import split_name
from pitcli.recipes.recipe import Entry
from pitcli.runs.manifest import Manifest, load_manifest
from pitcli.runs.shipped import SHIPPED, folder_of
from pitcli.settings.base import INSTRUCTIONS, Settings
from pitcli.settings.default_runs import IMPROVER_RUN, DefaultRun
from pitcli.settings.facts import READ, Fact, facts_of
from pitcli.settings.values import is_command, split_commas


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


def relative_to(out: Path, path: str) -> str:
    """The one spelling of a path: relative to the out folder if it is inside, otherwise absolute."""
    location = os.path.normpath(out / path)
    return os.path.relpath(location, out) if Path(location).is_relative_to(out) else location


class PathFinder:
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
        if path.startswith(SHIPPED):
            path = str(folder_of(Path(path)))
        if path in ("-", ""):
            self.add_problem(setting, "name a file; a stage of a recipe cannot read stdin")
        elif not (self.maker(path) or self.is_later(setting, path) or os.path.exists(self.key(path))):
            if not os.path.exists(path):
                self.add_problem(setting, f"{path}: not found, here or in {self.out}, and no earlier stage writes it")
            path = os.path.abspath(path)
        self.reads.append(relative_to(self.out, path))
        return path

    def find_command(self, setting: str, command: str) -> str:
        """A command with the paths of the files that its words name: they are inputs, and it runs in the out folder."""

        def found(word: re.Match[str]) -> str:
            name = word[2]
            is_input = self.maker(name) or any(os.path.isfile(path) for path in (self.key(name), name))
            if not is_input:
                return word[0]
            path = self.find(setting, name)
            return word[0].replace(name, path) if shlex.quote(path) == path else shlex.quote(path)

        return re.sub(r"([\"']?)([^\s'\"|&;<>()$`]+)\1", found, command)

    def find_base(self, setting: str, name: str) -> str:
        """The name or path of a base model that a stage uses."""
        path = os.path.expanduser(name)
        if name not in SHORT_NAMES and not os.path.exists(self.key(path)):
            if os.path.exists(path):
                name = os.path.abspath(path)
            elif name.count("/") != 1 or name.endswith(".gguf"):
                self.add_problem(setting, f"{EXPECTED_MODEL}, got {name}")
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

    def has_gap_model(self, setting: str, run: Path) -> bool:
        """Whether a run of an improver contains a gap model too, as one of RL does."""
        if maker := self.maker(run):
            return maker.command == "rl" and not is_command(getattr(maker.config, "reward", None))
        manifest = self.manifest(setting, run, IMPROVER_RUN.remedy)
        return manifest is None or manifest.has_gap_model


def with_paths(finder: PathFinder, config: Settings) -> Settings:
    """The settings with the paths where every file, run and base is found."""
    updates: dict[str, object] = {}
    for setting, field in type(config).model_fields.items():
        value, facts = getattr(config, setting, None), facts_of(field)
        if not facts & READ or value is None:
            continue
        if facts & Fact.files:
            updates[setting] = ",".join(_found_path(finder, setting, facts, file) for file in split_commas(str(value)))
        elif isinstance(value, tuple):
            updates[setting] = tuple(_found_path(finder, setting, facts, item) for item in value)
        else:
            updates[setting] = type(value)(_found_path(finder, setting, facts, str(value)))
    return config.model_copy(update=updates)


def _found_path(finder: PathFinder, setting: str, facts: Fact, value: str) -> str:
    kind, _, rest = value.partition(":")
    system, equals, path = split_name(value)
    if facts & Fact.base:
        return finder.find_base(setting, value)
    if is_command(value):
        return f"{kind}:{finder.find_command(setting, rest)}"
    if facts & Fact.judge:
        return _found_judge(finder, setting, value)
    if facts & Fact.named_file and equals:
        return f"{system}={finder.find(setting, path)}"
    if value.startswith(HUB):
        folder, colon, split = rest.partition(":")
        local = any(os.path.isdir(location) for location in (finder.key(folder), folder))
        return f"{HUB}{finder.find(setting, folder)}{colon}{split}" if folder and local else value
    return value if value.startswith(INSTRUCTIONS) else finder.find(setting, value)


def _found_judge(finder: PathFinder, setting: str, value: str) -> str:
    kind, _, rest = value.partition(":")
    if kind == "hf":
        return f"hf:{finder.find_base(setting, rest)}"
    if kind == "labels":
        return f"labels:{','.join(finder.find(setting, file) for file in split_commas(rest))}"
    return f"gap:{finder.find(setting, rest)}" if kind == "gap" else value

"""A recipe as it is written: commands with their settings in a YAML file, what they share, and --set over it."""

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from pitcli.settings.base import Fact, Settings
from pitcli.settings.commands import COMMANDS, IN_RECIPES
from pitcli.settings.flags import read_yaml, what_is_wrong
from pitcli.settings.tools import PipelineConfig

KEYS = ("out", "processes", "shared", "stages")


class Entry(NamedTuple):
    """A stage as it is written. where: how it is named in errors; origins: the same for single settings."""

    name: str
    command: str
    config_class: type[Settings]
    settings: dict[str, object]
    where: str
    origins: dict[str, str]

    def problem(self, setting: str, what: str) -> str:
        return f"{self.origins.get(setting, self.where)}: {setting}: {what}" if setting else f"{self.where}: {what}"


class Recipe(NamedTuple):
    out: Path
    entries: list[Entry]
    processes: int


def read_recipe(config: PipelineConfig, problems: list[str]) -> Recipe:
    """The stages of a file with all their settings; what is wrong with them is added to `problems`.

    SettingsError where the file is no YAML.
    """
    file = str(config.recipe)
    content = read_yaml(file, "")
    problems += [
        f"{file}: {key}: no such part of a recipe; {', '.join(KEYS)} are" for key in content if key not in KEYS
    ]
    out = content.get("out") or Path("runs", config.recipe.stem)
    if not isinstance(out, str | Path):
        problems.append(f"{file}: out: a folder is wanted")
        out = Path()
    processes = content.get("processes", 1)
    if not isinstance(processes, int) or processes < 1:
        problems.append(f"{file}: processes: a number of 1 or more is wanted")
        processes = 1
    shared = _mapping(content.get("shared"), f"{file}: shared", problems)
    entries = list(_entries(file, content.get("stages"), problems))
    origins = dict.fromkeys(shared, f"{file}: shared")
    _set(config.set, entries, shared, origins, problems)
    _share(entries, shared, origins, problems)
    return Recipe((config.out or Path(out)).resolve(), entries, config.processes or processes)


def _mapping(value: object, where: str, problems: list[str]) -> dict[str, object]:
    if value is not None and not isinstance(value, dict):
        problems.append(f"{where}: `setting: value` lines are wanted")
    return {str(key): one for key, one in value.items()} if isinstance(value, dict) else {}


def _entries(file: str, stages: object, problems: list[str]) -> Iterator[Entry]:
    """A misspelt command is read as the one that it looks like, so that what else is wrong is told too."""
    if not isinstance(stages, list) or not stages:
        problems.append(f"{file}: stages: a list of commands is wanted, such as `- sft: {{data: pairs.jsonl}}`")
        return
    names: set[str] = set()
    for number, stage in enumerate(stages, start=1):
        parts = {stage: None} if isinstance(stage, str) else stage if isinstance(stage, dict) else {}
        keys = [key for key in parts if key != "name"]
        if len(keys) != 1:
            problems.append(
                f"{file}: stage {number}: one command is wanted, and `name: ...` beside it where it needs one"
            )
            continue
        command = str(keys[0])
        name = str(parts.get("name", command))
        where = f"{file}: {name}"
        if not re.fullmatch(r"[\w-]+", name):
            problems.append(f"{file}: stage {number}: {name!r} is no name: letters, digits, - and _ make one")
        if name in names:
            problems.append(f"{where}: two stages are called so; give one `name: ...` beside its command")
        names.add(name)
        settings = _mapping(parts[keys[0]], where, problems)
        if command not in IN_RECIPES:
            near = get_close_matches(command, IN_RECIPES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"{', '.join(IN_RECIPES)} are"
            problems.append(f"{where}: {command} is no command of recipes; {hint}")
            command = near[0] if near else ""
        if command:
            yield Entry(
                name, command, config_class=COMMANDS[command].settings, settings=settings, where=where, origins={}
            )


def _set(
    changes: Iterable[str],
    entries: list[Entry],
    shared: dict[str, object],
    origins: dict[str, str],
    problems: list[str],
) -> None:
    """KEY=VALUE into what is shared, STAGE.KEY=VALUE into one stage."""
    for change in changes:
        key, _, value = change.partition("=")
        stage, _, name = key.rpartition(".")
        name = name.replace("-", "_")
        if not (name and value):
            problems.append(f"--set: {change}: KEY=VALUE or STAGE.KEY=VALUE is wanted")
        elif not stage:
            shared[name], origins[name] = value, "--set"
        elif entry := next((entry for entry in entries if entry.name == stage), None):
            entry.settings[name], entry.origins[name] = value, f"--set: {stage}"
        else:
            problems.append(f"--set: {change}: no stage is called {stage}")


def _share(entries: list[Entry], shared: dict[str, object], origins: dict[str, str], problems: list[str]) -> None:
    """What is shared goes to every stage that has such a setting and no value for it."""
    for key, value in shared.items():
        takers = [entry for entry in entries if key in takes(entry.config_class)]
        if entries and not takers:
            near = get_close_matches(key, {name for entry in entries for name in takes(entry.config_class)}, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            problems.append(f"{origins[key]}: {key}: no stage here has such a setting{hint}")
        for entry in takers:
            if key not in entry.settings:
                entry.settings[key], entry.origins[key] = value, origins[key]


def takes(config_class: type[Settings]) -> set[str]:
    """The settings that a recipe may give; how a stage is started is up to `pit run`."""
    return config_class.model_fields.keys() - config_class.named(Fact.start)


def validated(entry: Entry, problems: list[str]) -> Settings:
    """The settings; where some are wrong, the others, so that it is known all the same what the stage writes."""
    model = entry.config_class
    decided = model.named(Fact.start)
    values = {key: value for key, value in entry.settings.items() if key not in decided}
    problems += [entry.problem(key, "not for recipes: pit run sees to it") for key in entry.settings if key in decided]
    wrong: set[str] = set()
    for _ in range(2):  # settings one by one, then those that are right together
        try:
            return model.model_validate({key: value for key, value in values.items() if key not in wrong})
        except ValidationError as error:
            for found in error.errors(include_url=False):
                key = str(found["loc"][0]) if found["loc"] else ""
                what = what_is_wrong(found, list(model.model_fields))
                if not any(f"--{name.replace('_', '-')}" in what for name in wrong):
                    problems.append(entry.problem(key, what))
                wrong |= {key} - {""}
    known: dict[str, Any] = {key: value for key, value in values.items() if key not in wrong}
    return model.model_construct(**known | ({"out": Path(str(known["out"]))} if "out" in known else {}))

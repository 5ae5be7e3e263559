"""Reads a recipe: commands with their settings in a YAML file, the shared settings, and the changes of --set."""

import re
from collections.abc import Iterable, Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

from pitcli.settings.base import Settings
from pitcli.settings.commands import COMMANDS, IN_RECIPES
from pitcli.settings.facts import Fact
from pitcli.settings.flags import read_yaml, what_is_wrong
from pitcli.settings.tools import PipelineConfig

KEYS = ("out", "processes", "shared", "stages")


class Entry(NamedTuple):
    """A stage as written in the recipe. where: its name in errors; origins: the same for settings from elsewhere."""

    name: str
    command: str
    config_class: type[Settings]
    settings: dict[str, object]
    where: str
    origins: dict[str, str]

    def problem(self, setting: str, reason: str) -> str:
        return f"{self.origins.get(setting, self.where)}: {setting}: {reason}" if setting else f"{self.where}: {reason}"


class Recipe(NamedTuple):
    out: Path
    entries: list[Entry]
    processes: int


def read_recipe(config: PipelineConfig, problems: list[str]) -> Recipe:
    """The stages of a file with all their settings; problems with them are added to `problems`.

    Raises SettingsError if the file is not YAML.
    """
    file = str(config.recipe)
    content = read_yaml(file, "")
    problems += [
        f"{file}: {key}: not a key of a recipe; expected one of {', '.join(KEYS)}" for key in content if key not in KEYS
    ]
    out = content.get("out") or Path("runs", config.recipe.stem)
    if not isinstance(out, str | Path):
        problems.append(f"{file}: out: expected a folder, got {out!r}")
        out = Path()
    processes = content.get("processes", 1)
    if not isinstance(processes, int) or processes < 1:
        problems.append(f"{file}: processes: expected a whole number of at least 1, got {processes!r}")
        processes = 1
    shared = _mapping(content.get("shared"), f"{file}: shared", problems)
    entries = list(_entries(file, content.get("stages"), problems))
    origins = dict.fromkeys(shared, f"{file}: shared")
    _set(config.set, entries, shared, origins, problems)
    _share(entries, shared, origins, problems)
    return Recipe((config.out or Path(out)).resolve(), entries, config.processes or processes)


def _mapping(value: object, where: str, problems: list[str]) -> dict[str, object]:
    if value is not None and not isinstance(value, dict):
        problems.append(f"{where}: expected `setting: value` lines, got {value!r}")
    return {str(key): setting for key, setting in value.items()} if isinstance(value, dict) else {}


def _entries(file: str, stages: object, problems: list[str]) -> Iterator[Entry]:
    """Yields the stages; a misspelt command is read as the nearest one, so that its other problems are reported too."""
    if not isinstance(stages, list) or not stages:
        problems.append(f"{file}: stages: expected a list of commands, such as `- sft: {{data: pairs.jsonl}}`")
        return
    names: set[str] = set()
    for number, stage in enumerate(stages, start=1):
        parts = {stage: None} if isinstance(stage, str) else stage if isinstance(stage, dict) else {}
        keys = [key for key in parts if key != "name"]
        if len(keys) != 1:
            given = ", ".join(map(str, keys)) or "none"
            problems.append(f"{file}: stage {number}: expected one command, with an optional `name: ...`, got {given}")
            continue
        command = str(keys[0])
        name = str(parts.get("name", command))
        where = f"{file}: {name}"
        if not re.fullmatch(r"[\w-]+", name):
            problems.append(f"{file}: stage {number}: expected a name of letters, digits, - and _, got {name!r}")
        if name in names:
            problems.append(f"{where}: duplicate stage name; give one of the stages its own `name: ...`")
        names.add(name)
        settings = _mapping(parts[keys[0]], where, problems)
        if command not in IN_RECIPES:
            near = get_close_matches(command, IN_RECIPES, n=1)
            hint = f"did you mean {near[0]}?" if near else f"expected one of {', '.join(IN_RECIPES)}"
            problems.append(f"{where}: {command} is not a recipe stage; {hint}")
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
    """Applies --set: KEY=VALUE changes a shared setting, STAGE.KEY=VALUE a setting of one stage."""
    for change in changes:
        key, _, value = change.partition("=")
        stage, _, name = key.rpartition(".")
        name = name.replace("-", "_")
        if not (name and value):
            problems.append(f"--set: expected KEY=VALUE or STAGE.KEY=VALUE, got {change}")
        elif not stage:
            shared[name], origins[name] = value, "--set"
        elif entry := next((entry for entry in entries if entry.name == stage), None):
            entry.settings[name], entry.origins[name] = value, f"--set: {stage}"
        else:
            problems.append(f"--set: {change}: no stage is named {stage}")


def _share(entries: list[Entry], shared: dict[str, object], origins: dict[str, str], problems: list[str]) -> None:
    """Copies each shared setting to every stage that has this setting but gives no value for it."""
    for key, value in shared.items():
        receivers = [entry for entry in entries if key in recipe_settings(entry.config_class)]
        if entries and not receivers:
            names = {name for entry in entries for name in recipe_settings(entry.config_class)}
            near = get_close_matches(key, names, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            problems.append(f"{origins[key]}: {key}: no stage of this recipe has this setting{hint}")
        for entry in receivers:
            if key not in entry.settings:
                entry.settings[key], entry.origins[key] = value, origins[key]


def recipe_settings(config_class: type[Settings]) -> set[str]:
    """The settings that a recipe may give: all except those with which `pit run` starts a stage."""
    return config_class.model_fields.keys() - config_class.named(Fact.start)


def validated(entry: Entry, problems: list[str]) -> Settings:
    """The validated settings; if some are wrong, the others, so that the outputs of the stage are known anyway."""
    model = entry.config_class
    set_by_run = model.named(Fact.start)
    values = {key: value for key, value in entry.settings.items() if key not in set_by_run}
    problems += [entry.problem(key, "remove it; pit run sets it") for key in entry.settings if key in set_by_run]
    wrong: set[str] = set()
    for _ in range(2):  # first each setting by itself, then the valid ones together
        try:
            return model.model_validate({key: value for key, value in values.items() if key not in wrong})
        except ValidationError as error:
            for found in error.errors(include_url=False):
                key = str(found["loc"][0]) if found["loc"] else ""
                for reason in what_is_wrong(found, list(model.model_fields)).split("\n"):
                    if not any(f"--{name.replace('_', '-')}" in reason for name in wrong):
                        problems.append(entry.problem(key, reason))
                wrong |= {key} - {""}
    known: dict[str, Any] = {key: value for key, value in values.items() if key not in wrong}
    return model.model_construct(**known | ({"out": Path(str(known["out"]))} if "out" in known else {}))

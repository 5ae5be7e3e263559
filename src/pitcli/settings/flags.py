"""Conversion of a settings model to command-line flags, and of flags and a YAML file to validated settings."""

import inspect
import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from difflib import get_close_matches
from enum import StrEnum
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, TypeVar, get_args, get_origin

import typer
from pydantic import ValidationError
from pydantic.fields import FieldInfo

from pitcli.errors import SettingsError
from pitcli.events import FLAG
from pitcli.settings.base import Settings
from pitcli.settings.facts import READ, Fact, Section, facts_of
from pitcli.settings.pairs import LongRows
from pitcli.settings.training import CONFIG, TrainingConfig

S = TypeVar("S", bound=Settings)

JSON_HELP = "Write events to stderr, one JSON object per line, instead of text for people [default: off]"
CONFIG_HELP = "YAML file with these settings (learning_rate: 1e-4); flags override it [default: none]"


def command_of(config_class: type[S], run: Callable[[S], int | None]) -> Callable[..., int | None]:
    """A function for Typer with one flag per field and --config; it validates the settings, then calls `run`."""

    def command(config: str | None, json_progress: bool | None, **flags: object) -> int | None:
        given = {name: value for name, value in flags.items() if value is not None}
        return run(settings_of(config_class, given, config))

    parameters: dict[str, Any] = {
        name: _parameter(name, config_class.model_fields[name], section)
        for name, section in sections_of(config_class).items()
    }
    parameters["config"] = Annotated[
        str | None, typer.Option(help=CONFIG_HELP, metavar="<file>", rich_help_panel=Section.other)
    ]
    # read by cli.main, so that even an error in the arguments is an event
    parameters["json_progress"] = Annotated[
        bool | None, typer.Option(FLAG, help=JSON_HELP, metavar=FLAG, rich_help_panel=Section.other)
    ]
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in parameters.items()
        ]
    )
    return command


def settings_of(config_class: type[S], flags: dict[str, object], file: str | None = None) -> S:
    """The values of the file, overridden by the flags; SettingsError names all problems at once."""
    from_file = read_yaml(file) if file is not None else {}
    # An empty flag is nearly always an unset shell variable; Path("") would mean the current folder.
    problems = [f"{_flag(name)}: must not be empty" for name, value in flags.items() if value == ""]
    try:
        settings = config_class.model_validate(from_file | {k: v for k, v in flags.items() if v != ""})
    except ValidationError as error:
        for entry in error.errors(include_url=False):
            name = str(entry["loc"][0]) if entry["loc"] else None
            what = what_is_wrong(entry, list(config_class.model_fields))
            where = "" if name is None else f"{_flag(name)}: " if name in flags else f"{file}: {name}: "
            if entry["type"] == "missing":
                problems.append(f"{_on_command_line(config_class, name)}: must be given")
            else:
                problems += [where + line for line in what.split("\n")]
        raise SettingsError(problems) from None
    if problems:
        raise SettingsError(problems)
    return settings


def settings_yaml(config: Settings) -> str:
    """The settings as YAML that `--config` reads back."""
    import yaml

    values = config.model_dump(mode="json", exclude_none=True, exclude=config.named(Fact.start))
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def command_line(command: str, config: Settings, names: Iterable[str]) -> str:
    """The command line that gives the named settings."""
    words = ["pit", command]
    for name in names:
        value = getattr(config, name)
        if facts_of(type(config).model_fields[name]) & Fact.argument:
            words.insert(2, shlex.quote(str(value)))
        elif isinstance(value, bool):
            words.append(_flag(name) if value else _flag(f"no-{name}"))
        elif value is not None:
            words += [_flag(name), shlex.quote(",".join(value) if isinstance(value, tuple) else str(value))]
    return " ".join(words)


def smaller_command(config: TrainingConfig) -> str:
    """The command that needs less memory: resume with half the micro-batch, or start again with half the length."""
    command, _, _ = (type(config).__doc__ or "").partition(":")
    half = config.micro_batch_size // 2
    smaller, is_least = f"--micro-batch-size {half}", half < config.smallest_micro_batch
    if config.tokens_per_batch:  # then the number of rows says nothing
        tokens = config.tokens_per_batch // 2
        smaller, is_least = f"--tokens-per-batch {tokens}", tokens < (config.max_length or 1024)
    smaller += " --resume"
    if is_least:
        cut = " --long-rows cut" if config.long_rows is LongRows.error else ""
        smaller = f"--max-length {(config.max_length or 1024) // 2}{cut} --overwrite"
    return f"{command} --config {shlex.quote(str(config.run_folder / CONFIG))} {smaller}"


def sections_of(config_class: type[Settings]) -> dict[str, Section]:
    """The section of each setting, in the order of the help.

    Within a section, the command's own settings come before the inherited ones. Common options are ordered by the step
    of the work that they belong to.
    """
    declared = [name for parent in config_class.__mro__ for name in inspect.get_annotations(parent)]
    own_first = [name for name in dict.fromkeys(declared) if name in config_class.model_fields]
    sections = {name: config_class.section_of(name) for name in own_first}

    def place(name: str) -> tuple[int, int]:
        step = _step_of_work(facts_of(config_class.model_fields[name])) if sections[name] is Section.common else 0
        return list(Section).index(sections[name]), step

    return {name: sections[name] for name in sorted(sections, key=place)}


def _step_of_work(facts: Fact) -> int:
    """0 what is read, 1 what it is processed with, 2 what is written, 3 how the command is started."""
    if facts & Fact.start:
        return 3
    if facts & Fact.output:
        return 2
    return 0 if facts & READ & ~Fact.base else 1


def _parameter(name: str, field: FieldInfo, section: Section) -> Any:
    """The annotation from which Typer makes the flag or the argument of a setting."""
    kind = _bare_type(field.annotation)
    facts = facts_of(field)
    shown: dict[str, Any] = {
        "help": f"{field.description}{_default_text(field)}",
        "show_default": False,
        "rich_help_panel": section,
    }
    if facts & Fact.argument:
        return Annotated[str | None, typer.Argument(**shown)]
    if facts & Fact.repeated:
        return Annotated[list[str] | None, typer.Option(**shown, metavar="<text>")]
    if kind is bool:
        # The metavar of a switch is how the help shows it; --no-x is always accepted.
        metavar = _flag(name) if field.default is False else None
        return Annotated[bool | None, typer.Option(**shown, metavar=metavar)]
    choices = [str(choice) for choice in kind] if issubclass(kind, StrEnum) else []
    metavar = "|".join(choices) or {int: "int", float: "float", Path: "path"}.get(kind, "text")
    # Text to Typer, whatever the type: the settings class converts, so that all bad values are reported at once.
    return Annotated[
        str | None,
        typer.Option(**shown, metavar=f"<{metavar}>", autocompletion=(lambda: choices) if choices else None),
    ]


def _bare_type(annotation: Any) -> type:
    """The type without None: int for int | None. str for a tuple: its flag is one comma-separated text."""
    if get_origin(annotation) is tuple:
        return str
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType] or [annotation]
    return kinds[0]


def _default_text(field: FieldInfo) -> str:
    """The default in brackets, unless the description itself ends in one."""
    default = field.default
    if (field.description or "").endswith("]"):
        return ""
    if field.is_required():
        return " [required]"
    if isinstance(default, bool):
        default = "on" if default else "off"
    if isinstance(default, float):
        default = f"{default:g}".replace("e-0", "e-")
    return f" [default: {','.join(default) if isinstance(default, tuple) else default}]"


def _on_command_line(config_class: type[Settings], name: str | None) -> str:
    """The name of a setting on the command line: RUN for an argument, --out for a flag."""
    return str(name).upper() if facts_of(config_class.model_fields[name or ""]) & Fact.argument else _flag(str(name))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def what_is_wrong(entry: Any, names: list[str]) -> str:
    """The message for an error of pydantic."""
    if entry["type"] == "missing":
        return "must be given"
    if entry["type"] == "value_error":
        return str(entry["ctx"]["error"])
    if entry["type"] == "extra_forbidden":
        near = get_close_matches(str(entry["loc"][0]).replace("-", "_"), names, n=1)
        return f"no such setting; did you mean {near[0]}?" if near else "no such setting; see --help"
    # "Input should be a valid integer, unable to parse ..." -> "must be a valid integer"
    demand = re.split("(?: after validation)?, (?:unable|got|not) ", entry["msg"])[0]
    return f"{re.sub('^[A-Za-z]+ should', 'must', demand)}, got {_shown(entry['input'])}"


def _shown(value: object) -> str:
    if isinstance(value, dict | list | tuple):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def read_yaml(file: str, option: str = "--config: ") -> dict[str, object]:
    """The mapping in a YAML file.

    Raises SettingsError if the file is not a mapping or contains a duplicate key at any depth.
    """
    import yaml

    try:
        text = Path(file).read_text(encoding="utf-8")
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        values = yaml.safe_load(text)
    except OSError as error:
        raise SettingsError(f"{option}{file}: {error.strerror}") from None
    except yaml.MarkedYAMLError as error:
        line = f":{error.problem_mark.line + 1}" if error.problem_mark else ""
        raise SettingsError(f"{file}{line}: not YAML: {error.problem}") from None
    # ValueError: not UTF-8, or a scalar such as the date 2024-13-45; RecursionError: brackets thousands deep.
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise SettingsError(f"{file}: not YAML: {str(error).splitlines()[0]}") from None
    if node is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{file}: expected `setting: value` lines, got {_shown(values)}")
    if duplicates := list(_duplicate_keys(node)):
        raise SettingsError(
            [f"{file}:{line}: duplicate key {key}, first given in line {first}" for key, line, first in duplicates]
        )
    return {str(name): value for name, value in values.items()}


def _duplicate_keys(root: Any) -> Iterator[tuple[str, int, int]]:
    """(key, its line, the line of its first occurrence) for each duplicate key in a mapping of YAML."""
    nodes, seen = [root], {id(root)}  # seen: an alias may refer to a node that contains it
    for node in nodes:
        first_line: dict[str, int] = {}
        for entry in node.value if isinstance(node.value, list) else []:
            key, value = entry if isinstance(entry, tuple) else (None, entry)
            if key is not None:
                line = key.start_mark.line + 1
                if key.value in first_line:
                    yield key.value, line, first_line[key.value]
                first_line.setdefault(key.value, line)
            if id(value) not in seen:
                seen.add(id(value))
                nodes.append(value)

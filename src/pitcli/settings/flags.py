"""From a settings model to command-line flags, from flags and a YAML file to validated settings, and back."""

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
from pitcli.settings.base import Fact, Settings, facts_of
from pitcli.settings.training import CONFIG, RewardConfig, TrainingConfig

S = TypeVar("S", bound=Settings)

CONFIG_HELP = "YAML file of these settings (learning_rate: 1e-4); flags override it"


def command_of(config_class: type[S], run: Callable[[S], int | None]) -> Callable[..., int | None]:
    """A function for Typer with one flag a field and --config; it validates, then calls `run`."""

    def command(config: str | None, **flags: object) -> int | None:
        given = {name: value for name, value in flags.items() if value is not None}
        return run(settings_of(config_class, given, config))

    parameters = {"config": Annotated[str | None, typer.Option(help=CONFIG_HELP, metavar="<file>")]}
    for name in _own_fields_first(config_class):
        parameters[name] = _flag_annotation(config_class.model_fields[name])
    command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation)
            for name, annotation in parameters.items()
        ]
    )
    return command


def settings_of(config_class: type[S], flags: dict[str, object], file: str | None = None) -> S:
    """The file's values with the flags over them; SettingsError names every problem at once."""
    from_file = read_yaml(file) if file is not None else {}
    # An empty flag is nearly always an unset shell variable, and Path("") would mean the current folder.
    problems = [f"{_flag(name)}: must not be empty" for name, value in flags.items() if value == ""]
    try:
        settings = config_class.model_validate(from_file | {k: v for k, v in flags.items() if v != ""})
    except ValidationError as error:
        for entry in error.errors(include_url=False):
            name = str(entry["loc"][0]) if entry["loc"] else None
            what = what_is_wrong(entry, list(config_class.model_fields))
            where = "" if name is None else f"{_flag(name)}: " if name in flags else f"{file}: {name}: "
            problems.append(
                f"{_as_given(config_class, name)}: must be given" if entry["type"] == "missing" else where + what
            )
        raise SettingsError(problems) from None
    if problems:
        raise SettingsError(problems)
    return settings


def settings_yaml(config: Settings) -> str:
    """What `--config` reads back to the same settings."""
    import yaml

    values = config.model_dump(mode="json", exclude_none=True, exclude=config.named(Fact.start))
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True)


def command_line(command: str, config: Settings, names: Iterable[str]) -> str:
    """The line that gives the settings of these names."""
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
    """The command that goes on with a run that was short of memory: half the micro-batch, then half the length."""
    command, _, _ = (type(config).__doc__ or "").partition(":")
    least = 4 if isinstance(config, RewardConfig) else 1  # a pair takes four scores
    smaller = f"--micro-batch-size {config.micro_batch_size // 2} --resume"
    if config.micro_batch_size // 2 < least:
        shorter = "" if config.truncate else " --skip-long"
        smaller = f"--max-length {(config.max_length or 1024) // 2}{shorter} --overwrite"
    return f"{command} --config {shlex.quote(str(config.run_folder / CONFIG))} {smaller}"


def _own_fields_first(config_class: type[Settings]) -> list[str]:
    declared = [name for section in config_class.__mro__ for name in vars(section).get("__annotations__", {})]
    return [name for name in dict.fromkeys(declared) if name in config_class.model_fields]


def _flag_annotation(field: FieldInfo) -> Any:
    kind = _bare_type(field.annotation)
    text = f"{field.description}{_default_text(field)}"
    facts = facts_of(field)
    if facts & Fact.argument:
        return Annotated[str | None, typer.Argument(help=text, show_default=False)]
    if facts & Fact.repeated:
        return Annotated[list[str] | None, typer.Option(help=text, metavar="<text>", show_default=False)]
    if kind is bool:
        return Annotated[bool | None, typer.Option(help=text, show_default=False)]
    choices = [str(choice) for choice in kind] if issubclass(kind, StrEnum) else []
    metavar = "|".join(choices) or {int: "int", float: "float", Path: "path"}.get(kind, "text")
    # Text to Typer, whatever the type: the model converts, so that all bad values are told at once.
    return Annotated[
        str | None,
        typer.Option(help=text, metavar=f"<{metavar}>", autocompletion=(lambda: choices) if choices else None),
    ]


def _bare_type(annotation: Any) -> type:
    """int for int | None; str for a tuple, whose flag is one comma-separated text."""
    if get_origin(annotation) is tuple:
        return str
    kinds = [kind for kind in get_args(annotation) if kind is not NoneType] or [annotation]
    return kinds[0]


def _default_text(field: FieldInfo) -> str:
    default = field.default
    if field.is_required() or default in (None, ()) or "[default:" in (field.description or ""):
        return ""
    if isinstance(default, bool):
        default = "yes" if default else "no"
    return f" [default: {','.join(default) if isinstance(default, tuple) else default}]"


def _as_given(config_class: type[Settings], name: str | None) -> str:
    """A setting as it stands on the command line: an argument by its name, anything else as a flag."""
    return str(name) if facts_of(config_class.model_fields[name or ""]) & Fact.argument else _flag(str(name))


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def what_is_wrong(entry: Any, names: list[str]) -> str:
    """Pydantic's error in our words."""
    if entry["type"] == "missing":
        return "must be given"
    if entry["type"] == "value_error":
        return str(entry["ctx"]["error"])
    if entry["type"] == "extra_forbidden":
        near = get_close_matches(str(entry["loc"][0]).replace("-", "_"), names, n=1)
        return f"no such setting; did you mean {near[0]}?" if near else "no such setting; --help lists them"
    # "Input should be a valid integer, unable to parse ..." -> "must be a valid integer"
    demand = re.split("(?: after validation)?, (?:unable|got|not) ", entry["msg"])[0]
    return f"{re.sub('^[A-Za-z]+ should', 'must', demand)}, got {_shown(entry['input'])}"


def _shown(value: object) -> str:
    if isinstance(value, dict | list | tuple):
        return "a mapping" if isinstance(value, dict) else "a list"
    text = str(value)
    return text if len(text) <= 60 else f"{text[:60]}…"


def read_yaml(file: str, option: str = "--config: ") -> dict[str, object]:
    """A mapping from a file; SettingsError where it is none, or gives a key twice, however deep."""
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
        raise SettingsError(f"{file}: must hold `setting: value` lines, not {_shown(values)}")
    if twice := list(_given_twice(node)):
        raise SettingsError([f"{file}:{line}: {key} is already given in line {first}" for key, line, first in twice])
    return {str(name): value for name, value in values.items()}


def _given_twice(root: Any) -> Iterator[tuple[str, int, int]]:
    """(key, its line, the line of its first) for each key that a mapping of YAML has twice."""
    nodes, seen = [root], {id(root)}  # seen: an alias may stand for what it is in
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

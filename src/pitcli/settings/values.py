"""The types of settings that are more than one value, or one of several things, in one text."""

import json
import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from math import isfinite
from pathlib import Path
from typing import Annotated, TypeGuard

from pydantic import AfterValidator, BeforeValidator

FIELDS = ("prompt", "chosen", "rejected", "system", "history")  # what --fields can name
COMMAND = "cmd:"  # begins the name of a judge that is a program


def split_commas(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def template_options(items: Sequence[str]) -> dict[str, bool | int | float | str | None]:
    """The variables of NAME=VALUE items; a value is read as JSON (false, 3, "3") or else as text."""
    options = {}
    for item in items:
        name, _, text = item.partition("=")
        try:
            value = json.loads(text)
        except ValueError:
            value = text
        is_plain = value is None or isinstance(value, str | int) or (isinstance(value, float) and isfinite(value))
        options[name] = value if is_plain else text
    return options


def shown_options(options: Mapping[str, bool | int | float | str | None]) -> list[str]:
    """The NAME=VALUE items of template options, which are read back as the same options."""
    return [f"{name}={_shown_value(value)}" for name, value in options.items()]


def _shown_value(value: bool | int | float | str | None) -> str:
    """The text of a value; as JSON, without "=", if it would be read as another value or as several items."""
    if isinstance(value, str) and "," not in value and template_options([f"x={value}"]) == {"x": value}:
        return value
    return json.dumps(value).replace("=", "\\u003d")


def _check_addresses(text: str | None) -> str | None:
    """Refuse a text of commas alone, such as unset variables: no address would mean another server than was meant."""
    if text is not None and not split_commas(text):
        raise ValueError(f"expected one or several URLs, got {text!r}")
    return text


Addresses = Annotated[str | None, AfterValidator(_check_addresses)]


def is_command(value: object) -> TypeGuard[str]:
    """Whether the value is cmd:COMMAND."""
    return isinstance(value, str) and value.startswith(COMMAND)


def _split_commas(value: object) -> object:
    return split_commas(value) if isinstance(value, str) else value


def _split_judges(value: object) -> object:
    """The judges of a text; cmd: takes the rest of it, because a command may contain commas."""
    if not isinstance(value, str):
        return value
    before, *command = re.split(rf"(?:^|,)\s*(?={COMMAND})", value, maxsplit=1)
    return [*split_commas(before), *(text.strip() for text in command)]


def _run_or_command(value: object) -> object:
    """A command as it is: a path would lose the second slash of http://."""
    if is_command(value) and not value.removeprefix(COMMAND).strip():
        raise ValueError(f"expected a run folder or {COMMAND}COMMAND, got {value}")
    return Path(value) if isinstance(value, str) and not is_command(value) else value


def parse_fields(text: str) -> dict[str, str]:
    """The path of each field in `prompt=PATH,chosen=PATH,rejected=PATH`; raises ValueError with the first problem."""
    paths: dict[str, str] = {}
    for part in split_commas(text):
        name, _, path = (word.strip() for word in part.partition("="))
        if name not in FIELDS or not path:
            near = get_close_matches(name, FIELDS, n=1)
            hint = f"; did you mean {near[0]}?" if near and near[0] != name else ""
            raise ValueError(f"expected NAME=PATH with a name of {', '.join(FIELDS)}, got {part}{hint}")
        if name in paths:
            raise ValueError(f"{name} is given twice")
        paths[name] = path
    if "prompt" not in paths and not {"chosen", "rejected"} <= paths.keys():
        raise ValueError(f"expected prompt=PATH,chosen=PATH,rejected=PATH, got {text}")
    return paths


def _check_fields(text: str | None) -> str | None:
    if text is not None:
        parse_fields(text)
    return text


FieldPaths = Annotated[str | None, AfterValidator(_check_fields)]
_NAME = r"[A-Za-z_]\w*"
# what a rendering gets from pit or from the tokenizer
_RESERVED = ("messages", "add_generation_prompt", "strftime_now", "raise_exception")


def _template_items(value: object) -> object:
    """NAME=VALUE items from a list, from a text in which commas separate them, or from a mapping (YAML)."""
    if isinstance(value, Mapping):
        items = shown_options({str(name): item for name, item in value.items()})
    else:
        texts = [value] if isinstance(value, str) else value
        if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
            return value
        items = [item.strip() for text in texts for item in re.split(rf",(?=\s*{_NAME}=)", text)]
    names = [item.partition("=")[0] for item in items]
    for item, name in zip(items, names, strict=True):
        if not re.match(f"{_NAME}=", item) or name in _RESERVED:
            raise ValueError(f"expected NAME=VALUE with a variable of the chat template, got {item or 'an empty text'}")
        if names.count(name) > 1:
            raise ValueError(f"{name} is given twice; give it once")
    return items


CommaSeparated = BeforeValidator(_split_commas)
TemplateOptions = Annotated[tuple[str, ...], BeforeValidator(_template_items)]
Files = Annotated[tuple[str, ...], CommaSeparated]
Judges = Annotated[tuple[str, ...], BeforeValidator(_split_judges)]
RunOrCommand = Annotated[Path | str | None, BeforeValidator(_run_or_command)]

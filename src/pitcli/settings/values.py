"""The types of settings that are more than one value, or one of several things, in one text."""

import re
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, TypeGuard

from pydantic import AfterValidator, BeforeValidator

FIELDS = ("prompt", "chosen", "rejected", "system", "history")  # what --fields can name
COMMAND = "cmd:"  # begins the name of a judge that is a program


def split_commas(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


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
CommaSeparated = BeforeValidator(_split_commas)
Files = Annotated[tuple[str, ...], CommaSeparated]
Judges = Annotated[tuple[str, ...], BeforeValidator(_split_judges)]
RunOrCommand = Annotated[Path | str | None, BeforeValidator(_run_or_command)]

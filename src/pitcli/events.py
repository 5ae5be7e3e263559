"""Events for programs that read stderr: with --json-progress every line that pit writes there is one JSON object."""

import json
import math
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

FLAG = "--json-progress"
VARIABLE = "PIT_JSON_PROGRESS"  # tells the processes that a command starts


def are_on() -> bool:
    return os.environ.get(VARIABLE) == "1"


@contextmanager
def turned_on(arguments: Sequence[str]) -> Iterator[None]:
    """Turn events on within the context if the flag is among the arguments of a command."""
    before = os.environ.get(VARIABLE)
    if FLAG in arguments:
        os.environ[VARIABLE] = "1"
    try:
        yield
    finally:
        os.environ.pop(VARIABLE, None)
        if before is not None:
            os.environ[VARIABLE] = before


def write(event: str, fields: Mapping[str, object]) -> None:
    """Write one line; a stderr that is closed or full does not end the command."""
    line = json.dumps({"event": event, **_plain(dict(fields))}, default=str)
    if sys.stderr is not None:
        with suppress(OSError):
            sys.stderr.write(f"{line}\n")
            sys.stderr.flush()


def _plain(value: Any) -> Any:
    """The value as JSON has it: numbers that are not finite become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {str(name): _plain(inner) for name, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value

"""Fields by their paths (--fields prompt=data.question,chosen=answers.0.text), and a guess at them for a row."""

import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, NamedTuple

from pitcli.data.rows import Row
from pitcli.data.strict_json import RowProblem, describe

DEPTH = 4
SHOWN_TEXTS = 20
# Which part of a pair a field may be, by a word in its name; the first match counts: "dispreferred" before "preferred".
GUESSES = {
    "rejected": r"reject|wors|bad|los[ei]|neg|incorrect|wrong|dispref|unpref|less|unsafe",
    "system": r"system",
    "chosen": r"chosen|choice|bett|best|good|win|pos|correct|pref|accept|safe",
    "prompt": r"prompt|question|query|instruct|input|context|post|ask|request|problem|user|history",
}


def with_fields(row: Row, paths: Mapping[str, str]) -> Row:
    """The row with the values at the paths under the names of a canonical pair, and its other fields."""
    found = {name: value_at(row, path) for name, path in paths.items()}
    moved = set(paths.values())
    return {**found, **{name: value for name, value in row.items() if name not in moved and name not in found}}


def value_at(row: Row, path: str) -> Any:
    """The value at a path, e.g. `text`, `data.text`, `answers.0.text` or `answers[-1].text`."""
    if path in row:
        return row[path]
    value: Any = row
    for step in re.findall(r"[^.\[\]]+", path):
        if isinstance(value, dict) and step in value:
            value = value[step]
        elif isinstance(value, list) and re.fullmatch(r"-?\d+", step) and -len(value) <= int(step) < len(value):
            value = value[int(step)]
        else:
            raise RowProblem(path, f"missing (--fields); {_present(value)}")
    return value


def _present(value: object) -> str:
    if isinstance(value, dict):
        return f"expected one of {', '.join(map(repr, value))[:120] or 'no fields'}"
    return f"expected an index below {len(value)}" if isinstance(value, list) else f"found {describe(value)}"


class Suggestion(NamedTuple):
    """A value of --fields, with `?` for what the names of a row do not show; and the paths of its texts."""

    fields: str
    texts: list[str]


def suggested_fields(row: Row) -> Suggestion | None:
    """A suggestion for a row of no known format; None if it has too few texts for a pair."""
    paths = list(islice(_texts(row, "", 1), SHOWN_TEXTS))
    if len(paths) < 3:
        return None
    guessed: dict[str, str] = {}
    for path in paths:
        name = next((name for name, words in GUESSES.items() if re.search(words, path, re.IGNORECASE)), None)
        if name:
            guessed.setdefault(name, path)
    needed = {name: guessed.get(name, "?") for name in ("prompt", "chosen", "rejected")}
    system = {"system": guessed["system"]} if "system" in guessed else {}
    return Suggestion(",".join(f"{name}={path}" for name, path in {**needed, **system}.items()), paths)


def _texts(value: object, path: str, depth: int) -> Iterator[str]:
    """The paths of the texts, messages and lists of messages in a value."""
    if isinstance(value, str) or _is_message(value) or (isinstance(value, list) and any(map(_is_message, value))):
        if path and value:
            yield path
    elif depth <= DEPTH and isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value[:2])
        for name, inner in items:
            yield from _texts(inner, f"{path}.{name}" if path else str(name), depth + 1)


def _is_message(value: object) -> bool:
    return isinstance(value, dict) and bool({"role", "from"} & value.keys())

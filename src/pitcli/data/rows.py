"""The row types: preference pairs, drafts, comparisons, and errors of rows."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pitcli.data.strict_json import RowProblem


class Message(NamedTuple):
    role: str
    content: str


Prompt = tuple[Message, ...]
Row = dict[str, Any]  # as it was read, or as it is written


@dataclass(frozen=True, slots=True)
class PreferencePair:
    id: str
    prompt: Prompt
    chosen: str
    rejected: str
    extra: dict[str, Any]
    line: int = field(default=0, compare=False)
    file: str = field(default="", compare=False)
    chosen_truncated: bool = False  # a truncated text must not teach the model where to stop
    rejected_truncated: bool = False
    whole_prompt: Prompt | None = None  # if the prompt was cut: folds must be disjoint by what it was


@dataclass(frozen=True, slots=True)
class Draft:
    id: str | None
    prompt: Prompt
    response: str
    row: dict[str, Any]
    line: int = field(default=0, compare=False)


class Comparison(NamedTuple):
    """The question whether `response` is better than `reference_response` as an answer to `prompt`."""

    prompt: Prompt
    response: str
    reference_response: str


class RowError(NamedTuple):
    file: str
    line: int
    field: str
    reason: str

    @classmethod
    def of(cls, file: str, line: int, problem: RowProblem) -> "RowError":
        return cls(file, line, problem.field, problem.reason)

    def __str__(self) -> str:
        field = f":{self.field}" if self.field else ""
        return f"{self.file}:{self.line}{field}: {self.reason}"


OnError = Callable[[RowError], None]

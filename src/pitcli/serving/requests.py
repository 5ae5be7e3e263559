"""What clients send: chat completions, rerank, score and pairs, read strictly and checked."""

import re
from typing import Annotated, Any, NamedTuple, Self, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from pitcli.data.candidates import MOST
from pitcli.data.conversations import checked_prompt, messages_of, parse_prompt, text_of
from pitcli.data.rows import Message, Prompt
from pitcli.data.strict_json import RowProblem, parse_line
from pitcli.serving.errors import RequestError, bad_request

IMPROVE = "pit/improve"
GAP = "pit/gap"
_BEST_OF = re.compile(r"pit/best-of-(\d+)/(.+)", re.DOTALL)
_UPSTREAM = re.compile(r"pit/(.+)", re.DOTALL)
MOST_DRAFTS = 16  # of best-of-N
MOST_RESPONSES = 1024

Body = TypeVar("Body", bound="_Body")


class _Body(BaseModel):
    """Fields that are not listed are ignored, as other servers do."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=False)


class PitOptions(BaseModel):
    """The field `pit` of a chat completion: settings of this request, and what its reply shows.

    diff: the words that changed, as [kind, text] pairs.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    max_iters: int | None = Field(None, ge=0)
    threshold: float | None = Field(None, ge=0, le=1)
    diff: bool = False


class StreamOptions(_Body):
    include_usage: bool = False


class ChatRequest(_Body):
    model: str
    messages: list[Any] = Field(min_length=1)
    stream: bool = False
    stream_options: StreamOptions | None = None
    temperature: float | None = Field(None, ge=0, le=10)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    seed: int | None = None
    n: int | None = None
    stop: Any = None
    tools: Any = None
    functions: Any = None
    logprobs: Any = None
    response_format: Any = None
    pit: PitOptions = PitOptions()

    def token_limit(self) -> int | None:
        return self.max_completion_tokens or self.max_tokens

    @model_validator(mode="after")
    def _supported(self) -> Self:
        if self.n not in (None, 1):
            raise ValueError("n: only 1 is supported")
        for name in ("stop", "tools", "functions", "logprobs"):
            if getattr(self, name):
                raise ValueError(f"{name}: not supported; pit rewrites whole texts")
        if self.response_format not in (None, {"type": "text"}):
            raise ValueError("response_format: only text is supported; pit rewrites whole texts")
        return self


class RerankRequest(_Body):
    """query: a text or messages. documents: responses to it, as texts or {"text": ...}."""

    query: str | list[Any]
    documents: list[Any] = Field(min_length=1, max_length=MOST)
    model: str = GAP
    top_n: int | None = Field(None, ge=1)
    return_documents: bool = True

    def texts(self) -> list[str]:
        documents = [d["text"] if isinstance(d, dict) and "text" in d else d for d in self.documents]
        return [_checked(text_of, document, f"documents[{index}]") for index, document in enumerate(documents)]


class ScoreRequest(_Body):
    """responses that are compared with the reference response."""

    prompt: str | list[Any]
    response: str | Annotated[list[str], Field(min_length=1, max_length=MOST_RESPONSES)]
    reference: str = Field(min_length=1)
    model: str = GAP


class ExplainRequest(_Body):
    """An improvement whose edits are to be explained, and the draft before it."""

    prompt: str | list[Any]
    draft: str = Field(min_length=1)
    response: str = Field(min_length=1)


class PairRequest(BaseModel):
    """A preference: what somebody chose, and what not. kept: draft or improvement. model: as asked for."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    prompt: str | list[Any]
    chosen: str = Field(min_length=1)
    rejected: str = Field(min_length=1)
    kept: str | None = None
    model: str | None = None

    @model_validator(mode="after")
    def _different(self) -> Self:
        if self.chosen == self.rejected:
            raise ValueError("rejected: the same text as chosen")
        return self


class Task(NamedTuple):
    """What a model name asks for. upstream: the model that writes the drafts (None: the request brings it)."""

    upstream: str | None
    drafts: int = 1


def task_of(model: str, has_upstream: bool) -> Task:
    """Return the task that a model name asks for."""
    if model == IMPROVE:
        return Task(None)
    task = None
    if found := _BEST_OF.fullmatch(model):
        task = Task(found[2], int(found[1][:9]))
        if not 2 <= task.drafts <= MOST_DRAFTS:
            raise bad_request(f"model: expected best-of-2 to best-of-{MOST_DRAFTS}, got {model[:80]}", "model")
    elif (found := _UPSTREAM.fullmatch(model)) and model != GAP:
        task = Task(found[1])
    if task is None or not has_upstream:
        known = f"expected {IMPROVE}, pit/UPSTREAM or pit/best-of-4/UPSTREAM" if has_upstream else f"expected {IMPROVE}"
        remedy = "" if has_upstream else "; start pit serve with --upstream for the models of another server"
        raise RequestError(404, f"model: {known}, got {model[:80]}{remedy}", "model_not_found", "model")
    return task


def read_body(body: bytes, kind: type[Body] | type[PairRequest]) -> Any:
    """Return the request in a body; RequestError 400 names the field."""
    if not body.strip():
        raise bad_request("the body is empty; expected a JSON object", code="invalid_json")
    try:
        return kind.model_validate(parse_line(body))
    except RowProblem as problem:
        # what follows is about files of rows
        what = problem.reason if problem.field else re.split("[;:]", problem.reason)[0]
        message = f"the body is not a valid JSON object: {problem.field} {what}".replace("  ", " ")
        raise bad_request(message, problem.field or None, "invalid_json") from None
    except ValidationError as problem:
        first = problem.errors(include_url=False, include_input=False)[0]
        field = ".".join(map(str, first["loc"]))
        text = first["msg"].removeprefix("Value error, ")
        raise bad_request(f"{field}: {text}" if field else text, field or text.partition(":")[0]) from None


def draft_of(messages: list[Any]) -> tuple[Prompt, str]:
    """Return the prompt and the draft, the last turn."""
    turns = _checked(messages_of, messages, "messages")
    if not turns or turns[-1].role != "assistant":
        last = turns[-1].role if turns else "nothing"
        raise bad_request(
            f"messages: {IMPROVE} expected the assistant's draft as the last message, got {last}; pit/UPSTREAM asks "
            "another server for the draft",
            "messages",
        )
    return _checked(checked_prompt, turns[:-1], "messages"), turns[-1].content


def prompt_of(messages: list[Any]) -> Prompt:
    """Return messages as a prompt, which ends with the user."""
    return _checked(checked_prompt, _checked(messages_of, messages, "messages"), "messages")


def prompt_in(value: str | list[Any], field: str) -> Prompt:
    """Return a text, which is one user message whatever is in it, or messages as a prompt."""
    if isinstance(value, str):
        return (Message("user", _checked(text_of, value, field)),)
    return _checked(parse_prompt, value, field)


def _checked(read: Any, value: object, field: str) -> Any:
    try:
        return read(value, field)
    except RowProblem as problem:
        raise bad_request(str(problem), problem.field) from None

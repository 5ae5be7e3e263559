"""The completions of a pair: texts, assistant messages, or whole conversations, which contain the prompt."""

from pitcli.data.conversations import (
    PublishedProblem,
    are_parts,
    checked_prompt,
    checked_text,
    conversation,
    messages_of,
    required,
    text_of,
    turns_of,
)
from pitcli.data.rows import Message, Prompt, Row
from pitcli.data.strict_json import RowProblem, describe

Parts = tuple[Prompt, str, str]

SAME = "the same text as chosen"
NOT_ONE_MESSAGE = "expected one assistant message, or the prompt and one assistant message"


def with_completions(prompt: Prompt, row: Row, chosen: str, rejected: str) -> Parts:
    """The prompt and the completions in two fields. A whole conversation that contains the prompt replaces it."""
    (before, better), (before_rejected, worse) = (_parts(row, field, prompt) for field in (chosen, rejected))
    if before and before_rejected and before != before_rejected:
        raise RowProblem(rejected, _difference(before, before_rejected))
    if whole := before or before_rejected:
        prompt = _whole_prompt(prompt, whole, chosen if before else rejected)
    return prompt, better, worse


def completion_of(row: Row, field: str, prompt: Prompt) -> str:
    """A completion from a text, or from one assistant message with or without the prompt before it."""
    before, completion = _parts(row, field, prompt)
    if before:
        _whole_prompt(prompt, before, field)
    return completion


def parse_implicit_prompt(row: Row, chosen: str = "chosen", rejected: str = "rejected") -> Parts:
    """A pair from two whole conversations; the prompt is what they share: all but the last assistant turn."""
    whole, whole_rejected = (_whole_conversation(required(row, field), field) for field in (chosen, rejected))
    is_transcript = isinstance(row[chosen], str)
    try:
        (before, better), (before_rejected, worse) = (
            split_completion(whole, chosen),
            split_completion(whole_rejected, rejected),
        )
        if before != before_rejected:
            raise RowProblem(rejected, _difference(before, before_rejected))
        if better == worse:
            raise RowProblem(rejected, SAME)
        return (conversation if is_transcript else checked_prompt)(before, chosen), better, worse
    except RowProblem as problem:
        # HH has transcripts that end with the human, part before the last turn, or have an empty last turn
        raise (PublishedProblem(problem.field, problem.reason) if is_transcript else problem) from None


def split_completion(messages: list[Message], field: str) -> tuple[list[Message], str]:
    """The messages before the last one, and the text of the last one, which must be the assistant's."""
    if not messages or messages[-1].role != "assistant":
        raise RowProblem(field, "must end with an assistant turn" if messages else "empty")
    completion = messages[-1].content.strip()
    if not completion:
        raise RowProblem(field, "the last assistant turn is empty")
    return messages[:-1], completion


def _parts(row: Row, field: str, prompt: Prompt) -> tuple[list[Message], str]:
    """The messages before a completion, if they are given with it, and its text."""
    value = required(row, field)
    if isinstance(value, str):
        if value.lstrip().startswith(("Human:", "### Human:")) and (turns := turns_of(value)):
            whole = turns[-1].role == "assistant" and _contains(turns[:-1], prompt)
            return split_completion(turns, field) if whole else ([], value.strip())
        return [], checked_text(value, field).strip()
    if isinstance(value, dict):
        value = [value]
    if not isinstance(value, list):
        raise RowProblem(field, f"expected text, got {describe(value)}")
    if are_parts(value):
        return [], text_of(value, field).strip()
    return split_completion(messages_of(value, field), field)


def _whole_prompt(prompt: Prompt, whole: list[Message], field: str) -> Prompt:
    """The messages of a conversation before its completion, which contain the prompt; a system message of either."""
    if tuple(whole) == prompt:
        return prompt
    if not _contains(whole, prompt):
        as_text = [message for message in whole if message.role == "user"]
        if len(as_text) == len(whole) == 1 and _plain(turns_of(whole[0].content) or []) == _plain(list(prompt)):
            return checked_prompt(whole, field)  # a text that looks like a transcript, but is one message
        raise RowProblem(field, NOT_ONE_MESSAGE)
    (system, turns), (given, of_prompt) = _without_system(whole), _without_system(prompt)
    if system and given and _plain(system) != _plain(given):
        raise RowProblem(field, "its system message differs from that of the prompt")
    return checked_prompt([*(system or given), *(turns or of_prompt)], field)


def _contains(whole: list[Message], prompt: Prompt) -> bool:
    """Whether a conversation begins or ends with the turns of a prompt, up to white space."""
    turns, of_prompt = (_plain(_without_system(messages)[1]) for messages in (whole, prompt))
    return not turns or of_prompt in (turns[: len(of_prompt)], turns[-len(of_prompt) :])


def _without_system(messages: list[Message] | Prompt) -> tuple[list[Message], list[Message]]:
    """The system message, if there is one, and the other messages."""
    has_system = bool(messages) and messages[0].role == "system"
    return list(messages[:has_system]), list(messages[has_system:])


def _plain(messages: list[Message]) -> list[tuple[str, str]]:
    return [(role, " ".join(content.split())) for role, content in messages]


def _difference(before: list[Message], before_rejected: list[Message]) -> str:
    pairs = zip(before, before_rejected, strict=False)
    shared = next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(before), len(before_rejected)))
    text = f"differs from chosen at turn {shared + 1}, before the last" if shared else "shares no prompt with chosen"
    return f"{text}; both must be identical up to the last assistant turn"


def _whole_conversation(value: object, field: str) -> list[Message]:
    if isinstance(value, list):
        return messages_of(value, field)
    turns = turns_of(checked_text(value, field))
    if turns is None:
        raise RowProblem("prompt", f"missing, and {field} is not a transcript of Human and Assistant turns")
    return turns

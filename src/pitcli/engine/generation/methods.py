"""How a method makes its next response: PIT's improver, a fresh draw of the policy, or Self-Refine's two calls."""

from collections.abc import Callable, Generator
from typing import Any, NamedTuple

from pitcli.data.rows import Message, Prompt
from pitcli.data.templates import ChatFormat
from pitcli.engine.generation.sampling import Decoding, Sample
from pitcli.engine.generation.static_batching import Request
from pitcli.engine.models.roles import RoleModel
from pitcli.settings.base import Method

# Self-Refine (arXiv 2303.17651), with the same weights for both calls
FEEDBACK_INSTRUCTION = (
    "Give feedback on your response: what is wrong with it, what is missing, and what should change? Be specific."
)
REFINE_INSTRUCTION = (
    "Rewrite your response so that it follows the feedback. Write only the new response, without a comment."
)


class Writer(NamedTuple):
    """The model that writes, and as what: role is that of the policy (None: the base itself)."""

    model: RoleModel
    chat: ChatFormat
    decoding: Decoding
    policy: str | None


class PromptWithReference(NamedTuple):
    """x and y_ref, the response to improve."""

    prompt: Prompt
    reference_response: str


class Proposal(NamedTuple):
    """A response as it was written, what it cost in tokens, and what else its iteration's record holds."""

    response: str
    generated_tokens: int
    finished: bool
    extra: dict[str, Any]


Proposing = Generator[Request, Sample, Proposal]  # yields what the model shall write, and is sent the sample


def improve_once(writer: Writer, row: PromptWithReference, seed: int) -> Proposing:
    """y ~ improver(x, y_ref)."""
    return _proposal(writer, (yield Request(writer.chat.improver_prompt(*row), seed)))


def resample(writer: Writer, row: PromptWithReference, seed: int) -> Proposing:
    """y ~ policy(x), whatever y_ref is."""
    return _proposal(writer, (yield Request(writer.chat.policy_prompt(row.prompt), seed)))


def self_refine(writer: Writer, row: PromptWithReference, seed: int) -> Proposing:
    """Feedback on y_ref by the policy, then a new response by it that follows the feedback; two calls."""
    chat = writer.chat
    prompt = (*row.prompt, Message("assistant", row.reference_response), Message("user", FEEDBACK_INSTRUCTION))
    said = _proposal(writer, (yield Request(chat.policy_prompt(prompt), seed)))
    prompt = (*prompt, Message("assistant", said.response), Message("user", REFINE_INSTRUCTION))
    after = _proposal(writer, (yield Request(chat.policy_prompt(prompt), seed ^ 1)))
    tokens = said.generated_tokens + after.generated_tokens
    return after._replace(generated_tokens=tokens, extra={"feedback": said.response})


def _proposal(writer: Writer, sample: Sample) -> Proposal:
    return Proposal(writer.chat.decode(sample.token_ids), len(sample.token_ids), sample.finished, {})


def extra_room(method: Method, chat: ChatFormat, max_new_tokens: int) -> int:
    """Tokens that a conversation of the method may take beyond those of an improvement."""
    if method is not Method.self_refine:
        return 0
    instructions = [chat.encode_text(text) for text in (FEEDBACK_INSTRUCTION, REFINE_INSTRUCTION)]
    turns = len(chat.policy_prompt((Message("user", ""), Message("assistant", ""), Message("user", ""))))
    return max_new_tokens + turns + sum(map(len, instructions))


PROPOSE: dict[Method, Callable[[Writer, PromptWithReference, int], Proposing]] = {
    Method.pit: improve_once,
    Method.resample: resample,
    Method.best_of_n: resample,
    Method.self_refine: self_refine,
}

"""How each method proposes its next response: PIT's improver, a new sample of the policy, or Self-Refine."""

from collections.abc import Callable, Generator
from typing import Any, NamedTuple, Protocol

from pitcli.data.rows import Message, Prompt
from pitcli.data.templates import ChatFormat, with_request
from pitcli.engine.generation.sampling import Decoding, Request, Sample
from pitcli.engine.models.roles import RoleModel
from pitcli.settings.base import Method

# Self-Refine (arXiv 2303.17651); the same weights write the feedback and the new response
FEEDBACK_INSTRUCTION = (
    "Give feedback on your response: what is wrong with it, what is missing, and what should change? Be specific."
)
REFINE_INSTRUCTION = (
    "Rewrite your response so that it follows the feedback. Write only the new response, without a comment."
)


class PromptWithReference(NamedTuple):
    """What the improver reads: x and y_ref, the response to improve."""

    prompt: Prompt
    reference_response: str


class Proposal(NamedTuple):
    """A new response as text.

    generated_tokens: all tokens that it cost. finished: whether it ended in the stop token. extra: further fields for
    the record of its iteration.
    """

    response: str
    generated_tokens: int
    finished: bool
    extra: dict[str, Any]


class Writer(Protocol):
    """What writes responses: a model in this process (LocalWriter) or behind an endpoint (EndpointWriter)."""

    def request(self, prompt: Prompt, seed: int) -> Any:
        """Return the request for the response to a prompt, in the form that the writer's batching admits."""

    def proposal(self, sample: Any) -> Proposal:
        """Read what the batching returns for a request."""


class LocalWriter(NamedTuple):
    """The model that generates responses. policy: the role of the policy (None: the base itself)."""

    model: RoleModel
    chat: ChatFormat
    decoding: Decoding
    policy: str | None

    def request(self, prompt: Prompt, seed: int) -> Request:
        return Request(self.chat.policy_prompt(prompt), seed, self.decoding)

    def proposal(self, sample: Sample) -> Proposal:
        response, thoughts = self.chat.answer(sample.token_ids)
        extra = {"thoughts": thoughts} if thoughts else {}
        return Proposal(response, len(sample.token_ids), sample.finished, extra)


Proposing = Generator[Any, Any, Proposal]  # yields requests of the writer, is sent their samples, returns the proposal


def improve_once(writer: Writer, row: PromptWithReference, seed: int) -> Proposing:
    """Sample y ~ improver(x, y_ref)."""
    return writer.proposal((yield writer.request(with_request(*row), seed)))


def resample(writer: Writer, row: PromptWithReference, seed: int) -> Proposing:
    """Sample y ~ policy(x); y_ref is ignored."""
    return writer.proposal((yield writer.request(row.prompt, seed)))


def self_refine(writer: Writer, row: PromptWithReference, seed: int) -> Proposing:
    """Sample the policy's feedback on y_ref, then its new response that follows the feedback (two requests)."""
    prompt = (*row.prompt, Message("assistant", row.reference_response), Message("user", FEEDBACK_INSTRUCTION))
    feedback = writer.proposal((yield writer.request(prompt, seed)))
    prompt = (*prompt, Message("assistant", feedback.response), Message("user", REFINE_INSTRUCTION))
    refined = writer.proposal((yield writer.request(prompt, seed ^ 1)))
    tokens = feedback.generated_tokens + refined.generated_tokens
    return refined._replace(generated_tokens=tokens, extra={"feedback": feedback.response, **refined.extra})


def extra_room(method: Method, chat: ChatFormat, max_new_tokens: int) -> int:
    """Return how many tokens a conversation of this method may need beyond those of an improvement by PIT."""
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

"""The only place where x, y_ref and y become one conversation.

A conversation is user x, assistant y_ref, user IMPROVE_INSTRUCTION, assistant y. The improver writes the last turn;
the gap model reads the whole conversation: r_gap(x, y, y_ref). Control text comes from the tokenizer's chat template
and may contain special tokens. User text cannot become control tokens: its special tokens are read as plain text.
Otherwise the token ids are those that the tokenizer gives the rendered conversation (template_check.py).
"""

import hashlib
from collections.abc import Iterable
from contextlib import suppress
from functools import lru_cache
from typing import Any, NamedTuple

from pitcli.data.encoding import Encoder
from pitcli.data.rendering import STILL, Part, Rendering
from pitcli.data.rows import Message, Prompt
from pitcli.data.strict_json import RowProblem
from pitcli.data.thoughts import Answer, answer_of, declared_tags, open_thought

IMPROVE_INSTRUCTION = "Write a better response."

# for tokenizers without a chat template
FALLBACK_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '\n\n' + {'system': 'System', 'user': 'Human', 'assistant': 'Assistant'}[message['role']] + ':' }}"
    "{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)
ANY = "Blue."  # a text for which a conversation is tried; the control text around it is the same for any text
QUESTION = (Message("user", ANY),)


class Example(NamedTuple):
    """Token ids of one training conversation; the model learns to write `completion` after `prompt`."""

    prompt: list[int]
    completion: list[int]


class Turn(NamedTuple):
    """The control text before a response y.

    asked: what ends a prompt. opening: what the model writes before y. shown: what is before y in a whole conversation.
    """

    asked: str
    opening: str
    shown: str


def with_request(prompt: Prompt, reference_response: str) -> Prompt:
    """The messages that ask for a better response than the reference."""
    return (*prompt, Message("assistant", reference_response), Message("user", IMPROVE_INSTRUCTION))


class ChatFormat:
    """Converts text to token ids for one tokenizer (any transformers tokenizer with a chat template).

    end_ids: tokens that end a sampled response, besides those of the template and of the tokenizer. template: instead
    of the tokenizer's. Raises RowProblem if the template cannot show the roles of a prompt; the constructor does so if
    it cannot show the roles that pit itself uses.
    """

    def __init__(self, tokenizer: Any, end_ids: Iterable[int] = (), template: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.rendering = Rendering(tokenizer, template)
        self.encoder = Encoder(tokenizer)
        self._roles_shown = lru_cache(maxsize=256)(self._refuse_roles)
        self.thought_tags = declared_tags(tokenizer)
        self.stop_id: int = self._stop_token()  # ends the responses that are learned
        self.stop_ids = tuple(sorted({self.stop_id, tokenizer.eos_token_id, *end_ids}))
        self._stop_text = self.written([self.stop_id])
        self.turn = self._turn_after(QUESTION)
        if self.turn.opening != self._turn_after(with_request(QUESTION, ANY)).opening:
            raise RowProblem("prompt", "the chat template begins an improved response in another way than a first one")
        begun = open_thought(self.turn.asked, self.thought_tags)
        self._begun_thought = begun.begin if begun else ""
        self._header = ""  # control text without special tokens that the model writes before y
        self._header = self.answer(self.completion(ANY)).text.removesuffix(ANY)
        self._overhead = self._overheads()

    def _stop_token(self) -> int:
        """The token that ends an assistant turn: the template's first special token after it, otherwise EOS."""
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        after = self.rendering.parts((*QUESTION, Message("assistant", ANY)), generation_prompt=False)[-1].text
        ids = self.tokenizer.encode(after, add_special_tokens=False) if after else []
        return next((token for token in ids if token in special), self.tokenizer.eos_token_id)

    def _turn_after(self, prompt: Prompt) -> Turn:
        """The control text before the response to a prompt.

        A template may begin a response with a thought that it does not show in a whole conversation. Then the model
        ends the thought before it writes y, so that y is not a part of the thought.
        """
        asked = self.rendering.parts(prompt)[-1].text
        parts = self.rendering.parts((*prompt, Message("assistant", ANY)), generation_prompt=False)
        if parts[-2].message != len(prompt):
            raise RowProblem("prompt", "the chat template shows another message after the response")
        shown = parts[-3].text
        if shown.startswith(asked):
            return Turn(asked, shown.removeprefix(asked), shown)
        if not asked.startswith(shown):
            raise RowProblem("prompt", f"the chat template asks for a response by {asked!r}, but shows it as {shown!r}")
        begun = open_thought(asked, self.thought_tags)
        return Turn(asked, f"{begun.end}\n\n" if begun else "", shown)

    def _overheads(self) -> dict[int, int]:
        """By the number of responses in a conversation: its tokens beyond those of policy_prompt and the responses."""
        text = len(self.encode_text(ANY))
        one = len(self.completion(ANY)) - text
        reference = len(self.improver_prompt(QUESTION, ANY)) - len(self.policy_prompt(QUESTION)) - text
        return {1: one, 2: one + reference}

    def overhead(self, responses: int) -> int:
        """The tokens of a conversation with 1 or 2 responses, beyond those of policy_prompt and of the responses."""
        return self._overhead[responses]

    def encode_text(self, text: str) -> list[int]:
        """Token ids of user text; the text of a special token stays plain text."""
        return self.encoder.text(text)

    def largest_id(self) -> int:
        """The largest token id in any conversation; of the special tokens, only those of the template can occur."""
        ids = set(self.tokenizer.get_vocab().values()) - self.encoder.special.keys()
        ids |= {self.tokenizer.pad_token_id, *self.gap_input(QUESTION, ANY, ANY)}
        with suppress(RowProblem):  # a template may not support system messages
            ids.update(self.policy_prompt((Message("system", ANY), *QUESTION)))
        return max(ids)

    def decode(self, token_ids: list[int]) -> str:
        """The text of a sampled response, without its thoughts, its stop token and outer white space."""
        return self.answer(token_ids).text

    def answer(self, token_ids: list[int]) -> Answer:
        """The text of a sampled response, as decode returns it, and its thoughts."""
        ids = token_ids[:-1] if token_ids and token_ids[-1] in self.stop_ids else token_ids
        written = self.encoder.decode(ids, shown={mark for pair in self.thought_tags for mark in pair})
        written = written.replace("\0", "")  # which no row may contain
        text, thoughts = answer_of(self._begun_thought + written, self.thought_tags)
        return Answer(text.strip().removeprefix(self._header).strip(), thoughts)

    def written(self, token_ids: list[int]) -> str:
        """The text of token ids, including control tokens."""
        return self.tokenizer.decode(token_ids)

    def _parts(self, prompt: Prompt) -> list[Part]:
        """The parts of a prompt; earlier responses have no thoughts, which many templates would cut too."""
        cut = (
            message._replace(content=answer_of(message.content, self.thought_tags).text)
            if message.role == "assistant"
            else message
            for message in prompt
        )
        return self.rendering.parts(tuple(cut))

    def policy_prompt(self, prompt: Prompt) -> list[int]:
        """The ids of x, up to the start of the response."""
        return self.encoder.parts(self._parts(prompt))

    def improver_prompt(self, prompt: Prompt, reference_response: str) -> list[int]:
        """The ids of x, y_ref and the request to improve, up to the start of the response."""
        return self.policy_prompt(with_request(prompt, reference_response))

    def completion(self, response: str, ends: bool = True) -> list[int]:
        """The ids of y and of the stop token, as they follow a prompt; without the stop token if y was cut."""
        parts = self.rendering.parts((*QUESTION, Message("assistant", response)), generation_prompt=False)
        *_, before, text, after = parts
        following = [Part(self.turn.opening)]
        if text.message == 1:  # not empty; there may be white space around it
            white = before.text.removeprefix(self.turn.shown)
            until_stop, stop, _ = after.text.partition(self._stop_text)
            following = [Part(self.turn.opening + white), text, Part(until_stop if stop else "")]
        prompt = self.encoder.parts([Part(self.turn.asked)])
        ids = self.encoder.parts([Part(self.turn.asked), *following])
        if ids[: len(prompt)] != prompt:  # a token of the prompt would be another one with this text after it
            prompt, ids = [], self.encoder.parts(following)
        return [*ids[len(prompt) :], *([self.stop_id] if ends else [])]

    def refuse_changed_texts(self, prompt: Prompt, responses: Iterable[str]) -> None:
        """Raises RowProblem if the template refuses the roles, or changes a text because of the words in it."""
        self._roles_shown(tuple(message.role for message in prompt))
        for response in responses:
            if self.rendering.looks_for(message.content for message in with_request(prompt, response)):
                self._parts(with_request(prompt, response))

    def _refuse_roles(self, roles: tuple[str, ...]) -> None:
        self._parts(with_request(tuple(Message(role, ANY) for role in roles), ANY))

    def gap_input(self, prompt: Prompt, response: str, reference_response: str) -> list[int]:
        """The ids that the gap model reads for r_gap(x, response, reference_response)."""
        return self.improver_prompt(prompt, reference_response) + self.completion(response)

    def digest(self) -> str:
        """Identifies the template: runs with different templates cannot be used together. Each day it is the same."""
        template = self.rendering.template
        still = ChatFormat(self.tokenizer, template=STILL + template)
        text = f"{template}\n{IMPROVE_INSTRUCTION}\n{still.gap_input((Message('user', 'x'),), 'y', 'z')}"
        return hashlib.sha256(text.encode()).hexdigest()

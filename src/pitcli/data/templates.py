"""The only place where x, y_ref and y become one conversation.

A conversation is user x, assistant y_ref, user IMPROVE_INSTRUCTION, assistant y. The improver writes the last turn;
the gap model reads the whole conversation: r_gap(x, y, y_ref). Control text comes from the tokenizer's chat template
and may contain special tokens. User text is tokenised separately, with special tokens read as plain text, so that it
can neither become control tokens nor change the tokens of a shared prefix.
"""

import hashlib
import re
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from typing import Any, NamedTuple

from pitcli.data.rows import Message, Prompt
from pitcli.data.strict_json import RowProblem

IMPROVE_INSTRUCTION = "Write a better response."

# for tokenizers without a chat template
FALLBACK_CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '\n\n' + {'system': 'System', 'user': 'Human', 'assistant': 'Assistant'}[message['role']] + ':' }}"
    "{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)


class Example(NamedTuple):
    """Token ids of one training conversation; the model learns to write `completion` after `prompt`."""

    prompt: list[int]
    completion: list[int]


class ChatFormat:
    """Converts text to token ids for one tokenizer (any transformers tokenizer with a chat template).

    Raises RowProblem if the template cannot show the roles of a prompt; the constructor does so if it cannot show the
    roles that pit itself uses.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._control = cache(self._control_texts)
        self._control_ids = cache(self._encode_control)  # of the same few texts for every row
        self._special = {id: str(token) for id, token in tokenizer.added_tokens_decoder.items() if token.special}
        self._special_text = re.compile("|".join(map(re.escape, self._special.values())) or "(?!)")
        self.stop_id: int = self._stop_token()
        after_reference = self._control(("user", "assistant", "user"))[2:]
        self._bridge = (
            self._encode_control(after_reference[0])
            + self.encode_text(IMPROVE_INSTRUCTION)
            + self._encode_control(after_reference[1])
        )

    def _control_texts(self, roles: tuple[str, ...], generation_prompt: bool = True) -> list[str]:
        """The template's text before, between and after the contents of the messages."""
        marks = [f"CONTENT{index}MARK" for index in range(len(roles))]
        messages = [{"role": role, "content": mark} for role, mark in zip(roles, marks, strict=True)]
        try:
            rest = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=generation_prompt)
        except Exception as error:  # a template is a program: it refuses with TemplateError, and may fail with anything
            raise RowProblem("prompt", f"the chat template refuses the roles {', '.join(roles)}: {error}") from None
        texts = []
        for mark in marks:
            before, found, rest = rest.partition(mark)
            if not found:
                role = roles[marks.index(mark)]
                raise RowProblem("prompt", f"the chat template does not show a message of role {role}")
            texts.append(before)
        return [*texts, rest]

    def _stop_token(self) -> int:
        """The token that ends an assistant turn: the template's first special token after it, otherwise EOS."""
        special = set(self.tokenizer.all_special_ids) | set(self.tokenizer.added_tokens_decoder)
        after = self._encode_control(self._control_texts(("user", "assistant"), generation_prompt=False)[-1])
        return next((token for token in after if token in special), self.tokenizer.eos_token_id)

    def _encode_control(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False) if text else []

    def encode_text(self, text: str) -> list[int]:
        """Token ids of user text; the text of a special token stays plain text."""
        return self.tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)

    def names_special_token(self, text: str) -> bool:
        """Whether user text contains the text of a special token."""
        return self._special_text.search(text) is not None

    def largest_id(self) -> int:
        """The largest token id in any conversation; of the special tokens, only those of the template can occur."""
        ids = set(self.tokenizer.get_vocab().values()) - self._special.keys()
        ids |= {self.stop_id, self.tokenizer.pad_token_id}
        for roles in (("user", "assistant", "user"), ("system", "user")):
            with suppress(RowProblem):  # a template may not support system messages
                ids.update(*(self._encode_control(text) for text in self._control(roles)))
        return max(ids)

    def truncate(self, text: str, limit: int) -> str:
        """The text, or its longest prefix of at most `limit` whole tokens; "" if there is none."""
        return self._shortened(text, limit, lambda ids, count: self.decode(ids[:count]).rstrip("\ufffd").rstrip())

    def keep_end(self, text: str, limit: int) -> str:
        """The text, or its longest suffix of at most `limit` whole tokens; "" if there is none."""

        def end(ids: list[int], count: int) -> str:
            return str(self.tokenizer.decode(ids[len(ids) - count :])).lstrip("\ufffd").lstrip()

        return self._shortened(text, limit, end)

    def _shortened(self, text: str, limit: int, part: Callable[[list[int], int], str]) -> str:
        ids = self.encode_text(text)
        kept, count, over = text, limit, len(ids) - limit
        while over > 0 and count > 0:
            # One character may be spread over several tokens, and a shortened text may be encoded as other tokens.
            kept = part(ids, count)
            over = len(self.encode_text(kept)) - limit
            count -= over
        return kept if over <= 0 else ""

    def decode(self, token_ids: list[int]) -> str:
        """The text of a sampled response, without its stop token and outer white space."""
        return self.tokenizer.decode(token_ids, skip_special_tokens=True).strip()

    def written(self, token_ids: list[int]) -> str:
        """The text of token ids, including control tokens."""
        return self.tokenizer.decode(token_ids)

    def policy_prompt(self, prompt: Prompt) -> list[int]:
        """The ids of x, up to the start of the assistant's turn."""
        texts = self._control(tuple(message.role for message in prompt))
        ids = self._control_ids(texts[0])
        for message, control in zip(prompt, texts[1:], strict=True):
            ids = ids + self.encode_text(message.content) + self._control_ids(control)
        return ids

    def improver_prompt(self, prompt: Prompt, reference_response: str) -> list[int]:
        """The ids of x, y_ref and the request to improve, up to the start of the assistant's turn."""
        return self.policy_prompt(prompt) + self.after_prompt(reference_response)

    def after_prompt(self, reference_response: str) -> list[int]:
        """The ids of y_ref and the request to improve: what follows policy_prompt in an improver's prompt."""
        return self.encode_text(reference_response) + self._bridge

    def completion(self, response: str) -> list[int]:
        """The ids of y and the stop token."""
        return [*self.encode_text(response), self.stop_id]

    def gap_input(self, prompt: Prompt, response: str, reference_response: str) -> list[int]:
        """The ids that the gap model reads for r_gap(x, response, reference_response)."""
        return self.improver_prompt(prompt, reference_response) + self.completion(response)

    def digest(self) -> str:
        """Identifies the template: runs with different templates cannot be used together."""
        sample = self.gap_input((Message("user", "x"),), "y", "z")
        text = f"{self.tokenizer.get_chat_template()}\n{IMPROVE_INSTRUCTION}\n{sample}"
        return hashlib.sha256(text.encode()).hexdigest()

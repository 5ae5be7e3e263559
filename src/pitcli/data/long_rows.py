"""The length of conversations, and rows that are too long: cut to fit, or with truncated responses.

A conversation is x, and either one response or two of them: the reference response and a better one.
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from pitcli.data.rows import PreferencePair, Prompt
from pitcli.data.strict_json import RowProblem
from pitcli.data.templates import ChatFormat


class TooLong(RowProblem):
    """A conversation that does not fit into the context."""


class SameWhenCut(RowProblem):
    """Two responses that differ only in what was cut off."""


class Limit(NamedTuple):
    """The limit on the length of a conversation.

    room: the most tokens that a sampled response may have. responses: how many the longest conversation has, 2 or 1.
    """

    chat: ChatFormat
    max_length: int
    room: int = 0
    responses: int = 2

    def for_texts(self) -> int:
        """The tokens that are left for x and the responses."""
        return self.max_length - self.chat.overhead(self.responses)

    def tokens(self, prompt: Prompt, response_tokens: int) -> int:
        """The length of a whole conversation whose responses have `response_tokens` tokens each."""
        texts = len(self.chat.policy_prompt(prompt)) + self.responses * response_tokens
        return texts + self.max_length - self.for_texts()


def check_conversation(prompt: Prompt, responses: Mapping[str, str], limit: Limit, notes: Counter[str]) -> None:
    """Raises RowProblem if a prompt and its responses (by field) make no conversation, TooLong if it would not fit.

    Any two of the responses, or two sampled ones, must fit; if a conversation has one response, any of them.
    """
    chat, room = limit.chat, limit.room
    lengths = {field: len(chat.encode_text(text)) for field, text in responses.items()}
    for field, length in lengths.items():
        if not length:
            raise RowProblem(field, "empty for this model: its tokenizer encodes the text as no tokens")
    tokens = limit.tokens(prompt, max([room, *lengths.values()]))
    if tokens > limit.max_length:
        used = {"prompt": limit.tokens(prompt, 0), **{f: limit.responses * n for f, n in lengths.items()}}
        sampled = f" with room for responses of {room} (max-new-tokens)" if room else ""
        reason = f"expected a conversation of at most {limit.max_length} tokens, got {tokens}{sampled}"
        raise TooLong(max(used, key=lambda field: used[field]), reason)
    chat.refuse_changed_texts(prompt, responses.values())
    note_system_message(chat, prompt, notes)
    if any(map(chat.encoder.names_special_token, [*(message.content for message in prompt), *responses.values()])):
        notes["rows with the text of a control token, read as plain text"] += 1


def note_system_message(chat: ChatFormat, prompt: Prompt, notes: Counter[str]) -> None:
    """Count a system message that the chat template has no place for."""
    if chat.rendering.folds_system and prompt[0].role == "system":
        notes["rows whose system message begins the first user message, as the chat template has no system role"] += 1


def cut_to_fit(pair: PreferencePair, limit: Limit) -> PreferencePair:
    """The pair, cut if its longest conversation does not fit.

    The prompt and the responses have half of the room each; what one of them does not need is left for the other.
    Sampled responses keep the room that they may need. Raises TooLong if nothing of the prompt fits, SameWhenCut if
    chosen and rejected become equal.
    """
    chat, responses = limit.chat, limit.responses
    longest = max(limit.room, *(len(chat.encode_text(text)) for text in (pair.chosen, pair.rejected)))
    if limit.tokens(pair.prompt, longest) <= limit.max_length:
        return pair
    space = limit.for_texts()
    of_prompt = max(space // 2, space - responses * longest)
    prompt = cut_prompt(pair.prompt, min(of_prompt, space - responses * max(limit.room, 1)), chat)
    size = (space - len(chat.policy_prompt(prompt))) // responses
    return replace(
        _with_responses_of(pair, size, chat),
        prompt=prompt,
        whole_prompt=pair.prompt if prompt != pair.prompt else pair.whole_prompt,
    )


def cut_prompt(prompt: Prompt, most: int, chat: ChatFormat) -> Prompt:
    """The prompt, or its end of at most `most` tokens.

    First the oldest turns go, in pairs, so that a user's turn is the first; then the system message; then the
    front of the last turn. The system message stays if it costs nothing: some templates have a longer one of their own.
    Raises TooLong if nothing of the last turn fits.
    """

    def tokens(part: Prompt) -> int:
        return len(chat.policy_prompt(part))

    system = prompt[:1] if prompt[0].role == "system" else ()
    turns = prompt[len(system) :]
    for kept in [*(system + turns[start:] for start in range(0, len(turns), 2)), turns[-1:]]:
        if tokens(kept) <= most:
            return kept
    last = turns[-1]
    empty = last._replace(content="")
    before = min((system, ()), key=lambda before: tokens((*before, empty)))
    left = most - tokens((*before, empty))
    if end := chat.encoder.keep_end(last.content, left):
        return (*before, last._replace(content=end))
    raise TooLong("prompt", f"only {max(0, left)} tokens are left for its last turn")


def truncate_to_fit(pair: PreferencePair, limit: Limit) -> PreferencePair:
    """The pair with truncated responses so that the conversation fits; raises TooLong if the prompt leaves no room."""
    size = (limit.max_length - limit.tokens(pair.prompt, 0)) // limit.responses
    if size < max(1, limit.room):
        reason = f"the prompt leaves {max(0, size)} of {limit.max_length} tokens for each response"
        raise TooLong("prompt", f"{reason}; {limit.room} are needed (max-new-tokens)" if limit.room else reason)
    return _with_responses_of(pair, size, limit.chat)


def _with_responses_of(pair: PreferencePair, size: int, chat: ChatFormat) -> PreferencePair:
    """The pair with responses of at most `size` tokens."""

    def truncated(field: str, text: str) -> str:
        if kept := chat.encoder.truncate(text, size):
            return kept
        raise TooLong(field, f"empty after it is cut to {size} tokens")

    chosen, rejected = truncated("chosen", pair.chosen), truncated("rejected", pair.rejected)
    if chosen == rejected:
        raise SameWhenCut("rejected", f"the same text as chosen after both are cut to {size} tokens")
    return replace(
        pair,
        chosen=chosen,
        rejected=rejected,
        chosen_truncated=chosen != pair.chosen,
        rejected_truncated=rejected != pair.rejected,
    )

"""Converts preference pairs to the conversations that each stage trains on, after checking every length."""

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from pitcli.data.reading import listed
from pitcli.data.rows import PreferencePair, Prompt, RowError
from pitcli.data.strict_json import RowProblem
from pitcli.data.templates import ChatFormat, Example
from pitcli.errors import InputError
from pitcli.settings.base import DataSettings, Role


class TooLong(RowProblem):
    """A conversation that does not fit into the context."""


def pairs_digest(pairs: Sequence[PreferencePair]) -> str:
    """Identifies the rows used, in their order."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(repr((pair.prompt, pair.chosen, pair.rejected)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def sft_examples(
    pairs: Sequence[PreferencePair], chat: ChatFormat, role: Role, identity_share: float, seed: int
) -> list[Example]:
    """Policy: x -> y_w. Improver: (x, y_l) -> y_w, and for a share of the pairs also (x, y_w) -> y_w.

    If y_w was truncated, its completion has no stop token: the model must not learn to end there.
    """

    def completion(pair: PreferencePair) -> list[int]:
        return chat.encode_text(pair.chosen) if pair.chosen_truncated else chat.completion(pair.chosen)

    if role is Role.policy:
        return [Example(chat.policy_prompt(pair.prompt), completion(pair)) for pair in pairs]
    references = [(pair, pair.rejected) for pair in pairs]
    kept = random.Random(seed).sample(pairs, round(identity_share * len(pairs)))
    references += [(pair, pair.chosen) for pair in kept]
    return [Example(chat.improver_prompt(pair.prompt, reference), completion(pair)) for pair, reference in references]


class Limit(NamedTuple):
    """The limit on the length of a conversation. room: the most tokens that a sampled response may have."""

    chat: ChatFormat
    max_length: int
    room: int = 0


def _conversation_tokens(prompt: Prompt, response_tokens: int, chat: ChatFormat) -> int:
    """The length of a whole conversation whose reference and response have `response_tokens` tokens each."""
    return len(chat.improver_prompt(prompt, "")) + 2 * response_tokens + 1


def check_conversation(
    prompt: Prompt,
    responses: Mapping[str, str],
    limit: Limit,
    notes: Counter[str],
) -> None:
    """Raises RowProblem if a prompt and its responses (by field) make no conversation, TooLong if it would not fit.

    Any two of the responses, or two sampled ones, must fit.
    """
    chat, max_length, room = limit
    lengths = {field: len(chat.encode_text(text)) for field, text in responses.items()}
    for field, length in lengths.items():
        if not length:
            raise RowProblem(field, "empty for this model: its tokenizer encodes the text as no tokens")
    tokens = _conversation_tokens(prompt, max(room, *lengths.values()), chat)
    if tokens > max_length:
        used = {"prompt": tokens - 2 * max(room, *lengths.values()), **{f: 2 * n for f, n in lengths.items()}}
        sampled = f" with room for responses of {room} (max-new-tokens)" if room else ""
        reason = f"expected a conversation of at most {max_length} tokens, got {tokens}{sampled}"
        raise TooLong(max(used, key=lambda field: used[field]), reason)
    if any(map(chat.names_special_token, [*(message.content for message in prompt), *responses.values()])):
        notes["rows with the text of a control token, read as plain text"] += 1


def fitting_pairs(
    pairs: Sequence[PreferencePair],
    limit: Limit,
    settings: DataSettings,
    notes: Counter[str],
) -> list[PreferencePair]:
    """The pairs whose conversations fit; longer ones are truncated or skipped, and counted, if the settings say so.

    Raises one InputError that lists all other problems.
    """
    fitting: list[PreferencePair] = []
    problems: list[tuple[PreferencePair, RowProblem]] = []
    for pair in pairs:
        try:
            kept = truncate_to_fit(pair, limit) if settings.truncate else pair
            responses = {"chosen": kept.chosen, "rejected": kept.rejected}
            check_conversation(kept.prompt, responses, limit, notes)
        except RowProblem as problem:
            problems.append((pair, problem))
        else:
            fitting.append(kept)
            if truncated := (kept.chosen != pair.chosen) + (kept.rejected != pair.rejected):
                notes[f"completions truncated to fit {limit.max_length} tokens"] += truncated
    if settings.skip_long and fitting:
        others = [(pair, problem) for pair, problem in problems if not isinstance(problem, TooLong)]
        if skipped := len(problems) - len(others):
            notes[f"rows longer than {limit.max_length} tokens skipped"] += skipped
        problems = others
    if problems:
        raise InputError(_listing(problems, settings))
    return fitting


def truncate_to_fit(pair: PreferencePair, limit: Limit) -> PreferencePair:
    """The pair with completions truncated until the conversation fits; raises TooLong if the prompt leaves no room."""
    chat, max_length, room = limit
    size = (max_length - _conversation_tokens(pair.prompt, 0, chat)) // 2
    if size < max(1, room):
        reason = f"the prompt leaves {max(0, size)} of {max_length} tokens for each response"
        raise TooLong("prompt", f"{reason}; {room} are needed (max-new-tokens)" if room else reason)

    def truncated(field: str, text: str) -> str:
        if kept := chat.truncate(text, size):
            return kept
        raise TooLong(field, f"empty after --truncate shortens it to {size} tokens")

    chosen, rejected = truncated("chosen", pair.chosen), truncated("rejected", pair.rejected)
    if chosen == rejected:
        raise RowProblem("rejected", f"the same text as chosen after --truncate shortens both to {size} tokens")
    return replace(pair, chosen=chosen, rejected=rejected, chosen_truncated=chosen != pair.chosen)


def _listing(problems: Sequence[tuple[PreferencePair, RowProblem]], settings: DataSettings) -> list[str]:
    lines = listed([RowError(pair.file, pair.line, problem.field, problem.reason) for pair, problem in problems])
    if any(isinstance(problem, TooLong) for _, problem in problems):
        lines.append(_remedy(settings))
    return lines


def _remedy(settings: DataSettings) -> str:
    if settings.skip_long:
        return "no row fits; use --max-length to change the limit"
    if settings.truncate:
        return "--truncate shortens completions, not prompts; use --skip-long instead to skip such rows"
    return "use --skip-long to skip such rows, --truncate to shorten completions, or --max-length to change the limit"

"""Preference pairs to the conversations that each stage trains on, with every length checked first."""

import hashlib
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

from pitcli.data.reading import file_label, listed
from pitcli.data.rows import PreferencePair, Prompt, RowError
from pitcli.data.strict_json import RowProblem
from pitcli.data.templates import ChatFormat, Example
from pitcli.errors import InputError
from pitcli.settings.base import DataSettings, Role


class TooLong(RowProblem):
    """A conversation that does not fit the context."""


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

    Where y_w was cut, its completion has no stop token: the model must not learn to end there.
    """

    def completion(pair: PreferencePair) -> list[int]:
        return chat.encode_text(pair.chosen) if pair.chosen_cut else chat.completion(pair.chosen)

    if role is Role.policy:
        return [Example(chat.policy_prompt(pair.prompt), completion(pair)) for pair in pairs]
    references = [(pair, pair.rejected) for pair in pairs]
    kept = random.Random(seed).sample(pairs, round(identity_share * len(pairs)))
    references += [(pair, pair.chosen) for pair in kept]
    return [Example(chat.improver_prompt(pair.prompt, reference), completion(pair)) for pair, reference in references]


class Limit(NamedTuple):
    """What a conversation must fit into; room: tokens that a sampled response may take."""

    chat: ChatFormat
    max_length: int
    room: int = 0


def _conversation_tokens(prompt: Prompt, response_tokens: int, chat: ChatFormat) -> int:
    """Of the whole conversation, where the reference and the response take so many each."""
    return len(chat.improver_prompt(prompt, "")) + 2 * response_tokens + 1


def check_conversation(
    prompt: Prompt,
    responses: Mapping[str, str],
    limit: Limit,
    notes: Counter[str],
) -> None:
    """RowProblem where no conversation can be made of a prompt and its responses, by field; TooLong where none fits.

    It must hold any two of the responses, or sampled ones.
    """
    chat, max_length, room = limit
    lengths = {field: len(chat.encode_text(text)) for field, text in responses.items()}
    for field, length in lengths.items():
        if not length:
            raise RowProblem(field, "empty for this model, whose tokenizer makes no token of it")
    tokens = _conversation_tokens(prompt, max(room, *lengths.values()), chat)
    if tokens > max_length:
        taken = {"prompt": tokens - 2 * max(room, *lengths.values()), **{f: 2 * n for f, n in lengths.items()}}
        sampled = f", with room for responses of {room} (max-new-tokens)," if room else ""
        reason = f"the conversation takes {tokens} tokens{sampled} and {max_length} fit"
        raise TooLong(max(taken, key=lambda field: taken[field]), reason)
    if any(map(chat.names_special_token, [*(message.content for message in prompt), *responses.values()])):
        notes["rows with the text of a control token, read as plain text"] += 1


def fitting_pairs(
    pairs: Sequence[PreferencePair],
    limit: Limit,
    source: str,
    settings: DataSettings,
    notes: Counter[str],
) -> list[PreferencePair]:
    """The pairs whose conversations fit; longer ones are cut or left out, and counted, where the settings say so.

    What is wrong with the others is listed in one InputError.
    """
    fitting: list[PreferencePair] = []
    problems: list[tuple[int, RowProblem]] = []
    for pair in pairs:
        try:
            kept = cut_to_fit(pair, limit) if settings.truncate else pair
            responses = {"chosen": kept.chosen, "rejected": kept.rejected}
            check_conversation(kept.prompt, responses, limit, notes)
        except RowProblem as problem:
            problems.append((pair.line, problem))
        else:
            fitting.append(kept)
            if cut := (kept.chosen != pair.chosen) + (kept.rejected != pair.rejected):
                notes[f"completions cut so that {limit.max_length} tokens hold the conversation"] += cut
    if settings.skip_long and fitting:
        others = [(line, problem) for line, problem in problems if not isinstance(problem, TooLong)]
        if left_out := len(problems) - len(others):
            notes[f"rows longer than {limit.max_length} tokens left out"] += left_out
        problems = others
    if problems:
        raise InputError(_listing(problems, source, settings))
    return fitting


def cut_to_fit(pair: PreferencePair, limit: Limit) -> PreferencePair:
    """The pair with completions short enough for its conversation; TooLong where the prompt leaves no place for any."""
    chat, max_length, room = limit
    fit = (max_length - _conversation_tokens(pair.prompt, 0, chat)) // 2
    if fit < max(1, room):
        reason = f"the prompt leaves {max(0, fit)} of {max_length} tokens to each response"
        raise TooLong("prompt", f"{reason}; {room} are wanted (max-new-tokens)" if room else reason)

    def cut(field: str, text: str) -> str:
        if kept := chat.cut(text, fit):
            return kept
        raise TooLong(field, f"nothing is left of it when --truncate cuts it to {fit} tokens")

    chosen, rejected = cut("chosen", pair.chosen), cut("rejected", pair.rejected)
    if chosen == rejected:
        raise RowProblem("rejected", f"the same text as chosen when --truncate cuts both to {fit} tokens")
    return replace(pair, chosen=chosen, rejected=rejected, chosen_cut=chosen != pair.chosen)


def _listing(problems: Sequence[tuple[int, RowProblem]], source: str, settings: DataSettings) -> list[str]:
    label = file_label(source)
    lines = listed([RowError(label, line, problem.field, problem.reason) for line, problem in problems])
    if any(isinstance(problem, TooLong) for _, problem in problems):
        lines.append(_remedy(settings))
    return lines


def _remedy(settings: DataSettings) -> str:
    if settings.skip_long:
        return "no row fits; --max-length sets the limit"
    if settings.truncate:
        return "--truncate cuts completions, not prompts; --skip-long in its place leaves such rows out"
    return "--skip-long leaves such rows out, --truncate cuts their completions, --max-length sets the limit"

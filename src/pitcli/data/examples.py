"""Preference pairs to the conversations that each stage trains on, with every length checked first."""

import hashlib
import random
from collections import Counter
from collections.abc import Sequence

from pitcli.config import Role
from pitcli.data.records import PreferencePair, Prompt
from pitcli.data.templates import ChatFormat, Example
from pitcli.errors import InputError

MAX_LISTED = 20


def pairs_digest(pairs: Sequence[PreferencePair]) -> str:
    """Identifies the rows used, in their order."""
    digest = hashlib.sha256()
    for pair in pairs:
        digest.update(repr((pair.prompt, pair.chosen, pair.rejected)).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def sft_examples(
    pairs: Sequence[PreferencePair], chat: ChatFormat, role: Role, identity_share: float, seed: int
) -> list[Example]:
    """Policy: x -> y_w. Improver: (x, y_l) -> y_w, and for a share of the pairs also (x, y_w) -> y_w."""
    if role is Role.policy:
        return [Example(chat.policy_prompt(p.prompt), chat.completion(p.chosen)) for p in pairs]
    references = [(pair, pair.rejected) for pair in pairs]
    kept = random.Random(seed).sample(pairs, round(identity_share * len(pairs)))
    references += [(pair, pair.chosen) for pair in kept]
    return [
        Example(chat.improver_prompt(pair.prompt, reference), chat.completion(pair.chosen))
        for pair, reference in references
    ]


def longest_conversation(prompt: Prompt, responses: Sequence[str], chat: ChatFormat, room: int = 0) -> int:
    """Tokens of the longest conversation made of any two of the responses, or of sampled ones of `room` tokens."""
    longest = max([room, *(len(chat.encode_text(text)) for text in responses)])
    return len(chat.improver_prompt(prompt, "")) + 2 * longest + 1


def fitting_pairs(
    pairs: Sequence[PreferencePair],
    chat: ChatFormat,
    max_length: int,
    source: str,
    skip_long: bool,
    notes: Counter[str],
    room: int = 0,
) -> list[PreferencePair]:
    """The pairs whose conversations fit; the others are all listed in one InputError, or left out and counted."""
    lengths = [longest_conversation(p.prompt, (p.chosen, p.rejected), chat, room) for p in pairs]
    fitting = [pair for pair, tokens in zip(pairs, lengths, strict=True) if tokens <= max_length]
    if len(fitting) == len(pairs):
        return fitting
    if skip_long and fitting:
        notes[f"rows longer than {max_length} tokens left out"] += len(pairs) - len(fitting)
        return fitting
    problems = [
        f"{source}:{pair.line}:{_longest_field(pair)}: the conversation takes {tokens} tokens and {max_length} fit"
        for pair, tokens in zip(pairs, lengths, strict=True)
        if tokens > max_length
    ]
    listed = problems[:MAX_LISTED]
    more = len(problems) - len(listed)
    remedy = "no row fits" if skip_long else "--skip-long leaves such rows out, --max-length sets the limit"
    raise InputError([*listed, *([f"and {more} more"] if more else []), remedy])


def _longest_field(pair: PreferencePair) -> str:
    lengths = {
        "prompt": sum(len(message.content) for message in pair.prompt),
        "chosen": 2 * len(pair.chosen),
        "rejected": 2 * len(pair.rejected),
    }
    return max(lengths, key=lambda name: lengths[name])

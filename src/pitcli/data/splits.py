"""Splits pairs into folds that are disjoint by prompt: only the seed and the prompt decide the fold of a pair."""

import hashlib
import math
import re
from collections.abc import Iterable

from pitcli.data.rows import PreferencePair, Prompt
from pitcli.errors import InputError, SettingsError

HASH = 16  # characters of a prompt hash
SKETCHED = 4096  # prompt hashes in a sketch: 200 prompts of 160,000 share five of them on average


def prompt_key(pair: PreferencePair) -> str:
    """A key that is the same for prompts that differ only in case and white space; of the whole prompt if it was cut.

    How a prompt is cut depends on the responses and on --max-length, so the key of a cut one would not show that two
    rows, or two runs, share it.
    """
    return conversation_key(pair.whole_prompt or pair.prompt)


def conversation_key(prompt: Prompt) -> str:
    """The key of a prompt: see prompt_key."""
    lines = (f"{message.role}: {' '.join(message.content.casefold().split())}" for message in prompt)
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def prompt_sketch(pairs: Iterable[PreferencePair], size: int = SKETCHED) -> list[str]:
    """The smallest prompt hashes (bottom-k MinHash): if two sets share prompts, their sketches share hashes.

    Exact for up to `size` prompts; beyond that, sets with Jaccard similarity J share about size * J hashes.
    """
    return sorted({prompt_key(pair)[:HASH] for pair in pairs})[:size]


def split_folds(
    pairs: Iterable[PreferencePair], shares: dict[str, float], seed: int = 0
) -> dict[str, list[PreferencePair]]:
    total = sum(shares.values())
    folds: dict[str, list[PreferencePair]] = {name: [] for name in shares}
    for pair in pairs:
        left = _position("folds", seed, prompt_key(pair)) * total
        # The last fold gets what rounding leaves over.
        name = next(reversed(shares))
        for candidate, share in shares.items():
            left -= share
            if left < 0:
                name = candidate
                break
        folds[name].append(pair)
    return folds


def hold_out(
    pairs: Iterable[PreferencePair], share: float, seed: int
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """(training pairs, held-out pairs), with at least one prompt in each."""
    if not 0 < share < 1:
        raise SettingsError(f"expected a held-out share between 0 and 1, got {share}")
    keyed = [(prompt_key(pair), pair) for pair in pairs]
    # A different salt than for the folds: a fold is a range of positions, and its held-out part must not be one end.
    ordered = sorted({key for key, _ in keyed}, key=lambda key: _position("hold out", seed, key))
    if len(ordered) < 2:
        raise InputError(f"expected at least 2 different prompts to hold some out, got {len(ordered)}")
    count = sum(_position("hold out", seed, key) < share for key in ordered)
    held_out = set(ordered[: min(max(count, 1), len(ordered) - 1)])
    train = [pair for key, pair in keyed if key not in held_out]
    return train, [pair for key, pair in keyed if key in held_out]


def parse_shares(text: str) -> dict[str, float]:
    """Parses `sft=1,reward=1,test=0.2`: names that can be file names, and relative sizes."""
    shares: dict[str, float] = {}
    problems = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([A-Za-z0-9_-]+)\s*=\s*([0-9.eE+-]+)\s*", part)
        share = _number(match[2]) if match else math.nan
        if match is None or not math.isfinite(share) or share <= 0:
            problems.append(f"share {part.strip()!r}: expected NAME=NUMBER with a number above 0, as in sft=1,test=0.2")
        elif match[1] in shares:
            problems.append(f"share {part.strip()!r}: duplicate name")
        else:
            shares[match[1]] = share
    if problems:
        raise SettingsError(problems)
    return shares


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _position(purpose: str, seed: int, key: str) -> float:
    digest = hashlib.sha256(f"{purpose}:{seed}:{key}".encode()).digest()
    # 53 bits: more would sometimes round up to 1.0, which is outside [0, 1).
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53

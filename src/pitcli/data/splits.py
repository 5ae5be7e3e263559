"""Disjoint folds by prompt: the seed and the prompt alone decide where a pair falls."""

import hashlib
import math
import re
from collections.abc import Iterable

from pitcli.data.rows import PreferencePair
from pitcli.errors import InputError, SettingsError


def prompt_key(pair: PreferencePair) -> str:
    """One key for prompts that differ in case and white space alone."""
    lines = (f"{message.role}: {' '.join(message.content.casefold().split())}" for message in pair.prompt)
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogatepass")).hexdigest()


def prompt_sketch(pairs: Iterable[PreferencePair], size: int = 256) -> list[str]:
    """The smallest prompt hashes (bottom-k MinHash): two sketches share some where the two sets share prompts.

    Exact for up to `size` prompts; beyond, sets that share a part J of their union share about size * J hashes.
    """
    return sorted({prompt_key(pair)[:16] for pair in pairs})[:size]


def split_folds(
    pairs: Iterable[PreferencePair], shares: dict[str, float], seed: int = 0
) -> dict[str, list[PreferencePair]]:
    total = sum(shares.values())
    folds: dict[str, list[PreferencePair]] = {name: [] for name in shares}
    for pair in pairs:
        left = _position("folds", seed, prompt_key(pair)) * total
        # The last fold takes what rounding leaves over.
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
    """(train, held out), with at least one prompt on either side."""
    if not 0 < share < 1:
        raise SettingsError(f"the share to hold out must lie between 0 and 1, not {share}")
    keyed = [(prompt_key(pair), pair) for pair in pairs]
    # Salted apart from the folds: a fold is a range of positions, and a share of it must not be a corner.
    ordered = sorted({key for key, _ in keyed}, key=lambda key: _position("hold out", seed, key))
    if len(ordered) < 2:
        raise InputError(f"{len(ordered)} different prompt(s); at least 2 are needed to hold some out")
    count = sum(_position("hold out", seed, key) < share for key in ordered)
    held = set(ordered[: min(max(count, 1), len(ordered) - 1)])
    train = [pair for key, pair in keyed if key not in held]
    return train, [pair for key, pair in keyed if key in held]


def parse_shares(text: str) -> dict[str, float]:
    """`sft=1,reward=1,test=0.2`: names that can be file names, and sizes relative to one another."""
    shares: dict[str, float] = {}
    problems = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*([A-Za-z0-9_-]+)\s*=\s*([0-9.eE+-]+)\s*", part)
        share = _number(match[2]) if match else math.nan
        if match is None or not math.isfinite(share) or share <= 0:
            problems.append(f"share {part.strip()!r}: NAME=NUMBER above 0 is wanted, as in sft=1,test=0.2")
        elif match[1] in shares:
            problems.append(f"share {part.strip()!r}: the name stands twice")
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
    # 53 bits: more would round up to 1.0 now and then, which is outside [0, 1).
    return (int.from_bytes(digest[:8], "big") >> 11) / 2**53

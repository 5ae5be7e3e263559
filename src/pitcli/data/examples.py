"""Converts preference pairs to the conversations that each stage trains on, after checking every length."""

import hashlib
import random
from collections import Counter
from collections.abc import Sequence

from pitcli.data.long_rows import Limit, SameWhenCut, TooLong, check_conversation, cut_to_fit, truncate_to_fit
from pitcli.data.reading import listed
from pitcli.data.rows import PreferencePair, RowError
from pitcli.data.strict_json import RowProblem
from pitcli.data.templates import ChatFormat, Example
from pitcli.data.thoughts import CUT, pair_without_thoughts
from pitcli.errors import InputError
from pitcli.settings.base import Role
from pitcli.settings.pairs import DataSettings, LongRows

REMEDIES = {
    LongRows.error: "use --long-rows cut to shorten such rows, --long-rows skip to skip them, or a larger --max-length",
    LongRows.skip: "no row fits; use a larger --max-length",
    LongRows.truncate: "--long-rows truncate shortens responses, not prompts; use --long-rows cut or skip instead",
    LongRows.cut: "too little is left of such rows; use a larger --max-length, or in RL a smaller "
    "--rollout-max-new-tokens",
}


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
        return chat.completion(pair.chosen, ends=not pair.chosen_truncated)

    if role is Role.policy:
        return [Example(chat.policy_prompt(pair.prompt), completion(pair)) for pair in pairs]
    references = [(pair, pair.rejected) for pair in pairs]
    kept = random.Random(seed).sample(pairs, round(identity_share * len(pairs)))
    references += [(pair, pair.chosen) for pair in kept]
    return [Example(chat.improver_prompt(pair.prompt, reference), completion(pair)) for pair, reference in references]


def fitting_pairs(
    pairs: Sequence[PreferencePair],
    limit: Limit,
    settings: DataSettings,
    notes: Counter[str],
) -> list[PreferencePair]:
    """The pairs whose conversations fit; with longer ones it does what --long-rows says, and counts them.

    Raises one InputError that lists all other problems.
    """
    fitting: list[PreferencePair] = []
    problems: list[tuple[PreferencePair, RowProblem]] = []
    for pair in pairs:
        try:
            whole = pair_without_thoughts(pair, limit.chat.thought_tags)
            kept = shortened(whole, limit, settings.long_rows)
            check_conversation(kept.prompt, {"chosen": kept.chosen, "rejected": kept.rejected}, limit, notes)
        except RowProblem as problem:
            problems.append((pair, problem))
        else:
            fitting.append(kept)
            count_cuts(whole, kept, limit, notes)
            if whole is not pair:
                notes[CUT] += 1
    problems = without_skipped(problems, settings.long_rows, limit, notes) if fitting else problems
    if problems:
        raise InputError(_listing(problems, settings.long_rows))
    return fitting


def shortened(pair: PreferencePair, limit: Limit, long_rows: LongRows) -> PreferencePair:
    """The pair as --long-rows shortens it if it is too long."""
    if long_rows is LongRows.cut:
        return cut_to_fit(pair, limit)
    return truncate_to_fit(pair, limit) if long_rows is LongRows.truncate else pair


def count_cuts(pair: PreferencePair, kept: PreferencePair, limit: Limit, notes: Counter[str]) -> None:
    """Count what a row lost."""
    of_prompt, of_responses = (
        kept.prompt != pair.prompt,
        (kept.chosen != pair.chosen) + (kept.rejected != pair.rejected),
    )
    if of_prompt or of_responses:
        notes[f"rows cut to fit {limit.max_length} tokens"] += 1
        cuts = {"prompts cut from the front": int(of_prompt), "responses cut at the end": int(of_responses)}
        notes.update({what: count for what, count in cuts.items() if count})


def without_skipped(
    problems: Sequence[tuple[PreferencePair, RowProblem]], long_rows: LongRows, limit: Limit, notes: Counter[str]
) -> list[tuple[PreferencePair, RowProblem]]:
    """The problems without those of the rows that --long-rows skips, which are counted."""
    skipped = {LongRows.skip: TooLong, LongRows.cut: SameWhenCut}.get(long_rows)
    reason = f"longer than {limit.max_length} tokens" if long_rows is LongRows.skip else "with equal responses when cut"
    others = [(pair, problem) for pair, problem in problems if not (skipped and isinstance(problem, skipped))]
    if count := len(problems) - len(others):
        notes[f"rows {reason} skipped"] += count
    return others


def _listing(problems: Sequence[tuple[PreferencePair, RowProblem]], long_rows: LongRows) -> list[str]:
    lines = listed([RowError.of(pair.file, pair.line, problem) for pair, problem in problems])
    if any(isinstance(problem, TooLong | SameWhenCut) for _, problem in problems):
        lines.append(REMEDIES[long_rows])
    return lines

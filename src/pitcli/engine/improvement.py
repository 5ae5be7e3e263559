"""The improvement loop: y0 -> y1 -> y2 ... for as long as the gap model finds it better."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from pitcli.config import ImproveConfig, StopRule
from pitcli.console import warn
from pitcli.data.records import Comparison, Draft
from pitcli.data.streams import row_seed
from pitcli.data.templates import ChatFormat
from pitcli.engine.equations import p_better
from pitcli.engine.models import IMPROVER, RoleModel
from pitcli.engine.sampling import Decoding, generate
from pitcli.engine.scoring import calibrated_gaps
from pitcli.errors import is_out_of_memory

NON_FINITE = "non_finite_gap"
OUT_OF_MEMORY = "out_of_memory"
FAILURES = {NON_FINITE: "no finite gap", OUT_OF_MEMORY: "out of memory even by itself"}


class Tools(NamedTuple):
    """What an improvement takes: the model with its roles, the format, and how to sample and judge."""

    model: RoleModel
    chat: ChatFormat
    gap_temperature: float | None  # None: no gap model, so --stop none without gaps
    decoding: Decoding
    config: ImproveConfig


class Attempt(NamedTuple):
    """One draft on its way: the best response so far, every iteration, and why it stopped (None: not yet)."""

    draft: Draft
    best: str
    iterations: list[dict[str, Any]]
    stop_reason: str | None


def improve_within_memory(tools: Tools, drafts: Sequence[Draft]) -> list[Attempt]:
    """As improve; where memory runs out, in halves. A draft that fails by itself is kept as it is."""
    try:
        return improve(tools, drafts)
    except (MemoryError, RuntimeError) as problem:
        if not is_out_of_memory(problem):
            raise
    if len(drafts) == 1:
        return [Attempt(drafts[0], drafts[0].response, [], OUT_OF_MEMORY)]
    warn(f"out of memory with {len(drafts)} drafts together; trying half as many (--sample-batch-size)")
    middle = len(drafts) // 2
    return [*improve_within_memory(tools, drafts[:middle]), *improve_within_memory(tools, drafts[middle:])]


def improve(tools: Tools, drafts: Sequence[Draft]) -> list[Attempt]:
    """Iterate each draft until its stop rule or --max-iters says stop."""
    attempts = [Attempt(draft, draft.response, [], None) for draft in drafts]
    for iteration in range(1, tools.config.max_iters + 1):
        running = [index for index, attempt in enumerate(attempts) if attempt.stop_reason is None]
        if not running:
            break
        for index, after in zip(running, _iterate(tools, [attempts[i] for i in running], iteration), strict=True):
            attempts[index] = after
    return [attempt._replace(stop_reason=attempt.stop_reason or "max_iters") for attempt in attempts]


def _iterate(tools: Tools, attempts: Sequence[Attempt], iteration: int) -> list[Attempt]:
    """One improvement of each, from its best response so far."""
    chat = tools.chat
    prompts = [chat.improver_prompt(attempt.draft.prompt, attempt.best) for attempt in attempts]
    seeds = [row_seed(tools.config.seed, attempt.draft, iteration) for attempt in attempts]
    drawn = generate(tools.model, IMPROVER, prompts, seeds, tools.decoding)
    texts = [chat.decode(sample.token_ids) for sample in drawn]
    gaps: list[float] | None = None
    if tools.gap_temperature is not None:
        comparisons = [
            Comparison(attempt.draft.prompt, text or attempt.best, attempt.best)
            for attempt, text in zip(attempts, texts, strict=True)
        ]
        gaps = calibrated_gaps(
            tools.model, chat, comparisons, tools.gap_temperature, tools.config.sample_batch_size
        ).tolist()
    return [
        judge(
            attempt,
            text,
            gaps[place] if gaps else None,
            len(drawn[place].token_ids),
            drawn[place].finished,
            tools.config,
        )
        for place, (attempt, text) in enumerate(zip(attempts, texts, strict=True))
    ]


def judge(
    attempt: Attempt, text: str, gap: float | None, tokens: int, finished: bool, config: ImproveConfig
) -> Attempt:
    """The stop rule: go on from an improvement only while P(better than the best so far) clears the threshold."""
    finite = gap is None or math.isfinite(gap)
    probability = p_better(gap, 1.0) if gap is not None and finite else None
    reason = None
    if not text:
        reason = "empty"
    elif not finite:
        reason = NON_FINITE
    elif config.stop is StopRule.gap:
        reason = _refusal(attempt, text, probability, config.threshold)
    iteration = {
        "iteration": len(attempt.iterations) + 1,
        "response": text,
        "gap": gap if finite else None,
        "p_better": probability,
        "accepted": reason is None,
        "generated_tokens": tokens,
        "finished": finished,
    }
    best = text if reason is None else attempt.best
    return Attempt(attempt.draft, best, [*attempt.iterations, iteration], reason)


def _refusal(attempt: Attempt, text: str, probability: float | None, threshold: float) -> str | None:
    """Why an improvement is not taken, or None."""
    seen = [attempt.draft.response, *(row["response"] for row in attempt.iterations)]
    if text == attempt.best.strip():
        return "copy"
    if text in (earlier.strip() for earlier in seen):
        return "cycle"
    return "not_better" if probability is not None and not probability > threshold else None


def finished_row(attempt: Attempt) -> dict[str, Any]:
    """The draft's own fields with `response` now the best one, and how it came about."""
    return {
        **attempt.draft.row,
        "response": attempt.best,
        "original_response": attempt.draft.response,
        "iterations": attempt.iterations,
        "stop_reason": attempt.stop_reason,
    }

"""pit improve: y0 -> y1 -> y2 ... with the improver, for as long as the gap model finds it better."""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pitcli.config import ImproveConfig, StopRule
from pitcli.console import error, next_command, note, progress, samples
from pitcli.data.examples import longest_conversation
from pitcli.data.formats import iter_drafts
from pitcli.data.records import Draft, RowError, write_row
from pitcli.data.streams import batched, open_output, row_seed
from pitcli.data.templates import ChatFormat
from pitcli.engine.equations import p_better
from pitcli.engine.models import GAP, IMPROVER, RoleModel
from pitcli.engine.sampling import Decoding, generate
from pitcli.engine.scoring import Comparison, calibrated_gaps
from pitcli.errors import RunError, SettingsError
from pitcli.inputs import Base, EarlierRun, find_run, gap_temperature, open_base

SHOWN = 3
NON_FINITE = "non_finite_gap"


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


def run(config: ImproveConfig) -> int:
    """Improve every draft; rows in the order of the input. Returns 1 where some rows could not be read."""
    if config.output != "-" and config.input != "-" and Path(config.output).resolve() == Path(config.input).resolve():
        raise SettingsError(f"--output: {config.output} is the input")
    improver, gap_folder, gap_temperature, earlier = find_models(config)
    errors: list[RowError] = []

    def on_error(problem: RowError) -> None:
        errors.append(problem)
        error(str(problem))

    drafts = iter_drafts(config.input, on_error)
    base = open_base(config, earlier)
    model = base.load()
    model.load_role(IMPROVER, improver)
    if gap_folder:
        model.load_role(GAP, gap_folder)
    decoding = Decoding(config.temperature, config.top_p, config.max_new_tokens, base.chat.stop_id, 1)
    tools = Tools(model, base.chat, gap_temperature, decoding, config)
    shown: list[tuple[str, str, str]] = []
    changed = count = failed = 0
    with open_output(config.output) as stream, progress("improving", None, stream) as advance:
        for batch in batched(fitting(drafts, base, config, on_error), config.sample_batch_size):
            for attempt in improve(tools, batch):
                write_row(finished_row(attempt), stream)
                if attempt.stop_reason == NON_FINITE:
                    error(f"draft {attempt.draft.id or count + 1}: no finite gap; kept as it was")
                    failed += 1
                count += 1
                changed += attempt.best != attempt.draft.response
                if attempt.best != attempt.draft.response and len(shown) < SHOWN:
                    shown.append((attempt.draft.prompt[-1].content, attempt.draft.response, attempt.best))
                advance(1, changed=changed)
            stream.flush()
    samples(shown)
    note(f"{count} drafts, {changed} changed" + (f", {len(errors) + failed} rows failed" if errors or failed else ""))
    next_command("jq -r .response " + ("improved.jsonl" if config.output == "-" else config.output))
    return 1 if errors or failed else 0


def find_models(config: ImproveConfig) -> tuple[Path, Path | None, float | None, list[EarlierRun]]:
    """(improver adapter, gap adapter, its temperature, the runs): from --run, else runs/rl, else runs/sft."""
    improver = find_run(config.run, "runs/rl", ("rl", "sft"), IMPROVER, "pit rl makes one")
    improver = improver or find_run(None, "runs/sft", ("sft",), IMPROVER, "pit rl makes one")
    if improver is None:
        raise RunError("--run: no improver in runs/rl or runs/sft; pit rl makes one")
    if config.reward is None and improver.manifest.kind == "rl":
        # an rl run holds the gap model that it was trained on
        return improver.adapter, improver.folder / GAP, gap_temperature(improver.manifest), [improver]
    reward = find_run(config.reward, "runs/reward", ("reward",), GAP, "pit train-reward makes one")
    if reward is None and config.stop is StopRule.gap:
        raise RunError("--reward: no gap model in runs/reward; pit train-reward makes one, or give --stop none")
    if reward is None:
        return improver.adapter, None, None, [improver]
    return improver.adapter, reward.adapter, gap_temperature(reward.manifest), [improver, reward]


def fitting(
    drafts: Iterable[tuple[int, Draft]],
    base: Base,
    config: ImproveConfig,
    on_error: Callable[[RowError], None],
) -> Iterator[Draft]:
    """The drafts whose improvement fits the context; the others are errors of their rows."""
    for line, draft in drafts:
        tokens = longest_conversation(draft.prompt, (draft.response,), base.chat, config.max_new_tokens)
        if tokens > base.max_length:
            reason = (
                f"the draft with an improvement takes up to {tokens} tokens and {base.max_length} fit; "
                f"--max-new-tokens sets the room for an improvement"
            )
            on_error(RowError(config.input, line, "prompt", reason))
        else:
            yield draft


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

"""pit sample: samples drafts from the policy, one or several per prompt."""

import shlex
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from pitcli.console import counted, error, next_command, note, progress, samples, warn
from pitcli.data.formats import iter_questions
from pitcli.data.long_rows import note_system_message
from pitcli.data.pair_reading import options_of
from pitcli.data.reading import file_label, refuse_output_as_input, write_row
from pitcli.data.rows import Draft, RowError
from pitcli.data.sources import Row
from pitcli.data.streams import WINDOW, open_output, row_seed, windows
from pitcli.data.strict_json import RowProblem
from pitcli.engine.generation.continuous_batching import generate_in_order, open_batching
from pitcli.engine.generation.sampling import Decoding
from pitcli.engine.generation.static_batching import Request
from pitcli.engine.models.opening import Base, open_base
from pitcli.engine.models.roles import POLICY
from pitcli.runs.earlier import find_run
from pitcli.settings.default_runs import POLICY_RUN
from pitcli.settings.generating import SampleConfig

SHOWN_ROWS = 2


def run(config: SampleConfig) -> int:
    """Write each row with a sampled `response`; return 1 if some rows failed, otherwise 0."""
    refuse_output_as_input(config.data, config.output)
    policy = find_run(config.policy, POLICY_RUN)
    errors: list[RowError] = []
    notes: Counter[str] = Counter()

    def on_error(problem: RowError) -> None:
        errors.append(problem)
        error(str(problem))

    questions = iter_questions(config.data, on_error, notes, options_of(config))
    base = open_base(config, [policy] if policy else [])
    decoding = Decoding(config.temperature, config.top_p, config.max_new_tokens, base.chat.stop_ids, min_new_tokens=1)
    model = base.load({POLICY: policy.adapter} if policy else {})
    note(base.describe())
    drafts = truncated = 0
    shown: list[tuple[str, str]] = []
    with (
        open_output(config.output) as stream,
        progress("sampling", (config.max_rows or 0) * config.draws or None, stream) as advance,
    ):
        requests = fitting_requests(islice(questions, config.max_rows), base, config, on_error, notes)
        for window in windows(requests, WINDOW * config.sample_batch_size, config.data):
            longest = max(len(request.prompt) for _, _, request in window) + config.max_new_tokens
            together = min(len(window), config.sample_batch_size)
            batching = open_batching(model, POLICY if policy else None, decoding, slots=together, longest=longest)
            samples_in_order = generate_in_order(batching, [request for _, _, request in window])
            for (prompt, row, _), sample in zip(window, samples_in_order, strict=True):
                response, thoughts = base.chat.answer(sample.token_ids)
                fields = {"response": response, **({"thoughts": thoughts} if thoughts else {})}
                write_row({**row, **fields, "finished": sample.finished}, stream)
                stream.flush()
                drafts += 1
                truncated += not sample.finished
                if len(shown) < SHOWN_ROWS:
                    shown.append((prompt, response))
                advance(1)
    samples(shown, labels=("prompt", "draft"))
    for text, count in notes.items():
        note(f"{file_label(config.data)}: {counted(count, text)}")
    note(counted(drafts, "drafts written") + (f", {counted(len(errors), 'rows failed')}" if errors else ""))
    if truncated:
        warn(f"--max-new-tokens {config.max_new_tokens} cut {truncated} of the drafts; their rows have finished: false")
    drafts_file = "drafts.jsonl" if config.output == "-" else config.output
    next_command(f"pit improve --input {shlex.quote(drafts_file)} --max-iters 5")
    return 1 if errors else 0


def fitting_requests(
    questions: Iterable[tuple[int, Draft]],
    base: Base,
    config: SampleConfig,
    on_error: Callable[[RowError], None],
    notes: Counter[str],
) -> Iterator[tuple[str, Row, Request]]:
    """Yield (last message, row to write, request) for each draw of each prompt whose response fits the context.

    Report the other prompts as row errors. Draws of one prompt get the ids ID.1, ID.2, ... if the prompt has one.
    """
    for line, question in questions:
        try:
            prompt = base.chat.policy_prompt(question.prompt)
            note_system_message(base.chat, question.prompt, notes)
            if len(prompt) + config.max_new_tokens > base.max_length:
                room = f"{base.max_length} less --max-new-tokens {config.max_new_tokens}"
                most = base.max_length - config.max_new_tokens
                raise RowProblem("prompt", f"expected at most {most} tokens ({room}), got {len(prompt)}")
        except RowProblem as problem:
            on_error(RowError(file_label(config.data), line, problem.field, problem.reason))
        else:
            for draw in range(config.draws):
                row = dict(question.row)
                if config.draws > 1 and question.id is not None:
                    row["id"] = f"{question.id}.{draw + 1}"
                yield question.prompt[-1].content, row, Request(prompt, row_seed(config.seed, question, draw))

"""pit sample: drafts from the policy, one for each prompt."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from itertools import islice

from pitcli.console import error, next_command, note, progress, samples
from pitcli.data.formats import iter_questions
from pitcli.data.reading import file_label, refuse_output_as_input, write_row
from pitcli.data.rows import Draft, RowError
from pitcli.data.streams import WINDOW, open_output, row_seed, windows
from pitcli.data.strict_json import RowProblem
from pitcli.engine.generation.continuous_batching import generate_in_order, open_batching
from pitcli.engine.generation.sampling import Decoding
from pitcli.engine.generation.static_batching import Request
from pitcli.engine.models.opening import Base, open_base
from pitcli.engine.models.roles import POLICY
from pitcli.runs.earlier import find_run
from pitcli.settings.default_runs import POLICY_RUN
from pitcli.settings.training import SampleConfig

SHOWN = 2


def run(config: SampleConfig) -> int:
    """Write each row with a sampled `response`; 1 where some rows could not be read."""
    refuse_output_as_input(config.data, config.output)
    policy = find_run(config.policy, POLICY_RUN)
    errors: list[RowError] = []
    notes: Counter[str] = Counter()

    def on_error(problem: RowError) -> None:
        errors.append(problem)
        error(str(problem))

    questions = iter_questions(config.data, on_error, notes)
    base = open_base(config, [policy] if policy else [])
    decoding = Decoding(config.temperature, config.top_p, config.max_new_tokens, base.chat.stop_id, min_new_tokens=1)
    model = base.load({POLICY: policy.adapter} if policy else {})
    count = 0
    shown: list[tuple[str, str, str]] = []
    with open_output(config.output) as stream, progress("sampling", config.max_rows, stream) as advance:
        fits = fitting(islice(questions, config.max_rows), base, config, on_error)
        for window in windows(fits, WINDOW * config.sample_batch_size, config.data):
            longest = max(len(request.prompt) for _, request in window) + config.max_new_tokens
            together = min(len(window), config.sample_batch_size)
            batching = open_batching(model, POLICY if policy else None, decoding, slots=together, longest=longest)
            drawn = generate_in_order(batching, [request for _, request in window])
            for (question, _), sample in zip(window, drawn, strict=True):
                response = base.chat.decode(sample.token_ids)
                write_row({**question.row, "response": response}, stream)
                stream.flush()
                count += 1
                if len(shown) < SHOWN:
                    shown.append((question.prompt[-1].content, "", response))
                advance(1)
    samples(shown)
    for what, times in notes.items():
        note(f"{file_label(config.data)}: {times} {what}")
    note(f"{count} drafts" + (f", {len(errors)} rows failed" if errors else ""))
    next_command("pit improve --input drafts.jsonl --max-iters 5")
    return 1 if errors else 0


def fitting(
    questions: Iterable[tuple[int, Draft]], base: Base, config: SampleConfig, on_error: Callable[[RowError], None]
) -> Iterator[tuple[Draft, Request]]:
    """The questions whose responses fit the context, with what the model is asked for; the others are row errors."""
    for line, question in questions:
        try:
            prompt = base.chat.policy_prompt(question.prompt)
            if len(prompt) + config.max_new_tokens > base.max_length:
                fit = f"with {config.max_new_tokens} new ones (--max-new-tokens) {base.max_length} fit"
                raise RowProblem("prompt", f"takes {len(prompt)} tokens; {fit}")
        except RowProblem as problem:
            on_error(RowError(file_label(config.data), line, problem.field, problem.reason))
        else:
            yield question, Request(prompt, row_seed(config.seed, question, 0))

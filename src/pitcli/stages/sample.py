"""pit sample: samples drafts from the policy, one or several per prompt."""

import shlex
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import partial
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

from pitcli.console import counted, next_command, note, progress, samples, warn
from pitcli.data.formats import iter_questions
from pitcli.data.long_rows import note_system_message
from pitcli.data.pair_reading import options_of
from pitcli.data.reading import refuse_output_as_input
from pitcli.data.rows import Draft, Row, RowError
from pitcli.data.streams import WINDOW, row_key, row_seed, windows
from pitcli.data.strict_json import RowProblem, encode
from pitcli.data.tally import RowTally
from pitcli.engine.generation.continuous_batching import generate_in_order, open_batching
from pitcli.engine.generation.endpoint import (
    EndpointBatching,
    EndpointWriter,
    Unanswered,
    endpoint_of,
    replies_in_order,
)
from pitcli.engine.generation.sampling import Decoding, Request
from pitcli.engine.models.opening import Base, open_base
from pitcli.engine.models.roles import POLICY
from pitcli.runs.earlier import EarlierRun, find_run
from pitcli.runs.growing_rows import growing_rows
from pitcli.settings.default_runs import POLICY_RUN
from pitcli.settings.generating import SampleConfig

SHOWN_ROWS = 2


class Draw(NamedTuple):
    """One of the draws of a prompt. row: what is written, without the response."""

    line: int
    question: Draft
    number: int
    row: Row
    seed: int

    def key(self) -> int:
        """Return what identifies the draw when a stopped command is resumed; the row of one without an id does not."""
        return row_key(replace(self.question, id=f"{self.question.id or ''}.{self.number}"))


class Drafts(RowTally):
    """Makes the rows of the drafts, counts them, and keeps a few to show."""

    def __init__(self, config: SampleConfig) -> None:
        super().__init__(config.data)
        self.config = config
        self.truncated = 0
        self._shown: list[tuple[str, str]] = []

    def row(self, draw: Draw, text: str, thoughts: str, finished: bool) -> Row:
        """Count a draft; return its row."""
        self.rows += 1
        self.truncated += not finished
        if len(self._shown) < SHOWN_ROWS:
            self._shown.append((draw.question.prompt[-1].content, text))
        return {**draw.row, "response": text, **({"thoughts": thoughts} if thoughts else {}), "finished": finished}

    def report(self) -> None:
        config = self.config
        samples(self._shown, labels=("prompt", "draft"))
        self.show_notes()
        note(counted(self.rows, "drafts written") + self.failures())
        if self.truncated:
            cut = f"--max-new-tokens {config.max_new_tokens} cut {self.truncated} of the drafts"
            warn(f"{cut}; their rows have finished: false")
        drafts_file = "drafts.jsonl" if config.output == "-" else config.output
        next_command(f"pit improve --input {shlex.quote(drafts_file)} --max-iters 5")


def run(config: SampleConfig) -> int:
    """Write each row with a sampled `response`; return 1 if some rows failed, otherwise 0."""
    refuse_output_as_input(config.data, config.output)
    drafts = Drafts(config)
    questions = iter_questions(config.data, drafts.on_error, drafts.notes, options_of(config))
    if config.writer:
        sample_at_endpoint(config, questions, drafts)
    else:
        sample_here(config, questions, drafts)
    drafts.report()
    return 1 if drafts.failed else 0


def sample_here(config: SampleConfig, questions: Iterator[tuple[int, Draft]], drafts: Drafts) -> None:
    """Sample from a model in this process."""
    policy = find_run(config.policy, POLICY_RUN)
    base = open_base(config, [policy] if policy else [])
    decoding = Decoding(config.temperature, config.top_p, config.max_new_tokens, base.chat.stop_ids, min_new_tokens=1)
    role = POLICY if policy else None
    made_with = partial(origin_of_drafts, config, base, policy)
    with (
        growing_rows(config, made_with, None) as rows,
        progress("sampling", (config.max_rows or 0) * config.draws or None, rows.stream) as advance,
    ):
        model = base.load({POLICY: policy.adapter} if policy else {})  # not before the output is known to be usable
        model.keep_merged(role)
        model.pack_weights()
        note(base.describe())
        draws = (draw for draw in draws_of(config, questions) if not rows.take(draw.key()))
        requests = fitting_requests(draws, base, config, drafts)
        for window in windows(requests, WINDOW * config.sample_batch_size, config.data):
            longest = max(len(request.prompt) for _, request in window) + config.max_new_tokens
            together = min(len(window), config.sample_batch_size)
            batching = open_batching(model, role, decoding, slots=together, longest=longest)
            samples_in_order = generate_in_order(batching, [request for _, request in window])
            for (draw, _), sample in zip(window, samples_in_order, strict=True):
                text, thoughts = base.chat.answer(sample.token_ids)
                rows.write(draw.key(), f"{encode(drafts.row(draw, text, thoughts, sample.finished))}\n")
                advance(1)


def origin_of_drafts(config: SampleConfig, base: Base, policy: EarlierRun | None) -> dict[str, Any]:
    """Return everything that the drafts depend on; none of it may change when the command is resumed."""
    return {
        "settings": config.identity(),
        "base": base.identity.model_dump(mode="json"),
        "adapters": {POLICY: policy.manifest.adapter_digest(POLICY)} if policy else {},
    }


def sample_at_endpoint(config: SampleConfig, questions: Iterator[tuple[int, Draft]], drafts: Drafts) -> None:
    """Ask the model behind an endpoint."""
    to_file = config.output != "-"
    endpoint = endpoint_of(config, "the drafts so far are kept" + ("; --resume continues" if to_file else ""))
    options, limit = config.template_options(), config.max_new_tokens
    writer = EndpointWriter(endpoint, config.temperature, config.top_p, limit, options)
    with (
        growing_rows(config, lambda: {"settings": config.identity()}, None) as rows,
        EndpointBatching(writer) as batching,
        progress("sampling", (config.max_rows or 0) * config.draws or None, rows.stream) as advance,
    ):
        draws = (draw for draw in draws_of(config, questions) if not rows.take(draw.key()))
        asked = ((draw, writer.request(draw.question.prompt, draw.seed)) for draw in draws)
        for draw, reply in replies_in_order(batching, asked, at_once=Path(config.data).is_file()):
            if isinstance(reply, Unanswered):
                drafts.on_error(RowError(drafts.label, draw.line, "", f"{reply.reason}; --resume asks again"))
            else:
                row = drafts.row(draw, reply.text, reply.thoughts, reply.finished)
                rows.write(draw.key(), f"{encode(row)}\n")
            advance(1)


def draws_of(config: SampleConfig, questions: Iterator[tuple[int, Draft]]) -> Iterator[Draw]:
    """Yield --draws draws of each prompt; those of one with an id get the ids ID.1, ID.2, ..."""
    for line, question in islice(questions, config.max_rows):
        for number in range(config.draws):
            row = dict(question.row)
            if config.draws > 1 and question.id is not None:
                row["id"] = f"{question.id}.{number + 1}"
            yield Draw(line, question, number, row, row_seed(config.seed, question, number))


def fitting_requests(
    draws: Iterable[Draw], base: Base, config: SampleConfig, drafts: Drafts
) -> Iterator[tuple[Draw, Request]]:
    """Yield each draw whose response fits the context with its request; report the other prompts as row errors."""
    for (line, question), group in groupby(draws, key=lambda draw: (draw.line, draw.question)):
        try:
            prompt = base.chat.policy_prompt(question.prompt)
            note_system_message(base.chat, question.prompt, drafts.notes)
            if len(prompt) + config.max_new_tokens > base.max_length:
                room = f"{base.max_length} less --max-new-tokens {config.max_new_tokens}"
                most = base.max_length - config.max_new_tokens
                raise RowProblem("prompt", f"expected at most {most} tokens ({room}), got {len(prompt)}")
        except RowProblem as problem:
            drafts.on_error(RowError.of(drafts.label, line, problem))
        else:
            for draw in group:
                yield draw, Request(prompt, draw.seed)

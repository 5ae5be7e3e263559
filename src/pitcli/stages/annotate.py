"""pit annotate: asks a person which of two responses is better, without showing which one is the original."""

import hashlib
import json
import shlex
import sys
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from pitcli.console import counted, error, next_command, note, visible
from pitcli.data.conversations import written_prompt
from pitcli.data.reading import file_label, load_rows, parsed_rows, read_rows, refuse_output_as_input, write_row
from pitcli.data.rows import RowError
from pitcli.data.streams import open_growing
from pitcli.data.strict_json import RowProblem
from pitcli.errors import InputError, SettingsError
from pitcli.evaluation.agreement import ORIGINAL_RESPONSE, RESPONSE, TIE, Item, parse_item, parse_label
from pitcli.runs.growing_rows import refuse_other_output
from pitcli.settings.tools import AnnotateConfig

QUESTION = "1 better / 2 better / t tie / s skip / q quit: "
SKIP, QUIT = "s", "q"
ANSWERS = ("1", "2", "t", SKIP, QUIT)
INDENT = (0, 0, 0, 4)  # of every line, wrapped ones too, so that no text of a row can look like a heading


class Pair(NamedTuple):
    """An item to label, with the row it came from."""

    item: Item
    row: dict[str, Any]


def run(config: AnnotateConfig) -> int:
    """Ask about every pair that this annotator has not labelled yet; return 1 if some rows could not be read."""
    if "-" in (config.input, config.output):
        raise SettingsError("--input and --output: expected files, got -; stdin is for the answers")
    refuse_output_as_input(config.input, config.output)
    refuse_other_output(config.input)
    refuse_other_rows(config.output)
    errors: list[RowError] = []
    notes: Counter[str] = Counter()
    pairs = shuffled_pairs(config, read_pairs(config.input, errors, notes))
    for problem in errors:
        error(str(problem))
    for text, count in notes.items():
        note(f"{file_label(config.input)}: {counted(count, text)}")
    if not pairs:
        raise InputError(f"{file_label(config.input)}: no pair to label; each row needs two different texts")
    with open_growing(config.output, resume=True, overwrite=False) as stream:
        done = labelled_items(config.output, config.annotator)
        ask_all(config, [pair for pair in pairs if pair.item not in done], stream)
    next_command(f"pit agree --labels {shlex.quote(config.output)}")
    return 1 if errors else 0


def refuse_other_rows(output: str) -> None:
    """Raise InputError if --output contains anything but labels: only from labels is a partial last line removed."""
    if not Path(output).is_file() or not Path(output).stat().st_size:
        return
    problems: list[RowError] = []
    first = next(read_rows(output, problems.append), None)
    try:
        if problems or first is None:
            raise RowProblem("", "not a label")
        parse_label(first[1], output, first[0])
    except RowProblem as problem:
        raise InputError(f"--output: expected a file of labels, got {output} ({problem}); name another file") from None


def read_pairs(path: str, errors: list[RowError], notes: Counter[str]) -> list[Pair]:
    """Return every pair of different texts once."""
    pairs: dict[Item, Pair] = {}
    for _, (item, row) in parsed_rows(path, parse_item_row, errors.append, notes):
        if item.response == item.original_response:
            notes["pairs of identical texts skipped"] += 1
        elif item in pairs:
            notes["duplicate rows skipped"] += 1
        else:
            pairs[item] = Pair(item, row)
    return list(pairs.values())


def parse_item_row(row: dict[str, Any], file: str, line: int) -> Pair:
    return Pair(parse_item(row, file, line), row)


def shuffled_pairs(config: AnnotateConfig, pairs: Sequence[Pair]) -> list[Pair]:
    """Return the pairs in this annotator's own order; --max-rows selects the same pairs for every annotator."""
    shared = sorted(pairs, key=lambda pair: random_number(config.seed, pair.item.key))[: config.max_rows]
    return sorted(shared, key=lambda pair: random_number(config.seed, config.annotator, pair.item.key))


def shown_order(config: AnnotateConfig, item: Item) -> tuple[str, str]:
    """Return which of the two responses is shown first and which second."""
    swap = random_number(config.seed, config.annotator, item.key, "side") % 2
    return (ORIGINAL_RESPONSE, RESPONSE) if swap else (RESPONSE, ORIGINAL_RESPONSE)


def random_number(*parts: int | str) -> int:
    """Hash the parts, and nothing else, so that neither the order of the rows nor a pause changes the number."""
    return int.from_bytes(hashlib.sha256(json.dumps(parts).encode("utf-8", "surrogatepass")).digest()[:8], "big")


def labelled_items(output: str, annotator: str) -> set[Item]:
    if not Path(output).is_file():
        return set()
    return {label.item for label in load_rows(output, parse_label) if label.annotator == annotator}


def ask_all(config: AnnotateConfig, pairs: Sequence[Pair], stream: TextIO) -> None:
    """Ask until the annotator quits; each label is written before the next question."""
    console = Console(stderr=True, highlight=False)
    counts = Counter({"labels": 0})
    answers = typed_lines()
    try:
        for number, pair in enumerate(pairs, start=1):
            order = shown_order(config, pair.item)
            start = time.monotonic()
            console.print(f"\npair {number} of {len(pairs)}", style="bold")
            show(console, pair.item, order)
            answer = ask(console, answers)
            if answer == QUIT:
                break
            counts["skipped" if answer == SKIP else "labels"] += 1
            if answer != SKIP:
                seconds = time.monotonic() - start
                write_row(label_row(config, pair, order=order, choice=answer, seconds=seconds), stream)
                stream.flush()
    finally:
        console.print()
        left = len(pairs) - counts["labels"]
        labels = counted(counts["labels"], "labels")
        note(f"{labels} by {config.annotator}, {counts['skipped']} skipped, {counted(left, 'pairs')} left")


def typed_lines() -> Iterator[str]:
    """Yield lines from stdin; bytes that are not UTF-8 count as a typo."""
    while sys.stdin is not None and (line := sys.stdin.buffer.readline()):
        yield line.decode("utf-8", "replace").strip().lower()


def ask(console: Console, answers: Iterator[str]) -> str:
    """Return one of ANSWERS; the end of the input means quit."""
    console.print(QUESTION, end="")
    for answer in answers:
        if answer in ANSWERS:
            return answer
        console.print(f"please answer {', '.join(ANSWERS)}\n{QUESTION}", end="")
    return QUIT


def show(console: Console, item: Item, order: tuple[str, str]) -> None:
    turns = [("prompt" if len(item.prompt) == 1 else f"prompt, {turn.role}", turn.content) for turn in item.prompt]
    responses = [(f"response {number}", getattr(item, name)) for number, name in enumerate(order, start=1)]
    for heading, text in [*turns, *responses]:
        console.print(heading, style="bold")
        console.print(Padding(Text(visible(text)), INDENT))


def label_row(
    config: AnnotateConfig, pair: Pair, order: tuple[str, str], choice: str, seconds: float
) -> dict[str, Any]:
    return {
        "key": pair.item.key,
        "annotator": config.annotator,
        "shown_first": order[0],
        "choice": choice,
        "preferred": TIE if choice == "t" else order[int(choice) - 1],
        "prompt": written_prompt(pair.item.prompt),
        "original_response": pair.item.original_response,
        "response": pair.item.response,
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
    }

"""A judge that is a program: it reads rows as JSON lines and prints one score per line."""

import math
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from subprocess import PIPE, Popen
from typing import Any

from pitcli.data.conversations import written_prompt
from pitcli.data.rows import Comparison, Prompt
from pitcli.data.strict_json import encode
from pitcli.errors import RunError
from pitcli.evaluation.judge import Grade, Judge, judge_by_grades
from pitcli.settings.values import COMMAND

PER_CALL = 4096  # comparisons: a program may take seconds to start
SCALE = 1e6  # of the difference of two scores: any difference decides
SHOWN_CHARACTERS = 200

Fields = Mapping[Prompt, dict[str, Any]]  # the other fields of the row that has a prompt


def command_judge(name: str, fields: Fields) -> Judge:
    """Make a judge from the program of cmd:COMMAND: any difference of its scores decides."""
    return judge_by_grades(name, command_grade(name, fields), SCALE, PER_CALL)


def command_grade(name: str, fields: Fields) -> Grade:
    """Return a function that starts the program of cmd:COMMAND once and returns its scores of all responses."""

    def grade(responses: Sequence[tuple[Prompt, str]]) -> list[float]:
        rows = [
            {**fields.get(prompt, {}), "prompt": written_prompt(prompt), "response": response}
            for prompt, response in responses
        ]
        return parsed_scores(name, output_of(name, rows), len(rows))

    return grade


def score_differences(grade: Grade, comparisons: Sequence[Comparison]) -> list[float]:
    """Return score(response) - score(reference_response) of each comparison; each response is scored once."""
    ours = [(c.prompt, c.response) for c in comparisons]
    references = [(c.prompt, c.reference_response) for c in comparisons]
    distinct = list(dict.fromkeys([*ours, *references]))
    scores = dict(zip(distinct, grade(distinct), strict=True))
    return [scores[response] - scores[reference] for response, reference in zip(ours, references, strict=True)]


def output_of(name: str, rows: Sequence[dict[str, Any]]) -> str:
    """Run the command on the rows; RunError with its last line on stderr if it fails.

    It has a session of its own, so that Ctrl-C stops pit first, which saves its work and then ends the command.
    """
    lines = "".join(encode(row) + "\n" for row in rows)
    with started(name.removeprefix(COMMAND)) as process:
        out, err = process.communicate(lines.encode())
    if process.returncode:
        last = (err.decode(errors="replace").strip().splitlines() or ["nothing on stderr"])[-1]
        ended = f"exit code {process.returncode}" if process.returncode > 0 else f"signal {-process.returncode}"
        raise RunError(f"{name}: the program ended with {ended}: {last[:SHOWN_CHARACTERS]}")
    return out.decode(errors="replace")


@contextmanager
def started(command: str) -> Iterator[Popen[bytes]]:
    """Start a shell command in a session of its own; an exception, Ctrl-C too, ends it and all that it started.

    Another thread starts it: Ctrl-C interrupts only the main thread, so no process is lost between its start and its
    assignment.
    """
    running: list[Popen[bytes]] = []

    def start() -> None:
        running.append(Popen(command, shell=True, stdin=PIPE, stdout=PIPE, stderr=PIPE, start_new_session=True))

    with ThreadPoolExecutor(1) as starter:
        starter.submit(int).result()  # its thread runs before anything is started, so shutdown waits for it
        try:
            starter.submit(start).result()
            yield running[0]
        except BaseException:
            starter.shutdown()
            for process in running:
                with process, suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
            raise


def parsed_scores(name: str, output: str, expected: int) -> list[float]:
    """Return the number on each line; RunError if one is not a finite number, or if they are more or fewer."""
    scores = []
    for number, line in enumerate(output.strip().splitlines(), start=1):
        try:
            score = float(line)
        except ValueError:
            score = math.nan
        if not math.isfinite(score):
            shown = line.strip()[:SHOWN_CHARACTERS]
            raise RunError(f"{name}: line {number} of its output: expected a finite number, got {shown!r}")
        scores.append(score)
    if len(scores) != expected:
        raise RunError(f"{name}: expected {expected} scores, one per row, got {len(scores)}")
    return scores

"""The rows that are evaluated: systems as `pit improve` wrote them, aligned, and the controls that are made here."""

import json
import random
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, median_low
from typing import Any, NamedTuple

from pitcli.console import note, warn
from pitcli.data.formats import parse_draft
from pitcli.data.records import Comparison, Prompt, RowError, read_rows
from pitcli.data.strict_json import RowProblem
from pitcli.errors import InputError, SettingsError

MAX_LISTED = 20
ORIGINAL = "original"
MADE = ("padded", "constant")  # controls that are made here


class Step(NamedTuple):
    """One iteration: what it was shown, what it wrote, what the gap model said, and what stood afterwards."""

    before: str
    written: str
    p_better: float | None
    standing: str
    generated_tokens: int


class Row(NamedTuple):
    """One draft as a system left it."""

    seed: int
    prompt: Prompt
    original: str
    response: str
    steps: tuple[Step, ...]
    generated_tokens: int | None
    dataset: str

    def standing(self, iteration: int) -> str:
        """The response after so many iterations; the last one stands where there were fewer."""
        return self.steps[min(iteration, len(self.steps)) - 1].standing if iteration and self.steps else self.original

    def tokens_until(self, iteration: int) -> int:
        return sum(step.generated_tokens for step in self.steps[:iteration])

    def against_original(self) -> Comparison:
        return Comparison(self.prompt, self.response, self.original)


Key = tuple[int, Prompt, str, int]


class System(NamedTuple):
    """A named system: its rows by key, where they are from, and the records that stand beside its files."""

    name: str
    files: tuple[str, ...]
    rows: dict[Key, Row]
    records: tuple[dict[str, Any], ...]
    baseline: str = ORIGINAL

    def at(self, keys: Iterable[Key]) -> list[Row]:
        return [self.rows[key] for key in keys]

    def record(self) -> dict[str, Any]:
        """Of the first file; those of other training seeds differ from it by the seed."""
        return self.records[0] if self.records else {}

    def method(self) -> str:
        return str(self.record().get("settings", {}).get("method", ""))

    def equal_tokens(self) -> str:
        """The name of the file whose tokens a best-of-n was to spend."""
        return Path(self.record().get("settings", {}).get("equal_tokens") or "").name

    def training(self) -> dict[str, float]:
        """How RL ended, the mean over the training seeds."""
        runs = [origin["training"] for origin in self.origins() if origin.get("training")]
        return {name: fmean(run[name] for run in runs) for name in runs[0]} if runs else {}

    def origins(self) -> list[dict[str, Any]]:
        """What each file's record says of its gap models' data and of RL; empty where nothing is known."""
        return [record.get("origin", {}) for record in self.records]


def named_files(values: Sequence[str], option: str) -> dict[str, list[str]]:
    """FILE or NAME=FILE to files by name; a file without a name is called by its stem."""
    files: dict[str, list[str]] = {}
    for value in values:
        name, equals, path = value.partition("=")
        if equals and not (name and path):
            raise SettingsError(f"{option}: {value}: FILE or NAME=FILE is wanted")
        if not equals:
            name, path = Path(value).name.split(".")[0], value
            if name in files:
                raise SettingsError(
                    f"{option}: two files are called {name}; give NAME=FILE (one name twice: two seeds)"
                )
        files.setdefault(name, []).append(path)
    return files


def load_systems(values: Sequence[str], option: str, by: str | None, max_rows: int | None) -> list[System]:
    """The systems that an option names; NAME/SYSTEM names the system that a control is held against."""
    systems = []
    for name, files in named_files(values, option).items():
        rows: dict[Key, Row] = {}
        for seed, file in enumerate(files):
            rows |= _read(file, seed, by, max_rows)
        label, _, baseline = name.partition("/") if option == "--control" else (name, "", "")
        systems.append(System(label, tuple(files), rows, tuple(map(_record, files)), baseline or ORIGINAL))
    return systems


def _read(file: str, seed: int, by: str | None, max_rows: int | None) -> dict[Key, Row]:
    problems: list[RowError] = []
    rows: dict[Key, Row] = {}
    seen: Counter[tuple[Prompt, str]] = Counter()
    for line, row in read_rows(file, problems.append):
        try:
            parsed = parse_row(row, file, line, seed, by)
        except RowProblem as problem:
            problems.append(RowError(file, line, problem.field, problem.reason))
            continue
        seen[parsed.prompt, parsed.original] += 1
        rows[seed, parsed.prompt, parsed.original, seen[parsed.prompt, parsed.original]] = parsed
        if len(rows) == max_rows:
            break
    if problems:
        raise InputError([str(problem) for problem in problems[:MAX_LISTED]])
    if not rows:
        raise InputError(f"{file}: no rows")
    return rows


def parse_row(row: dict[str, Any], file: str, line: int, seed: int, by: str | None) -> Row:
    """A row with prompt, original_response and response; what else pit improve writes is used where it is there."""
    response = parse_draft(row, file, line).response
    if "original_response" not in row:
        raise RowProblem("original_response", "missing; rows of pit improve have it")
    draft = parse_draft({**row, "response": row["original_response"]}, file, line)
    if by is not None and by not in row:
        raise RowProblem(by, "missing, and --by asks for it")
    try:
        steps = _steps(draft.response, row.get("iterations") or [])
    except (KeyError, TypeError, AttributeError):
        raise RowProblem("iterations", "not as pit improve writes them") from None
    tokens = row.get("generated_tokens")
    dataset = str(row[by]) if by is not None else "all"
    return Row(
        seed, draft.prompt, draft.response, response, steps, tokens if isinstance(tokens, int) else None, dataset
    )


def _steps(original: str, iterations: Sequence[dict[str, Any]]) -> tuple[Step, ...]:
    steps: list[Step] = []
    standing = original
    for iteration in iterations:
        before, standing = standing, iteration["response"] if iteration["accepted"] else standing
        steps.append(
            Step(before, iteration["response"], iteration["p_better"], standing, iteration["generated_tokens"])
        )
    return tuple(steps)


def _record(file: str) -> dict[str, Any]:
    """What `pit improve --output` wrote beside its rows; empty where there is nothing."""
    path = Path(f"{file}.manifest.json")
    if not path.is_file():
        return {}
    try:
        record = json.loads(path.read_bytes())
    except ValueError:
        record = None
    if not isinstance(record, dict):
        raise InputError(f"{path}: damaged; it is written by pit improve")
    return record


def align(systems: Sequence[System]) -> list[Key]:
    """The rows that all of them have, in the order of the first; InputError where there is none."""
    keys = [key for key in systems[0].rows if all(key in system.rows for system in systems)]
    if not keys:
        names = ", ".join(system.name for system in systems)
        raise InputError(f"--input: {names}: no row in common (by prompt and original_response)")
    for system in systems:
        if left_out := len(system.rows) - len(keys):
            warn(f"{system.name}: {left_out} rows that the other systems do not have are left out")
    note(f"{len(keys)} rows of {', '.join(system.name for system in systems)}")
    return keys


def made_controls(system: System, seed: int) -> list[System]:
    """Rewriters that must not be taken for better: one only pads, one always gives the same answer."""
    originals = [row.original for row in system.rows.values()]
    typical = median_low(len(text) for text in originals)
    constant = next(text for text in originals if len(text) == typical)
    draw = random.Random(f"padding-{seed}")

    def rewritten(name: str, texts: Iterable[str]) -> System:
        rows = {
            key: row._replace(response=text, steps=(), generated_tokens=None)
            for (key, row), text in zip(system.rows.items(), texts, strict=True)
        }
        return System(name, (), rows, ())

    return [
        rewritten(MADE[0], [pad(text, draw.random()) for text in originals]),
        rewritten(MADE[1], [constant] * len(originals)),
    ]


def pad(text: str, share: float) -> str:
    """The text with that share of it once more at its end."""
    return f"{text} {text[: round(share * len(text))]}".rstrip()

"""Read the rows of systems, as `pit improve` writes them; align them; and make two negative controls."""

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median_low
from typing import Any, NamedTuple

from pitcli.console import counted, note, warn
from pitcli.data.drafts import parse_draft
from pitcli.data.explained import EDITS, ExplainedEdit, parse_edits
from pitcli.data.improved_rows import improved_draft
from pitcli.data.reading import listed, parsed_rows
from pitcli.data.rows import Comparison, Draft, PreferencePair, Prompt, RowError
from pitcli.data.strict_json import RowProblem
from pitcli.errors import InputError, SettingsError
from pitcli.runs.files import file_digest
from pitcli.runs.growing_rows import refuse_other_output

ORIGINAL = "original"
WRITTEN = frozenset(
    {
        *("response", "original_response", "thoughts", "original_thoughts"),
        *("gap", "p_better", "iterations", "stop_reason", "finished", "generated_tokens", EDITS),
    }
)
MADE = ("padded", "constant")  # the names of made_controls


class Step(NamedTuple):
    """One iteration. before, kept: the best response before and after; written: the text that it wrote."""

    before: str
    written: str
    p_better: float | None
    kept: str
    generated_tokens: int


class ImprovedRow(NamedTuple):
    """A draft (original) and a system's response. p_better: over the draft, by the gap model; edits: of pit explain."""

    seed: int
    prompt: Prompt
    original: str
    response: str
    steps: tuple[Step, ...]
    generated_tokens: int | None
    dataset: str
    p_better: float | None = None
    edits: tuple[ExplainedEdit, ...] = ()

    def response_after(self, iteration: int) -> str:
        """The best response after this many iterations, or after the last one if there were fewer."""
        return self.steps[min(iteration, len(self.steps)) - 1].kept if iteration and self.steps else self.original

    def tokens_until(self, iteration: int) -> int:
        return sum(step.generated_tokens for step in self.steps[:iteration])

    def against_original(self) -> Comparison:
        return Comparison(self.prompt, self.response, self.original)


Key = tuple[int, Prompt, str, int]


class System(NamedTuple):
    """A named system: its rows, files and the manifests next to these. baseline: what a control is compared with."""

    name: str
    files: tuple[str, ...]
    rows: dict[Key, ImprovedRow]
    records: tuple[dict[str, Any], ...]
    baseline: str = ORIGINAL

    def at(self, keys: Iterable[Key]) -> list[ImprovedRow]:
        return [self.rows[key] for key in keys]

    def record(self) -> dict[str, Any]:
        """The manifest of the first file; the manifests of other training seeds differ only by the seed."""
        return self.records[0] if self.records else {}

    def method(self) -> str:
        return str(self.record().get("settings", {}).get("method", ""))

    def has_tokens_of(self, other: "System") -> bool:
        """Whether best-of-n was given a file of the other system as --equal-tokens, by name and (if known) content."""
        name = Path(self.record().get("settings", {}).get("equal_tokens") or "").name
        digest = self.record().get("origin", {}).get("equal_tokens")
        files = [Path(file) for file in other.files if Path(file).name == name]
        return any(digest is None or not file.is_file() or file_digest(file) == digest for file in files)

    def training(self) -> dict[str, float]:
        """The last metrics of RL, averaged over the training seeds; empty without RL."""
        runs = [origin["training"] for origin in self.origins() if origin.get("training")]
        return {name: fmean(run[name] for run in runs) for name in runs[0]} if runs else {}

    def reward_commands(self) -> set[str]:
        """The programs (cmd:COMMAND) that rewarded RL."""
        return {command for origin in self.origins() for command in origin.get("reward_commands", [])}

    def origins(self) -> list[dict[str, Any]]:
        """For each file, its gap models' data and RL metrics as in its manifest; an empty dict without one."""
        return [record.get("origin", {}) for record in self.records]


def split_name(value: str) -> tuple[str, str, str]:
    """NAME, = and FILE; of a FILE alone, even one with = in its path, an empty = and FILE."""
    name, equals, path = value.partition("=")
    return (name, equals, path) if equals and not Path(value).is_file() else ("", "", value)


def named_files(values: Sequence[str], option: str) -> dict[str, list[str]]:
    """Parse FILE or NAME=FILE into files by name; a file without a name is named by its stem."""
    files: dict[str, list[str]] = {}
    for value in values:
        name, equals, path = split_name(value)
        if equals and not (name and path):
            raise SettingsError(f"{option}: expected FILE or NAME=FILE, got {value}")
        if not equals:
            name, path = Path(value).name.split(".")[0], value
            if name in files:
                raise SettingsError(
                    f"{option}: two files have the name {name}; give NAME=FILE (one name twice: two training seeds)"
                )
        files.setdefault(name, []).append(path)
    return files


def load_systems(values: Sequence[str], option: str, by: str | None, max_rows: int | None) -> list[System]:
    """Load the systems of an option; in --control, NAME/SYSTEM names the system that the control is compared with."""
    systems = []
    for name, files in named_files(values, option).items():
        records = tuple(map(_record, files))  # refuses other formats of pit improve, before they are read
        rows: dict[Key, ImprovedRow] = {}
        for seed, file in enumerate(files):
            rows |= _read(file, seed=seed, by=by, max_rows=max_rows)
        label, _, baseline = name.partition("/") if option == "--control" else (name, "", "")
        systems.append(
            System(
                name=label,
                files=tuple(files),
                rows=rows,
                records=records,
                baseline=baseline or ORIGINAL,
            )
        )
    return systems


def _read(file: str, seed: int, by: str | None, max_rows: int | None) -> dict[Key, ImprovedRow]:
    errors: list[RowError] = []
    rows: dict[Key, ImprovedRow] = {}
    seen: Counter[tuple[Prompt, str]] = Counter()
    for _, parsed in parsed_rows(file, partial(parse_row, seed=seed, by=by), errors.append):
        seen[parsed.prompt, parsed.original] += 1
        rows[seed, parsed.prompt, parsed.original, seen[parsed.prompt, parsed.original]] = parsed
        if len(rows) == max_rows:
            break
    if errors:
        raise InputError(listed(errors))
    if not rows:
        raise InputError(f"{file}: no rows")
    return rows


def parse_row(row: dict[str, Any], file: str, line: int, seed: int, by: str | None) -> ImprovedRow:
    """Parse a row with prompt, original_response and response; the other fields of pit improve are optional."""
    response = parse_draft(row, file, line).response
    draft = improved_draft(row, file, line)
    if by is not None and by not in row:
        raise RowProblem(by, "missing, but named by --by")
    try:
        steps = _steps(draft.response, row.get("iterations") or [])
    except (KeyError, TypeError, AttributeError):
        raise RowProblem("iterations", "not in the format that pit improve writes") from None
    tokens, p_better = row.get("generated_tokens"), row.get("p_better")
    return ImprovedRow(
        seed=seed,
        prompt=draft.prompt,
        original=draft.response,
        response=response,
        steps=steps,
        generated_tokens=tokens if isinstance(tokens, int) else None,
        dataset=str(row[by]) if by is not None else "all",
        p_better=p_better if isinstance(p_better, int | float) else None,
        edits=tuple(parse_edits(row, draft.response, response)),
    )


def fields_by_prompt(inputs: Sequence[str], pairs: Iterable[PreferencePair]) -> dict[Prompt, dict[str, Any]]:
    """The other fields of the rows of --input, and of the pairs of --validate-on, by prompt; the first row counts."""
    files = [file for named in named_files(inputs, "--input").values() for file in named]
    rows = (row for file in files for _, row in parsed_rows(file, parse_draft, lambda problem: None))
    return fields_of(list(pairs), list(rows))


def fields_of(pairs: Sequence[PreferencePair], drafts: Sequence[Draft]) -> dict[Prompt, dict[str, Any]]:
    """The other fields of drafts and pairs by prompt: of the first draft that has it, otherwise of the first pair."""
    found = {pair.prompt: pair.extra for pair in reversed(pairs)}
    return found | {draft.prompt: other_fields(draft.row) for draft in reversed(drafts)}


def other_fields(row: dict[str, Any]) -> dict[str, Any]:
    """The fields of a row that describe its prompt, not the responses that pit sample and pit improve wrote."""
    return {name: value for name, value in row.items() if name not in WRITTEN}


def _steps(original: str, iterations: Sequence[dict[str, Any]]) -> tuple[Step, ...]:
    steps: list[Step] = []
    kept = original
    for iteration in iterations:
        before, kept = kept, iteration["response"] if iteration["accepted"] else kept
        steps.append(
            Step(
                before=before,
                written=iteration["response"],
                p_better=iteration["p_better"],
                kept=kept,
                generated_tokens=iteration["generated_tokens"],
            )
        )
    return tuple(steps)


def _record(file: str) -> dict[str, Any]:
    """The manifest next to rows of all drafts; empty if there is none. Raises InputError if drafts are missing."""
    record = refuse_other_output(file)
    if record.get("settings", {}).get("only_changed"):
        raise InputError(
            f"{file}: expected a row of each draft, got those of pit improve --only-changed; improve without it"
        )
    return record


def align(systems: Sequence[System]) -> list[Key]:
    """The keys of the rows that all systems have, in the order of the first. Raises InputError if there are none."""
    keys = [key for key in systems[0].rows if all(key in system.rows for system in systems)]
    if not keys:
        names = ", ".join(system.name for system in systems)
        raise InputError(f"--input: {names}: no rows in common (by prompt and original_response)")
    for system in systems:
        if skipped := len(system.rows) - len(keys):
            warn(f"{system.name}: {counted(skipped, 'rows')} skipped, because not all systems have them")
    note(f"{counted(len(keys), 'rows')} of {', '.join(system.name for system in systems)}")
    return keys


def made_controls(system: System, seed: int) -> list[System]:
    """Make two controls that a judge must not prefer: one only pads, one always gives the same response."""
    originals = [row.original for row in system.rows.values()]
    typical = median_low(len(text) for text in originals)
    constant = next(text for text in originals if len(text) == typical)
    draw = random.Random(f"padding-{seed}")

    def rewritten(name: str, texts: Iterable[str]) -> System:
        rows = {
            key: row._replace(response=text, steps=(), generated_tokens=None, edits=())
            for (key, row), text in zip(system.rows.items(), texts, strict=True)
        }
        return System(name, files=(), rows=rows, records=())

    return [
        rewritten(MADE[0], [pad(text, draw.random()) for text in originals]),
        rewritten(MADE[1], [constant] * len(originals)),
    ]


def pad(text: str, share: float) -> str:
    """The text, followed by its beginning again: this share of its characters."""
    return f"{text} {text[: round(share * len(text))]}".rstrip()

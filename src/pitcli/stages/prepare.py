"""pit prepare: converts preference data in any known format to canonical JSONL, in folds disjoint by prompt."""

import json
import random
import shlex
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from statistics import mean
from typing import Any

from pitcli import console
from pitcli.data.conversations import written_prompt
from pitcli.data.field_paths import suggested_fields
from pitcli.data.formats import iter_drafts
from pitcli.data.known_formats import RATING_FIELD
from pitcli.data.pair_formats import parse_pair
from pitcli.data.pair_reading import Reading, options_of, read_pairs
from pitcli.data.preview import LengthOf, preview
from pitcli.data.reading import file_label
from pitcli.data.rows import PreferencePair, RowError
from pitcli.data.splits import parse_shares, split_folds
from pitcli.data.strict_json import encode
from pitcli.data.synthetic import preference_rows
from pitcli.data.text_units import units
from pitcli.errors import InputError, SettingsError
from pitcli.runs.files import write_files
from pitcli.settings.preparing import PrepareConfig
from pitcli.settings.values import split_commas

SHOWN_ROWS = 2


def run(config: PrepareConfig) -> None:
    """Read every row, split the pairs into folds, and write one file per fold; with --dry-run, only show them."""
    shares = _shares(config.folds)
    paths = {name: config.out / f"{name}.jsonl" for name in shares}
    ties = split_commas(config.ties_in or "")
    if unknown := [name for name in ties if name not in shares]:
        raise SettingsError(f"--ties-in: expected folds of {', '.join(shares)}, got {', '.join(unknown)}")
    data = split_commas(config.data or "")
    _refuse_overwriting(config, data, paths)
    notes: Counter[str] = Counter()
    reading = _load(config, notes)
    pairs = reading.pairs
    if config.dry_run:
        preview(pairs, reading.formats, notes, *_length_of(config.model))
        _suggest_fields(config, reading)
    if reading.errors:
        raise InputError(reading.errors)
    folds = split_folds(shuffled_labels(pairs, config.seed) if config.shuffle_labels else pairs, shares, config.seed)
    if empty := [name for name, pairs in folds.items() if not pairs]:
        remedy = "use more rows, fewer folds, or larger shares"
        raise InputError(f"--folds: too few prompts, so these folds would be empty: {', '.join(empty)}; {remedy}")
    folds = {name: pairs if name in ties or not ties else _without_ties(pairs) for name, pairs in folds.items()}
    if config.dry_run:
        console.table("Folds", ["fold", "rows"], [[name, len(pairs)] for name, pairs in folds.items()])
        console.note("dry run: nothing was written")
        return

    config.out.mkdir(parents=True, exist_ok=True)
    write_files(
        {paths[name]: "".join(f"{encode(canonical_row(pair))}\n" for pair in pairs) for name, pairs in folds.items()}
    )

    _report(folds, notes)
    if others := sorted(set(config.out.glob("*.jsonl")) - set(paths.values()) - set(map(Path, data))):
        names = ", ".join(path.name for path in others)
        console.warn(f"{config.out} also contains {names}, which may share prompts with the folds just written")
    shown = next(iter(folds.values()))[:SHOWN_ROWS]
    rows = [(pair.prompt[-1].content, pair.rejected, pair.chosen) for pair in shown]
    console.samples(rows, labels=("prompt", "rejected", "chosen"))
    first = "sft" if "sft" in paths else next(iter(paths))
    console.note("to train the improver by supervised fine-tuning:")
    console.next_command(f"pit sft --data {shlex.quote(str(paths[first]))}")


def shuffled_labels(pairs: Sequence[PreferencePair], seed: int) -> list[PreferencePair]:
    """Swap chosen and rejected by a coin flip per pair, which depends on the seed and the pair's position."""
    flip = random.Random(f"labels-{seed}")
    return [
        replace(pair, chosen=pair.rejected, rejected=pair.chosen) if flip.random() < 0.5 else pair for pair in pairs
    ]


def canonical_row(pair: PreferencePair) -> dict[str, Any]:
    """Return the row that is read back as the same pair."""
    prompt = written_prompt(pair.prompt)
    return {"id": pair.id, "prompt": prompt, "chosen": pair.chosen, "rejected": pair.rejected, **pair.extra}


def _shares(folds: str) -> dict[str, float]:
    try:
        return parse_shares(folds)
    except SettingsError as error:
        raise SettingsError([f"--folds: {problem}" for problem in error.problems]) from None


def _refuse_overwriting(config: PrepareConfig, data: Sequence[str], paths: dict[str, Path]) -> None:
    if config.out.exists() and not config.out.is_dir():
        raise SettingsError(f"--out: expected a folder, got the file {config.out}")
    for name, path in paths.items():
        for file in data:
            if path.resolve() == Path(file).resolve():
                raise SettingsError(f"--out: fold {name} would overwrite --data {file}; choose another folder")
    there = ", ".join(str(path) for path in paths.values() if path.exists())
    if there and not (config.overwrite or config.dry_run):
        raise SettingsError(f"--out: {there} exist; use --overwrite to replace them, or another folder")


def _load(config: PrepareConfig, notes: Counter[str]) -> Reading:
    if config.task:
        return _edited_samples(config, notes)
    if config.synthetic is None:
        assert config.data is not None, "PrepareConfig requires exactly one of --data and --synthetic"
        options = options_of(config)._replace(
            rating_field=config.rating_field or RATING_FIELD, rating_margin=config.rating_margin
        )
        return read_pairs(config.data, config.max_rows, notes, options)
    rows = islice(preference_rows(config.synthetic, config.seed), config.max_rows)
    pairs = [parse_pair(row, "<synthetic>", line) for line, row in enumerate(rows, start=1)]
    return Reading(pairs, [], Counter({"synthetic": len(pairs)}))


def _suggest_fields(config: PrepareConfig, reading: Reading) -> None:
    """Print the command that reads the rows of no known format, if their names show what they are."""
    suggestion = reading.unknown and suggested_fields(reading.unknown)
    if suggestion and config.data is not None:
        console.note(f"a row of no known format has the texts {', '.join(suggestion.texts)}; name those of a pair:")
        words = ["pit", "prepare", "--data", config.data, "--fields", suggestion.fields, "--dry-run"]
        console.next_command(" ".join(map(shlex.quote, words)))


def _edited_samples(config: PrepareConfig, notes: Counter[str]) -> Reading:
    """Make the pairs of --task instructions from the samples in --data, grouped by prompt."""
    # not imported at the top: it reads its word lists
    from pitcli.data.instructions.pairs import preference_pairs
    from pitcli.data.instructions.requests import request_problem
    from pitcli.data.instructions.sentences import Sentences, is_sentence

    errors: list[RowError] = []
    samples: dict[str, list[dict[str, Any]]] = defaultdict(list)
    written: list[dict[str, Any]] = []
    files = split_commas(config.data or "")
    drafts = ((file, *row) for file in files for row in iter_drafts(file, errors.append, notes))
    for file, line, draft in islice(drafts, config.max_rows):
        if is_sentence(draft.row):
            written.append(draft.row)
            continue
        if problem := request_problem(draft.row):
            errors.append(RowError(file_label(file), line, "instructions", problem))
        samples[json.dumps(draft.prompt)].append(draft.row)
    if errors:
        return Reading([], [str(error) for error in errors], Counter())
    known = Sentences(written)
    rows = [
        row
        for group in samples.values()
        for row in preference_pairs(group, config.pairs_per_prompt, config.seed, bool(config.ties_in), known)
    ]
    pairs = [parse_pair(row, "<instructions>", line) for line, row in enumerate(rows, start=1)]
    return Reading(pairs, [], Counter({"edited samples": len(pairs)}))


def _without_ties(pairs: list[PreferencePair]) -> list[PreferencePair]:
    """Without those of --task instructions whose label is a coin flip."""
    return [pair for pair in pairs if not pair.extra.get("tie")]


def _length_of(model: str | None) -> tuple[LengthOf, str]:
    """How the dry run measures texts, and in what."""
    if model is None:
        return lambda text: len(units(text)), "words"
    # not imported at the top, because importing torch takes seconds
    from pitcli.engine.models.bases import resolve_base
    from pitcli.engine.models.loading import load_tokenizer

    tokenizer = load_tokenizer(resolve_base(model))
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False, split_special_tokens=True)), "tokens"


def _report(folds: dict[str, list[PreferencePair]], notes: Counter[str]) -> None:
    def words(texts: list[str]) -> float:
        return round(mean(len(units(text)) for text in texts), 1)

    rows = [
        [
            name,
            len(pairs),
            words(["\n".join(message.content for message in pair.prompt) for pair in pairs]),
            words([pair.chosen for pair in pairs]),
            words([pair.rejected for pair in pairs]),
        ]
        for name, pairs in folds.items()
    ]
    console.table(
        "Folds (mean lengths in words, or in characters in scripts without spaces)",
        ["fold", "rows", "prompt", "chosen", "rejected"],
        rows,
    )
    for text, count in sorted(notes.items()):
        console.note(f"{text}: {count}")

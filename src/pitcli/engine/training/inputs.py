"""The inputs of a training run: its pairs and drafts, checked before a model loads, and its manifest."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from pitcli.console import counted, note, warn
from pitcli.data.drafts import draft_without_thoughts
from pitcli.data.examples import fitting_pairs, pairs_digest
from pitcli.data.formats import iter_drafts
from pitcli.data.long_rows import Limit, check_conversation
from pitcli.data.pair_reading import ReadingOptions, load_pairs, options_of
from pitcli.data.reading import file_label, listed
from pitcli.data.rows import Draft, PreferencePair, RowError
from pitcli.data.splits import SKETCHED, prompt_key, prompt_sketch
from pitcli.data.strict_json import RowProblem
from pitcli.engine.models.loading import lora_settings
from pitcli.engine.models.opening import Base
from pitcli.engine.training.schedule import default_learning_rate
from pitcli.errors import InputError, SettingsError
from pitcli.runs.earlier import EarlierRun, any_run
from pitcli.runs.growing_rows import manifest_of
from pitcli.runs.manifest import DataIdentity, Manifest, library_versions
from pitcli.settings.base import Settings
from pitcli.settings.default_runs import Kind
from pitcli.settings.distill import DistillConfig
from pitcli.settings.dpo import DpoConfig
from pitcli.settings.training import AdapterSettings, RewardConfig, TrainingConfig
from pitcli.settings.values import split_commas

Config = TypeVar("Config", bound=TrainingConfig)
ReadRows = Callable[[str, Callable[[RowError], None], Counter[str]], Iterator[tuple[int, Draft]]]
Trained = TypeVar("Trained", DpoConfig, DistillConfig)


def open_pairs(
    settings: TrainingConfig,
    base: Base,
    earlier: list[EarlierRun],
    room: int = 0,
    options: ReadingOptions | None = None,
) -> tuple[list[PreferencePair], DataIdentity]:
    """Read the pairs of the files that --data names, otherwise those of the earlier runs.

    room: tokens that a sampled response may need instead of a response of the data. options: how the rows are read
    [default: as the settings say]. Raises SettingsError if no data is named, InputError if pairs cannot be read or do
    not fit the context.
    """
    settings = with_data(settings, earlier)
    if settings.data is None:
        raise SettingsError("--data: expected a file of preference pairs (.jsonl, .jsonl.gz, or - for stdin)")
    pairs = _read_pairs(settings.data, settings.max_rows, settings, base, room, options)
    return pairs, DataIdentity(
        path=settings.data,
        digest=pairs_digest(pairs),
        rows=len(pairs),
        prompts=prompt_sketch(pairs),
        skip_bad=settings.skip_bad,
        fields=settings.fields,
    )


def with_data(settings: Config, earlier: Sequence[EarlierRun]) -> Config:
    """Return the settings with the data of the first earlier run that names some, read as there, if none is given."""
    data = next((run.manifest.data for run in earlier if run.manifest.data.can_be_read_again), None)
    if settings.data is not None or data is None:
        return settings
    found = {"data": data.path, "skip_bad": data.skip_bad, "fields": data.fields}
    return settings.model_copy(update={name: value for name, value in found.items() if getattr(settings, name) is None})


def open_eval_pairs(config: RewardConfig, base: Base, training: Sequence[PreferencePair]) -> list[PreferencePair]:
    """Read the pairs of --eval-data (none if it is not given); InputError if a prompt is in --data too."""
    if config.eval_data is None:
        return []
    options = options_of(config, append=True)
    pairs = _read_pairs(config.eval_data, None, settings=config, base=base, options=options)
    seen = {prompt_key(pair) for pair in training}
    if shared := [pair for pair in pairs if prompt_key(pair) in seen]:
        first = f"{shared[0].file}:{shared[0].line}"
        text = f"{config.eval_data}: {counted(len(shared), 'pairs')} with a prompt of --data, the first is {first}"
        if not config.allow_overlap:
            raise InputError(f"{text}; remove them, or use --allow-overlap to keep them")
        warn(text)
    return pairs


def _read_pairs(
    path: str,
    max_rows: int | None,
    settings: TrainingConfig,
    base: Base,
    room: int = 0,
    options: ReadingOptions | None = None,
) -> list[PreferencePair]:
    notes: Counter[str] = Counter()
    pairs = load_pairs(path, max_rows, notes, options or options_of(settings))
    limit = Limit(base.chat, base.max_length, room, settings.responses_read)
    pairs = fitting_pairs(pairs, limit, settings, notes)
    for what, count in notes.items():
        note(f"{path}: {counted(count, what)}")
    counts = Counter(pair.file for pair in pairs)
    for file in map(file_label, split_commas(path)):
        note(f"{file}: {counted(counts[file], 'pairs')}")
    return pairs


def with_learning_rate(config: Config, base: Base) -> Config:
    """Return the settings with the learning rate that suits the size of the base, if none is given; print both."""
    usual = default_learning_rate(base.parameters) * config.rate_share
    rate = config.learning_rate or usual
    note(f"{base.describe()}; learning rate {rate:g}" + (", by its size" if config.learning_rate is None else ""))
    return config.model_copy(update={"learning_rate": rate})


def with_lora_of(config: Trained, start: EarlierRun | None) -> Trained:
    """Return the settings with the LoRA rank and alpha of the start; SettingsError if others are given."""
    if start is None:
        return config
    found = lora_settings(start.adapter).model_dump()
    for name in found.keys() & config.model_fields_set:
        if getattr(config, name) != found[name]:
            flag = f"--{name.replace('_', '-')}"
            raise SettingsError(f"{flag}: expected {found[name]}, as in {start.folder}, got {getattr(config, name)}")
    return config.model_copy(update=found)


def open_init(config: AdapterSettings) -> list[EarlierRun]:
    """Return the run that --init names, an empty list without --init.

    Raises RunError if it is not finished, SettingsError if there is no such run, or if its adapter has
    another LoRA rank or alpha.
    """
    if config.init is None:
        return []
    run = any_run(config.init)
    rank, alpha = lora_settings(run.adapter).model_dump().values()
    if (rank, alpha) != (config.lora_rank, config.lora_alpha):
        raise SettingsError(
            f"--init: {config.init}: expected LoRA rank {config.lora_rank} and alpha {config.lora_alpha}, "
            f"got {rank} and {alpha}; use --lora-rank {rank} --lora-alpha {alpha}"
        )
    return [run]


def together(data: Sequence[DataIdentity | None]) -> DataIdentity | None:
    """The first data that is not None, with the prompts of all: what the gap models behind a run have seen.

    So pit evaluate does not call a judge independent that shares prompts with any of them.
    """
    known = [seen for seen in data if seen]
    prompts = sorted({prompt for seen in known for prompt in seen.prompts})[:SKETCHED]
    return known[0].model_copy(update={"prompts": prompts}) if known else None


def new_manifest(
    kind: Kind, role: str, config: Settings, base: Base, data: DataIdentity, earlier: Sequence[EarlierRun] = ()
) -> Manifest:
    """Return the manifest of a new run. earlier: the runs whose adapters it starts from."""
    gap_data = together([*(run.manifest.gap_data for run in earlier), *gap_data_of_rows(data.path)])
    if kind == "reward":  # it may have seen the data of the runs that it starts from
        data = gap_data = together([data, *(run.manifest.data for run in earlier), gap_data]) or data
    return Manifest.model_validate(
        {
            "kind": kind,
            "role": role,
            "versions": library_versions(),
            "config": config.identity(),
            "base": base.identity,
            "data": data,
            "gap_data": gap_data,
            "earlier_rewards": sorted({command for run in earlier for command in run.manifest.reward_commands}),
            "inputs": {
                role: run.manifest.adapter_digest(role) for run in earlier for role in run.manifest.trained_roles()
            },
        }
    )


def gap_data_of_rows(path: str) -> list[DataIdentity]:
    """The data of the gap models that chose the rows of these files, if pit improve wrote them.

    So pit evaluate does not call a judge independent that was trained on the same pairs. Raises InputError if a
    manifest next to a file cannot be read: what chose its rows is then unknown.
    """
    found: list[DataIdentity] = []
    for file in split_commas(path):
        path_of_record = manifest_of(file)
        if not path_of_record.is_file():
            continue
        try:
            origin = json.loads(path_of_record.read_bytes()).get("origin", {})
            found += map(DataIdentity.model_validate, origin.get("gap_data", []))
        except (ValueError, AttributeError):
            remedy = f"make {file} again, or move the manifest away"
            raise InputError(f"{path_of_record}: damaged, or not of pit improve; {remedy}") from None
    return found


def open_drafts(path: str, base: Base, room: int, read_rows: ReadRows = iter_drafts) -> list[Draft]:
    """Read drafts of the policy from a file; with iter_questions as read_rows, prompts without drafts.

    room: tokens that a sampled response may need. Raises one InputError with the errors of all rows.
    """
    errors: list[RowError] = []
    notes: Counter[str] = Counter()
    limit = Limit(base.chat, base.max_length, room)
    drafts = []
    for line, read in read_rows(path, errors.append, notes):
        try:
            draft = draft_without_thoughts(read, base.chat.thought_tags) if read.response else read
            drafts.append(draft)
            check_conversation(draft.prompt, {"response": draft.response} if draft.response else {}, limit, notes)
        except RowProblem as problem:
            errors.append(RowError.of(file_label(path), line, problem))
    if errors or not drafts:
        raise InputError(listed(errors) or f"{path}: no rows")
    for what, count in notes.items():
        note(f"{file_label(path)}: {counted(count, what)}")
    return drafts

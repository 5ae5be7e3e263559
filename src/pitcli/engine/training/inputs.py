"""The inputs of a training run: its pairs and drafts, checked before a model loads, and its manifest."""

from collections import Counter
from collections.abc import Sequence
from typing import TypeVar

from pitcli.console import note, warn
from pitcli.data.examples import Limit, check_conversation, fitting_pairs, pairs_digest
from pitcli.data.formats import iter_drafts, load_pairs
from pitcli.data.reading import file_label, listed
from pitcli.data.rows import PreferencePair, RowError
from pitcli.data.splits import prompt_key, prompt_sketch
from pitcli.data.strict_json import RowProblem
from pitcli.engine.generation.methods import PromptWithReference
from pitcli.engine.models.loading import WEIGHTS
from pitcli.engine.models.opening import Base
from pitcli.engine.training.schedule import default_learning_rate
from pitcli.errors import InputError, SettingsError
from pitcli.runs.earlier import EarlierRun
from pitcli.runs.manifest import DataIdentity, Manifest, library_versions
from pitcli.settings.base import DataSettings, Settings
from pitcli.settings.default_runs import Kind
from pitcli.settings.training import RewardConfig, RlConfig, TrainingConfig

RL_SHARE = 0.1  # of the learning rate of SFT

Config = TypeVar("Config", bound=TrainingConfig)


def open_pairs(
    settings: DataSettings, base: Base, earlier: list[EarlierRun], room: int = 0
) -> tuple[list[PreferencePair], DataIdentity]:
    """Read the pairs that --data names, otherwise those of the earlier runs.

    room: tokens that a sampled response may need instead of a response of the data. Raises SettingsError if no data is
    named, InputError if pairs cannot be read or do not fit the context.
    """
    path = settings.data or next((run.manifest.data.path for run in earlier if run.manifest.data.path != "-"), None)
    if path is None:
        raise SettingsError("--data: expected a file of preference pairs (.jsonl, .jsonl.gz, or - for stdin)")
    pairs = _read_pairs(path, settings.max_rows, settings, base, room)
    return pairs, DataIdentity(path=path, digest=pairs_digest(pairs), rows=len(pairs), prompts=prompt_sketch(pairs))


def open_eval_pairs(config: RewardConfig, base: Base, training: Sequence[PreferencePair]) -> list[PreferencePair]:
    """Read the pairs of --eval-data (none if it is not given); InputError if a prompt is in --data too."""
    if config.eval_data is None:
        return []
    pairs = _read_pairs(config.eval_data, None, settings=config, base=base, room=0)
    seen = {prompt_key(pair) for pair in training}
    if shared := [pair for pair in pairs if prompt_key(pair) in seen]:
        text = f"{config.eval_data}: {len(shared)} pairs have a prompt of --data, the first on line {shared[0].line}"
        if not config.allow_overlap:
            raise InputError(f"{text}; remove them, or use --allow-overlap to keep them")
        warn(text)
    return pairs


def _read_pairs(path: str, max_rows: int | None, settings: DataSettings, base: Base, room: int) -> list[PreferencePair]:
    notes: Counter[str] = Counter()
    pairs = load_pairs(path, max_rows, notes)
    pairs = fitting_pairs(pairs, Limit(base.chat, base.max_length, room), source=path, settings=settings, notes=notes)
    for what, count in notes.items():
        note(f"{path}: {count} {what}")
    note(f"{path}: {len(pairs)} pairs")
    return pairs


def with_learning_rate(config: Config, base: Base) -> Config:
    """Return the settings with the learning rate that suits the size of the base, if none is given; print both."""
    usual = default_learning_rate(base.parameters) * (RL_SHARE if isinstance(config, RlConfig) else 1.0)
    rate = config.learning_rate or usual
    note(f"{base.describe()}; learning rate {rate:g}" + (", by its size" if config.learning_rate is None else ""))
    return config.model_copy(update={"learning_rate": rate})


def new_manifest(
    kind: Kind, role: str, config: Settings, base: Base, data: DataIdentity, earlier: Sequence[EarlierRun] = ()
) -> Manifest:
    """Return the manifest of a new run. earlier: the runs whose adapters it starts from."""
    return Manifest.model_validate(
        {
            "kind": kind,
            "role": role,
            "versions": library_versions(),
            "config": config.identity(),
            "base": base.identity,
            "data": data,
            "gap_data": data if kind == "reward" else next(filter(None, (e.manifest.gap_data for e in earlier)), None),
            "inputs": {
                role: run.manifest.files[f"{role}/{WEIGHTS}"]
                for run in earlier
                for role in run.manifest.trained_roles()
            },
        }
    )


def open_drafts(path: str, base: Base, room: int) -> list[PromptWithReference]:
    """Read drafts of the policy from a file.

    room: tokens that a sampled response may need. Raises one InputError with the errors of all rows.
    """
    errors: list[RowError] = []
    notes: Counter[str] = Counter()
    limit = Limit(base.chat, base.max_length, room)
    drafts = []
    for line, draft in iter_drafts(path, errors.append, notes):
        drafts.append(PromptWithReference(draft.prompt, draft.response))
        try:
            check_conversation(draft.prompt, {"response": draft.response}, limit, notes)
        except RowProblem as problem:
            errors.append(RowError(file_label(path), line, problem.field, problem.reason))
    if errors or not drafts:
        raise InputError(listed(errors) or f"{path}: no rows")
    for what, count in notes.items():
        note(f"{file_label(path)}: {count} {what}")
    return drafts

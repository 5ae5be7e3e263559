"""What every stage does first: find the earlier runs, the base and the rows, and check them before a model loads."""

import math
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from pitcli.console import note, warn
from pitcli.data.examples import fitting_pairs, pairs_digest
from pitcli.data.formats import load_pairs
from pitcli.data.records import PreferencePair
from pitcli.data.splits import prompt_key, prompt_sketch
from pitcli.data.strict_json import RowProblem
from pitcli.data.templates import ChatFormat
from pitcli.engine.models.bases import base_digest, resolve_base
from pitcli.engine.models.loading import WEIGHTS, load_base, load_tokenizer, pick_device
from pitcli.engine.models.roles import RoleModel
from pitcli.errors import InputError, RunError, SettingsError
from pitcli.processes.collectives import agreed, join
from pitcli.runs.manifest import BaseIdentity, DataIdentity, Manifest, library_versions, load_manifest
from pitcli.settings.base import DEFAULT_MODEL, DataSettings, ModelSettings, Settings
from pitcli.settings.training import EXECUTION_ONLY, Kind, RewardConfig


class EarlierRun(NamedTuple):
    """A finished run that this stage builds on."""

    folder: Path
    manifest: Manifest

    @property
    def adapter(self) -> Path:
        return self.folder / self.manifest.role


class Base(NamedTuple):
    """A base model that is known and checked but not loaded."""

    folder: Path
    identity: BaseIdentity
    tokenizer: PreTrainedTokenizerBase
    chat: ChatFormat
    device: torch.device
    max_length: int

    def load(self) -> RoleModel:
        model = load_base(self.folder, self.identity.load_in_4bit, self.device)
        return RoleModel(model, self.tokenizer.pad_token_id)


def find_run(named: Path | None, default: str, kinds: tuple[Kind, ...], role: str, remedy: str) -> EarlierRun | None:
    """The run a flag names, else the one in the default folder if there is any; it must be of a kind wanted."""
    folder = named or Path(default)
    if named is None and not folder.exists():
        return None
    manifest = load_manifest(folder, remedy)
    if manifest.kind not in kinds or manifest.role != role:
        wanted = f"a {' or '.join(kinds)} run of the {role} is wanted"
        raise RunError(f"{folder}: a {manifest.kind} run of the {manifest.role}; {wanted}; {remedy}")
    return EarlierRun(folder, manifest)


def gap_temperature(manifest: Manifest) -> float:
    """The calibration that a reward run fitted and an rl run handed on."""
    fitted = manifest.results.get("gap_temperature")
    if not isinstance(fitted, float) or not 0 < fitted < math.inf:
        raise RunError("the gap model's run has no gap_temperature; train it again")
    return fitted


def open_base(settings: ModelSettings, earlier: list[EarlierRun]) -> Base:
    """The base that the settings name, else that of the earlier runs; all of them must have been made with it."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    # peft and we call them by their old names; nothing that a user could mend
    warnings.filterwarnings("ignore", "`(is_gradient_checkpointing|gradient_checkpointing_enable)` is", FutureWarning)
    first = earlier[0].manifest.base if earlier else None
    name = settings.model or (first.name if first else DEFAULT_MODEL)
    device = pick_device(settings.device)
    join(device)
    folder = agreed(lambda: resolve_base(name))
    tokenizer = load_tokenizer(folder)
    chat = _chat_format(name, tokenizer)
    inherited = first.load_in_4bit if first else True
    identity = BaseIdentity(
        name=name,
        digest=base_digest(folder),
        template=chat.digest(),
        load_in_4bit=inherited if settings.load_in_4bit is None else settings.load_in_4bit,
    )
    _refuse_other_bases(identity, earlier)
    architecture = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    # none where a model has no positions (Mamba and its like)
    context = getattr(architecture, "max_position_embeddings", None)
    if (largest := chat.largest_id()) >= architecture.vocab_size:
        raise SettingsError(
            f"--model: {name}: its tokenizer goes up to token {largest} and its embeddings to "
            f"{architecture.vocab_size - 1}; give the tokenizer that the model was trained with, or enlarge the model "
            f"(model.resize_token_embeddings({largest + 1}), then save it)"
        )
    max_length = settings.max_length or context
    if max_length is None:
        raise SettingsError(f"--max-length: {name} states no context length, so give the tokens that a row may take")
    if context and max_length > context:
        raise SettingsError(f"--max-length: {max_length} is beyond the model's context of {context} tokens")
    return Base(folder, identity, tokenizer, chat, device, max_length)


def _chat_format(name: str, tokenizer: PreTrainedTokenizerBase) -> ChatFormat:
    try:
        chat = ChatFormat(tokenizer)
        chat.digest()  # renders the template with the roles of an improvement
    except RowProblem as problem:
        raise SettingsError(f"--model: {name}: {problem.reason}; it needs another chat template") from None
    return chat


def _refuse_other_bases(identity: BaseIdentity, earlier: list[EarlierRun]) -> None:
    problems = []
    for run in earlier:
        other = run.manifest.base
        if other.digest != identity.digest:
            problems.append(
                f"{run.folder}: trained on the base {other.name} ({other.digest[:12]}), not on {identity.name} "
                f"({identity.digest[:12]}); give --model {other.name} or another run"
            )
        elif other.template != identity.template:
            problems.append(f"{run.folder}: trained with another chat template; train it again")
        elif other.load_in_4bit != identity.load_in_4bit:
            flag = "--load-in-4bit" if other.load_in_4bit else "--no-load-in-4bit"
            problems.append(f"{run.folder}: trained with {flag}; give the same here")
    if problems:
        raise RunError(problems)


def open_pairs(
    settings: DataSettings, base: Base, earlier: list[EarlierRun], room: int = 0
) -> tuple[list[PreferencePair], DataIdentity]:
    """The pairs that the settings name, else those of the earlier runs, each checked to fit the context.

    room: tokens that a sampled response may take in place of those of the data.
    """
    path = settings.data or next((run.manifest.data.path for run in earlier if run.manifest.data.path != "-"), None)
    if path is None:
        raise SettingsError("--data: name a file of preference pairs (.jsonl, .jsonl.gz, or - for stdin)")
    pairs = _read_pairs(path, settings.max_rows, settings, base, room)
    return pairs, DataIdentity(path=path, digest=pairs_digest(pairs), rows=len(pairs), prompts=prompt_sketch(pairs))


def open_eval_pairs(config: RewardConfig, base: Base, training: Sequence[PreferencePair]) -> list[PreferencePair]:
    """The pairs of --eval-data, none of whose prompts was trained on; no pairs where the setting is not given."""
    if config.eval_data is None:
        return []
    pairs = _read_pairs(config.eval_data, None, config, base, 0)
    seen = {prompt_key(pair) for pair in training}
    if shared := [pair for pair in pairs if prompt_key(pair) in seen]:
        text = f"{config.eval_data}: {len(shared)} prompts are in --data too, the first on line {shared[0].line}"
        if not config.allow_overlap:
            raise InputError(f"{text}; --allow-overlap accepts that")
        warn(text)
    return pairs


def _read_pairs(path: str, max_rows: int | None, settings: DataSettings, base: Base, room: int) -> list[PreferencePair]:
    notes: Counter[str] = Counter()
    pairs = load_pairs(path, max_rows, notes)
    pairs = fitting_pairs(pairs, base.chat, base.max_length, path, settings, notes, room)
    for what, count in notes.items():
        note(f"{path}: {count} {what}")
    note(f"{path}: {len(pairs)} pairs")
    return pairs


def new_manifest(
    kind: Kind, role: str, config: Settings, base: Base, data: DataIdentity, earlier: Sequence[EarlierRun] = ()
) -> Manifest:
    """What a run that begins now is; `earlier` are the runs whose adapters it starts from."""
    return Manifest.model_validate(
        {
            "kind": kind,
            "role": role,
            "versions": library_versions(),
            "config": config.model_dump(mode="json", exclude=EXECUTION_ONLY),
            "base": base.identity,
            "data": data,
            "gap_data": data if kind == "reward" else next(filter(None, (e.manifest.gap_data for e in earlier)), None),
            "inputs": {run.manifest.role: run.manifest.files[f"{run.manifest.role}/{WEIGHTS}"] for run in earlier},
        }
    )

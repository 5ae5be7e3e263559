"""Opens a base model: finds and checks it before loading, and checks that earlier runs were trained on the same one."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase
from transformers.utils import logging as transformers_logging

from pitcli.console import note
from pitcli.data.strict_json import RowProblem
from pitcli.data.template_check import refuse_other_renderings
from pitcli.data.templates import ChatFormat
from pitcli.engine.models.adapters import load_role
from pitcli.engine.models.bases import base_digest, parameter_count, resolve_base
from pitcli.engine.models.loading import end_tokens, load_base, load_tokenizer, pick_device
from pitcli.engine.models.precision import DTYPES, best_dtype, compute_dtype
from pitcli.engine.models.roles import RoleModel
from pitcli.errors import RunError, SettingsError
from pitcli.processes.collectives import join_group, on_rank_0
from pitcli.runs.earlier import EarlierRun
from pitcli.runs.manifest import BaseIdentity
from pitcli.settings.base import DEFAULT_MODEL, ModelSettings, Precision
from pitcli.settings.values import shown_options

LEAST_IN_4BIT = 500_000_000  # parameters; the gaps of SmolLM2-135M in NF4 and in bf16 correlate at 0.7 only


class Base(NamedTuple):
    """A base model that is found and checked but not loaded.

    max_length: longest conversation, in tokens. parameters: how many weights it has.
    """

    folder: Path
    identity: BaseIdentity
    tokenizer: PreTrainedTokenizerBase
    chat: ChatFormat
    device: torch.device
    max_length: int
    parameters: int

    @property
    def dtype(self) -> torch.dtype:
        """What the model computes in."""
        return DTYPES[Precision(self.identity.dtype)]

    def describe(self) -> str:
        """Return one line: name, size, number type and quantisation."""
        form = "in 4-bit NF4" if self.identity.load_in_4bit else "not quantised"
        if not self.identity.load_in_4bit and self.parameters < LEAST_IN_4BIT:
            form += f", as 4-bit costs bases below {human(LEAST_IN_4BIT)} too much"
        return f"base {self.identity.name}: {human(self.parameters)} parameters, {self.identity.dtype}, {form}"

    def load(self, adapters: Mapping[str, Path] | None = None) -> RoleModel:
        """Load the base with these adapters, given by role."""
        base = load_base(self.folder, self.identity.load_in_4bit, self.device, self.dtype)
        model = RoleModel(base, self.tokenizer.pad_token_id)
        for role, folder in (adapters or {}).items():
            load_role(model, role, folder)
        return model


def open_base(settings: ModelSettings, earlier: Sequence[EarlierRun]) -> Base:
    """Open the base that --model names, otherwise that of the earlier runs, otherwise the default.

    Raises RunError if an earlier run was trained on another base, template or precision, and SettingsError if the base
    does not suit its tokenizer or --max-length.
    """
    quiet_libraries()
    first = earlier[0].manifest.base if earlier else None
    name = settings.model or (first.name if first else DEFAULT_MODEL)
    device = pick_device(settings.device)
    join_group(device)
    folder = on_rank_0(lambda: resolve_base(name))
    options = first.template_options if first and settings.template_option is None else settings.template_options()
    tokenizer = load_tokenizer(folder, options)
    architecture = AutoConfig.from_pretrained(folder, trust_remote_code=False).get_text_config()
    chat = open_chat(name, tokenizer, (token for token in end_tokens(folder) if token < architecture.vocab_size))
    parameters = parameter_count(folder)
    dtype = on_rank_0(lambda: _choose_dtype(settings, first, device, parameters))
    identity = BaseIdentity(
        name=name,
        digest=base_digest(folder),
        template=chat.digest(),
        template_options=options,
        load_in_4bit=_in_4bit(settings.load_in_4bit, first, device, parameters),
        dtype=dtype,
    )
    refuse_other_bases(identity, earlier)
    refuse_small_embeddings(name, chat, architecture)
    longest = longest_conversation(name, settings, architecture)
    return Base(folder, identity, tokenizer, chat, device, longest, parameters)


def _in_4bit(asked: bool | None, first: BaseIdentity | None, device: torch.device, parameters: int) -> bool:
    """Return whether the base is loaded in 4-bit: as asked, otherwise as in the first earlier run, or by its size.

    Raises SettingsError if it should be on an Apple GPU, for which bitsandbytes has no 4-bit layers.
    """
    inherited = first.load_in_4bit if first else parameters >= LEAST_IN_4BIT and device.type != "mps"
    chosen = inherited if asked is None else asked
    if chosen and device.type == "mps":
        why = "--load-in-4bit" if asked else "a run that was trained in 4-bit"
        raise SettingsError(
            f"--device mps: bitsandbytes has no 4-bit layers for Apple GPUs, and this is {why}; use --device cpu, or "
            "train with --no-load-in-4bit"
        )
    return chosen


def human(count: int) -> str:
    """Return a number of parameters as 135M or 1.5B."""
    return f"{count / 1e9:.2g}B" if count >= 5e8 else f"{count / 1e6:.3g}M"


def _choose_dtype(
    settings: ModelSettings, first: BaseIdentity | None, device: torch.device, parameters: int
) -> Literal["fp32", "bf16"]:
    """Return the number type of --dtype, otherwise that of the first earlier run, otherwise the best of the device.

    A run in bf16 is used in fp32 on a device that is slow in bf16.
    """
    if settings.dtype is not None or first is None:
        return "bf16" if compute_dtype(settings.dtype, device, parameters) is torch.bfloat16 else "fp32"
    if first.dtype == "bf16" and best_dtype(device) is torch.float32:
        note(f"the run was trained in bf16, which is slow on this {device.type}: computing in fp32")
        return "fp32"
    return first.dtype


def quiet_libraries() -> None:
    """Turn off the progress bars of transformers and peft, and their warnings about their own calls."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    warnings.filterwarnings("ignore", "`(is_gradient_checkpointing|gradient_checkpointing_enable)` is", FutureWarning)


def open_chat(name: str, tokenizer: PreTrainedTokenizerBase, end_ids: Iterable[int]) -> ChatFormat:
    """Return the chat format of a tokenizer.

    Raises SettingsError if its template rejects the roles of an improvement, or if conversations as pit builds them are
    not those that the template renders.
    """
    try:
        chat = ChatFormat(tokenizer, end_ids)
        refuse_other_renderings(chat)
    except RowProblem as problem:
        raise SettingsError(f"--model: {name}: {problem.reason}; use a tokenizer with another chat template") from None
    return chat


def refuse_other_bases(identity: BaseIdentity, earlier: Sequence[EarlierRun]) -> None:
    """Raise RunError with every run that was trained on another base, chat template or precision."""
    problems = []
    for run in earlier:
        other = run.manifest.base
        if other.digest != identity.digest:
            same_name = other.name == identity.name
            remedy = (
                "it has changed since; train the run again" if same_name else f"use --model {other.name} or another run"
            )
            problems.append(
                f"{run.folder}: trained on the base {other.name} ({other.digest[:12]}), not on {identity.name} "
                f"({identity.digest[:12]}); {remedy}"
            )
        elif other.template_options != identity.template_options:
            flags = " ".join(f"--template-option {option}" for option in shown_options(other.template_options))
            problems.append(f"{run.folder}: trained with {flags or 'no --template-option'}; use the same here")
        elif other.template != identity.template:
            problems.append(f"{run.folder}: trained with another chat template; train it again")
        elif other.load_in_4bit != identity.load_in_4bit:
            flag = "--load-in-4bit" if other.load_in_4bit else "--no-load-in-4bit"
            problems.append(f"{run.folder}: trained with {flag}; use {flag} here too")
    if problems:
        raise RunError(problems)


def refuse_small_embeddings(name: str, chat: ChatFormat, architecture: PreTrainedConfig) -> None:
    """Raise SettingsError if the tokenizer has ids beyond the model's embeddings."""
    if (largest := chat.largest_id()) >= architecture.vocab_size:
        raise SettingsError(
            f"--model: {name}: its tokenizer goes up to token {largest}, its embeddings only up to "
            f"{architecture.vocab_size - 1}; use the tokenizer that the model was trained with, or enlarge the model "
            f"(model.resize_token_embeddings({largest + 1}), then save it)"
        )


def longest_conversation(name: str, settings: ModelSettings, architecture: PreTrainedConfig) -> int:
    """Return the longest conversation in tokens: --max-length, otherwise the model's context.

    Raises SettingsError if neither is known, or if --max-length exceeds the context.
    """
    # None for models without positions, such as Mamba
    context: int | None = getattr(architecture, "max_position_embeddings", None)
    max_length = settings.max_length or context
    if max_length is None:
        raise SettingsError(f"--max-length: {name} gives no context length; set the longest conversation in tokens")
    if context and max_length > context:
        raise SettingsError(f"--max-length: expected at most the model's context of {context} tokens, got {max_length}")
    return max_length

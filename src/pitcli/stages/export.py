"""pit export: what a run trained, as a model or an adapter that transformers, peft and vLLM load, with its card."""

import json
import os
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from pitcli.console import note, table, warn
from pitcli.data.rows import Message
from pitcli.data.templates import ChatFormat, Example
from pitcli.engine.models.bases import SMOLLM2_HUB_NAME, cache_folder
from pitcli.engine.models.hub import check_signed_in, upload
from pitcli.engine.models.loading import WEIGHTS, load_tokenizer, saved_lora
from pitcli.engine.models.merging import (
    Drift,
    keep_layout,
    load_plain,
    logprob_drift,
    merged_weights,
    plain_logprobs,
    plain_model,
    plain_scores,
    role_logprobs,
    role_scores,
    score_drift,
    write_adapter,
    write_plain,
)
from pitcli.engine.models.opening import Base, open_base
from pitcli.engine.models.roles import GAP, POLICY
from pitcli.engine.models.trees import Tree, swapped_tree
from pitcli.errors import RunError, SettingsError
from pitcli.pages.model_card import Exported, model_card, read_evaluation
from pitcli.runs.earlier import EarlierRun
from pitcli.runs.files import DIGESTS, publish_dir
from pitcli.runs.manifest import AdapterRole, Manifest, load_manifest
from pitcli.settings.base import Dtype, ModelSettings
from pitcli.settings.tools import ExportConfig

DTYPES = {Dtype.bf16: torch.bfloat16, Dtype.fp16: torch.float16, Dtype.fp32: torch.float32}
CARD = "README.md"
MOST_DRIFT = 0.5  # mean: in nats, or of the greatest score; beyond it, what was written is another model
LEAST_AGREEMENT = 0.8
# prompt, draft, better response: any will do, since two copies of one model are compared on them
PROBES = (
    ("Name three fruits.", "apple", "Apples, pears and plums."),
    ("Why is the sky blue?", "Because of the sea.", "Air scatters blue light more than red light."),
    ("Write a short note of thanks.", "Thanks.", "Thank you for your help yesterday, it made all the difference."),
    ("What is 17 + 25?", "17 + 25 is 32.", "17 + 25 = 42."),
    ("How do I boil an egg?", "Put it in water.", "Put it in boiling water for eight minutes, then cool it."),
    ("Translate 'good morning' into French.", "Bonsoir", "Bonjour"),
    ("Give one reason to exercise.", "It is what people do.", "Regular exercise keeps the heart healthy."),
    ("Write 3 foods. First ham.", "pie ham", "ham pie rice"),
)


class Source(NamedTuple):
    """The model that is exported: its run, its role there, and its base."""

    run: EarlierRun
    role: AdapterRole
    base: Base

    @property
    def adapter(self) -> Path:
        return self.run.folder / self.role


def run(config: ExportConfig) -> None:
    """Write --out, whole or not at all; one JSON object on stdout says what it is and how far it drifted.

    RunError where the merged model does not say what the run's model says; then --out is as it was.
    """
    manifest = load_manifest(config.run, "pit sft, pit train-reward and pit rl make runs")
    role = chosen_role(config, manifest)
    out = Path(os.path.abspath(config.out))
    refuse_taken(out, config.overwrite)
    digest = manifest.files[f"{role}/{WEIGHTS}"]
    evaluation = read_evaluation(config.evaluation, role, digest) if config.evaluation else None
    if config.push_to_hub:
        check_signed_in()
    earlier = EarlierRun(config.run, manifest)
    source = Source(earlier, role, open_base(ModelSettings(device=config.device), [earlier]))
    base_name = config.base_name or hub_name(source.base)
    exported = Exported(
        role=role,
        manifest=manifest,
        base_name=base_name,
        converted=source.base.folder.parent == cache_folder() / "models",
        dtype=None if config.adapter else config.dtype,
        drift="",
        rank=saved_lora(source.adapter).r,
        license=config.license,
        evaluation=evaluation,
    )
    drifts: list[Drift] = []
    if config.adapter:
        if base_name is None:
            raise SettingsError(
                f"--base-name: others cannot load the base {manifest.base.name} by that name; give its OWNER/NAME on "
                "the hub, or use --merge"
            )
        publish_dir(out, partial(write_adapter_export, source, exported))
    else:
        publish_dir(out, partial(write_merged_export, source, exported, DTYPES[config.dtype], drifts))
    note(f"{role} of {config.run} written to {config.out}")
    if exported.converted:
        warn("the base was read from a GGUF file, so its weights are not quite those of the hub; the card says so")
    if config.push_to_hub:
        note(f"uploaded to {upload(out, config.push_to_hub, config.public)}")
    drift = drifts[0]._asdict() if drifts else None
    form = "adapter" if config.adapter else "merged"
    print(json.dumps({"out": str(config.out), "form": form, "role": role, "base": base_name, "drift": drift}))


def chosen_role(config: ExportConfig, manifest: Manifest) -> AdapterRole:
    role: AdapterRole = config.role.value if config.role else manifest.role
    if role not in manifest.probes or f"{role}/{WEIGHTS}" not in manifest.files:
        raise SettingsError(f"--role: {config.run} holds {' and '.join(manifest.probes)}, no {role}")
    return role


def refuse_taken(out: Path, overwrite: bool) -> None:
    """SettingsError where there is anything in --out, but for an export that --overwrite is to replace."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise SettingsError(f"--out: {out} is no folder")
    present = {path.relative_to(out).as_posix() for path in out.rglob("*")} if out.is_dir() else set()
    if present and not overwrite:
        raise SettingsError(f"--out: {out} is not empty; --overwrite replaces an export there, or name another")
    try:
        listed = set(json.loads((out / DIGESTS).read_bytes())) if present else set()
    except (OSError, ValueError, TypeError):
        listed = set()
    foreign = sorted(present - listed - {DIGESTS}) if CARD in listed else sorted(present)
    if foreign:
        raise SettingsError(f"--overwrite: {out} holds what is not of an export, the first {foreign[0]}")


def hub_name(base: Base) -> str | None:
    """OWNER/NAME of a base that came from the hub, or from the wheel of one that is there."""
    if base.identity.name == "smollm2":
        return SMOLLM2_HUB_NAME
    snapshots, repository = base.folder.parent, base.folder.parents[1].name
    if snapshots.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/", 1)
    return None


def write_adapter_export(source: Source, exported: Exported, folder: Path) -> None:
    assert exported.base_name is not None
    write_adapter(source.adapter, exported.base_name, folder)
    (folder / CARD).write_text(model_card(exported, source.base.chat), encoding="utf-8")


def write_merged_export(
    source: Source, exported: Exported, dtype: torch.dtype, drifts: list[Drift], folder: Path
) -> None:
    """Merge, write, load what was written as anyone would, and compare; the drift is added to `drifts`."""
    role, base, gap = source.role, source.base, source.role == GAP
    model = base.load({role: source.adapter})
    keep_layout(model)
    examples, trees = probe_examples(base.chat, role), probe_trees(base.chat)
    ours = role_scores(model, trees) if gap else role_logprobs(model, role, examples)
    settings, head = model.base.config, model.gap_head.weight if model.gap_head is not None else None
    weights = merged_weights(model, role, dtype)
    del model
    plain = plain_model(settings, weights, gap_head=head, chat=base.chat, dtype=dtype)
    del weights
    write_plain(plain, base.chat, folder)
    del plain
    loaded = load_plain(folder, gap, base.device)
    if isinstance(ours, torch.Tensor):
        drift = score_drift(ours, plain_scores(loaded, trees))
        scale = max(1.0, float(ours.abs().max()))
    else:
        drift, scale = logprob_drift(ours, plain_logprobs(loaded, examples)), 1.0
    rows = shown_drift(drift, gap)
    table(f"merged in {exported.dtype} against the {role} as pit runs it, {len(PROBES)} prompts", ["", "value"], rows)
    refuse_absurd(drift, scale, gap)
    if ChatFormat(load_tokenizer(folder)).digest() != base.identity.template:
        raise RunError("the tokenizer that was written does not make the same tokens of a conversation")
    drift_text = "\n".join([f"On {len(PROBES)} fixed prompts:\n", *(f"- {what}: {value:.3g}" for what, value in rows)])
    card = model_card(exported._replace(drift=drift_text), base.chat)
    (folder / CARD).write_text(card, encoding="utf-8")
    drifts.append(drift)


def probe_examples(chat: ChatFormat, role: str) -> list[Example]:
    examples = []
    for prompt, draft, better in PROBES:
        message = (Message("user", prompt),)
        ids = chat.policy_prompt(message) if role == POLICY else chat.improver_prompt(message, draft)
        examples.append(Example(ids, chat.completion(better)))
    return examples


def probe_trees(chat: ChatFormat) -> list[Tree]:
    return [swapped_tree((Message("user", prompt),), [better], draft, chat) for prompt, draft, better in PROBES]


def shown_drift(drift: Drift, gap: bool) -> list[tuple[str, float]]:
    what = "scores" if gap else "log-probs of the whole vocabulary"
    same = "share of pairs with the same better response" if gap else "share of positions with the same likeliest token"
    return [
        (f"greatest absolute difference of the {what}", drift.largest),
        (f"mean absolute difference of the {what}", drift.mean),
        (same, drift.agreement),
    ]


def refuse_absurd(drift: Drift, scale: float, gap: bool) -> None:
    """RunError where the merged model is plainly not the run's: also where a figure is no number."""
    least = 0.0 if gap else LEAST_AGREEMENT  # gaps near zero change sign for nothing
    if not (drift.mean <= MOST_DRIFT * scale and drift.agreement >= least):
        raise RunError(
            f"the merged model is off by {drift.mean:.3g} on average (agreement {drift.agreement:.0%}), so nothing was "
            "written; --dtype fp32 rounds nothing, and --adapter needs no merge"
        )

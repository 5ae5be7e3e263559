"""pit export: writes what a run trained as a model or an adapter for other tools, with a model card."""

import json
import os
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch

from pitcli.console import note, table, warn
from pitcli.data.rows import Message
from pitcli.data.templates import ChatFormat, Example
from pitcli.engine.models.bases import cache_folder
from pitcli.engine.models.gaps import scoring_tree
from pitcli.engine.models.gguf_file import check_supported, form_of, load_gguf, write_gguf
from pitcli.engine.models.hub import check_signed_in, hub_name, upload
from pitcli.engine.models.loading import load_tokenizer, pick_device, saved_lora
from pitcli.engine.models.merging import (
    Drift,
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
from pitcli.engine.models.trees import Tree
from pitcli.errors import RunError, SettingsError
from pitcli.pages.model_card import Exported, model_card, read_evaluation
from pitcli.pages.modelfile import modelfile
from pitcli.runs.earlier import EarlierRun, any_run, gap_loss_of
from pitcli.runs.files import DIGESTS, WEIGHTS, publish_dir
from pitcli.runs.manifest import AdapterRole, Manifest
from pitcli.settings.base import Dtype, GapLoss, ModelSettings, Precision
from pitcli.settings.exporting import ExportConfig, ExportFormat, Quantisation

DTYPES = {Dtype.bf16: torch.bfloat16, Dtype.fp16: torch.float16, Dtype.fp32: torch.float32}
CARD = "README.md"
MODELFILE = "Modelfile"
MOST_DRIFT = 0.5  # mean; in nats, or relative to the largest score. A model that drifts further is a different model
LEAST_AGREEMENT = 0.8
# (prompt, draft, better response): any texts will do, since they only compare two copies of one model
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
    """The model to export: its run, its folder in it, its role, and its base model."""

    run: EarlierRun
    adapter: Path
    role: AdapterRole
    base: Base


def run(config: ExportConfig) -> None:
    """Write --out completely or not at all; print one JSON object on stdout: what was written, and its drift.

    Raise RunError, and leave --out as it was, if the merged model does not reproduce the run's model.
    """
    folder, manifest = any_run(config.run)
    role = chosen_role(config, manifest)
    out = Path(os.path.abspath(config.out))
    refuse_occupied(out, config.overwrite)
    adapter, manifest = chosen_member(config, role, manifest)
    gguf_file = gguf_name(role, config)
    digest = manifest.adapter_digest(adapter)
    evaluation = read_evaluation(config.evaluation, role, digest) if config.evaluation else None
    if config.push_to_hub:
        check_signed_in()
    earlier = EarlierRun(folder, manifest)
    source = Source(earlier, folder / adapter, role, open_base(_settings(config), [earlier]))
    base_name = named_base(config, source.base)
    exported = Exported(
        role=role,
        manifest=manifest,
        base_name=base_name,
        converted=source.base.folder.parent == cache_folder() / "models",
        dtype=None if config.adapter else config.quantise or config.dtype,
        gguf_file=gguf_file,
        drift="",
        rank=saved_lora(source.adapter).r,
        license=config.license,
        evaluation=evaluation,
    )
    drifts: list[Drift] = []
    if config.adapter:
        publish_dir(out, partial(write_adapter_export, source, exported))
    elif gguf_file:
        publish_dir(out, partial(write_gguf_export, source, exported, config, drifts))
    else:
        publish_dir(out, partial(write_merged_export, source, exported, DTYPES[config.dtype], drifts))
    note(f"{role} of {config.run} written to {config.out}")
    if exported.converted:
        warn("the base was read from a GGUF file: its weights differ slightly from those on the hub; the card says so")
    if config.push_to_hub:
        note(f"uploaded to {upload(out, config.push_to_hub, config.public)}")
    drift = drifts[0]._asdict() if drifts else None
    form = "adapter" if config.adapter else "gguf" if gguf_file else "merged"
    print(json.dumps({"out": str(config.out), "form": form, "role": role, "base": base_name, "drift": drift}))


def chosen_role(config: ExportConfig, manifest: Manifest) -> AdapterRole:
    role: AdapterRole = config.role.value if config.role else manifest.role
    if role not in manifest.probes or f"{role}/{WEIGHTS}" not in manifest.files:
        known = " or ".join(manifest.probes)
        raise SettingsError(f"--role: expected {known}, got {role}, which {config.run} does not contain")
    return role


def chosen_member(config: ExportConfig, role: AdapterRole, manifest: Manifest) -> tuple[str, Manifest]:
    """Return the folder of the model, and the manifest with the results of this model if it is of an ensemble."""
    members = manifest.gap_roles() if role == GAP else [role]
    number = config.member or 1
    if number > len(members):
        raise SettingsError(f"--member: expected at most {len(members)}, the models in {config.run}; got {number}")
    if len(members) == 1:
        return members[0], manifest
    if config.evaluation:
        raise SettingsError("--evaluation: its rows were made with the whole ensemble, not with one member; remove it")
    if config.member is None:
        note(f"{config.run} has {len(members)} gap models: exporting the first; --member chooses another")
    suffix = f"_{number}"
    results = {
        name.removesuffix(suffix): value
        for name, value in manifest.results.items()
        if name.endswith(suffix) or name == "gap_loss"  # in an RL run what the members read is known from there
    }
    return members[number - 1], manifest.model_copy(update={"results": results})


def refuse_occupied(out: Path, overwrite: bool) -> None:
    """Raise SettingsError if --out is occupied, unless by an earlier export that --overwrite replaces."""
    if out.is_symlink() or (out.exists() and not out.is_dir()):
        raise SettingsError(f"--out: expected a folder, got {out}, a file or a link; name another")
    present = {path.relative_to(out).as_posix() for path in out.rglob("*")} if out.is_dir() else set()
    if present and not overwrite:
        remedy = "use --overwrite to replace an earlier export, or name another folder"
        raise SettingsError(f"--out: {out} is not empty; {remedy}")
    try:
        listed = set(json.loads((out / DIGESTS).read_bytes())) if present else set()
    except (OSError, ValueError, TypeError):
        listed = set()
    foreign = sorted(present - listed - {DIGESTS}) if CARD in listed else sorted(present)
    if foreign:
        unknown = f"files that no export wrote, first {foreign[0]}"
        raise SettingsError(f"--overwrite: {out} contains {unknown}; move them, or name another")


def named_base(config: ExportConfig, base: Base) -> str | None:
    """Return the base's name on the hub, None if unknown; SettingsError if an adapter needs one."""
    name = config.base_name or hub_name(base.identity.name, base.folder)
    if config.adapter and name is None:
        raise SettingsError(
            f"--base-name: required, because others cannot load the base {base.identity.name} by that name; give "
            "its OWNER/NAME on the hub, or export without --adapter"
        )
    return name


def _settings(config: ExportConfig) -> ModelSettings:
    """On CPUs in fp32, as most tools compute there, so that the merged model can be compared exactly."""
    on_cpu = pick_device(config.device).type == "cpu"
    return ModelSettings(device=config.device, dtype=Precision.fp32 if on_cpu else None)


def write_adapter_export(source: Source, exported: Exported, folder: Path) -> None:
    assert exported.base_name is not None
    write_adapter(source.adapter, exported.base_name, folder)
    (folder / CARD).write_text(model_card(exported, source.base.chat), encoding="utf-8")


def write_merged_export(
    source: Source, exported: Exported, dtype: torch.dtype, drifts: list[Drift], folder: Path
) -> None:
    """Merge, write, load the written model as any user would, and compare; append the drift to `drifts`."""
    role, base, gap = source.role, source.base, source.role == GAP
    model = base.load({role: source.adapter})
    examples = probe_examples(base.chat, role)
    trees = probe_trees(base.chat, gap_loss_of(source.run.manifest)) if gap else []
    ours = role_scores(model, trees) if gap else role_logprobs(model, role, examples)
    settings, head = model.base.config, model.head_weight(role) if gap else None
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
    if ChatFormat(load_tokenizer(folder)).digest() != base.identity.template:
        raise RunError("nothing was written: the exported tokenizer encodes a conversation differently from the run's")
    finish(source, exported, drift, scale, folder)
    drifts.append(drift)


def gguf_name(role: str, config: ExportConfig) -> str | None:
    """Return the name of the GGUF file, None for another format; SettingsError if this one cannot be written."""
    if config.format is not ExportFormat.gguf:
        return None
    if role == GAP:
        raise SettingsError("--format gguf: expected an improver or a policy, got a gap model; use safetensors")
    return f"{role}-{form_of(config.dtype, config.quantise).name}.gguf"


def write_gguf_export(
    source: Source, exported: Exported, config: ExportConfig, drifts: list[Drift], folder: Path
) -> None:
    """Merge, write one GGUF file, read it back with transformers and compare; append the drift to `drifts`."""
    base, role = source.base, source.role
    check_supported(base.folder, base.chat)
    model = base.load({role: source.adapter})
    examples = probe_examples(base.chat, role)
    ours, settings = role_logprobs(model, role, examples), model.base.config
    weights = merged_weights(model, role, DTYPES[config.dtype])
    del model
    path = folder / str(exported.gguf_file)
    write_gguf(path, settings, weights, base.chat, form_of(config.dtype, config.quantise))
    drift = logprob_drift(ours, plain_logprobs(load_gguf(path, base.device), examples))
    (folder / MODELFILE).write_text(modelfile(path.name, base.chat), encoding="utf-8")
    four_bits = config.quantise is Quantisation.q4_k_m  # they move the log-probs of a small model by half a nat
    finish(source, exported, drift, 2.0 if four_bits else 1.0, folder)
    drifts.append(drift)


def finish(source: Source, exported: Exported, drift: Drift, scale: float, folder: Path) -> None:
    """Print the drift, write the card; RunError if the drift shows another model."""
    rows = shown_drift(drift, source.role == GAP)
    title = f"{source.role} merged in {exported.dtype}, compared with the {source.role} as pit runs it, on "
    table(f"{title}{len(PROBES)} prompts", ["measure", "value"], rows)
    refuse_another_model(drift, scale, source.role == GAP)
    drift_text = "\n".join([f"On {len(PROBES)} fixed prompts:\n", *(f"- {what}: {value:.3g}" for what, value in rows)])
    card = model_card(exported._replace(drift=drift_text), source.base.chat)
    (folder / CARD).write_text(card, encoding="utf-8")


def probe_examples(chat: ChatFormat, role: str) -> list[Example]:
    examples = []
    for prompt, draft, better in PROBES:
        message = (Message("user", prompt),)
        ids = chat.policy_prompt(message) if role == POLICY else chat.improver_prompt(message, draft)
        examples.append(Example(ids, chat.completion(better)))
    return examples


def probe_trees(chat: ChatFormat, loss: GapLoss) -> list[Tree]:
    return [scoring_tree((Message("user", prompt),), [better], draft, chat, loss) for prompt, draft, better in PROBES]


def shown_drift(drift: Drift, gap: bool) -> list[tuple[str, float]]:
    what = "scores" if gap else "log-probs of the whole vocabulary, nats"
    same = "share of pairs with the same better response" if gap else "share of positions with the same top token"
    return [
        (f"largest absolute difference of the {what}", drift.largest),
        (f"mean absolute difference of the {what}", drift.mean),
        (same, drift.agreement),
    ]


def refuse_another_model(drift: Drift, scale: float, gap: bool) -> None:
    """Raise RunError if the merged model is clearly not the run's model, or if a figure is NaN."""
    least = 0.0 if gap else LEAST_AGREEMENT  # the sign of a gap near zero means nothing
    if not (drift.mean <= MOST_DRIFT * scale and drift.agreement >= least):
        raise RunError(
            f"nothing was written: expected a merged model that differs by at most {MOST_DRIFT * scale:.3g} on average "
            f"and agrees on {least:.0%}, got {drift.mean:.3g} and {drift.agreement:.0%}; use --dtype fp32 to avoid "
            "rounding, --quantise q8_0 for less of it, or --adapter to avoid merging"
        )

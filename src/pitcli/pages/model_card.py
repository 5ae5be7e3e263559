"""Write the model card of an export, README.md for the hub, from the run's manifest and an evaluation."""

import json
import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from jinja2 import Environment, StrictUndefined, Template
from pydantic import ValidationError

from pitcli.console import counted, visible
from pitcli.data.templates import IMPROVE_INSTRUCTION, ChatFormat
from pitcli.engine.models.roles import GAP, IMPROVER, POLICY
from pitcli.errors import InputError
from pitcli.evaluation.results import Evaluation, controlled_delta_text, delta_text
from pitcli.runs.earlier import NOT_CALIBRATED, TEMPERATURE, gap_loss_of
from pitcli.runs.manifest import AdapterRole, DataIdentity, Manifest
from pitcli.settings.base import GapLoss
from pitcli.settings.facts import Fact
from pitcli.settings.training import TrainingConfig

TITLES = {IMPROVER: "Improver", POLICY: "Policy", GAP: "Gap model"}
VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


class Exported(NamedTuple):
    """The facts for a card.

    base_name: the base's name on the hub, None if unknown; converted: whether the base was read from a GGUF file;
    dtype: of merged weights, None for an adapter; gguf_file: the file for llama.cpp, if it is for that; drift: the
    result of the check of merged weights; rank: of the LoRA.
    """

    role: AdapterRole
    manifest: Manifest
    base_name: str | None
    converted: bool
    dtype: str | None
    gguf_file: str | None
    drift: str
    rank: int
    license: str | None
    evaluation: Evaluation | None


def read_evaluation(path: Path, role: AdapterRole, adapter_digest: str) -> Evaluation:
    """Read the part of evaluation.json that is about this adapter. Raises InputError if there is none.

    Comparisons by judges that do not beat length on human labels are excluded.
    """
    try:
        whole = Evaluation.model_validate_json(path.read_bytes())
    except OSError as error:
        raise InputError(f"--evaluation: {path}: {error.strerror}") from None
    except ValidationError as error:
        first = error.errors()[0]
        problem = ": ".join([*map(str, first["loc"]), first["msg"]])
        raise InputError(f"--evaluation: {path}: expected evaluation.json of pit evaluate ({problem})") from None
    systems = [system for system in whole.systems if _adapter(system.record, role) == adapter_digest]
    if not systems:
        known = ", ".join(system.name for system in whole.systems)
        raise InputError(
            f"--evaluation: {path}: none of the systems ({known}) is known to be made with this {role}; "
            f"evaluate rows that pit improve --output wrote with this {role}"
        )
    names = {system.name for system in systems}
    usable = {judge.name for judge in whole.judges if judge.usable}
    return whole.model_copy(
        update={
            "systems": systems,
            "comparisons": [c for c in whole.comparisons if names & {c.system, c.baseline} and c.judge in usable],
            "claims": [claim for claim in whole.claims if claim.system in names],
            "answers": [answers for answers in whole.answers if answers.system in names],
        }
    )


def _adapter(record: dict[str, Any], role: str) -> object:
    adapters = record.get("adapters")
    return adapters.get(role) if isinstance(adapters, dict) else None


def model_card(exported: Exported, chat: ChatFormat) -> str:
    """The text of README.md."""
    manifest = exported.manifest
    base = exported.base_name or Path(manifest.base.name).name
    page = _template().render(
        front_matter=yaml.safe_dump(front_matter(exported), sort_keys=False, allow_unicode=True),
        title=f"{TITLES[exported.role]} on {base.rpartition('/')[2]}",
        **exported._asdict(),
        kind=manifest.kind,
        pit_version=manifest.pit_version,
        instruction=IMPROVE_INSTRUCTION,
        pointwise=is_pointwise(exported),
        merged=exported.dtype is not None,
        four_bit=manifest.base.load_in_4bit,
        gap_temperature=manifest.results.get(TEMPERATURE),
        not_calibrated=manifest.results.get(NOT_CALIBRATED),
        vllm_rank=next((rank for rank in VLLM_RANKS if rank >= exported.rank), exported.rank),
        base_label=base,
        rendered=conversation(chat, exported.role, is_pointwise(exported)),
        ending=json.dumps(_stop_token(chat), ensure_ascii=False),
        opening=json.dumps(chat.turn.opening, ensure_ascii=False) if chat.turn.opening else "",
        end_of_thought=json.dumps(_end_of_thought(chat), ensure_ascii=False) if _end_of_thought(chat) else "",
        options=_options(exported),
        folds_system=chat.rendering.folds_system,
        limits=list(_limits(exported)),
        sources=list(_sources(exported, base)),
        settings=sorted(_settings(exported)),
        results=sorted(_results(exported)),
        trained_elsewhere=_trained_elsewhere(exported),
        versions=", ".join(f"{name} {version}" for name, version in manifest.versions.items()),
    )
    return visible(re.sub(r"\n{3,}", "\n\n", page).rstrip() + "\n")


def conversation(chat: ChatFormat, role: AdapterRole, pointwise: bool) -> str:
    """The chat template applied to the placeholders {x}, {y_ref}, {y1} and {y2}; {y} for a pointwise gap model."""
    messages = [{"role": "user", "content": "{x}"}]
    if role != POLICY and not pointwise:
        messages.append({"role": "assistant", "content": "{y2}" if role == GAP else "{y_ref}"})
        messages.append({"role": "user", "content": IMPROVE_INSTRUCTION})
    text = chat.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    if role == GAP:
        text += chat.turn.opening + ("{y}" if pointwise else "{y1}") + _stop_token(chat)
    return text


def is_pointwise(exported: Exported) -> bool:
    """Whether this is a gap model that scores one response at a time: an ordinary reward model."""
    return exported.role == GAP and gap_loss_of(exported.manifest) is GapLoss.pointwise


def _stop_token(chat: ChatFormat) -> str:
    return str(chat.tokenizer.convert_ids_to_tokens(chat.stop_id))


def _end_of_thought(chat: ChatFormat) -> str:
    """What ends a thought in the chat template; empty if the template has no thoughts."""
    return next((end for _, end in chat.thought_tags if end in chat.rendering.template), "")


def _options(exported: Exported) -> str:
    """The arguments of apply_chat_template for an adapter; a merged model has them in its chat template."""
    options = {} if exported.dtype else exported.manifest.base.template_options
    return "".join(f", {name}={value!r}" for name, value in options.items())


def front_matter(exported: Exported) -> dict[str, Any]:
    """The fields that the hub reads; the base and the licence only if known."""
    merged, gap = exported.dtype is not None, exported.role == GAP
    known: dict[str, Any] = {"license": exported.license} if exported.license else {}
    if exported.base_name:
        known |= {"base_model": exported.base_name, "base_model_relation": "finetune" if merged else "adapter"}
    data = exported.manifest.data.path
    if data.startswith("hub:") and "/" in data:
        known["datasets"] = ["/".join(data.removeprefix("hub:").split(":")[0].split("/")[:2])]
    return known | {
        "library_name": "gguf" if exported.gguf_file else "transformers" if merged else "peft",
        "pipeline_tag": "text-classification" if gap else "text-generation",
        "tags": ["pit", "self-improvement", "reward-model" if gap else exported.role, *([] if merged else ["lora"])],
    }


def _sources(exported: Exported, base: str) -> Iterator[tuple[str, object]]:
    manifest = exported.manifest
    yield "base", base + (", read from a GGUF file" if exported.converted else "")
    yield "base, SHA-256 of its files", manifest.base.digest
    yield "base loaded in", "4-bit NF4, double quantisation" if manifest.base.load_in_4bit else "full precision"
    yield "computed in", manifest.base.dtype
    own = manifest.gap_data if exported.role == GAP else manifest.data
    yield from _data("data", own or manifest.data)
    if manifest.kind == "rl" and exported.role != GAP and manifest.gap_data:
        yield from _data("data of the gap model that rewarded it", manifest.gap_data)


def _data(label: str, data: DataIdentity) -> Iterator[tuple[str, object]]:
    yield label, f"{file_name(data.path)}, {counted(data.rows, 'rows')}"
    yield f"{label}, SHA-256 of its rows", data.digest


def _trained_elsewhere(exported: Exported) -> bool:
    """Whether this is the gap model in an RL run, which another run trained."""
    return exported.role == GAP and exported.manifest.kind == "rl"


def _results(exported: Exported) -> Iterator[tuple[str, object]]:
    for name, value in exported.manifest.results.items():
        if value is not None and (name == TEMPERATURE or not _trained_elsewhere(exported)):
            yield name, value


def _settings(exported: Exported) -> Iterator[tuple[str, object]]:
    left_out = TrainingConfig.named(Fact.off_card | Fact.start | Fact.execution)
    for name, value in exported.manifest.config.items():
        if value is not None and name not in left_out and not _trained_elsewhere(exported):
            yield name, file_name(value) if isinstance(value, str) else value


def _limits(exported: Exported) -> Iterator[str]:
    if exported.role == IMPROVER:
        yield "It makes some responses worse: keep the draft unless a gap model or a person prefers the new response."
        yield "It learned from preferences, and may share their biases (length, style)."
    if exported.role == GAP:
        yield "It may fail on prompts unlike its data, and on text that was optimised against it."
        yield "It compares responses to the same prompt; a single score has no meaning."
    if exported.converted:
        yield (
            "The base was read from a quantised GGUF file, so its weights differ a little from the model on the hub"
            + ("; with the hub's weights, the adapter's outputs differ from training." if not exported.dtype else ".")
        )
    if not exported.base_name:
        yield "The base is a local model that this card cannot name; the digest above identifies it."
    yield "Facts, safety and languages were not tested; the base's limits and licence still apply."


def file_name(path: str) -> str:
    """The last part of a path, because a card must not show local folders; hub names stay whole."""
    return path if path.startswith("hub:") else re.split(r"[/\\]", path.rstrip("/\\"))[-1]


def _cell(value: object) -> str:
    """Format a value for a Markdown table: one line, with nothing that ends the cell or starts HTML."""
    text = f"{value:.4g}" if isinstance(value, float) else value if isinstance(value, str) else json.dumps(value)
    return re.sub(r"([\\|`*_<>\[\]])", r"\\\1", " ".join(visible(text).split()))


def _template() -> Template:
    environment = Environment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(cell=_cell, delta=delta_text, controlled=controlled_delta_text)
    return environment.from_string(files("pitcli").joinpath("assets", "model_card.md.jinja").read_text("utf-8"))

"""Load the judge that --judge names: oracle, gap:RUN, hf:MODEL, openai:MODEL, cmd:COMMAND or labels:FILE."""

import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jinja2 import TemplateError
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from pitcli.data.instructions.grading import grade as instruction_grade
from pitcli.data.instructions.requests import request_problem
from pitcli.data.rows import Comparison, PreferencePair, Prompt
from pitcli.data.synthetic import quality
from pitcli.engine.improving.opening import load_gap_model
from pitcli.engine.models.bases import parameter_count, reading, resolve_base
from pitcli.engine.models.batches import length_sorted_chunks
from pitcli.engine.models.loading import pick_device
from pitcli.engine.models.opening import open_base
from pitcli.engine.models.precision import compute_dtype
from pitcli.equations import symmetrised_gap
from pitcli.errors import InputError, RunError, SettingsError
from pitcli.evaluation.command_judge import Fields, command_judge
from pitcli.evaluation.judge import ORACLE, Judge, Verdict, judge_by_grades
from pitcli.evaluation.labels_judge import labels_judge
from pitcli.evaluation.openai_judge import check_endpoint, openai_judge
from pitcli.evaluation.systems import fields_by_prompt
from pitcli.runs.earlier import EarlierRun, required_run, warn_if_not_calibrated
from pitcli.settings.base import GapBound
from pitcli.settings.default_runs import GAP_RUN
from pitcli.settings.judging import JudgeSettings
from pitcli.settings.values import COMMAND, is_command

LABELS = "labels:FILE"  # a judge of pit label and pit calibrate only


class LoadedJudge(NamedTuple):
    """A judge and its description for evaluation.json."""

    judge: Judge
    identity: dict[str, Any]


def load_judge(
    name: str, config: JudgeSettings, fields: Fields, cache: Path, run: EarlierRun | None = None
) -> LoadedJudge:
    """Load a judge by name. Raises SettingsError if the name is not that of a judge.

    fields: for the oracle and for programs, the fields of the row that has a prompt; more may be added later. cache:
    the file with the replies of an endpoint. run: what check_judge has found.
    """
    kind, _, rest = name.partition(":")
    match kind:
        case "oracle":
            return LoadedJudge(oracle_judge(fields), {"kind": "grades by code"})
        case "cmd":
            return LoadedJudge(command_judge(name, fields), {"kind": "program", "command": rest})
        case "labels":
            return LoadedJudge(labels_judge(name, rest), {"kind": "people's labels", "files": rest})
        case "gap":
            return gap_judge(name, config, run)
        case "hf":
            judge = sequence_classifier_judge(name, rest, config)
            return LoadedJudge(judge, {"kind": "sequence classifier", "model": rest})
    judge = openai_judge(rest, base_url=config.base_url, cache=cache, concurrency=config.concurrency)
    return LoadedJudge(judge, {"kind": "OpenAI-compatible endpoint", "model": rest, "base_url": config.base_url})


def fields_for(name: str, inputs: Sequence[str], pairs: Iterable[PreferencePair] = ()) -> Fields:
    """Return the fields that a judge by this name reads of the rows in these files, by prompt; none for most judges."""
    return fields_by_prompt(inputs, pairs) if name == ORACLE or is_command(name) else {}


def check_judge(name: str, config: JudgeSettings, others: Sequence[str] = ()) -> EarlierRun | None:
    """Check what can be checked of a judge without loading it; return its run, if pit trained it.

    Raises SettingsError if its name, its address or its run does not exist, RunError if its run is not usable. others:
    see check_name.
    """
    check_name(name, others)
    kind, _, rest = name.partition(":")
    if kind == "openai":
        check_endpoint(config.base_url)
    return required_run(Path(rest), GAP_RUN) if kind == "gap" else None


def check_name(name: str, others: Sequence[str] = ()) -> None:
    """Check the form of a judge's name. Raises SettingsError if it names no kind of judge.

    others: forms of names that a command accepts as well, such as labels:FILE.
    """
    forms = (ORACLE, "gap:RUN", "hf:MODEL", "openai:MODEL", f"{COMMAND}COMMAND", *others)
    kind, colon, rest = name.partition(":")
    if name != ORACLE and not (colon and rest.strip() and kind in [form.partition(":")[0] for form in forms[1:]]):
        raise SettingsError(f"--judge: expected {', '.join(forms[:-1])} or {forms[-1]}, got {name}")


def oracle_grade(fields: Fields) -> Callable[[Prompt, str], float]:
    """Make the function that grades a response in [0, 1]: of word lists, or of a request of the instruction task.

    fields: those of the row that has a prompt. Raises ValueError if a prompt belongs to neither task.
    """

    def grade(prompt: Prompt, response: str) -> float:
        request = fields.get(prompt, {})
        if request_problem(request) is None:
            return instruction_grade(response, request["subject"], request["instructions"])
        return quality(prompt[-1].content, response)

    return grade


def oracle_judge(fields: Fields) -> Judge:
    """Make a judge from the quality function of the word lists, and from the grades of the instruction task."""
    grade_one = oracle_grade(fields)

    def grade(responses: Sequence[tuple[Prompt, str]]) -> list[float]:
        try:
            return [grade_one(prompt, response) for prompt, response in responses]
        except ValueError as error:
            raise InputError(f"--judge oracle: {error}; the oracle can judge the two tasks of pit only") from None

    return judge_by_grades(ORACLE, grade, 1e6)


def gap_judge(name: str, config: JudgeSettings, run: EarlierRun | None = None) -> LoadedJudge:
    """Load a gap model that pit trained: P(better) is the sigmoid of its symmetrised, calibrated gap.

    Of an ensemble the mean of the members' scores / T. A verdict is consistent if the raw scores of both orders name
    the same winner. There is none if a response does not fit into --max-length.
    """
    run = run or required_run(Path(name.partition(":")[2]), GAP_RUN)
    warn_if_not_calibrated(run)
    base = open_base(config, [run])
    gap_model = load_gap_model(base, run, config.micro_batch_size, GapBound.mean)
    gap_model = gap_model._replace(max_length=base.max_length)

    def verdicts(comparisons: Sequence[Comparison]) -> list[Verdict]:
        scores_B2 = gap_model.member_scores(comparisons).mean(0)
        p_better = torch.sigmoid(symmetrised_gap(scores_B2[:, 0], scores_B2[:, 1])).tolist()
        consistent = ((scores_B2[:, 0] > 0) != (scores_B2[:, 1] > 0)).tolist()
        return [
            Verdict(p, same) if math.isfinite(p) else Verdict(None)
            for p, same in zip(p_better, consistent, strict=True)
        ]

    identity = {
        "kind": "gap model",
        "run": name.partition(":")[2],
        "data": run.manifest.data.path,
        "base": run.manifest.base.name,
        "adapters": run.gap_digests(),
    }
    return LoadedJudge(Judge(name, verdicts), {**identity, "seed": run.manifest.config.get("seed")})


def sequence_classifier_judge(name: str, model_name: str, config: JudgeSettings) -> Judge:
    """Load a Hugging Face reward model with one output, r(x, y); safetensors only, no remote code.

    There is no verdict if a conversation does not fit into --max-length or the model.
    """
    folder, device = resolve_base(model_name, reward_model=True), pick_device(config.device)
    dtype = compute_dtype(config.dtype, device, parameter_count(folder))
    with reading(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        loaded: Any = AutoModelForSequenceClassification.from_pretrained(
            folder, dtype=dtype, trust_remote_code=False, use_safetensors=True, output_loading_info=True
        )
    model, report = loaded
    if report["missing_keys"]:
        raise RunError(f"--judge: {name}: not a reward model: {sorted(report['missing_keys'])[0]} is missing")
    if model.config.num_labels != 1:
        raise RunError(f"--judge: {name}: expected a reward model with 1 output, got {model.config.num_labels}")
    model.to(device).eval()
    pad_id = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    # the model finds the last token of a row by the pad id in its config, so padding must use that id
    model.config.get_text_config().pad_token_id = pad_id
    limit = config.max_length or getattr(model.config.get_text_config(), "max_position_embeddings", None)

    @torch.no_grad()
    def grade(responses: Sequence[tuple[Prompt, str]]) -> list[float]:
        encoded = [_encode(name, tokenizer, prompt, response) for prompt, response in responses]
        grades = [math.nan] * len(responses)  # no verdict on what is too long
        fitting = [row for row, ids in enumerate(encoded) if not limit or len(ids) <= limit]
        chunks = length_sorted_chunks([len(encoded[row]) for row in fitting], config.micro_batch_size, device)
        for chunk in ([fitting[index] for index in chunk] for chunk in chunks):
            longest = max(len(encoded[row]) for row in chunk)
            ids_BT = torch.tensor([encoded[row] + [pad_id] * (longest - len(encoded[row])) for row in chunk])
            mask_BT = torch.tensor([[1] * len(encoded[row]) + [0] * (longest - len(encoded[row])) for row in chunk])
            rewards = model(input_ids=ids_BT.to(device), attention_mask=mask_BT.to(device)).logits[:, 0]
            for row, reward in zip(chunk, rewards.float().tolist(), strict=True):
                grades[row] = reward
        return grades

    return judge_by_grades(name, grade, 1.0)


def _encode(name: str, tokenizer: PreTrainedTokenizerBase, prompt: Prompt, response: str) -> list[int]:
    turns = [*(message._asdict() for message in prompt), {"role": "assistant", "content": response}]
    if not tokenizer.chat_template:  # encoders of text pairs, such as DeBERTa reward models
        paired: list[int] = tokenizer("\n\n".join(turn["content"] for turn in turns[:-1]), response)["input_ids"]
        return paired
    try:
        ids: Any = tokenizer.apply_chat_template(turns, tokenize=True, return_dict=False)
    except (TemplateError, ValueError) as problem:  # no system role, for example
        raise InputError(f"--judge {name}: its chat template refuses a conversation: {problem}") from None
    return list(ids)

"""Prepares the inputs of both sides: rows, their tokens in the order of the steps, and the adapters for RL.

`python prepare.py REQUEST` runs in a separate process. It reads and tokenises the rows with pit, so that the other side
does not import pit.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flops import Shape, llama_shape, seen_in_row, seen_in_tree, training_flops
from random_models import model_of
from workloads import LONGEST_IMPROVEMENT, NEW_TOKENS, RESPONSES, SAMPLES, SEED, Sizes

from pitcli.data.examples import fitting_pairs, sft_examples
from pitcli.data.long_rows import Limit
from pitcli.data.pair_reading import load_pairs
from pitcli.data.rows import PreferencePair, Prompt
from pitcli.data.splits import hold_out
from pitcli.data.templates import IMPROVE_INSTRUCTION, ChatFormat, Example
from pitcli.engine.models.gaps import training_row
from pitcli.engine.models.opening import Base, open_base
from pitcli.engine.training.schedule import rows_of_step
from pitcli.runs.folder import is_finished
from pitcli.settings.base import GapLoss, LoraSettings, ModelSettings, Role
from pitcli.settings.pairs import DataSettings, LongRows

HELD_OUT = 0.1  # held-out share of pit train-reward
CHECKED = 8  # comparisons that both sides score
Message = dict[str, str]


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    sizes, scratch = Sizes(**request["sizes"]), Path(request["scratch"])
    settings = ModelSettings(
        model=model_of(request["shape"], scratch, request["device"]),
        load_in_4bit=request["load_in_4bit"],
        dtype=request["dtype"],
        device=request["device"],
        max_length=sizes.max_length,
    )
    base = open_base(settings, [])
    pairs = usable_pairs(request["data"], base, sizes)
    rows = scratch / "pairs.jsonl"
    write_lines(rows, [{**id_and_prompt(pair), "chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs])
    drafts = scratch / "drafts.jsonl"
    write_lines(drafts, [{**id_and_prompt(pair), "response": pair.rejected} for pair in pairs[: sizes.drafts]])
    prepared: dict[str, Any] = {
        "base": str(base.folder),
        "model": settings.model,
        "pad_token": base.tokenizer.pad_token,
        "stop_ids": list(base.chat.stop_ids),
        "instruction": IMPROVE_INSTRUCTION,
        "lora_rank": LoraSettings().lora_rank,
        "config": json.loads((base.folder / "config.json").read_text()),
        "pairs": str(rows),
        "drafts": str(drafts),
    }
    shape = llama_shape(prepared["config"], prepared["lora_rank"])
    prepared["steps"] = steps_of(base.chat, pairs, sizes, (request["runs"] + 2) * sizes.steps, shape)
    if {"rl", "improve", "endpoint"} & set(request["trains"]):
        prepared |= trained_adapters(request, settings, rows, sizes, scratch)
        prepared["checked"] = [
            {"messages": improvement_request(pair.prompt, pair.rejected), "response": pair.chosen}
            for pair in pairs[:CHECKED]
        ]
    for trains in RESPONSES.keys() & set(request["trains"]):
        prepared |= {f"{trains}_rows": str(responses_file(trains, pairs, sizes, scratch))}
        prepared |= exported_gap_model(prepared | trained_adapters(request, settings, rows, sizes, scratch))
    Path(request["prepared"]).write_text(json.dumps(prepared))


def usable_pairs(data: str, base: Base, sizes: Sizes) -> list[PreferencePair]:
    """Return the first pairs that fit and for which rendering the whole chat template gives the same tokens.

    Each draft also leaves room for the longest sampled response.
    """
    settings, room = DataSettings(long_rows=LongRows.skip), max(NEW_TOKENS, LONGEST_IMPROVEMENT)
    loaded = load_pairs(data, 4 * sizes.rows, Counter())
    fitting = fitting_pairs(loaded, Limit(base.chat, sizes.max_length, room), settings, Counter())

    def same_tokens(pair: PreferencePair) -> bool:
        rendered = base.tokenizer.apply_chat_template(
            improvement_request(pair.prompt, pair.rejected), add_generation_prompt=True, return_dict=False
        )
        return bool(rendered == base.chat.improver_prompt(pair.prompt, pair.rejected))

    return [pair for pair in fitting if same_tokens(pair)][: sizes.rows]


def messages(prompt: Prompt) -> list[Message]:
    """Return a prompt as dicts."""
    return [{"role": message.role, "content": message.content} for message in prompt]


def improvement_request(prompt: Prompt, reference_response: str) -> list[Message]:
    """Return x, y_ref and the request to improve as messages."""
    answered = [*messages(prompt), {"role": "assistant", "content": reference_response}]
    return [*answered, {"role": "user", "content": IMPROVE_INSTRUCTION}]


def id_and_prompt(pair: PreferencePair) -> dict[str, Any]:
    return {"id": pair.id, "prompt": messages(pair.prompt)}


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def steps_of(
    chat: ChatFormat, pairs: list[PreferencePair], sizes: Sizes, steps: int, shape: Shape
) -> dict[str, list[dict[str, Any]]]:
    """Return, by stage and step, the rows in pit's order, the units of work and the FLOP."""
    training, _ = hold_out(pairs, HELD_OUT, SEED)
    examples = sft_examples(pairs, chat, Role.improver, 0.0, SEED)

    def rows_of(step: int, rows: list[Any], size: int) -> list[Any]:
        return [rows[row] for row in rows_of_step(step, len(rows), size, SEED)]

    return {
        "sft": [sft_step(rows_of(step, examples, sizes.sft), shape) for step in range(steps)],
        "gap": [gap_step(chat, rows_of(step, training, sizes.gap), shape) for step in range(steps)],
        "dpo-improver": [dpo_step(chat, Role.improver, rows_of(step, pairs, sizes.dpo)) for step in range(steps)],
        "dpo-policy": [dpo_step(chat, Role.policy, rows_of(step, pairs, sizes.dpo)) for step in range(steps)],
        "rl": [rl_step(rows_of(step, pairs, sizes.rl)) for step in range(steps)],
    }


def sft_step(examples: list[Example], shape: Shape) -> dict[str, Any]:
    """Return an SFT step: its rows as token ids, its tokens, its FLOP."""
    lengths = [len(example.prompt) + len(example.completion) for example in examples]
    predicted = sum(len(example.completion) for example in examples)
    return {
        "rows": [example._asdict() for example in examples],
        "units": sum(lengths),
        "flops": training_flops(shape, sum(lengths), sum(map(seen_in_row, lengths)), predicted),
    }


def gap_step(chat: ChatFormat, pairs: list[PreferencePair], shape: Shape) -> dict[str, Any]:
    """Return a step of train-reward: its rows as token ids, its pairs, its FLOP."""
    trees = [training_row([pair], chat, GapLoss.five_term).tree for pair in pairs]
    seen = sum(seen_in_tree([len(ids) for ids in tree.segments], tree.parents) for tree in trees)
    return {
        "rows": [orderings(chat, pair) for pair in pairs],
        "units": len(pairs),
        "flops": training_flops(shape, sum(tree.tokens() for tree in trees), seen, 0),
    }


def dpo_step(chat: ChatFormat, role: Role, pairs: list[PreferencePair]) -> dict[str, Any]:
    """Return a step of pit dpo: a row per pair and context as token ids, its pairs."""
    rows = [
        {
            "prompt_ids": prompt,
            "chosen_ids": chat.completion(pair.chosen),
            "rejected_ids": chat.completion(pair.rejected),
        }
        for pair in pairs
        for prompt in (
            [chat.policy_prompt(pair.prompt)]
            if role is Role.policy
            else [chat.improver_prompt(pair.prompt, reference) for reference in (pair.rejected, pair.chosen)]
        )
    ]
    return {"rows": rows, "units": len(pairs)}


def rl_step(pairs: list[PreferencePair]) -> dict[str, Any]:
    """Return an RL step: its prompts as messages, its samples."""
    return {
        "rows": [{"prompt": improvement_request(pair.prompt, pair.rejected)} for pair in pairs],
        "units": len(pairs) * SAMPLES,
    }


def responses_file(trains: str, pairs: list[PreferencePair], sizes: Sizes, scratch: Path) -> Path:
    """Write rows with `responses`: those of a pair and, for more than two, those of the next pair; return the file."""
    rows = []
    for pair, other in zip(pairs[: sizes.drafts], [*pairs[1 : sizes.drafts], pairs[0]], strict=True):
        texts = [pair.chosen, pair.rejected, other.chosen, other.rejected][: RESPONSES[trains]]
        rows.append({**id_and_prompt(pair), "responses": texts})
    path = scratch / f"{trains}.jsonl"
    write_lines(path, rows)
    return path


def exported_gap_model(prepared: dict[str, Any]) -> dict[str, Any]:
    """Export the trained gap model for transformers, once; return the adapters and its folder."""
    folder = Path(prepared["reward_run"]).with_name("gap-model")
    if not folder.exists():
        line = ["export", prepared["reward_run"], "--out", str(folder), "--dtype", "fp32"]
        subprocess.run([sys.executable, "-m", "pitcli", *line], check=True)
    names = ("sft_run", "reward_run", "gap_temperature")
    return {**{name: prepared[name] for name in names}, "gap_model": str(folder)}


def orderings(chat: ChatFormat, pair: PreferencePair) -> dict[str, list[int]]:
    """Return the four conversations of PIT eq. 2; the key wl means response w and reference l."""
    texts = {"w": pair.chosen, "l": pair.rejected}
    return {
        first + second: chat.gap_input(pair.prompt, texts[first], texts[second]) for first in "wl" for second in "wl"
    }


def trained_adapters(
    request: dict[str, Any], settings: ModelSettings, rows: Path, sizes: Sizes, scratch: Path
) -> dict[str, Any]:
    """Train pit sft and pit train-reward for a few steps, once; return their run folders and gap temperature."""
    weights = "nf4" if settings.load_in_4bit else "whole"
    adapters = (
        scratch / f"adapters-{request['shape']}-{weights}-{request['dtype']}-{sizes.max_length}-{sizes.adapter_steps}"
    )
    common = [
        *("--model", str(settings.model), "--data", str(rows), "--device", request["device"], "--overwrite"),
        *("--max-steps", str(sizes.adapter_steps), "--batch-size", "8", "--max-length", str(sizes.max_length)),
        "--load-in-4bit" if settings.load_in_4bit else "--no-load-in-4bit",
        *("--dtype", request["dtype"]),
    ]
    for command, name in (("sft", "sft"), ("train-reward", "reward")):
        if not is_finished(adapters / name):
            line = [sys.executable, "-m", "pitcli", command, *common, "--out", str(adapters / name)]
            subprocess.run(line, check=True)
    results = json.loads((adapters / "reward" / "manifest.json").read_text())["results"]
    return {
        "sft_run": str(adapters / "sft"),
        "reward_run": str(adapters / "reward"),
        "gap_temperature": results["gap_temperature"],
    }


if __name__ == "__main__":
    main()

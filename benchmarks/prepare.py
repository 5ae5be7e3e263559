"""What both sides are given: the rows, their tokens in the order of the steps, and the adapters that RL starts from.

`python prepare.py REQUEST` in a process of its own, with the names and lengths of pit's own reading; the other side
never imports pit.
"""

import json
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flops import TREE_PARENTS, Shape, llama_shape, seen_in_row, seen_in_tree, training_flops
from works import LONGEST_IMPROVEMENT, NEW_TOKENS, SAMPLES, SHAPES, Sizes

from pitcli.data.examples import fitting_pairs, sft_examples
from pitcli.data.formats import load_pairs
from pitcli.data.records import PreferencePair, Prompt
from pitcli.data.splits import hold_out
from pitcli.data.templates import IMPROVE_INSTRUCTION, ChatFormat
from pitcli.engine.models.batches import rows_of_step
from pitcli.engine.training.inputs import Base, open_base
from pitcli.runs.folder import is_finished
from pitcli.settings.base import DataSettings, LoraSettings, ModelSettings, Role

SEED = 0
HELD_OUT = 0.1  # of pit train-reward
CHECKED = 8  # comparisons whose reward both sides give
Message = dict[str, str]


def main() -> None:
    request = json.loads(Path(sys.argv[1]).read_text())
    sizes, scratch = Sizes(**request["sizes"]), Path(request["scratch"])
    settings = ModelSettings(
        model=model_of(request["shape"], scratch, request["device"]),
        load_in_4bit=request["load_in_4bit"],
        device=request["device"],
        max_length=sizes.max_length,
    )
    base = open_base(settings, [])
    pairs = usable_pairs(request["data"], base, sizes)
    rows = scratch / "pairs.jsonl"
    write_lines(rows, [{**drafted(pair), "chosen": pair.chosen, "rejected": pair.rejected} for pair in pairs])
    drafts = scratch / "drafts.jsonl"
    write_lines(drafts, [{**drafted(pair), "response": pair.rejected} for pair in pairs[: sizes.drafts]])
    prepared: dict[str, Any] = {
        "base": str(base.folder),
        "model": settings.model,
        "pad_token": base.tokenizer.pad_token,
        "stop_id": base.chat.stop_id,
        "instruction": IMPROVE_INSTRUCTION,
        "lora_rank": LoraSettings().lora_rank,
        "config": json.loads((base.folder / "config.json").read_text()),
        "pairs": str(rows),
        "drafts": str(drafts),
    }
    shape = llama_shape(prepared["config"], prepared["lora_rank"])
    prepared["steps"] = steps_of(base.chat, pairs, sizes, (request["runs"] + 2) * sizes.steps, shape)
    if {"rl", "improve"} & set(request["trains"]):
        prepared |= trained_adapters(request, settings, rows, sizes, scratch)
        prepared["checked"] = [
            {"messages": asked(pair.prompt, pair.rejected), "response": pair.chosen} for pair in pairs[:CHECKED]
        ]
    Path(request["prepared"]).write_text(json.dumps(prepared))


def model_of(shape: str, scratch: Path, device: str) -> str:
    """What --model names: for a shape of its own a folder of weights drawn at random, made once."""
    settings = SHAPES[shape]
    if settings is None:
        return shape
    folder = scratch / "models" / shape
    if (folder / "tokenizer.json").exists():
        return str(folder)
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    tokenizer = open_base(ModelSettings(model="smollm2"), []).tokenizer
    torch.manual_seed(SEED)
    config = LlamaConfig(
        **settings,
        vocab_size=len(tokenizer),
        max_position_embeddings=8192,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.save_pretrained(folder)
    del model
    torch.cuda.empty_cache()  # for the processes that train on it
    tokenizer.save_pretrained(folder)
    return str(folder)


def usable_pairs(data: str, base: Base, sizes: Sizes) -> list[PreferencePair]:
    """The first pairs that fit and whose text is the same tokens where the chat template is rendered in one piece.

    Each draft also leaves room for what is sampled in its place.
    """
    settings, room = DataSettings(skip_long=True), max(NEW_TOKENS, LONGEST_IMPROVEMENT)
    loaded = load_pairs(data, 4 * sizes.rows, Counter())
    fitting = fitting_pairs(loaded, base.chat, sizes.max_length, data, settings, Counter(), room)

    def same_tokens(pair: PreferencePair) -> bool:
        rendered = base.tokenizer.apply_chat_template(
            asked(pair.prompt, pair.rejected), add_generation_prompt=True, return_dict=False
        )
        return bool(rendered == base.chat.improver_prompt(pair.prompt, pair.rejected))

    return [pair for pair in fitting if same_tokens(pair)][: sizes.rows]


def messages(prompt: Prompt) -> list[Message]:
    return [{"role": message.role, "content": message.content} for message in prompt]


def asked(prompt: Prompt, reference_response: str) -> list[Message]:
    """x, y_ref and the request to improve, as messages."""
    answered = [*messages(prompt), {"role": "assistant", "content": reference_response}]
    return [*answered, {"role": "user", "content": IMPROVE_INSTRUCTION}]


def drafted(pair: PreferencePair) -> dict[str, Any]:
    return {"id": pair.id, "prompt": messages(pair.prompt)}


def write_lines(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def steps_of(
    chat: ChatFormat, pairs: list[PreferencePair], sizes: Sizes, steps: int, shape: Shape
) -> dict[str, list[dict[str, Any]]]:
    """By stage and step: the rows in the order that pit takes them, how much that is, and the FLOPs of the step."""
    training, _ = hold_out(pairs, HELD_OUT, SEED)
    examples = sft_examples(pairs, chat, Role.improver, 0.0, SEED)
    taken: dict[str, list[dict[str, Any]]] = {"sft": [], "gap": [], "rl": []}
    for step in range(steps):
        rows = [examples[row] for row in rows_of_step(step, len(examples), sizes.sft, SEED)]
        lengths = [len(row.prompt) + len(row.completion) for row in rows]
        taken["sft"].append(
            {
                "rows": [row._asdict() for row in rows],
                "units": sum(lengths),
                "flops": training_flops(
                    shape, sum(lengths), sum(map(seen_in_row, lengths)), sum(len(row.completion) for row in rows)
                ),
            }
        )
        in_step = [training[row] for row in rows_of_step(step, len(training), sizes.gap, SEED)]
        trees = [tree_lengths(chat, pair) for pair in in_step]
        taken["gap"].append(
            {
                "rows": [orderings(chat, pair) for pair in in_step],
                "units": len(in_step),
                "flops": training_flops(
                    shape, sum(map(sum, trees)), sum(seen_in_tree(tree, TREE_PARENTS) for tree in trees), 0
                ),
            }
        )
        in_step = [pairs[row] for row in rows_of_step(step, len(pairs), sizes.rl, SEED)]
        taken["rl"].append(
            {
                "rows": [{"prompt": asked(pair.prompt, pair.rejected)} for pair in in_step],
                "units": len(in_step) * SAMPLES,
            }
        )
    return taken


def orderings(chat: ChatFormat, pair: PreferencePair) -> dict[str, list[int]]:
    """The four conversations of eq. 2, by the roles of response and reference: wl is w written after l."""
    texts = {"w": pair.chosen, "l": pair.rejected}
    return {
        first + second: chat.gap_input(pair.prompt, texts[first], texts[second]) for first in "wl" for second in "wl"
    }


def tree_lengths(chat: ChatFormat, pair: PreferencePair) -> list[int]:
    """Of the segments of a pair's tree, in the order of TREE_PARENTS."""
    chosen, rejected = len(chat.completion(pair.chosen)), len(chat.completion(pair.rejected))
    after_chosen, after_rejected = len(chat.after_prompt(pair.chosen)), len(chat.after_prompt(pair.rejected))
    prompt = len(chat.policy_prompt(pair.prompt))
    return [prompt, after_chosen, chosen, rejected, after_rejected, chosen, rejected]


def trained_adapters(
    request: dict[str, Any], settings: ModelSettings, rows: Path, sizes: Sizes, scratch: Path
) -> dict[str, Any]:
    """Runs of pit sft and pit train-reward, a few steps each, made once."""
    held = "nf4" if settings.load_in_4bit else "whole"
    kept = scratch / f"adapters-{request['shape']}-{held}-{sizes.max_length}-{sizes.adapter_steps}"
    common = [
        *("--model", str(settings.model), "--data", str(rows), "--device", request["device"], "--overwrite"),
        *("--max-steps", str(sizes.adapter_steps), "--batch-size", "8", "--max-length", str(sizes.max_length)),
        "--load-in-4bit" if settings.load_in_4bit else "--no-load-in-4bit",
    ]
    for command, name in (("sft", "sft"), ("train-reward", "reward")):
        if not is_finished(kept / name):
            line = [sys.executable, "-m", "pitcli", command, *common, "--out", str(kept / name)]
            subprocess.run(line, check=True)
    results = json.loads((kept / "reward" / "manifest.json").read_text())["results"]
    return {
        "sft_run": str(kept / "sft"),
        "reward_run": str(kept / "reward"),
        "gap_temperature": results["gap_temperature"],
    }


if __name__ == "__main__":
    main()

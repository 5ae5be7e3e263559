"""The steps that costs.py measures: one step of each stage on random tokens, with its FLOP count and its tokens."""

import json
import random
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from breakdown import Step, kinds_of, timed
from flops import TREE_PARENTS, Shape, forward_flops, llama_shape, seen_in_row, seen_in_tree, training_flops
from matmul import DTYPES, square_peak
from measuring import now, peak_bytes, reset_peak
from random_models import model_of
from workloads import NEW_TOKENS

from pitcli.data.templates import Example
from pitcli.engine.generation.continuous_batching import ContinuousBatching, generate_all
from pitcli.engine.generation.sampling import Decoding, Request
from pitcli.engine.models.bases import resolve_base
from pitcli.engine.models.forward import completion_logprobs, score_trees, scores
from pitcli.engine.models.loading import load_base, lora_config
from pitcli.engine.models.packing import tree_batch
from pitcli.engine.models.precision import autocast
from pitcli.engine.models.roles import GAP, IMPROVER, REFERENCE, RoleModel
from pitcli.engine.models.trees import Tree, completion_batch
from pitcli.engine.training.rollouts import lay_out, role_logprobs
from pitcli.settings.base import LoraSettings
from pitcli.settings.training import RlConfig


def differentiate(model: Any, compute: Callable[[], Any]) -> None:
    """Run the forward and the backward pass, as training does."""
    with autocast(model.base):
        total = compute().sum()
    total.backward()


def sft_step(model: Any, request: dict[str, Any], shape: Shape) -> tuple[Step, float, int]:
    """Return an SFT step with its FLOP and tokens; the loss is over the last quarter of each row."""
    length, rows = request["length"], request["rows"]
    written = length // 4
    examples = [Example(ids(length - written, row), ids(written, row)) for row in range(rows)]
    batch = completion_batch(examples, 0).to(model.device)

    def step(phases: dict[str, float]) -> None:
        model.use(IMPROVER, train=True)
        differentiate(model, lambda: completion_logprobs(model, batch))

    flops = training_flops(shape, rows * length, rows * seen_in_row(length), rows * written)
    return step, flops, rows * length


def gap_step(model: Any, request: dict[str, Any], shape: Shape) -> tuple[Step, float, int]:
    """Return a gap step with its FLOP and tokens; x is half of each conversation, each response a quarter."""
    length, rows = request["length"], request["rows"]
    sizes = [length // 2, *[length // 4] * 6]
    trees = [
        Tree([ids(size, row + index) for index, size in enumerate(sizes)], list(TREE_PARENTS), [5, 2, 6, 3])
        for row in range(rows)
    ]
    batch = tree_batch(model, trees)

    def step(phases: dict[str, float]) -> None:
        model.use(GAP, train=True)
        differentiate(model, lambda: scores(model, batch))

    flops = training_flops(shape, rows * sum(sizes), rows * seen_in_tree(sizes, TREE_PARENTS), 0)
    return step, flops, rows * sum(sizes)


def rl_step(model: Any, request: dict[str, Any], shape: Shape) -> tuple[Step, float, int]:
    """Return an RL step with its FLOP and tokens: k samples of one prompt, their gaps, their KL, one update.

    Sampling counts as one forward pass.
    """
    k, prompt = request["k"], ids(request["length"] - NEW_TOKENS, 0)
    config = RlConfig(samples_per_prompt=k)
    decoding = Decoding(1.0, 1.0, NEW_TOKENS, (2,), NEW_TOKENS)
    half = len(prompt) // 2

    def step(phases: dict[str, float]) -> None:
        ended = timed(phases, request["device"])
        with autocast(model.base):
            with model.writing(IMPROVER):
                drawn = generate_all(model, IMPROVER, decoding, [Request(prompt, seed) for seed in range(k)])
            ended("sampling")
            segments, parents, leaves = [prompt[:half], prompt[half:]], [-1, 0], []
            for sample in drawn:
                leaves += [len(segments), len(segments) + 2]
                parents += [1, 0, len(segments) + 1]
                segments += [sample.token_ids, sample.token_ids, prompt[half:]]
            score_trees(model, [Tree(segments, parents, leaves)], config.micro_batch_size)
            ended("gaps")
            batches = lay_out(model, [prompt], [sample.token_ids for sample in drawn], config).batches
            role_logprobs(model, REFERENCE, batches, 1.0)
            ended("reference")
        model.use(IMPROVER, train=True)
        for batch in batches:
            differentiate(model, partial(completion_logprobs, model, batch))
        ended("update")

    sampled = k * NEW_TOKENS
    group = len(prompt) + sampled
    seen = seen_in_tree([len(prompt), *[NEW_TOKENS] * k], [-1, *[0] * k])
    gaps, judged = gap_flops(shape, half, len(prompt) - half, k)
    written = forward_flops(shape, group, seen, sampled)  # once by sampling, once by the reference
    return step, training_flops(shape, group, seen, sampled) + 2 * written + gaps, group + sampled + judged


def improve_step(model: Any, sizes: dict[str, Any], shape: Shape) -> tuple[Step, float, int]:
    """Return an improvement of each row with its FLOP and tokens: 48 new tokens, and their gap over a draft as long."""
    rows, half = sizes["rows"], sizes["length"] - 2 * NEW_TOKENS
    requests = [Request(ids(half + NEW_TOKENS, row), row) for row in range(rows)]
    decoding = Decoding(1.0, 1.0, NEW_TOKENS, ())

    def step(phases: dict[str, float]) -> None:
        ended = timed(phases, sizes["device"])
        slots = ContinuousBatching(model, IMPROVER, decoding, rows)
        slots.admit(list(enumerate(requests)))
        ended("reading")
        samples = dict(slots.run(rows))
        ended("writing")
        trees = []
        for key, request in enumerate(requests):
            x, draft, written = request.prompt[:half], request.prompt[half:], samples[key].token_ids
            trees.append(Tree([x, draft, written, written, draft], [-1, 0, 1, 0, 3], [2, 4]))
        score_trees(model, trees, 2 * rows)
        ended("gaps")

    read = half + NEW_TOKENS
    written = forward_flops(shape, read + NEW_TOKENS, seen_in_row(read + NEW_TOKENS), NEW_TOKENS)
    gaps, judged = gap_flops(shape, half, NEW_TOKENS, 1)
    return step, rows * (written + gaps), rows * (read + NEW_TOKENS + judged)


def gap_flops(shape: Shape, prompt: int, reference: int, responses: int) -> tuple[float, int]:
    """Return the FLOP and the tokens of scoring responses of 48 tokens and one reference in both orders."""
    sizes, parents = [prompt, reference], [-1, 0]
    for _ in range(responses):
        parents += [1, 0, len(sizes) + 1]
        sizes += [NEW_TOKENS, NEW_TOKENS, reference]
    return forward_flops(shape, sum(sizes), seen_in_tree(sizes, parents), 0), sum(sizes)


def ids(count: int, seed: int) -> list[int]:
    """Return random token ids that are in every vocabulary."""
    return random.Random(seed).choices(range(3, 93), k=count)


STEPS = {"sft": sft_step, "gap": gap_step, "rl": rl_step, "improve": improve_step}


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Time one step after a warm-up; return its seconds, FLOP, tokens, peak memory and the parts of its time."""
    device = request["device"]
    if request["stage"] == "peak":
        return {"flops_per_second": square_peak(device, request["dtype"])}
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(resolve_base(model_of(request["shape"], Path(scratch), device)))
        config = json.loads((folder / "config.json").read_text())
        base = load_base(folder, request["load_in_4bit"], torch.device(device), DTYPES[request["dtype"]])
    return measure_on(with_roles(base, request["recompute"]), request, config)


def with_roles(base: Any, recompute: bool) -> RoleModel:
    """Return a base with fresh adapters of the three roles of RL."""
    model = RoleModel(base, 0)
    for role in (IMPROVER, REFERENCE, GAP):
        model.add_role(role, lora_config(LoraSettings()))
    if recompute:
        model.recompute_layers()
    return model


def measure_on(model: RoleModel, request: dict[str, Any], config: dict[str, Any]) -> dict[str, Any]:
    """Time one step of a loaded model after a warm-up. config: that of the model, as in config.json."""
    device = request["device"]
    step, flops, tokens = STEPS[request["stage"]](model, request, llama_shape(config, LoraSettings().lora_rank))
    before = reset_peak(device)
    step({})  # warm-up
    phases: dict[str, float] = {}
    started = now(device)
    step(phases)
    seconds = now(device) - started
    parts = phases or kinds_of(step, device)
    total = sum(parts.values())
    peak = peak_bytes(device)
    return {
        "seconds": seconds,
        "flops": flops,
        "tokens": tokens,
        "peak_bytes": peak,
        "passes_bytes": peak - before,
        "parts": {name: part / total for name, part in sorted(parts.items(), key=lambda item: -item[1])},
    }

"""Where the time of a training step goes, how far it is from the arithmetic, and how it grows.

    python benchmarks/costs.py [--device cpu|cuda] [--shape smollm2|1b] [--longest 4096]

Every line is measured in a process of its own, so that its peak memory is its own. On rows of random tokens of one
length, a step being one row (gap: a pair of four such; rl: one prompt with k samples of 48 tokens; improve: an
improvement of 48 tokens for each row). What would not fit into memory, going by a shorter row, is left out. Printed for
each: seconds, the least FLOP (flops.py), the share of the machine's matrix-product peak that they come to, the peak
memory, and in which kinds of operation, or for rl and improve in which phases, the seconds went.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from flops import TREE_PARENTS, Shape, forward_flops, llama_shape, seen_in_row, seen_in_tree, training_flops
from worker import peak_bytes
from works import NEW_TOKENS, SHAPES

LENGTHS = (256, 512, 1024, 2048, 4096)
GROUPS = (2, 4, 8)
ROWS = (1, 4, 16)
TAIL = 2000  # characters of what a process said that failed
KINDS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::linear"),
    "attention": ("flash_attention", "efficient_attention", "aten::_scaled_dot_product"),
    "4-bit": ("bitsandbytes", "quantize"),
    "copies and layout": ("copy", "cat", "clone", "fill", "zero", "index", "embedding"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--shape", choices=list(SHAPES), default="smollm2")
    parser.add_argument(
        "--longest", type=int, default=LENGTHS[-1], help="leave out conversations beyond so many tokens"
    )
    parser.add_argument("--load-in-4bit", action=argparse.BooleanOptionalAction, default=False)
    parser.add_argument("--out", type=Path, default=Path("costs.json"))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        print(json.dumps(measure(json.loads(options.one))))
        return
    common = {"device": options.device, "shape": options.shape, "load_in_4bit": options.load_in_4bit}
    asked = [{"stage": "peak"}]
    lengths = [length for length in LENGTHS if length <= options.longest]
    asked += [{"stage": stage, "length": length} for stage in STEPS for length in lengths]
    asked += [
        {"stage": stage, "length": length, "recompute": True} for stage in ("sft", "gap") for length in lengths[2:]
    ]
    asked += [{"stage": "rl", "length": lengths[0], "k": k} for k in GROUPS]
    asked += [
        {"stage": stage, "length": lengths[0], "rows": rows} for stage in ("sft", "gap", "improve") for rows in ROWS
    ]
    requests: list[dict[str, Any]] = []
    for one in asked:
        request = {"length": 0, "rows": 1, "k": 4, "recompute": False, **one, **common}
        requests += [request] if request not in requests else []
    measured: list[dict[str, Any]] = []
    for request in requests:
        if not fits(request, measured):
            print(f"{named(request)}: left out, as it would not fit into memory", flush=True)
            continue
        done = subprocess.run(
            [sys.executable, __file__, "--one", json.dumps(request)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            sys.exit(f"{named(request)}: ended with {done.returncode}:\n{done.stderr[-TAIL:]}")
        measured.append({**request, **json.loads(done.stdout.splitlines()[-1])})
        options.out.write_text(json.dumps(measured, indent=1) + "\n")
        show(measured[-1], measured[0]["flops_per_second"])


def fits(request: dict[str, Any], measured: list[dict[str, Any]]) -> bool:
    """Whether what the passes of a shorter row took, in proportion, is there."""
    alike = [one for one in measured if all(one[name] == request[name] for name in ("stage", "rows", "k", "recompute"))]
    if not alike or request["device"] != "cpu":
        return True
    last = alike[-1]
    wanted = last["peak_bytes"] + last["passes_bytes"] * (request["length"] / last["length"] - 1)
    return bool(wanted < psutil.virtual_memory().available)


def named(entry: dict[str, Any]) -> str:
    name = f"{entry['stage']:<7} length {entry['length']:>5} rows {entry['rows']:>3}"
    return name + (f" k {entry['k']}" if entry["stage"] == "rl" else "") + " recomputed" * entry["recompute"]


def show(entry: dict[str, Any], peak: float) -> None:
    if entry["stage"] == "peak":
        print(f"matrix-product peak: {peak / 1e9:.1f} GFLOP/s", flush=True)
        return
    share = entry["flops"] / entry["seconds"] / peak
    parts = ", ".join(f"{name} {part:.0%}" for name, part in entry["parts"].items())
    memory = f"{entry['peak_bytes'] / 2**30:.2f} GiB, {entry['passes_bytes'] / 2**30:.2f} over the model's"
    print(
        f"{named(entry)}: {entry['seconds']:.2f} s, {entry['tokens']} tokens, {share:.0%} of peak, {memory}; {parts}",
        flush=True,
    )


def measure(request: dict[str, Any]) -> dict[str, Any]:
    if request["stage"] == "peak":
        return {"flops_per_second": matmul_peak(request["device"])}
    import torch
    from prepare import model_of

    from pitcli.engine.models.bases import resolve_base
    from pitcli.engine.models.loading import load_base, lora_config
    from pitcli.engine.models.roles import GAP, IMPROVER, REFERENCE, RoleModel
    from pitcli.settings.base import LoraSettings

    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(resolve_base(model_of(request["shape"], Path(scratch), request["device"])))
        config = json.loads((folder / "config.json").read_text())
        base = load_base(folder, request["load_in_4bit"], torch.device(request["device"]))
    model = RoleModel(base, 0)
    lora = LoraSettings()
    for role in (IMPROVER, REFERENCE, GAP):
        model.add_role(role, lora_config(lora))
    if request["recompute"]:
        model.recompute_layers()
    step, flops, tokens = STEPS[request["stage"]](model, request, llama_shape(config, lora.lora_rank))
    held = held_bytes(request["device"] == "cuda")
    step({})  # warm-up
    phases: dict[str, float] = {}
    started = now(request["device"])
    step(phases)
    seconds = now(request["device"]) - started
    parts = phases or kinds_of(step, request["device"])
    total = sum(parts.values())
    peak = peak_bytes(request["device"] == "cuda")
    return {
        "seconds": seconds,
        "flops": flops,
        "tokens": tokens,
        "peak_bytes": peak,
        "passes_bytes": peak - held,
        "parts": {name: part / total for name, part in sorted(parts.items(), key=lambda item: -item[1])},
    }


Step = Callable[[dict[str, float]], None]


def differentiate(model: Any, compute: Callable[[], Any]) -> None:
    """There and back, as training does it."""
    from pitcli.engine.models.loading import autocast

    with autocast(model.device):
        total = compute().sum()
    total.backward()


def sft_step(model: Any, request: dict[str, Any], shape: Shape) -> tuple[Step, float, int]:
    """A quarter of each row is what the loss is taken over."""
    from pitcli.data.templates import Example
    from pitcli.engine.models.roles import IMPROVER
    from pitcli.engine.models.trees import completion_batch

    length, rows = request["length"], request["rows"]
    written = length // 4
    examples = [Example(ids(length - written, row), ids(written, row)) for row in range(rows)]
    batch = completion_batch(examples, 0).to(model.device)

    def step(phases: dict[str, float]) -> None:
        model.use(IMPROVER, train=True)
        differentiate(model, lambda: model.completion_logprobs(batch))

    flops = training_flops(shape, rows * length, rows * seen_in_row(length), rows * written)
    return step, flops, rows * length


def gap_step(model: Any, request: dict[str, Any], shape: Shape) -> tuple[Step, float, int]:
    """x is half of each conversation, the responses a quarter each."""
    from pitcli.engine.models.roles import GAP
    from pitcli.engine.models.trees import Tree

    length, rows = request["length"], request["rows"]
    sizes = [length // 2, *[length // 4] * 6]
    trees = [
        Tree([ids(size, row + place) for place, size in enumerate(sizes)], list(TREE_PARENTS), [5, 2, 6, 3])
        for row in range(rows)
    ]
    batch = model.tree_batch(trees)

    def step(phases: dict[str, float]) -> None:
        model.use(GAP, train=True)
        differentiate(model, lambda: model.scores(batch))

    flops = training_flops(shape, rows * sum(sizes), rows * seen_in_tree(sizes, TREE_PARENTS), 0)
    return step, flops, rows * sum(sizes)


def rl_step(model: Any, request: dict[str, Any], shape: Shape) -> tuple[Step, float, int]:
    """One prompt: k samples of 48 tokens, their gaps, their KL, one update. FLOP: of all four, sampling as forward."""
    from pitcli.engine.generation.sampling import Decoding, generate
    from pitcli.engine.models.loading import autocast
    from pitcli.engine.models.roles import IMPROVER, REFERENCE
    from pitcli.engine.models.trees import Tree
    from pitcli.engine.training.rollouts import group_batches, logprobs_under
    from pitcli.settings.training import RlConfig

    k, prompt = request["k"], ids(request["length"] - NEW_TOKENS, 0)
    config = RlConfig(samples_per_prompt=k)
    decoding = Decoding(1.0, 1.0, NEW_TOKENS, 2, NEW_TOKENS)
    half = len(prompt) // 2

    def step(phases: dict[str, float]) -> None:
        ended = timed(phases, request["device"])
        with autocast(model.device):
            drawn = generate(model, IMPROVER, [prompt], list(range(k)), decoding, samples_per_prompt=k)
            ended("sampling")
            segments, parents, leaves = [prompt[:half], prompt[half:]], [-1, 0], []
            for one in drawn:
                leaves += [len(segments), len(segments) + 2]
                parents += [1, 0, len(segments) + 1]
                segments += [one.token_ids, one.token_ids, prompt[half:]]
            model.score_trees([Tree(segments, parents, leaves)], config.micro_batch_size)
            ended("gaps")
            _, batches = group_batches(model, [prompt], drawn, config)
            logprobs_under(model, REFERENCE, batches, 1.0)
            ended("reference")
        model.use(IMPROVER, train=True)
        for batch in batches:
            differentiate(model, partial(model.completion_logprobs, batch))
        ended("update")

    sampled = k * NEW_TOKENS
    group = len(prompt) + sampled
    seen = seen_in_tree([len(prompt), *[NEW_TOKENS] * k], [-1, *[0] * k])
    gaps, judged = gap_flops(shape, half, len(prompt) - half, k)
    written = forward_flops(shape, group, seen, sampled)  # by sampling, and once more by the reference
    return step, training_flops(shape, group, seen, sampled) + 2 * written + gaps, group + sampled + judged


def improve_step(model: Any, request: dict[str, Any], shape: Shape) -> tuple[Step, float, int]:
    """For each row one improvement of 48 tokens, written side by side, and its gap over a draft as long."""
    from pitcli.engine.generation.continuous_batching import Call, Slots
    from pitcli.engine.generation.sampling import Decoding
    from pitcli.engine.models.roles import IMPROVER
    from pitcli.engine.models.trees import Tree

    rows, half = request["rows"], request["length"] - 2 * NEW_TOKENS
    calls = [Call(ids(half + NEW_TOKENS, row), row) for row in range(rows)]
    decoding = Decoding(1.0, 1.0, NEW_TOKENS, -1)

    def step(phases: dict[str, float]) -> None:
        ended = timed(phases, request["device"])
        slots = Slots(model, IMPROVER, decoding, rows)
        slots.admit(list(enumerate(calls)))
        ended("reading")
        samples = dict(slots.run(rows))
        ended("writing")
        trees = []
        for key, call in enumerate(calls):
            x, draft, written = call.prompt[:half], call.prompt[half:], samples[key].token_ids
            trees.append(Tree([x, draft, written, written, draft], [-1, 0, 1, 0, 3], [2, 4]))
        model.score_trees(trees, 2 * rows)
        ended("gaps")

    read = half + NEW_TOKENS
    written = forward_flops(shape, read + NEW_TOKENS, seen_in_row(read + NEW_TOKENS), NEW_TOKENS)
    gaps, judged = gap_flops(shape, half, NEW_TOKENS, 1)
    return step, rows * (written + gaps), rows * (read + NEW_TOKENS + judged)


def gap_flops(shape: Shape, prompt: int, reference: int, responses: int) -> tuple[float, int]:
    """Of both orders of each response of 48 tokens and one reference: FLOP and tokens."""
    sizes, parents = [prompt, reference], [-1, 0]
    for _ in range(responses):
        parents += [1, 0, len(sizes) + 1]
        sizes += [NEW_TOKENS, NEW_TOKENS, reference]
    return forward_flops(shape, sum(sizes), seen_in_tree(sizes, parents), 0), sum(sizes)


STEPS = {"sft": sft_step, "gap": gap_step, "rl": rl_step, "improve": improve_step}


def timed(phases: dict[str, float], device: str) -> Callable[[str], None]:
    """To be called at the end of each phase."""
    started = now(device)

    def ended(phase: str) -> None:
        nonlocal started
        phases[phase] = now(device) - started
        started = now(device)

    return ended


def kinds_of(step: Step, device: str) -> dict[str, float]:
    """Seconds by kind of operation, of a step under the profiler; what is no operation of torch is Python."""
    from torch.profiler import DeviceType, ProfilerActivity, profile

    on_gpu = device == "cuda"
    started = now(device)
    with profile(activities=[ProfilerActivity.CPU, *[ProfilerActivity.CUDA] * on_gpu]) as profiled:
        step({})
        seconds = now(device) - started
    kinds: Counter[str] = Counter()
    for event in profiled.key_averages():
        if event.device_type != DeviceType.CPU:  # a kernel, whose time its operation has too
            continue
        kind = next((kind for kind, names in KINDS.items() if any(name in event.key for name in names)), None)
        if kind is None and event.key.startswith("aten::"):
            kind = "elementwise"
        if kind:
            kinds[kind] += (event.self_device_time_total if on_gpu else event.self_cpu_time_total) / 1e6
    kinds["python"] = max(0.0, seconds - sum(kinds.values()))
    return dict(kinds)


def held_bytes(on_gpu: bool) -> int:
    """What is held now; the peak is counted from here on."""
    if on_gpu:
        import torch

        torch.cuda.reset_peak_memory_stats()
    elif sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5")
    return peak_bytes(on_gpu)


def matmul_peak(device: str) -> float:
    import torch

    dtype, size = (torch.bfloat16, 8192) if device == "cuda" else (torch.float32, 2048)
    left, right = (torch.randn(size, size, dtype=dtype, device=device) for _ in range(2))
    best = float("inf")
    for _ in range(10):
        started = now(device)
        torch.mm(left, right)
        best = min(best, now(device) - started)
    return 2 * size**3 / best


def ids(count: int, seed: int) -> list[int]:
    """Token ids that every model knows."""
    return random.Random(seed).choices(range(3, 93), k=count)


def now(device: str) -> float:
    if device == "cuda":
        import torch

        torch.cuda.synchronize()
    return time.perf_counter()


if __name__ == "__main__":
    main()

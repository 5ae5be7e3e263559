"""pit in bf16 against pit in fp32 on a CPU: python benchmarks/dtypes.py [--stages sft,gap,rl,improve] [--pairs 5]

With --packing bf16 or fp32: weights packed for the CPU, as commands that do not train have them, against plain ones in
this type. One process loads SmolLM2 twice and alternates the steps, so that whatever else the machine does meets both.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from cost_steps import STEPS, with_roles
from flops import llama_shape
from matmul import DTYPES

from pitcli.engine.models.bases import resolve_base
from pitcli.engine.models.loading import load_base
from pitcli.engine.models.roles import IMPROVER, RoleModel
from pitcli.settings.base import LoraSettings

SIZES = {
    "sft": {"length": 512, "rows": 8},
    "gap": {"length": 512, "rows": 2},
    "rl": {"length": 256, "k": 4},
    "improve": {"length": 256, "rows": 8},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stages", default=",".join(SIZES))
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--packing", choices=list(DTYPES), help="compare packed with plain weights; stage improve only")
    options = parser.parse_args()
    folder = resolve_base(options.model)
    shape = llama_shape(json.loads((folder / "config.json").read_text()), LoraSettings().lora_rank)
    for stage in ["improve"] if options.packing else options.stages.split(","):
        if options.packing:
            slow, fast = "plain", "packed"
            models = {name: loaded(folder, options.packing, packed=name == fast) for name in (slow, fast)}
        else:
            slow, fast = "fp32", "bf16"
            models = {name: loaded(folder, name, packed=stage == "improve") for name in (slow, fast)}
        request = {"device": "cpu", **SIZES[stage]}
        steps = {name: STEPS[stage](model, request, shape)[0] for name, model in models.items()}
        seconds: dict[str, list[float]] = {name: [] for name in steps}
        for pair in range(options.pairs + 1):  # the first pair warms up
            for name in list(steps)[:: -1 if pair % 2 else 1]:
                start = time.perf_counter()
                steps[name]({})
                seconds[name].append(time.perf_counter() - start)
        ratios = sorted(one / other for one, other in zip(seconds[slow][1:], seconds[fast][1:], strict=True))
        medians = ", ".join(f"{name} {statistics.median(times[1:]):.2f} s" for name, times in seconds.items())
        print(f"{stage}: {medians}; {ratios[0]:.2f}, {statistics.median(ratios):.2f}, {ratios[-1]:.2f}", flush=True)


def loaded(folder: Path, dtype: str, packed: bool) -> RoleModel:
    model = with_roles(load_base(folder, False, torch.device("cpu"), DTYPES[dtype]), False)
    if packed:  # as pit improve loads it
        model.keep_merged(IMPROVER)
        model.pack_weights()
    return model


if __name__ == "__main__":
    main()

"""`pit improve` with a stub for the model and its tokenizer: `load_driver.py REPORT ARGUMENTS`."""

import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pitcli import cli
from pitcli.data.templates import ChatFormat
from pitcli.engine.generation import continuous_batching as slots
from pitcli.engine.generation.sampling import Sample
from pitcli.engine.improving import scheduler as improvement
from pitcli.engine.training.inputs import Base
from pitcli.stages import improve  # noqa: F401 (imported here, so that its time and memory are not counted)


class StubModel:
    """Has no weights; rows are what is measured."""

    def load_role(self, role: str, folder: Path) -> None:
        pass

    def packs(self, longest: int) -> bool:
        return False


def load(base: Base) -> StubModel:
    """In the place of the model; from here on the tokenizer is a stub too."""
    ChatFormat.encode_text = lambda self, text: [0] * (1 + len(text) // 4)  # type: ignore[method-assign]
    ChatFormat.improver_prompt = lambda self, prompt, reference: [0] * 16  # type: ignore[method-assign]
    ChatFormat.decode = lambda self, ids: "An answer that is better."  # type: ignore[method-assign]
    return StubModel()


def generate(model: Any, role: str, prompts: Sequence[list[int]], seeds: Sequence[int], decoding: Any) -> list[Sample]:
    return [Sample(prompt[4:12], [0.0] * 8, True) for prompt in prompts]


def gaps(model: Any, chat: Any, comparisons: Sequence[Any], temperature: float, size: int) -> torch.Tensor:
    return torch.tensor([float(len(c.response)) - 20 for c in comparisons])


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    Base.load = load  # type: ignore[method-assign, assignment]
    slots.generate = generate  # type: ignore[assignment]
    improvement.calibrated_gaps = gaps
    before, start = peak_mib(), time.monotonic()
    code = cli.main(sys.argv[2:])
    figures = {"seconds": time.monotonic() - start, "mib_above_start": peak_mib() - before}
    Path(sys.argv[1]).write_text(json.dumps(figures))
    sys.exit(code)

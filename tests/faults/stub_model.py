"""A stub for the model of `pit improve` and for its tokenizer.

`stub_model.py FIGURES ARGUMENTS` runs the command with the stub and writes its time and memory to FIGURES.
"""

import json
import resource
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from pitcli.data.templates import ChatFormat
from pitcli.data.thoughts import Answer
from pitcli.engine.generation import static_batching
from pitcli.engine.generation.sampling import Sample
from pitcli.engine.improving.scoring import GapModel
from pitcli.engine.models.opening import Base


class StubModel:
    """Has no weights, because only the handling of rows is measured."""

    packs_trees = False
    base = SimpleNamespace(config=SimpleNamespace(get_text_config=lambda: None))

    def keep_merged(self, role: str) -> None:
        pass

    def pack_weights(self, writes: bool = True) -> None:
        pass


def load(base: Base, adapters: object) -> StubModel:
    """Returns the stub instead of the model; from here on the tokenizer is a stub too."""
    ChatFormat.encode_text = lambda self, text: [0] * (1 + len(text) // 4)  # type: ignore[method-assign]
    ChatFormat.improver_prompt = lambda self, prompt, reference: [0] * 16  # type: ignore[method-assign]
    ChatFormat.answer = lambda self, ids: Answer("An answer that is better.", "")  # type: ignore[method-assign]
    return StubModel()


def generate(model: Any, role: str, prompts: Sequence[list[int]], seeds: Sequence[int], decoding: Any) -> list[Sample]:
    return [Sample(prompt[4:12], [0.0] * 8, True) for prompt in prompts]


def member_gaps(self: GapModel, comparisons: Sequence[Any]) -> torch.Tensor:
    return torch.tensor([[float(len(c.response)) - 20 for c in comparisons]])


def peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def install() -> None:
    Base.load = load  # type: ignore[method-assign, assignment]
    static_batching.generate = generate  # type: ignore[assignment]
    GapModel.member_gaps = member_gaps  # type: ignore[method-assign]


if __name__ == "__main__":
    from pitcli import cli
    from pitcli.stages import improve  # noqa: F401 (imported here, so that its time and memory are not counted)

    install()
    before, start = peak_mib(), time.monotonic()
    code = cli.main(sys.argv[2:])
    figures = {"seconds": time.monotonic() - start, "mib_above_start": peak_mib() - before}
    Path(sys.argv[1]).write_text(json.dumps(figures))
    sys.exit(code)

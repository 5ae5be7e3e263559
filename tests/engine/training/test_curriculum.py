"""Curriculum stage best: the reference is the best of k outputs of the policy, by the reward over the first."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pitcli.data.rows import Comparison, Message
from pitcli.engine.generation.methods import PromptWithReference
from pitcli.engine.generation.sampling import Sample
from pitcli.engine.training import curriculum as curriculum_module
from pitcli.engine.training.curriculum import Curriculum
from pitcli.settings.training import RlConfig

DRAFTS = [PromptWithReference((Message("user", name),), f"draft {name}") for name in "abc"]
GAPS = {"draft a": 0.0, "one": -1.0, "two": 2.0, "three": 1.0, "four": -2.0, "five": -0.5, "six": float("nan")}


CHAT = SimpleNamespace(
    policy_prompt=lambda prompt: [ord(prompt[0].content)],
    decode=lambda ids: ["", "one", "two", "three", "four", "five", "six"][ids[0]],
    stop_ids=(0,),
)


def reward(comparisons: Sequence[Comparison], k: int) -> torch.Tensor:
    assert k == 2
    assert all(c.reference_response == f"draft {c.prompt[0].content}" for c in comparisons)
    return torch.tensor([GAPS.get(c.response, 0.0) for c in comparisons])


def test_the_best_draw_is_the_reference_unless_the_first_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    """With k = 3 two more are drawn per prompt; an empty response counts as the draft, a NaN as no improvement."""
    drawn: list[Any] = []

    def sample_groups(model: Any, role: Any, prompts: Any, decoding: Any, seed: int, k: int) -> list[Sample]:
        drawn.append((role, prompts, decoding.temperature, k))
        return [Sample([token], [0.0], True) for token in (1, 2, 4, 0, 5, 6)]

    monkeypatch.setattr(curriculum_module, "sample_groups", sample_groups)
    config = RlConfig(curriculum_stages="best", samples_per_prompt=3, reference_temperature=0.7)
    curriculum = Curriculum(config, None, CHAT, reward, [], DRAFTS, "policy")  # type: ignore[arg-type]
    found = curriculum.of_stage(config.curriculum_stages[0], [0, 1, 2], step=0, progress=0.0)
    assert [row.reference_response for row in found] == ["two", "draft b", "draft c"]
    assert drawn == [("policy", [[97], [98], [99]], 0.7, 2)]

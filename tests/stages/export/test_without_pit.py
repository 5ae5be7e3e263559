"""The code in the docs for transformers and peft gives what pit gives on real runs of the embedded model."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from pitcli.data.rows import Message
from pitcli.data.templates import ChatFormat
from pitcli.engine.generation.sampling import Decoding
from pitcli.engine.generation.static_batching import generate
from pitcli.engine.models.forward import score_trees
from pitcli.engine.models.loading import keep_unpacked
from pitcli.engine.models.roles import GAP, IMPROVER
from pitcli.settings.base import GapLoss
from pitcli.stages import export
from tests.stages.export.conftest import NF4, RoleOf

PAGE = Path(__file__).parents[3] / "docs" / "export.md"


def code_of_the_docs() -> str:
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert 'tokenizer.pad_token = "<|endoftext|>"\n' in code
    assert "\nquantization = None\n" in code
    # the embedded model has a separate pad token, these runs are in 4-bit, and 40 tokens are enough
    code = code.replace('tokenizer.pad_token = "<|endoftext|>"\n', "").replace("quantization = None\n", "")
    return code.replace("max_new_tokens=256", "max_new_tokens=40")


def test_it_writes_and_scores_what_pit_does(
    role_of: RoleOf, tiny_chat: ChatFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    names: dict[str, Any] = {"quantization": NF4}
    with monkeypatch.context() as patch:
        for kind in (AutoModelForCausalLM, AutoModelForSequenceClassification):
            patch.setattr(kind, "from_pretrained", unpacked(kind.from_pretrained))
        exec(code_of_the_docs(), names)
    model = role_of("rl", IMPROVER)
    for x, y_ref, _ in export.PROBES:
        prompt = tiny_chat.improver_prompt((Message("user", x),), y_ref)
        (sample,) = generate(model, IMPROVER, [prompt], [0], Decoding(0, 1, 40, tiny_chat.stop_ids))
        assert names["improve"](x, y_ref) == tiny_chat.decode(sample.token_ids)
    scores = torch.stack(score_trees(role_of("reward", GAP), export.probe_trees(tiny_chat, GapLoss.five_term), 8))
    assert scores.std() > 0.01
    for (x, y_ref, better), (forth, back) in zip(export.PROBES, scores.tolist(), strict=True):
        assert abs(names["r_gap"](x, better, y_ref) - forth) < 1e-4
        assert abs(names["r_gap"](x, y_ref, better) - back) < 1e-4


def unpacked(load: Any) -> Any:
    """A loader whose 4-bit layers compute alike on every CPU, as pit has them (docs/troubleshooting.md)."""

    def loaded(*args: Any, **options: Any) -> Any:
        model = load(*args, **options)
        keep_unpacked(model)
        return model

    return loaded

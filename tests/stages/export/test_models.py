"""pit export on real runs of the embedded model: what other libraries load equals what pit runs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from pitcli.data.rows import Message
from pitcli.data.templates import ChatFormat
from pitcli.engine.generation.sampling import Decoding
from pitcli.engine.generation.static_batching import generate
from pitcli.engine.models import merging
from pitcli.engine.models.forward import score_trees
from pitcli.engine.models.loading import keep_unpacked, saved_lora
from pitcli.engine.models.roles import GAP, IMPROVER
from pitcli.errors import RunError
from pitcli.settings.base import GapLoss
from pitcli.stages import export
from tests.stages.export.conftest import CPU, NF4, Out, RoleOf, card_code, error, pit, result


@pytest.mark.parametrize("run", ["sft", "whole", "rl"])
def test_the_merged_improver_writes_what_pit_writes(
    run: str, role_of: RoleOf, tiny_chat: ChatFormat, tiny_folder: Path, tmp_path: Path, capsys: Out
) -> None:
    """Greedily, by the code on the model card, in plain transformers; the base model writes something else."""
    pit(f"export runs/{run} --out {tmp_path}/model --dtype fp32")
    assert result(capsys)["drift"]["largest"] < 1e-3
    model, base = role_of(run, IMPROVER), AutoModelForCausalLM.from_pretrained(tiny_folder)
    as_base = 0
    for x, y_ref, _ in export.PROBES:
        prompt = tiny_chat.improver_prompt((Message("user", x),), y_ref)
        (sample,) = generate(model, IMPROVER, [prompt], [0], Decoding(0, 1, 40, tiny_chat.stop_ids))
        card: dict[str, Any] = {"x": x, "y_ref": y_ref}
        exec(card_code(tmp_path / "model"), card)
        assert card["inputs"]["input_ids"][0].tolist() == prompt
        assert card["response"] == tiny_chat.decode(sample.token_ids)
        written = base.generate(**card["inputs"], max_new_tokens=40, do_sample=False)[0, len(prompt) :]
        as_base += card["response"] == tiny_chat.decode(written.tolist())
    assert as_base < len(export.PROBES), "the improver differs from its base, so this test can fail"


@pytest.mark.parametrize(("run", "role"), [("reward", ""), ("rl", "--role gap")])
def test_the_merged_gap_model_scores_what_pit_scores(
    run: str, role: str, role_of: RoleOf, tiny_chat: ChatFormat, tmp_path: Path
) -> None:
    """One at a time by the code on the model card, and in a padded batch."""
    pit(f"export runs/{run} {role} --out {tmp_path}/model --dtype fp32")
    trees = export.probe_trees(tiny_chat, GapLoss.five_term)
    scores_N = torch.cat(score_trees(role_of(run, GAP), trees, 8))
    assert scores_N.std() > 0.01
    prompt, draft, better = export.PROBES[0]
    card: dict[str, Any] = {"x": prompt, "y1": better, "y2": draft}
    exec(card_code(tmp_path / "model"), card)
    assert abs(card["r_gap"].item() - scores_N[0].item()) < 1e-5
    conversations = [{"input_ids": ids} for tree in trees for ids in tree.conversations()]
    batch = AutoTokenizer.from_pretrained(tmp_path / "model").pad(conversations, return_tensors="pt")
    with torch.no_grad():
        logits_N1 = card["model"](**batch).logits
    assert logits_N1.shape == (16, 1)
    assert (logits_N1[:, 0] - scores_N).abs().max() < 1e-5 * scores_N.abs().max()
    assert card["model"].config.problem_type == "regression", "without it, vLLM applies a sigmoid"


def test_a_pointwise_gap_model_is_an_ordinary_reward_model(
    role_of: RoleOf, tiny_chat: ChatFormat, tmp_path: Path, capsys: Out
) -> None:
    """It scores a conversation of x and y, by the code on the model card in plain transformers."""
    pit(f"export runs/pointwise --out {tmp_path}/model --dtype fp32")
    assert result(capsys)["drift"]["largest"] < 1e-3
    trees = export.probe_trees(tiny_chat, GapLoss.pointwise)
    scores_B2 = torch.stack(score_trees(role_of("pointwise", GAP), trees, 8))
    assert scores_B2.std() > 0.01
    text = (tmp_path / "model/README.md").read_text()
    assert "y_ref" not in text
    assert "y2}" not in text
    assert "Write a better response." not in text
    for (prompt, draft, better), rewards in zip(export.PROBES, scores_B2.tolist(), strict=True):
        for response, reward in zip((better, draft), rewards, strict=True):
            card: dict[str, Any] = {"x": prompt, "y": response}
            exec(card_code(tmp_path / "model"), card)
            assert card["r"].item() == pytest.approx(reward, abs=1e-4)


def test_plain_peft_loads_the_adapter(
    role_of: RoleOf, tiny_chat: ChatFormat, tiny_folder: Path, tmp_path: Path, capsys: Out
) -> None:
    pit(f"export runs/sft --adapter --base-name ada/tiny --out {tmp_path}/adapter")
    assert result(capsys) == {
        **{"out": f"{tmp_path}/adapter", "form": "adapter", "role": "improver"},
        **{"base": "ada/tiny", "drift": None},
    }
    base = AutoModelForCausalLM.from_pretrained(tiny_folder, dtype=torch.float32, quantization_config=NF4)
    keep_unpacked(base)
    examples = export.probe_examples(tiny_chat, IMPROVER)
    without = merging.plain_logprobs(base, examples)
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    ours = merging.role_logprobs(role_of("sft", IMPROVER), IMPROVER, examples)
    assert merging.logprob_drift(ours, merging.plain_logprobs(plain, examples)).largest < 1e-4
    assert merging.logprob_drift(ours, without).largest > 0.1


def test_the_adapter_files_serve_vllm_and_pit(tmp_path: Path) -> None:
    pit(f"export runs/sft --adapter --base-name ada/tiny --out {tmp_path}/adapter")
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert settings == {
        **{"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "ada/tiny"},
        **{"inference_mode": True, "r": 4, "lora_alpha": 32, "lora_dropout": 0.0, "bias": "none"},
        "target_modules": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
        "modules_to_save": None,
    }
    card = (tmp_path / "adapter/README.md").read_text()
    assert "--max-lora-rank 8 " in card, "vLLM does not accept 4"
    (shown,) = re.findall(r"--lora-modules '(\{.*?\})'", card)
    assert json.loads(shown) == {"name": "improver", "path": "FOLDER", "base_model_name": "ada/tiny"}
    assert "--lora-modules improver=FOLDER" in card
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md", "digests.json"}
    assert saved_lora(tmp_path / "adapter").r == 4


def test_the_gap_adapter_includes_its_head(
    role_of: RoleOf, tiny_chat: ChatFormat, tiny_folder: Path, tmp_path: Path
) -> None:
    pit(f"export runs/rl --role gap --adapter --base-name ada/tiny --out {tmp_path}/adapter")
    base = AutoModelForSequenceClassification.from_pretrained(
        tiny_folder, num_labels=1, dtype=torch.float32, quantization_config=NF4
    )
    keep_unpacked(base)
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    trees = export.probe_trees(tiny_chat, GapLoss.five_term)
    assert (
        merging.plain_scores(plain, trees) - torch.stack(score_trees(role_of("rl", GAP), trees, 8))
    ).abs().max() < 1e-5
    card = (tmp_path / "adapter/README.md").read_text()
    assert "vLLM: export without `--adapter`. From version 0.31 on it also loads an adapter with a head" in card
    tensors = safe_open(tmp_path / "adapter/adapter_model.safetensors", framework="pt").keys()
    assert "base_model.model.score.weight" in tensors, "vLLM finds the head by this name"


def test_the_drift_is_printed_and_is_larger_in_bf16(tmp_path: Path, capsys: Out) -> None:
    drifts = {}
    for dtype in ("fp32", "bf16"):
        pit(f"export runs/sft --out {tmp_path}/{dtype} --dtype {dtype}")
        out, err = capsys.readouterr()
        drifts[dtype] = json.loads(out)["drift"]
        for figure in drifts[dtype].values():
            assert f" {figure:.4g}" in err
        with safe_open(tmp_path / dtype / "model.safetensors", framework="pt") as tensors:
            kinds = {tensors.get_slice(name).get_dtype() for name in list(tensors.keys())}
        assert kinds == {{"fp32": "F32", "bf16": "BF16"}[dtype]}
    assert 0 < drifts["fp32"]["mean"] < 1e-4 < drifts["bf16"]["mean"] < 0.1
    assert 0.9 < drifts["bf16"]["agreement"] <= drifts["fp32"]["agreement"] == 1


def test_large_models_are_written_in_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    monkeypatch.setattr(merging, "SHARD_SIZE", "1MB")
    pit(f"export runs/sft --out {tmp_path}/model --dtype fp32")
    assert result(capsys)["drift"]["largest"] < 1e-3
    shards = list((tmp_path / "model").glob("model-*.safetensors"))
    assert len(shards) > 2
    assert {shard.stat().st_mode for shard in shards} == {(tmp_path / "model/config.json").stat().st_mode}


def test_generation_stops_at_the_same_token_as_in_pit(tmp_path: Path, tiny_chat: ChatFormat) -> None:
    pit(f"export runs/sft --out {tmp_path}/model")
    settings = json.loads((tmp_path / "model/generation_config.json").read_text())
    assert settings["eos_token_id"] == [tiny_chat.stop_id]
    assert settings.keys() <= {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"}


@pytest.mark.parametrize("run", ["sft", "reward"])
@pytest.mark.parametrize("wrong", [3.0, float("nan")])
def test_a_wrong_merge_is_not_written(
    run: str, wrong: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    merged_weights = merging.merged_weights

    def scaled(*arguments: Any) -> dict[str, torch.Tensor]:
        return {name: weight.flip(0) * -wrong for name, weight in merged_weights(*arguments).items()}

    monkeypatch.setattr(export, "merged_weights", scaled)
    pit(f"export runs/{run} --out {tmp_path}/model --dtype fp32", code=3)
    assert error(capsys).startswith("error: nothing was written: expected a merged model that differs by at most ")
    assert list(tmp_path.iterdir()) == []


def test_4_bit_layers_stay_as_they_were_quantised(role_of: RoleOf, tiny_chat: ChatFormat) -> None:
    """Also on a CPU for which bitsandbytes would repack 4-bit layers when they are used."""
    model = role_of("sft", IMPROVER)
    layers = [layer for layer in model.base.modules() if isinstance(layer, merging.Linear4bit)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = True
    keep_unpacked(model.base)
    before = [layer.weight.data.clone() for layer in layers]
    merging.role_logprobs(model, IMPROVER, export.probe_examples(tiny_chat, IMPROVER)[:1])
    assert all(torch.equal(layer.weight.data, data) for layer, data in zip(layers, before, strict=True))
    layers[0].weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(RunError, match="repacked for this CPU"):
        merging.merged_weights(model, IMPROVER, torch.float32)


def test_merging_frees_each_4_bit_layer(role_of: RoleOf) -> None:
    model = role_of("sft", IMPROVER)
    layers = [name for name, layer in model.base.named_modules() if isinstance(layer, merging.Linear4bit)]
    weights = merging.merged_weights(model, IMPROVER, torch.bfloat16)
    assert len(layers) == 28
    assert not any(isinstance(layer, merging.Linear4bit) for layer in model.base.modules())
    assert {name.replace(".base_layer", ".weight") for name in layers} < weights.keys()
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_a_gap_model_whose_pad_token_is_its_stop_token_scores_the_last_token(
    role_of: RoleOf, tiny_chat: ChatFormat, tmp_path: Path
) -> None:
    model = role_of("reward", GAP)
    tokenizer = AutoTokenizer.from_pretrained(tiny_chat.tokenizer.name_or_path)
    tokenizer.pad_token = tokenizer.eos_token
    chat, trees = ChatFormat(tokenizer), export.probe_trees(tiny_chat, GapLoss.five_term)
    scores_B2 = merging.role_scores(model, trees)
    head, config = model.head_weight(GAP), model.base.config
    weights = merging.merged_weights(model, GAP, torch.float32)
    plain = merging.plain_model(config, weights, head, chat, torch.float32)
    merging.write_plain(plain, chat, tmp_path)
    assert (
        merging.plain_scores(merging.load_plain(tmp_path, True, CPU), trees) - scores_B2
    ).abs().max() < 1e-5 * scores_B2.abs().max()

"""The model card of an export says what the model is, and reveals nothing about this machine."""

import json
from pathlib import Path

from huggingface_hub import ModelCard

from pitcli import cli
from tests.stages.export.conftest import TRAINED, card_code, pit


def test_no_file_reveals_a_path_of_this_machine(project: Path, tmp_path: Path, tiny_folder: Path) -> None:
    here = project.resolve()
    (project / "elsewhere").mkdir()
    pit(f"sft {TRAINED.replace('data/', f'{here}/data/')} --out {here}/elsewhere/run")
    pit(f"export {here}/elsewhere/run --out {tmp_path}/merged")
    pit(f"export runs/rl --adapter --base-name ada/tiny --out {tmp_path}/adapter")
    for path in [*(tmp_path / "merged").iterdir(), *(tmp_path / "adapter").iterdir()]:
        content = path.read_bytes()
        for private in (str(here), str(tmp_path), str(tiny_folder), str(Path.home()) + "/"):
            assert private.encode() not in content, path.name


def test_the_card_of_an_improver(tmp_path: Path) -> None:
    pit(f"export runs/rl --out {tmp_path}/model --evaluation seen/evaluation.json --license apache-2.0")
    card = ModelCard.load(tmp_path / "model/README.md")
    assert card.data.to_dict() == {
        **{"license": "apache-2.0", "library_name": "transformers", "pipeline_tag": "text-generation"},
        "tags": ["pit", "self-improvement", "improver"],
    }
    manifest = json.loads(Path("runs/rl/manifest.json").read_text())
    for text in (
        "<|user|>{x}<|end|><|assistant|>{y_ref}<|end|><|user|>Write a better response.<|end|><|assistant|>",
        f"| base, SHA-256 of its files | {manifest['base']['digest']} |",
        "| data | pairs.jsonl, 40 rows |",
        f"| data, SHA-256 of its rows | {manifest['data']['digest']} |",
        "| `kl_coef` | 0.05 |",
        "| `steps` | 2 |",
        f"transformers {manifest['versions']['transformers']}",
        "**dequantised 4-bit weights**",
        "mean absolute difference of the log-probs",
    ):
        assert text in card.content, text
    evaluation = json.loads(Path("seen/evaluation.json").read_text())
    (row,) = [c for c in evaluation["comparisons"] if c["system"] == "pit" and c["baseline"] == "original"]
    (claim,) = evaluation["claims"]
    low, high = row["delta_ci"]
    assert f"| pit | original | oracle | 24 | {row['delta']:+.1f} [{low:+.1f}, {high:+.1f}] |" in card.content
    assert not claim["improves"], "of two steps"
    assert "**What is missing before one may claim that pit improves**:" in card.content
    for reason in claim["reasons"]:
        assert "\n- " + reason.replace("[", "\\[").replace("]", "\\]") + "\n" in card.content


def test_the_card_of_an_adapter_on_the_hub(tmp_path: Path) -> None:
    pit(f"export runs/sft --adapter --base-name ada/tiny --out {tmp_path}/adapter")
    card = ModelCard.load(tmp_path / "adapter/README.md")
    assert card.data.to_dict() == {
        **{"base_model": "ada/tiny", "base_model_relation": "adapter", "library_name": "peft"},
        **{"pipeline_tag": "text-generation", "tags": ["pit", "self-improvement", "improver", "lora"]},
    }
    assert "nothing on this card shows that the model improves anything" in card.content
    compile(card_code(tmp_path / "adapter"), "card", "exec")


def test_special_characters_in_file_names_do_not_break_the_card(tmp_path: Path) -> None:
    Path("a|b<script>`.jsonl").write_text(Path("data/pairs.jsonl").read_text())
    assert cli.main(["sft", *TRAINED.replace("data/pairs", "a|b<script>`").split(), "--out", f"{tmp_path}/run"]) == 0
    pit(f"export {tmp_path}/run --out {tmp_path}/model")
    assert "| data | a\\|b\\<script\\>\\`.jsonl, 40 rows |\n" in (tmp_path / "model/README.md").read_text()

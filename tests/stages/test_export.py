"""pit export on real runs of the embedded model: what others load is what pit runs, and the card says what it is."""

import json
import os
import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError
from peft import PeftModel
from safetensors import SafetensorError, safe_open
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
)

from pitcli import cli
from pitcli.data.rows import Message
from pitcli.data.synthetic import preference_rows
from pitcli.data.templates import ChatFormat
from pitcli.engine.generation.sampling import Decoding, generate
from pitcli.engine.models import merging
from pitcli.engine.models.adapters import load_role
from pitcli.engine.models.forward import score_trees
from pitcli.engine.models.loading import keep_unpacked, load_base, saved_lora
from pitcli.engine.models.roles import GAP, IMPROVER, RoleModel
from pitcli.errors import RunError
from pitcli.stages import export

CPU = torch.device("cpu")
NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
)
TRAINED = "--data data/pairs.jsonl --model tiny --lora-rank 4 --batch-size 8 --learning-rate 1e-2 --max-steps 6"

RoleOf = Callable[..., RoleModel]
Out = pytest.CaptureFixture[str]


def pit(line: str, code: int = 0) -> None:
    assert cli.main(line.split()) == code


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Small runs of every kind, rows that the RL run's improver wrote, and their evaluation."""
    folder = tmp_path_factory.mktemp("exported")
    before = Path.cwd()
    os.chdir(folder)
    Path("data").mkdir()
    Path("data/pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in preference_rows(40, seed=3)))
    drafts = [{"prompt": row["prompt"], "response": row["rejected"]} for row in preference_rows(24, seed=8)]
    Path("drafts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in drafts))
    pit(f"sft {TRAINED}")
    pit(f"sft {TRAINED} --no-load-in-4bit --out runs/whole")
    pit(f"train-reward {TRAINED}")
    pit("rl --max-steps 2 --batch-size 4 --learning-rate 1e-3 --rollout-max-new-tokens 10")
    pit("improve --input drafts.jsonl --output pit.jsonl --stop none --max-iters 1 --max-new-tokens 10")
    pit("evaluate --input pit.jsonl --judge oracle --draws 200 --out seen")
    yield folder
    os.chdir(before)


@pytest.fixture(autouse=True)
def in_project(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(project)
    monkeypatch.delenv("PIT_DEBUG", raising=False)


@pytest.fixture
def role_of(tiny_folder: Path) -> RoleOf:
    """A role as pit runs it."""

    def load(run: str, role: str) -> RoleModel:
        model = RoleModel(load_base(tiny_folder, run != "whole", CPU), 0)
        load_role(model, role, Path("runs", run, role))
        model.use(role)
        return model

    return load


def result(capsys: Out) -> dict[str, Any]:
    return dict(json.loads(capsys.readouterr().out.splitlines()[-1]))


def error(capsys: Out) -> str:
    return capsys.readouterr().err.splitlines()[-1]


def card_code(folder: Path) -> str:
    """The card's own example, about this folder."""
    (code,) = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    return str(code).replace('"FOLDER"', repr(str(folder))).replace("max_new_tokens=256", "max_new_tokens=40")


@pytest.mark.parametrize("run", ["sft", "whole", "rl"])
def test_the_merged_improver_writes_what_pit_writes(
    run: str, role_of: RoleOf, tiny_chat: ChatFormat, tiny_folder: Path, tmp_path: Path, capsys: Out
) -> None:
    """Greedily, by the code on its card, in plain transformers; the base itself writes something else."""
    pit(f"export runs/{run} --out {tmp_path}/model --dtype fp32")
    assert result(capsys)["drift"]["largest"] < 1e-3
    model, base = role_of(run, IMPROVER), AutoModelForCausalLM.from_pretrained(tiny_folder)
    as_base = 0
    for x, y_ref, _ in export.PROBES:
        prompt = tiny_chat.improver_prompt((Message("user", x),), y_ref)
        (sample,) = generate(model, IMPROVER, [prompt], [0], Decoding(0, 1, 40, tiny_chat.stop_id))
        told: dict[str, Any] = {"x": x, "y_ref": y_ref}
        exec(card_code(tmp_path / "model"), told)
        assert told["inputs"]["input_ids"][0].tolist() == prompt
        assert told["response"] == tiny_chat.decode(sample.token_ids)
        written = base.generate(**told["inputs"], max_new_tokens=40, do_sample=False)[0, len(prompt) :]
        as_base += told["response"] == tiny_chat.decode(written.tolist())
    assert as_base < len(export.PROBES), "so this test can fail"


@pytest.mark.parametrize(("run", "role"), [("reward", ""), ("rl", "--role gap")])
def test_the_merged_gap_model_scores_what_pit_scores(
    run: str, role: str, role_of: RoleOf, tiny_chat: ChatFormat, tmp_path: Path
) -> None:
    """One at a time by the code on its card, and in a padded batch."""
    pit(f"export runs/{run} {role} --out {tmp_path}/model --dtype fp32")
    trees = export.probe_trees(tiny_chat)
    scores_N = torch.cat(score_trees(role_of(run, GAP), trees, 8))
    assert scores_N.std() > 0.01
    prompt, draft, better = export.PROBES[0]
    told: dict[str, Any] = {"x": prompt, "y1": better, "y2": draft}
    exec(card_code(tmp_path / "model"), told)
    assert abs(told["r_gap"].item() - scores_N[0].item()) < 1e-5
    conversations = [{"input_ids": ids} for tree in trees for ids in tree.conversations()]
    batch = AutoTokenizer.from_pretrained(tmp_path / "model").pad(conversations, return_tensors="pt")
    with torch.no_grad():
        logits_N1 = told["model"](**batch).logits
    assert logits_N1.shape == (16, 1)
    assert (logits_N1[:, 0] - scores_N).abs().max() < 1e-5
    assert told["model"].config.problem_type == "regression", "or vLLM puts a sigmoid over it"


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


def test_the_adapter_is_one_for_vllm_and_for_pit(tmp_path: Path) -> None:
    pit(f"export runs/sft --adapter --base-name ada/tiny --out {tmp_path}/adapter")
    settings = json.loads((tmp_path / "adapter/adapter_config.json").read_text())
    assert settings == {
        **{"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": "ada/tiny"},
        **{"inference_mode": True, "r": 4, "lora_alpha": 32, "lora_dropout": 0.0, "bias": "none"},
        "target_modules": ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"],
        "modules_to_save": None,
    }
    assert "--max-lora-rank 8 " in (tmp_path / "adapter/README.md").read_text(), "vLLM takes no 4"
    names = {path.name for path in (tmp_path / "adapter").iterdir()}
    assert names == {"adapter_config.json", "adapter_model.safetensors", "README.md", "digests.json"}
    assert saved_lora(tmp_path / "adapter").r == 4


def test_the_gap_adapter_brings_its_head(
    role_of: RoleOf, tiny_chat: ChatFormat, tiny_folder: Path, tmp_path: Path
) -> None:
    pit(f"export runs/rl --role gap --adapter --base-name ada/tiny --out {tmp_path}/adapter")
    base = AutoModelForSequenceClassification.from_pretrained(
        tiny_folder, num_labels=1, dtype=torch.float32, quantization_config=NF4
    )
    keep_unpacked(base)
    plain = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    trees = export.probe_trees(tiny_chat)
    assert (
        merging.plain_scores(plain, trees) - torch.stack(score_trees(role_of("rl", GAP), trees, 8))
    ).abs().max() < 1e-5
    assert "export with `--merge`" in (tmp_path / "adapter/README.md").read_text()


def test_the_drift_is_printed_and_grows_with_the_rounding(tmp_path: Path, capsys: Out) -> None:
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


def test_large_models_are_written_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    monkeypatch.setattr(merging, "SHARD_SIZE", "1MB")
    pit(f"export runs/sft --out {tmp_path}/model --dtype fp32")
    assert result(capsys)["drift"]["largest"] < 1e-3
    parts = list((tmp_path / "model").glob("model-*.safetensors"))
    assert len(parts) > 2
    assert {part.stat().st_mode for part in parts} == {(tmp_path / "model/config.json").stat().st_mode}


def test_generation_stops_where_pit_stops(tmp_path: Path, tiny_chat: ChatFormat) -> None:
    pit(f"export runs/sft --out {tmp_path}/model")
    settings = json.loads((tmp_path / "model/generation_config.json").read_text())
    assert settings["eos_token_id"] == [tiny_chat.stop_id]
    assert settings.keys() <= {"bos_token_id", "eos_token_id", "pad_token_id", "transformers_version"}


def test_no_place_of_this_machine_is_told(project: Path, tmp_path: Path, tiny_folder: Path) -> None:
    here = project.resolve()
    for place in (project, project / "elsewhere"):
        place.mkdir(exist_ok=True)
    pit(f"sft {TRAINED.replace('data/', f'{here}/data/')} --out {here}/elsewhere/run")
    pit(f"export {here}/elsewhere/run --out {tmp_path}/merged")
    pit(f"export runs/rl --adapter --base-name ada/tiny --out {tmp_path}/adapter")
    for path in [*(tmp_path / "merged").iterdir(), *(tmp_path / "adapter").iterdir()]:
        content = path.read_bytes()
        for told in (str(here), str(tmp_path), str(tiny_folder), str(Path.home()) + "/"):
            assert told.encode() not in content, path.name


def test_the_card_of_an_improver(tmp_path: Path) -> None:
    pit(f"export runs/rl --out {tmp_path}/model --evaluation seen/evaluation.json --license apache-2.0")
    card = ModelCard.load(tmp_path / "model/README.md")
    assert card.data.to_dict() == {
        **{"license": "apache-2.0", "library_name": "transformers", "pipeline_tag": "text-generation"},
        "tags": ["pit", "self-improvement", "improver"],
    }
    manifest = json.loads(Path("runs/rl/manifest.json").read_text())
    for told in (
        "<|user|>{x}<|end|><|assistant|>{y_ref}<|end|><|user|>Write a better response.<|end|><|assistant|>",
        f"| base, SHA-256 of its files | {manifest['base']['digest']} |",
        "| data | pairs.jsonl, 40 rows |",
        f"| data, SHA-256 of its rows | {manifest['data']['digest']} |",
        "| `kl_coef` | 0.05 |",
        "| `steps` | 2 |",
        f"transformers {manifest['versions']['transformers']}",
        "as the 4-bit",
        "mean absolute difference of the log-probs",
    ):
        assert told in card.content, told
    evaluation = json.loads(Path("seen/evaluation.json").read_text())
    (one,) = [c for c in evaluation["comparisons"] if c["system"] == "pit" and c["baseline"] == "original"]
    (claim,) = evaluation["claims"]
    low, high = one["delta_ci"]
    assert f"| pit | original | oracle | 24 | {one['delta']:+.1f} [{low:+.1f}, {high:+.1f}] |" in card.content
    assert not claim["improves"], "of two steps"
    assert "**Not shown to improve**: pit" in card.content
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


def test_names_of_files_do_not_break_the_card(tmp_path: Path) -> None:
    Path("a|b<script>`.jsonl").write_text(Path("data/pairs.jsonl").read_text())
    assert cli.main(["sft", *TRAINED.replace("data/pairs", "a|b<script>`").split(), "--out", f"{tmp_path}/run"]) == 0
    pit(f"export {tmp_path}/run --out {tmp_path}/model")
    assert "| data | a\\|b\\<script\\>\\`.jsonl, 40 rows |\n" in (tmp_path / "model/README.md").read_text()


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("runs/sft --out x --merge --adapter", "give one of --merge and --adapter"),
        ("runs/sft --out x --no-merge", "give one of --merge and --adapter"),
        ("runs/sft --out x --adapter --dtype fp16", "--dtype is for --merge: an adapter is written as it was trained"),
        ("runs/sft --out x --public", "--public is for --push-to-hub"),
        ("runs/sft --out x --push-to-hub tiny", "--push-to-hub: must be OWNER/NAME, got tiny"),
        ("runs/sft --out x --base-name /a/b", "--base-name: must be OWNER/NAME, got /a/b"),
        ("runs/sft --out x --role gap", "--role: runs/sft holds improver, no gap"),
        ("runs/rl --out x --role policy", "--role: runs/rl holds improver and gap, no policy"),
        (
            "runs/sft --out x --adapter",
            "--base-name: others cannot load the base tiny by that name; give its OWNER/NAME",
        ),
        (
            "runs/sft --out data",
            "--out: {here}/data is not empty; --overwrite replaces an export there, or name another",
        ),
        ("runs/sft --out data --overwrite", "--overwrite: {here}/data holds what is not of an export, the first pairs"),
        ("runs/sft --out runs/rl/gap --overwrite", "--overwrite: {here}/runs/rl/gap holds what is not of an export"),
        ("runs/sft --out runs/rl --overwrite", "--overwrite: {here}/runs/rl holds what is not of an export, the first"),
        ("runs/sft --out pit.jsonl --overwrite", "--out: {here}/pit.jsonl is no folder"),
        ("runs/sft --out x --evaluation none.json", "--evaluation: none.json: No such file or directory"),
        (
            "runs/sft --out x --evaluation pit.jsonl",
            "--evaluation: pit.jsonl: not what pit evaluate writes (Invalid JSON",
        ),
        (
            "runs/sft --out x --evaluation seen/evaluation.json",
            "--evaluation: seen/evaluation.json: none of its systems (pit) is known to be made with this improver",
        ),
    ],
)
def test_refusals(line: str, told: str, project: Path, capsys: Out) -> None:
    before = sorted(project.rglob("*"))
    pit(f"export {line}", code=2)
    assert error(capsys).startswith("error: " + told.format(here=Path.cwd()))
    assert sorted(project.rglob("*")) == before


def test_an_export_is_replaced_only_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out) -> None:
    pit(f"export runs/sft --out {tmp_path}/model")
    pit(f"export runs/rl --out {tmp_path}/model --overwrite --dtype fp32")
    kept = {path: path.read_bytes() for path in (tmp_path / "model").iterdir()}

    def failing(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(PreTrainedModel, "save_pretrained", failing)
    pit(f"export runs/sft --out {tmp_path}/model --overwrite", code=3)
    assert error(capsys) == (
        f"error: {tmp_path}: the weights were not written (I/O error: No space left on device (os error 28))"
    )
    assert {path: path.read_bytes() for path in (tmp_path / "model").iterdir()} == kept
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    (tmp_path / "model/notes.txt").write_text("mine")
    pit(f"export runs/sft --out {tmp_path}/model --overwrite", code=2)
    assert error(capsys).endswith("holds what is not of an export, the first notes.txt")


def test_a_disk_that_is_too_small_is_told_before_anything_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**20))
    monkeypatch.setattr(PreTrainedModel, "save_pretrained", lambda *_, **__: pytest.fail("written"))
    pit(f"export runs/sft --out {tmp_path}/model --dtype fp32", code=3)
    assert "0.00 GiB are to be written, and 0.00 GiB are free" in error(capsys)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("run", ["sft", "reward"])
@pytest.mark.parametrize("wrong", [3.0, float("nan")])
def test_another_model_is_not_published(
    run: str, wrong: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    merged_weights = merging.merged_weights

    def scaled(*arguments: Any) -> dict[str, torch.Tensor]:
        return {name: weight * -wrong for name, weight in merged_weights(*arguments).items()}

    monkeypatch.setattr(export, "merged_weights", scaled)
    pit(f"export runs/{run} --out {tmp_path}/model --dtype fp32", code=3)
    assert error(capsys).startswith("error: the merged model is off by ")
    assert list(tmp_path.iterdir()) == []


def test_a_run_is_verified_first(tmp_path: Path, capsys: Out) -> None:
    shutil.copytree("runs/sft", tmp_path / "run")
    weights = tmp_path / "run/improver/adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\0")
    pit(f"export {tmp_path}/run --out {tmp_path}/model", code=3)
    assert "changed since it was written" in error(capsys)
    pit(f"export {tmp_path} --out {tmp_path}/model", code=3)
    assert "no finished run there" in error(capsys)
    assert not (tmp_path / "model").exists()


def test_4_bit_layers_stay_as_they_were_quantised(role_of: RoleOf, tiny_chat: ChatFormat) -> None:
    """On a CPU for which bitsandbytes repacks them when they are used."""
    model = role_of("sft", IMPROVER)
    layers = [layer for layer in model.base.modules() if isinstance(layer, merging.Linear4bit)]
    for layer in layers:
        layer.support_avx512bf16_for_cpu = True
    before = [layer.weight.data.clone() for layer in layers]
    merging.keep_layout(model)
    merging.role_logprobs(model, IMPROVER, export.probe_examples(tiny_chat, IMPROVER)[:1])
    assert all(torch.equal(layer.weight.data, data) for layer, data in zip(layers, before, strict=True))
    layers[0].weight.quant_state.packing_format_for_cpu = True
    with pytest.raises(RunError, match="repacked for this CPU"):
        merging.merged_weights(model, IMPROVER, torch.float32)


def test_the_model_is_never_held_twice(role_of: RoleOf) -> None:
    model = role_of("sft", IMPROVER)
    layers = [name for name, layer in model.base.named_modules() if isinstance(layer, merging.Linear4bit)]
    weights = merging.merged_weights(model, IMPROVER, torch.bfloat16)
    assert len(layers) == 28
    assert not any(isinstance(layer, merging.Linear4bit) for layer in model.base.modules())
    assert {name.replace(".base_layer", ".weight") for name in layers} < weights.keys()
    assert {tensor.dtype for tensor in weights.values()} == {torch.bfloat16}


def test_a_gap_model_whose_pad_is_its_stop_reads_the_last_token(
    role_of: RoleOf, tiny_chat: ChatFormat, tmp_path: Path
) -> None:
    model = role_of("reward", GAP)
    tokenizer = AutoTokenizer.from_pretrained(tiny_chat.tokenizer.name_or_path)
    tokenizer.pad_token = tokenizer.eos_token
    chat, trees = ChatFormat(tokenizer), export.probe_trees(tiny_chat)
    scores_B2 = merging.role_scores(model, trees)
    assert model.gap_head is not None
    head, config = model.gap_head.weight, model.base.config
    weights = merging.merged_weights(model, GAP, torch.float32)
    plain = merging.plain_model(config, weights, head, chat, torch.float32)
    merging.write_plain(plain, chat, tmp_path)
    assert (merging.plain_scores(merging.load_plain(tmp_path, True, CPU), trees) - scores_B2).abs().max() < 1e-5


class Hub:
    """Stands in for HfApi: what it was asked, and the visibility of a repository that is there already."""

    asked: ClassVar[list[tuple[str, Any]]] = []
    private: ClassVar[bool | None] = None

    def whoami(self) -> dict[str, str]:
        return {"name": "ada"}

    def create_repo(self, repo_id: str, private: bool, exist_ok: bool) -> None:
        Hub.private = private if Hub.private is None else Hub.private
        Hub.asked.append((repo_id, private))

    def model_info(self, repo_id: str) -> SimpleNamespace:
        return SimpleNamespace(private=Hub.private)

    def upload_folder(self, repo_id: str, folder_path: Path, commit_message: str) -> None:
        Hub.asked.append((repo_id, sorted(path.name for path in folder_path.iterdir())))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> type[Hub]:
    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(Hub, "asked", [])
    monkeypatch.setattr(Hub, "private", None)
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    return Hub


ADAPTER = "export runs/sft --adapter --base-name ada/tiny"


@pytest.mark.parametrize(("flag", "private"), [("", True), ("--public", False)])
def test_uploads_are_private_unless_asked(
    flag: str, private: bool, hub: type[Hub], tmp_path: Path, capsys: Out
) -> None:
    pit(f"{ADAPTER} --out {tmp_path}/adapter --push-to-hub ada/improver {flag}")
    assert hub.asked[0] == ("ada/improver", private)
    assert hub.asked[1][1] == ["README.md", "adapter_config.json", "adapter_model.safetensors", "digests.json"]
    out, err = capsys.readouterr()
    assert "uploaded to https://huggingface.co/ada/improver" in err
    assert "hf_secret" not in out + err
    assert not [path for path in (tmp_path / "adapter").iterdir() if b"hf_secret" in path.read_bytes()]


def test_nothing_goes_to_a_public_repository_unasked(hub: type[Hub], tmp_path: Path, capsys: Out) -> None:
    hub.private = False
    pit(f"{ADAPTER} --out {tmp_path}/adapter --push-to-hub ada/improver", code=2)
    assert error(capsys).startswith("error: --push-to-hub: ada/improver is public; --public says that this is meant")
    assert len(hub.asked) == 1


def test_a_hub_that_refuses_is_one_line_without_the_token(
    hub: type[Hub], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Out
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise HfHubHTTPError("403 with hf_secret", response=SimpleNamespace(headers={}, request=None))  # type: ignore[arg-type]

    monkeypatch.setattr(Hub, "upload_folder", refuse)
    pit(f"{ADAPTER} --out {tmp_path}/adapter --push-to-hub ada/improver", code=3)
    out, err = capsys.readouterr()
    assert "hf_secret" not in out + err
    assert err.splitlines()[-1] == (
        f"error: --push-to-hub: ada/improver was not uploaded; it is in {tmp_path}/adapter (HfHubHTTPError); "
        "may your token write there?"
    )

    def unknown(*_: object) -> None:
        raise LocalTokenNotFoundError("no token")

    monkeypatch.setattr(Hub, "whoami", unknown)
    pit(f"{ADAPTER} --out {tmp_path}/other --push-to-hub ada/improver", code=3)
    assert error(capsys).startswith("error: --push-to-hub: the hub does not know you (LocalTokenNotFoundError)")
    assert not (tmp_path / "other").exists(), "told before anything is made"

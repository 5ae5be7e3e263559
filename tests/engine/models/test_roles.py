"""Roles on one base: switching, gradients, saving, and loading with plain peft and transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from bitsandbytes.nn import Linear4bit
from peft import PeftModel
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BitsAndBytesConfig,
    CohereConfig,
    FalconH1Config,
    Gemma2Config,
    GPTNeoXConfig,
    GraniteConfig,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_layers import GradientCheckpointingLayer

from pitcli.data.templates import ChatFormat, Example
from pitcli.engine.generation.sampling import Decoding
from pitcli.engine.generation.static_batching import generate
from pitcli.engine.models import forward, loading, logprobs
from pitcli.engine.models.adapters import load_role, save_role
from pitcli.engine.models.bases import base_digest
from pitcli.engine.models.batches import Batch, pad_right
from pitcli.engine.models.forward import completion_logprobs, score_trees, scores
from pitcli.engine.models.loading import keep_unpacked, load_base, lora_config, pick_device
from pitcli.engine.models.opening import open_base
from pitcli.engine.models.packing import tree_batch
from pitcli.engine.models.roles import GAP, IMPROVER, POLICY, RoleModel, fingerprint
from pitcli.engine.models.trees import Tree, completion_batch
from pitcli.errors import RunError
from pitcli.runs.earlier import EarlierRun
from pitcli.runs.manifest import BaseIdentity, DataIdentity, Manifest
from pitcli.settings.base import Device, LoraSettings
from pitcli.settings.training import SftConfig
from tests.conftest import WithRoles

CPU = torch.device("cpu")
PAD, STOP = 0, 2
EXAMPLES = [Example([3, 4, 5], [6, 7, STOP]), Example([8], [9, 10, 11, 12, STOP]), Example([13, 14], [STOP])]
# conversations of different lengths, so that most of a batch's rows are padded
TREES = [Tree([[3] * length, [4, length, STOP], [5, STOP]], [-1, 0, 0], [1, 2]) for length in (2, 9, 14)]
# NF4 as pit loads its base, and as the README shows it
NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
)


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory, small_llama: Callable[[], PreTrainedModel]) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    small_llama().save_pretrained(folder)
    return folder


@pytest.fixture
def model(small_llama: Callable[[], PreTrainedModel], with_roles: WithRoles) -> RoleModel:
    return with_roles(small_llama(), PAD, POLICY, IMPROVER, GAP)


@pytest.fixture
def batch() -> Batch:
    return completion_batch(EXAMPLES, PAD)


def logits(model: torch.nn.Module, batch: Batch) -> Tensor:
    with torch.no_grad():
        return model(input_ids=batch.input_ids_BT).logits


def trainable(model: RoleModel) -> set[int]:
    return {id(parameter) for parameter in model.parameters() if parameter.requires_grad}


def parameter_ids(model: RoleModel, role: str) -> set[int]:
    return {id(parameter) for parameter in model.role_parameters(role).values()}


def test_the_role_none_is_the_base_itself(
    small_llama: Callable[[], PreTrainedModel], model: RoleModel, batch: Batch
) -> None:
    bare = logits(small_llama(), batch)
    model.use(IMPROVER)
    assert (logits(model.base, batch) - bare).abs().max() > 0.1
    model.use(None)
    assert torch.equal(logits(model.base, batch), bare)
    model.use(POLICY)
    assert (logits(model.base, batch) - bare).abs().max() > 0.1


def test_roles_have_their_own_weights(model: RoleModel, batch: Batch) -> None:
    seen = {}
    for role in (POLICY, IMPROVER, GAP, None):
        model.use(role)
        seen[role] = logits(model.base, batch)
    outputs = list(seen.values())
    for index, output in enumerate(outputs):
        assert all((output - other).abs().max() > 0.1 for other in outputs[:index])
    model.use(IMPROVER, train=True)
    assert torch.equal(logits(model.base, batch), seen[IMPROVER])


def test_a_fresh_adapter_changes_nothing(small_llama: Callable[[], PreTrainedModel], batch: Batch) -> None:
    model = RoleModel(small_llama(), PAD)
    bare = logits(model.base, batch)
    model.add_role(IMPROVER, lora_config(LoraSettings()))
    model.use(IMPROVER)
    assert torch.equal(logits(model.base, batch), bare)


def test_every_linear_layer_but_the_output_is_adapted(model: RoleModel) -> None:
    linear = {name for name, layer in model.base.named_modules() if name.endswith("_proj")}
    adapted = {name.split(".lora_")[0] for name in model.role_parameters(IMPROVER)}
    assert len(linear) == 2 * 7
    assert adapted == {f"base_model.model.{name}" for name in linear}
    # A and B of each layer; the gap role also has its head
    assert len(model.role_parameters(IMPROVER)) == 2 * 14
    assert len(model.role_parameters(GAP)) == 2 * 14 + 1


def test_only_the_role_in_training_has_gradients(model: RoleModel) -> None:
    for role in (IMPROVER, GAP, POLICY):
        model.use(role, train=True)
        assert trainable(model) == parameter_ids(model, role)
        model.use(role)
        assert trainable(model) == set()
    model.use(GAP, train=True)
    model.use(None)
    assert trainable(model) == set()


def test_training_a_role_changes_nothing_else(model: RoleModel, batch: Batch) -> None:
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    model.use(IMPROVER, train=True)
    ours = parameter_ids(model, IMPROVER)
    optimizer = torch.optim.SGD(model.role_parameters(IMPROVER).values(), lr=0.1)
    completion_logprobs(model, batch).sum().backward()
    optimizer.step()
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (id(parameter) not in ours), name


def test_logprobs_of_the_completions(model: RoleModel, batch: Batch) -> None:
    model.use(IMPROVER)
    for temperature in (1.0, 0.5):
        logprobs_BTV = torch.log_softmax(logits(model.base, batch).double() / temperature, -1)
        with torch.no_grad():
            found_N = completion_logprobs(model, batch, temperature)
        expected = [
            logprobs_BTV[row, position - 1, token]
            for row, (prompt, completion) in enumerate(EXAMPLES)
            for position, token in enumerate(completion, start=len(prompt))
        ]
        assert (found_N - torch.stack(expected)).abs().max() < 1e-5


def test_chunked_logprobs_are_the_same(model: RoleModel, batch: Batch, monkeypatch: pytest.MonkeyPatch) -> None:
    model.use(IMPROVER, train=True)
    weights_N = torch.randn(len(batch.targets_N), generator=torch.Generator().manual_seed(0))

    def value_and_gradients() -> tuple[Tensor, dict[str, Tensor]]:
        model.zero_grad()
        logprobs_N = completion_logprobs(model, batch, 0.7)
        (logprobs_N * weights_N).sum().backward()
        named = model.role_parameters(IMPROVER)
        return logprobs_N.detach(), {name: p.grad.clone() for name, p in named.items() if p.grad is not None}

    def unchunked(hidden_ND: Tensor, output_layer: torch.nn.Module, targets_N: Tensor, temperature: float) -> Tensor:
        logprobs_NV = torch.log_softmax(output_layer(hidden_ND) / temperature, -1)
        return logprobs_NV.gather(-1, targets_N[:, None]).squeeze(-1)

    with monkeypatch.context() as context:
        context.setattr(forward, "token_logprobs", unchunked)
        whole, whole_gradients = value_and_gradients()
    assert len(whole_gradients) == 28
    for rows in (512, 4):  # of 3 + 5 + 1 completion tokens
        monkeypatch.setattr(logprobs, "LOGIT_ROWS", rows)
        chunked, chunked_gradients = value_and_gradients()
        assert (chunked - whole).abs().max() < 1e-6
        assert chunked_gradients.keys() == whole_gradients.keys()
        for name, gradient in whole_gradients.items():
            assert gradient.abs().max() > 0, name
            assert (chunked_gradients[name] - gradient).abs().max() < 1e-5 * max(1, float(gradient.abs().max())), name


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-3), (torch.bfloat16, 1e-2)])
def test_the_gradient_of_a_nearly_certain_token(dtype: torch.dtype, tolerance: float) -> None:
    """p = 0.999, so the gradient is a thousandth of the size of the output layer's rows."""
    generator = torch.Generator().manual_seed(0)
    layer = torch.nn.Linear(64, 24, bias=False).requires_grad_(False)
    layer.weight.copy_(torch.randn(24, 64, generator=generator))
    hidden_1D = layer.weight[5:6] * 0.15
    layer.to(dtype)
    hidden_1D = hidden_1D.to(dtype).requires_grad_()
    target_1 = torch.tensor([5])
    logprob_1 = logprobs.token_logprobs(hidden_1D, layer, target_1, 1.0)
    exact_1D = hidden_1D.detach().double().requires_grad_()
    exact_1 = (exact_1D @ layer.weight.double().T).log_softmax(-1)[:, 5]
    assert 0.99 < float(exact_1.detach().exp()) < 0.9999
    (found,), (expected,) = (
        torch.autograd.grad(value.sum(), [states]) for value, states in ((logprob_1, hidden_1D), (exact_1, exact_1D))
    )
    assert (found - expected).norm() < tolerance * expected.norm()


@pytest.mark.parametrize("role", [IMPROVER, GAP])
def test_recomputed_layers_give_the_same_values_and_gradients(role: str, model: RoleModel) -> None:
    """Layers keep less for the backward pass; other roles and generation are not affected."""

    def train_once() -> tuple[Tensor, list[Tensor], int]:
        kept = 0

        def count(tensor: Tensor) -> Tensor:
            nonlocal kept
            kept += tensor.numel()
            return tensor

        model.zero_grad()
        model.use(role, train=True)
        with torch.autograd.graph.saved_tensors_hooks(count, lambda tensor: tensor):
            if role == GAP:
                values_N = scores(model, tree_batch(model, TREES))
            else:
                values_N = completion_logprobs(model, completion_batch(EXAMPLES, PAD))
        values_N.square().sum().backward()
        gradients = [p.grad.clone() for p in model.role_parameters(role).values() if p.grad is not None]
        return values_N.detach(), gradients, kept

    assert model.packs_trees
    values_N, gradients, kept = train_once()
    model.recompute_layers()
    again_N, again, kept_again = train_once()
    assert kept_again < kept / 2
    assert torch.equal(again_N, values_N)
    for gradient, recomputed in zip(gradients, again, strict=True):
        assert (gradient - recomputed).abs().max() < 1e-6 * max(1, float(gradient.abs().max()))
    model.use(IMPROVER)
    layers = [layer for layer in model.base.modules() if isinstance(layer, GradientCheckpointingLayer)]
    assert [layer.training for layer in layers] == [False, False]
    assert len(generate(model, IMPROVER, [[3, 4]], [0], Decoding(1.0, 1.0, 5, ()))[0].token_ids) == 5


@pytest.mark.parametrize("role", [IMPROVER, GAP])
def test_saving_and_loading_is_exact(
    role: str, model: RoleModel, small_llama: Callable[[], PreTrainedModel], batch: Batch, tmp_path: Path
) -> None:
    save_role(model, role, tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"adapter_config.json", loading.WEIGHTS}
    fresh = RoleModel(small_llama(), PAD)
    load_role(fresh, role, tmp_path)
    ours, theirs = model.role_parameters(role), fresh.role_parameters(role)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    model.use(role)
    fresh.use(role)
    assert torch.equal(logits(model.base, batch), logits(fresh.base, batch))
    if role == GAP:
        assert torch.equal(torch.stack(score_trees(model, TREES, 8)), torch.stack(score_trees(fresh, TREES, 8)))


def test_a_saved_adapter_loads_under_another_role(model: RoleModel, batch: Batch, tmp_path: Path) -> None:
    save_role(model, IMPROVER, tmp_path)
    load_role(model, "reference", tmp_path)
    model.use(IMPROVER)
    improved = logits(model.base, batch)
    model.use("reference")
    assert torch.equal(logits(model.base, batch), improved)


@pytest.mark.parametrize("load_in_4bit", [True, False])
def test_plain_peft_loads_the_improver(
    load_in_4bit: bool, llama_folder: Path, with_roles: WithRoles, batch: Batch, tmp_path: Path
) -> None:
    model = with_roles(load_base(llama_folder, load_in_4bit, CPU), PAD, IMPROVER)
    save_role(model, IMPROVER, tmp_path)
    base = AutoModelForCausalLM.from_pretrained(
        llama_folder, dtype=torch.float32, quantization_config=NF4 if load_in_4bit else None
    )
    keep_unpacked(base)
    plain = PeftModel.from_pretrained(base, tmp_path).eval()
    model.use(IMPROVER)
    assert (logits(plain, batch) - logits(model.base, batch)).abs().max() < 1e-5


@pytest.mark.parametrize("load_in_4bit", [True, False])
def test_plain_peft_loads_the_gap_model(
    load_in_4bit: bool, llama_folder: Path, with_roles: WithRoles, tmp_path: Path
) -> None:
    """In the base's config the pad token is the stop token, as in SmolLM2's: pad_token_id must be the tokenizer's."""
    model = with_roles(load_base(llama_folder, load_in_4bit, CPU), PAD, GAP)
    save_role(model, GAP, tmp_path)
    scores_N = torch.cat(score_trees(model, TREES, 8))
    assert scores_N.std() > 0.1
    conversations = [ids for tree in TREES for ids in tree.conversations()]
    input_ids_BT = pad_right(conversations, PAD)
    mask_BT = pad_right([[1] * len(ids) for ids in conversations], 0)
    assert int((mask_BT == 0).sum()) > 20

    def plain_scores(**options: int) -> Tensor:
        base = AutoModelForSequenceClassification.from_pretrained(
            llama_folder,
            num_labels=1,
            dtype=torch.float32,
            quantization_config=NF4 if load_in_4bit else None,
            **options,
        )
        keep_unpacked(base)
        plain = PeftModel.from_pretrained(base, tmp_path).eval()
        with torch.no_grad():
            return plain(input_ids=input_ids_BT, attention_mask=mask_BT).logits.squeeze(-1)

    assert (plain_scores(pad_token_id=PAD) - scores_N).abs().max() < 1e-5
    assert (plain_scores() - scores_N).abs().max() > 0.1  # so that this test can fail


def test_an_adapter_of_another_base_is_refused(model: RoleModel, tmp_path: Path) -> None:
    save_role(model, IMPROVER, tmp_path)
    config = model.base.config.to_dict()
    wider = RoleModel(type(model.base)(type(model.base.config)(**{**config, "intermediate_size": 128})), PAD)
    with pytest.raises(RunError, match="do not fit the base model"):
        load_role(wider, IMPROVER, tmp_path)


def test_an_adapter_of_the_wrong_kind_is_refused(
    model: RoleModel, small_llama: Callable[[], PreTrainedModel], tmp_path: Path
) -> None:
    save_role(model, GAP, tmp_path / "gap")
    save_role(model, IMPROVER, tmp_path / "improver")
    fresh = RoleModel(small_llama(), PAD)
    with pytest.raises(RunError, match="expected an adapter without a gap head for the role improver, got a gap model"):
        load_role(fresh, IMPROVER, tmp_path / "gap")
    with pytest.raises(RunError, match="expected a gap model for the role gap, got an adapter without a gap head"):
        load_role(fresh, GAP, tmp_path / "improver")


def test_four_bits_are_nf4_with_double_quantisation(tiny_folder: Path) -> None:
    base = load_base(tiny_folder, True, CPU)
    layers = {name: layer for name, layer in base.named_modules() if name.endswith("_proj")}
    assert len(layers) == 7 * base.config.num_hidden_layers
    for layer in layers.values():
        assert isinstance(layer, Linear4bit)
        assert layer.weight.quant_type == "nf4"
        assert layer.weight.quant_state.nested
        assert layer.compute_dtype == torch.float32
        assert layer.weight.dtype == torch.uint8
        assert layer.weight.numel() * 2 == layer.in_features * layer.out_features
    assert not isinstance(base.get_output_embeddings(), Linear4bit)
    assert not any(parameter.requires_grad for parameter in base.parameters())


def test_sampling_does_not_repack_four_bit_weights_on_cpus_with_bf16(
    tiny_folder: Path, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitsandbytes.nn.modules.has_avx512bf16", lambda: True)
    base = load_base(tiny_folder, True, CPU)
    before = fingerprint(base.parameters())
    with torch.no_grad():
        logits(base, batch)
    assert fingerprint(base.parameters()) == before


def test_without_four_bits_the_weights_are_fp32(tiny_folder: Path) -> None:
    base = load_base(tiny_folder, False, CPU)
    assert not any(isinstance(layer, Linear4bit) for layer in base.modules())
    assert {parameter.dtype for parameter in base.parameters()} == {torch.float32}


SMALL: dict[str, Any] = {
    **{"vocab_size": 24, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1},
    **{"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 8},
    **{"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2},
}


@pytest.mark.parametrize(
    "config",
    [
        Gemma2Config(**SMALL),  # caps its logits at 30
        CohereConfig(**SMALL, logit_scale=0.0625),
        GraniteConfig(**SMALL, logits_scaling=8.0),
        FalconH1Config(**SMALL, lm_head_multiplier=0.5),
    ],
    ids=lambda config: config.model_type,
)
def test_rescaled_logits_are_refused(config: PreTrainedConfig, tmp_path: Path) -> None:
    """completion_logprobs and generate apply the output layer themselves."""
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(RunError, match="rescale their logits"):
        load_base(tmp_path, False, CPU)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_pick_device_returns_the_named_device() -> None:
    assert pick_device(Device.auto) == pick_device(Device.cpu) == CPU
    with pytest.raises(RunError, match="--device cuda"):
        pick_device(Device.cuda)


def test_an_apple_gpu_is_used_only_if_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RunError, match="--device mps: torch sees no Apple GPU"):
        pick_device(Device.mps)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device(Device.mps).type == "mps"
    assert pick_device(Device.auto) == CPU
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RunError, match="expected one process, got 2"):
        pick_device(Device.mps)


def earlier_run(tiny_folder: Path, tiny_chat: ChatFormat, **changes: object) -> EarlierRun:
    identity = {"digest": base_digest(tiny_folder), "template": tiny_chat.digest(), "load_in_4bit": True}
    base = BaseIdentity.model_validate({"name": "other", **identity, **changes})
    data = DataIdentity(path="pairs.jsonl", digest="d", rows=1, prompts=[])
    return EarlierRun(Path("runs/sft"), Manifest(kind="sft", role="improver", config={}, base=base, data=data))


def test_a_run_on_the_same_base_is_accepted(tiny_folder: Path, tiny_chat: ChatFormat) -> None:
    for load_in_4bit in (True, False):
        run = earlier_run(tiny_folder, tiny_chat, load_in_4bit=load_in_4bit)
        assert open_base(SftConfig(model="tiny"), [run]).identity.load_in_4bit == load_in_4bit


@pytest.mark.parametrize(
    ("changes", "settings", "problem"),
    [
        ({"digest": "0" * 64}, {}, "trained on the base other (000000000000), not on tiny"),
        ({"digest": "0" * 64, "name": "tiny"}, {}, "it has changed since; train the run again"),
        ({"template": "0" * 64}, {}, "trained with another chat template"),
        ({"load_in_4bit": False}, {"load_in_4bit": True}, "trained with --no-load-in-4bit"),
        ({"load_in_4bit": True}, {"load_in_4bit": False}, "trained with --load-in-4bit"),
    ],
)
def test_a_run_on_another_base_is_refused(
    changes: dict[str, object],
    settings: dict[str, bool],
    problem: str,
    tiny_folder: Path,
    tiny_chat: ChatFormat,
) -> None:
    run = earlier_run(tiny_folder, tiny_chat, **changes)
    with pytest.raises(RunError) as raised:
        open_base(SftConfig(model="tiny", **settings), [run])
    assert len(raised.value.problems) == 1
    assert problem in raised.value.problems[0]
    assert "runs/sft" in raised.value.problems[0]


def test_the_base_digest_depends_on_content_only(llama_folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in llama_folder.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    (copy / "README.md").write_text("notes")
    assert base_digest(copy) == base_digest(llama_folder)
    weights = copy / "model.safetensors"
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    weights.write_bytes(changed)
    assert base_digest(copy) != base_digest(llama_folder)


def test_a_neox_base_has_roles(with_roles: WithRoles, batch: Batch) -> None:
    """Nothing here depends on Llama's names."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        vocab_size=24, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4
    )
    base = AutoModelForCausalLM.from_config(config, dtype=torch.float32).requires_grad_(False).eval()
    model = with_roles(base, PAD, IMPROVER)
    model.use(IMPROVER)
    logprobs_BTV = torch.log_softmax(logits(model.base, batch), -1)
    with torch.no_grad():
        found_N = completion_logprobs(model, batch)
    # the last row: a prompt of two tokens, then STOP, predicted at position 1
    assert float(found_N[-1]) == pytest.approx(float(logprobs_BTV[2, 1, STOP]), abs=1e-5)


def test_a_gpu_computes_more_logits_at_once_as_far_as_the_vocabulary_allows() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert logprobs.rows_at_once(49_152, cpu) == logprobs.rows_at_once(1_000_000, cuda) == 128
    assert logprobs.rows_at_once(49_152, cuda) == 2**26 // 49_152 == 1365

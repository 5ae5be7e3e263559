"""--dtype: what auto chooses, and that bf16 computes what fp32 does, up to its rounding."""

import json
from itertools import accumulate
from pathlib import Path

import pytest
import torch

from pitcli.data.templates import Example
from pitcli.engine.models import opening, precision
from pitcli.engine.models.forward import completion_logprobs, scores
from pitcli.engine.models.loading import load_base
from pitcli.engine.models.packing import tree_batch
from pitcli.engine.models.precision import Bf16, autocast, best_dtype, compute_dtype, measure_bf16
from pitcli.engine.models.roles import GAP, IMPROVER, RoleModel
from pitcli.engine.models.trees import Tree, completion_batch, separate_batch
from pitcli.errors import SettingsError
from pitcli.runs.manifest import BaseIdentity
from pitcli.settings.base import ModelSettings, Precision
from tests.conftest import WithRoles
from tests.engine.models.test_trees import random_tree

CPU = torch.device("cpu")
LARGE = 2**30
GOOD, SLOW, WRONG = Bf16(2.0, 0.002), Bf16(1 / 200, 0.002), Bf16(2.0, 0.5)


@pytest.mark.parametrize(
    ("measured", "expected"), [(GOOD, torch.bfloat16), (SLOW, torch.float32), (WRONG, torch.float32)]
)
def test_auto_is_bf16_where_it_is_fast_and_right(
    measured: Bf16, expected: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "bf16_of_this_cpu", lambda: measured)
    assert best_dtype(CPU) is expected
    for asked in (None, Precision.auto):
        assert compute_dtype(asked, CPU, LARGE) is expected
        assert compute_dtype(asked, CPU, 2_000_000) is torch.float32  # a small base gains nothing
    assert compute_dtype(Precision.bf16, CPU, 0) is torch.bfloat16
    assert compute_dtype(Precision.fp32, CPU, LARGE) is torch.float32


def test_the_measurement_is_kept_for_the_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIT_CACHE", str(tmp_path / "cache"))
    found = iter([GOOD, SLOW, WRONG])
    monkeypatch.setattr(precision, "measure_bf16", lambda device: next(found))
    assert [precision.bf16_of_this_cpu() for _ in range(3)] == [GOOD] * 3
    (path,) = (tmp_path / "cache").iterdir()
    assert json.loads(path.read_text()) == GOOD._asdict()
    path.write_text("{")  # damaged: measured again
    assert precision.bf16_of_this_cpu() == SLOW
    monkeypatch.setattr(torch, "__version__", "0.0")  # another version may be faster
    assert precision.bf16_of_this_cpu() == WRONG


def test_a_cache_that_cannot_be_written_is_no_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("PIT_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(precision, "measure_bf16", lambda device: GOOD)
    assert precision.bf16_of_this_cpu() == GOOD


def test_bf16_is_measured_within_its_rounding() -> None:
    found = measure_bf16(CPU)
    assert 0.0005 < found.error < precision.RIGHT
    assert found.speedup > 0


def test_the_first_product_builds_the_kernels_and_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = iter([0.001] * 13 + [5.0] + [0.0005] * 12)  # of each fp32 product, then of each bf16 product
    clock = accumulate(step for taken in seconds for step in (0.0, taken))
    monkeypatch.setattr(precision.time, "perf_counter", lambda: next(clock))
    assert measure_bf16(CPU).speedup == pytest.approx(2.0)


@pytest.fixture(scope="module", params=[False, True], ids=["whole", "4-bit"])
def both(request: pytest.FixtureRequest, with_roles: WithRoles, tiny_folder: Path) -> tuple[RoleModel, RoleModel]:
    """The embedded model with the same random adapters, in fp32 and in bf16."""
    fp32, bf16 = (
        with_roles(load_base(tiny_folder, request.param, CPU, dtype), 0, IMPROVER, GAP)
        for dtype in (torch.float32, torch.bfloat16)
    )
    assert (fp32.base.dtype, bf16.base.dtype) == (torch.float32, torch.bfloat16)
    assert bf16.reads_branches
    return fp32, bf16


def differentiated(model: RoleModel, role: str, trees: list[Tree]) -> tuple[torch.Tensor, torch.Tensor]:
    """What training computes in a role for some trees, and its gradient, as one vector."""
    model.use(role, train=True)
    with autocast(model.base):
        if role == GAP:
            values = scores(model, tree_batch(model, trees))
        else:
            examples = [Example(ids[:-1], ids[-1:]) for tree in trees for ids in tree.conversations()]
            values = completion_logprobs(model, completion_batch(examples, model.pad_id))
        total = values.sum()
    total.backward()
    parameters = model.role_parameters(role).values()
    slopes = torch.cat([parameter.grad.flatten() for parameter in parameters if parameter.grad is not None])
    for parameter in parameters:
        parameter.grad = None
    return values.detach(), slopes


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("role", [IMPROVER, GAP])
def test_training_in_bf16_is_training_in_fp32_rounded(role: str, both: tuple[RoleModel, RoleModel]) -> None:
    trees = [random_tree(seed) for seed in range(6)]
    (expected, expected_slopes), (found, slopes) = (differentiated(model, role, trees) for model in both)
    assert found.dtype == slopes.dtype == torch.float32
    assert 0 < relative(found, expected) < 0.03
    assert 0 < relative(slopes, expected_slopes) < 0.1


def test_packed_trees_score_as_separate_passes_in_bf16(both: tuple[RoleModel, RoleModel]) -> None:
    fp32, bf16 = both
    trees = [random_tree(seed) for seed in range(6)]
    with torch.no_grad():
        fp32.use(GAP)
        bf16.use(GAP)
        exact = scores(fp32, separate_batch(trees, 0))
        packed, separate = scores(bf16, tree_batch(bf16, trees)), scores(bf16, separate_batch(trees, 0))
    assert relative(packed, exact) < 0.03
    assert relative(packed, exact) < 2 * relative(separate, exact)


@pytest.mark.parametrize(
    ("trained", "best", "expected"),
    [("fp32", torch.bfloat16, "fp32"), ("bf16", torch.bfloat16, "bf16"), ("bf16", torch.float32, "fp32")],
)
def test_a_run_is_used_in_its_own_type_unless_the_device_is_slow_in_it(
    trained: str, best: torch.dtype, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with a small base, for which auto would choose fp32."""
    monkeypatch.setattr(opening, "best_dtype", lambda device: best)
    first = BaseIdentity(name="tiny", digest="", template="", load_in_4bit=False, dtype=trained)  # type: ignore[arg-type]
    assert opening._choose_dtype(ModelSettings(), first, CPU, 1_000_000) == expected
    explicit = ModelSettings(dtype=Precision.fp32)
    assert opening._choose_dtype(explicit, first, CPU, 1_000_000) == "fp32"


def test_apple_gpus_have_bf16_from_macos_14_on_and_nothing_finer_than_fp32(monkeypatch: pytest.MonkeyPatch) -> None:
    mps = torch.device("mps")
    for is_newer, expected in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, minor, newer=is_newer: newer)
        assert best_dtype(mps) is expected
    assert (precision.finest_dtype(mps), precision.finest_dtype(CPU)) == (torch.float32, torch.float64)


def test_apple_gpus_get_no_4_bit_base() -> None:
    mps, whole, four_bit = torch.device("mps"), *(identity(bits) for bits in (False, True))
    assert opening._in_4bit(None, None, CPU, LARGE)
    assert not opening._in_4bit(None, None, mps, LARGE)
    assert not opening._in_4bit(False, None, mps, LARGE)
    assert not opening._in_4bit(None, whole, mps, LARGE)
    for asked, first in ((True, None), (None, four_bit)):
        with pytest.raises(SettingsError, match="--device mps: bitsandbytes has no 4-bit layers"):
            opening._in_4bit(asked, first, mps, LARGE)


def identity(load_in_4bit: bool) -> BaseIdentity:
    return BaseIdentity(name="b", digest="d", template="t", load_in_4bit=load_in_4bit)

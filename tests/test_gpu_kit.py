"""The GPU kit: its commands are valid, its wheels are small, and what it returns fits into two files."""

import argparse
import json
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from pitcli.settings.commands import COMMANDS
from pitcli.settings.flags import settings_of

ROOT = Path(__file__).parents[1]
sys.path += [str(ROOT / "examples" / folder) for folder in ("gpu", "studies")]
import kit  # noqa: E402
import pack  # noqa: E402
import project  # noqa: E402


def test_every_pit_command_of_the_kit_is_valid(tmp_path: Path) -> None:
    options = argparse.Namespace(device="cuda", quick=False, base=Path("smollm2.gguf"), data=Path("pairs.jsonl.gz"))
    found = [part.command[1:] for part in kit.parts(options, tmp_path) if part.command[1:3] == ["-m", "pitcli"]]
    commands = [words[1:] for words in found]
    assert [words[1] for words in commands] == ["doctor", "train-reward", "sft", "sample", "improve", "rl"]
    for words in commands[1:]:
        [(command, flags)] = project.as_stage(" ".join(["pit", *words[1:]])).items()
        flags.pop("json_progress")  # of all commands
        settings_of(COMMANDS[command].settings, flags)


def test_of_the_progress_of_a_task_only_the_last_line_is_kept(tmp_path: Path) -> None:
    log = tmp_path / "log"
    lines: list[Any] = [{"event": "progress", "task": "sft", "done": done, "total": 2} for done in (1, 2)]
    log.write_text("text\n" + "".join(json.dumps(line) + "\n" for line in [{"step": "gap"}, *lines]) + "{broken}\n")
    assert kit.json_lines(log) == [{"step": "gap"}, lines[-1]]


def test_a_part_that_fails_is_shown_and_all_is_in_two_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kit, "OUT", tmp_path)
    logs = tmp_path / "logs"
    logs.mkdir()
    failing = kit.Part("failing", 60, [sys.executable, "-c", "print('why'); raise SystemExit(3)"])
    kit.keep(kit.run(failing, 60, logs / "failing.log"), logs)
    slow = kit.Part("slow", 1, [sys.executable, "-c", "import time; time.sleep(60)"])
    kit.keep(kit.run(slow, 60, logs / "slow.log"), logs)
    records = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert [record["code"] for record in records] == [3, "stopped after 1 s"]
    with tarfile.open(tmp_path / "logs.tgz") as archive:
        assert {"logs/failing.log", "logs/slow.log"} < set(archive.getnames())
    assert "failing: code 3" in (shown := capsys.readouterr().out) and "    why\n" in shown


def test_bitsandbytes_keeps_one_version_of_cuda(tmp_path: Path) -> None:
    wheel = tmp_path / "bitsandbytes-1-py3-none-any.whl"
    names = {f"bitsandbytes/{name}" for name in ("__init__.py", "libbitsandbytes_cpu.so")}
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in (*names, *(f"bitsandbytes/libbitsandbytes_{kind}.so" for kind in ("cuda128", "cuda130", "rocm64"))):
            archive.writestr(name, "x")
    pack.keep_one_cuda(wheel, "130")
    assert set(zipfile.ZipFile(wheel).namelist()) == names | {"bitsandbytes/libbitsandbytes_cuda130.so"}
    with pytest.raises(SystemExit, match="no library for 118"):
        pack.keep_one_cuda(wheel, "118")

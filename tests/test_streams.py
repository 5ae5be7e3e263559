"""Closed streams, streams without UTF-8 and full disks: the data is right, or one line says what is missing."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from pitcli import console, panel
from pitcli.data.streams import open_growing
from pitcli.errors import naming
from pitcli.runs.files import publish_dir, write_file

PIT = f"{sys.executable} -m pitcli"
ASCII = {"PYTHONIOENCODING": "ascii"}
C_LOCALE = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
# a stage that copies its rows: what `pit improve` does with its streams, without a model
COPY = """
import sys, types
from pitcli.data.formats import iter_drafts
from pitcli.data.reading import write_row
from pitcli.data.streams import open_growing
def run(config):
    drafts = iter_drafts(config.input, print)
    with open_growing(config.output, False, False) as stream:
        for _, draft in drafts:
            write_row(draft.row, stream)
sys.modules["pitcli.stages.improve"] = types.SimpleNamespace(run=run)
from pitcli.cli import main
sys.exit(main(["improve", *sys.argv[1:]]))
"""


def shell(script: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "-c", script],
        cwd=folder,
        env={**os.environ, **environment},
        check=False,
        capture_output=True,
        stdin=subprocess.DEVNULL,
        encoding="utf-8",
    )


@pytest.fixture
def copy(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    (tmp_path / "rows.py").write_text(COPY)
    row = {"prompt": "Où ?", "response": "Là-bas, à côté de 東京 🗼"}
    (tmp_path / "in.jsonl").write_text(json.dumps(row, ensure_ascii=False) + "\n", encoding="utf-8")

    def run(arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return shell(f"{sys.executable} rows.py {arguments}", tmp_path, **environment)

    return run


@pytest.mark.parametrize("environment", [ASCII, C_LOCALE, {"PYTHONIOENCODING": "latin-1"}])
def test_rows_are_utf_8_in_any_locale(
    environment: dict[str, str], copy: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    done = copy("< in.jsonl", **environment)
    assert (done.returncode, done.stderr) == (0, "")
    assert json.loads(done.stdout)["response"] == "Là-bas, à côté de 東京 🗼"


def test_a_closed_stdin_is_not_called_a_terminal(copy: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = copy("<&-")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "error: <stdin>: is closed; name a file, or pipe rows in: pit ... < rows.jsonl\n"


def test_rows_for_a_closed_stdout_are_refused(copy: Callable[..., subprocess.CompletedProcess[str]]) -> None:
    done = copy("--input in.jsonl >&-")
    assert (done.returncode, done.stderr) == (2, "error: --output: stdout is closed; name a file\n")


def test_a_file_never_gets_the_number_of_a_closed_stream(
    copy: Callable[..., subprocess.CompletedProcess[str]], tmp_path: Path
) -> None:
    """What a C library prints on stdout would end up between the rows."""
    (tmp_path / "rows.py").write_text(
        COPY.replace("        for _,", "        import os; os.write(1, b'noise')\n        for _,")
    )
    done = copy("--input in.jsonl --output out.jsonl <&- >&- 2>&-")
    assert done.returncode == 0
    assert (tmp_path / "out.jsonl").read_bytes() == (tmp_path / "in.jsonl").read_bytes()


@pytest.mark.parametrize("closed", [">&-", "2>&-", ">&- 2>&- <&-"])
def test_commands_whose_result_is_a_file_work_with_closed_streams(closed: str, tmp_path: Path) -> None:
    done = shell(f"{PIT} prepare --synthetic 30 --out data {closed}", tmp_path)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert (tmp_path / "data" / "sft.jsonl").stat().st_size


def test_a_stderr_that_cannot_be_written_keeps_the_exit_code(tmp_path: Path) -> None:
    done = shell(f"{PIT} prepare --data missing.jsonl 2>/dev/full", tmp_path)
    assert (done.returncode, done.stdout) == (2, "")


def test_no_panel_if_stderr_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stderr", None)
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich then calls any stream a terminal
    console._console.cache_clear()
    with panel.training_panel("t", 1, names=(), rows=(), per_step=1) as show:
        show({"loss": 1.0})
    console._console.cache_clear()


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_names_the_folder_or_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="No space left") as problem:
        publish_dir(tmp_path / "run" / "improver", full)
    assert problem.value.filename == str(tmp_path / "run")
    with (
        pytest.raises(OSError, match="No space left") as problem,
        open_growing(str(tmp_path / "rows.jsonl"), False, False),
    ):
        full()
    assert problem.value.filename == str(tmp_path / "rows.jsonl")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left") as problem:
        write_file(tmp_path / "manifest.json", "{}")
    assert problem.value.filename == str(tmp_path / "manifest.json")


def test_other_errors_and_named_files_are_left_as_they_are(tmp_path: Path) -> None:
    with pytest.raises(ConnectionResetError) as problem, naming(tmp_path):
        raise ConnectionResetError(errno.ECONNRESET, "reset")
    assert problem.value.filename is None
    with pytest.raises(FileNotFoundError) as missing, naming(tmp_path):
        (tmp_path / "none").read_text()
    assert missing.value.filename == str(tmp_path / "none")

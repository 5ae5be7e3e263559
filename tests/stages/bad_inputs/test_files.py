"""Files that are refused, terminals as stdin, outputs that are inputs, and the memory that reading needs."""

import gzip
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pitcli import cli
from pitcli.data.formats import seen_before
from pitcli.data.reading import refuse_output_as_input
from pitcli.errors import SettingsError
from tests.stages.bad_inputs.rows import (
    COMMANDS,
    FIRST,
    MIDDLE,
    Change,
    pit,
)

REFUSED: dict[str, tuple[Change, str]] = {
    "UTF-16": (
        lambda data: data.decode().encode("utf-16"),
        "expected UTF-8, got UTF-16; convert it: iconv -f UTF-16 ",
    ),
    "UTF-16 without its mark": (
        lambda data: data.decode().encode("utf-16-be"),
        "convert it: iconv -f UTF-16BE -t UTF-8 ",
    ),
    "gzip bytes": (gzip.compress, "expected JSON lines, got gzip data; rename it to .jsonl.gz: mv "),
    "one JSON array": (
        lambda data: b"[" + b",\n".join(data.splitlines()) + b"]\n",
        "expected one object per line, got one JSON array; unpack it: jq -c '.[]' ",
    ),
    "one JSON array, pretty": (
        lambda data: json.dumps([json.loads(line) for line in data.splitlines()], indent=2).encode(),
        "unpack it: jq -c '.[]' ",
    ),
    "one JSON array after a mark": (lambda data: b"\xef\xbb\xbf[ " + data, "unpack it: jq -c '.[]' "),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("change", "message"), REFUSED.values(), ids=REFUSED)
def test_a_file_in_another_format_is_refused_with_the_fix(
    change: Change, message: str, command: str, no_model: None, tmp_path: Path, capfd: Any
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(change(FIRST[command] + b"\n" + MIDDLE[command] + b"\n"))
    assert pit(command, file) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"error: {file}: ")
    assert message in err
    assert len(err.splitlines()) == 1


def test_an_empty_file_is_refused_by_training(no_model: None, tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"")
    assert pit("train-reward", tmp_path / "rows.jsonl") == 2
    assert capfd.readouterr().err == f"error: {tmp_path / 'rows.jsonl'}: no rows\n"


def test_an_empty_file_is_accepted_by_improve(tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"")
    assert pit("improve", tmp_path / "rows.jsonl") == 0
    out, err = capfd.readouterr()
    assert out == ""
    assert "0 drafts, 0 changed\n" in err


TERMINAL = "error: <stdin>: is a terminal; name a file, or pipe rows in: pit ... < rows.jsonl\n"


@pytest.fixture
def terminal() -> Iterator[int]:
    leader, follower = os.openpty()
    yield follower
    os.close(leader)
    os.close(follower)


def test_stdin_that_is_a_terminal_is_refused_with_a_hint(terminal: int) -> None:
    command = [sys.executable, "-m", "pitcli", "prepare", "--data", "-"]
    done = subprocess.run(command, check=False, stdin=terminal, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", TERMINAL)


def test_improve_without_input_on_a_terminal_is_refused_with_a_hint(
    terminal: int, no_model: None, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    with os.fdopen(terminal, closefd=False) as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        assert cli.main(["improve"]) == 2
    assert capfd.readouterr() == ("", TERMINAL)


MEASURED = """
import re, sys
from pitcli.cli import main
code = main(sys.argv[1:])
peak = re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())
print(code, int(peak[1]) // 1024)
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak of its memory from /proc")
def test_a_100_megabyte_line_does_not_need_100_megabytes(tmp_path: Path) -> None:
    """Runs in a separate process, without torch; the whole line as bytes and as text would need 200 MB more."""
    file = tmp_path / "rows.jsonl"
    peaks = []
    for size in (10, 100 * 2**20):
        file.write_bytes(FIRST["train-reward"] + b'\n{"a": "' + b"x" * size + b'"}\n')
        command = [sys.executable, "-c", MEASURED, "prepare", "--data", str(file), "--out", str(tmp_path)]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        code, peak = map(int, done.stdout.split())
        assert code == 2
        assert f"error: {file}:2" in done.stderr
        peaks.append(peak)
    assert peaks[1] - peaks[0] < 64


def test_an_output_that_is_the_input_is_refused_under_any_name(no_model: None, tmp_path: Path) -> None:
    rows, hard, soft, other = (tmp_path / name for name in ("rows.jsonl", "hard", "soft", "other"))
    rows.write_text("")
    other.write_text("")
    hard.hardlink_to(rows)
    soft.symlink_to(rows)
    for name in (rows, hard, soft):
        with pytest.raises(SettingsError, match=f"--output: {name} is the input"):
            refuse_output_as_input(str(rows), str(name))
    for source, output in (
        (rows, other),
        (rows, tmp_path / "new"),
        (rows, "-"),
        ("-", other),
        ("/dev/null", "/dev/null"),
    ):
        refuse_output_as_input(str(source), str(output))


@pytest.mark.parametrize("redirection", ["rows.jsonl >> rows.jsonl", "< rows.jsonl >> rows.jsonl"])
def test_rows_are_not_appended_to_the_input_by_redirection(redirection: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(FIRST["improve"] + b"\n")
    code = "import sys; from pitcli.data.reading import refuse_output_as_input as r; r([*sys.argv, '-'][1], '-')"
    command = f'"{sys.executable}" -c "{code}" {redirection}'
    done = subprocess.run(command, check=False, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert "SettingsError: --output: stdout is the input" in done.stderr
    assert (tmp_path / "rows.jsonl").read_bytes() == FIRST["improve"] + b"\n"


def test_the_ids_of_a_million_drafts_need_less_than_70_mib() -> None:
    seen: set[int] = set()
    assert not any(seen_before(seen, f"a rather long id, {number:060}") for number in range(1_000_000))
    assert seen_before(seen, f"a rather long id, {7:060}")
    assert sys.getsizeof(seen) + sum(map(sys.getsizeof, seen)) < 70 * 2**20

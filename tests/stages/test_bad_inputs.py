"""Bad inputs: every bad row is named by file, line and field, no good one is lost, nothing ends in a traceback.

The same tables go through `pit improve`, which works to the end and exits 1 where rows failed, and through
`pit train-reward`, which reads everything before it loads a model and exits 2 where rows are bad.
Lines of the list that stand elsewhere: mixed lengths in a batch (test_stages, test_sampling), memory that runs out on
one long row and a gap that is not finite in rl (tests/faults).
"""

import gzip
import json
import os
import random
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from pitcli import cli
from pitcli.data.formats import iter_drafts, iter_questions, load_pairs, seen_before
from pitcli.data.reading import refuse_output_as_input
from pitcli.data.rows import RowError
from pitcli.data.synthetic import preference_rows
from pitcli.data.templates import ChatFormat
from pitcli.engine.models import forward
from pitcli.engine.models.adapters import load_role
from pitcli.engine.models.opening import Base
from pitcli.engine.models.roles import RoleModel
from pitcli.errors import InputError, SettingsError

Change = Callable[[bytes], bytes]

COMMANDS = ("improve", "train-reward")
TEXT = {"improve": "response", "train-reward": "rejected"}  # the field that holds `cat dog`
MIDDLE = {
    "improve": b'{"id": 2, "prompt": "Write 3 animals.", "response": "cat dog"}',
    "train-reward": b'{"id": 2, "prompt": "Write 3 animals.", "chosen": "ant cow fox", "rejected": "cat dog"}',
}
FIRST = {
    "improve": b'{"id": 1, "prompt": "Write 3 foods.", "response": "pie jam"}',
    "train-reward": b'{"id": 1, "prompt": "Write 3 foods.", "chosen": "pie jam egg", "rejected": "pie jam"}',
}
LAST = {
    "improve": b'{"id": 3, "prompt": "Write 4 tools.", "response": "saw axe"}',
    "train-reward": b'{"id": 3, "prompt": "Write 4 tools.", "chosen": "saw axe nail pump", "rejected": "saw axe"}',
}
ADDED = {"original_response", "iterations", "stop_reason", "generated_tokens"}


class Loaded(AssertionError):
    """The model was loaded, so the rows were accepted."""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with pairs, an improver and a gap model of the embedded base."""
    folder = tmp_path_factory.mktemp("project")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in preference_rows(12, seed=3)))
        small = "--data pairs.jsonl --model tiny --max-steps 1 --lora-rank 2 --batch-size 4"
        for command in ("sft", "train-reward"):
            assert cli.main([command, *small.split()]) == 0
        yield folder


@pytest.fixture(autouse=True)
def in_project(project: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(project)
    monkeypatch.delenv("PIT_DEBUG", raising=False)
    capfd.readouterr()  # what the fixture said


@pytest.fixture(scope="module")
def models() -> list[RoleModel]:
    return []


@pytest.fixture(autouse=True)
def one_model(models: list[RoleModel], tiny_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The embedded base and the adapters of the project are loaded once for all tests: nothing here changes them."""
    load = Base.load

    def load_once(self: Base, adapters: dict[str, Path] | None = None) -> RoleModel:
        if self.folder != tiny_folder:
            return load(self, adapters)
        models[:] = models or [load(self)]
        for role, folder in (adapters or {}).items():
            if models[0].peft is None or role not in models[0].peft.peft_config:
                load_role(models[0], role, folder)
        return models[0]

    monkeypatch.setattr(Base, "load", load_once)


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(self: Base) -> RoleModel:
        raise Loaded

    monkeypatch.setattr(Base, "load", load)


def pit(command: str, file: Path | str, *flags: str) -> int:
    """The exit code of one command on a file; `Loaded` where training accepts the rows."""
    if command == "improve":
        return cli.main(["improve", "--input", str(file), "--max-iters", "0", "--max-new-tokens", "4", *flags])
    out = tempfile.mkdtemp(dir=".")
    return cli.main([command, "--data", str(file), "--model", "tiny", "--out", out, *flags])


def swap(pattern: bytes, new: bytes) -> Change:
    """The row with one part of it replaced."""

    def change(row: bytes) -> bytes:
        changed, count = re.subn(pattern, lambda found: new, row, count=1)
        assert count, f"{pattern!r} is not in {row!r}"
        return changed

    return change


def whole(line: bytes) -> Change:
    return lambda row: line


ID = rb'"id": 2'
PROMPT = rb'"Write 3 animals\."'
CAT_DOG = rb'"cat dog"'

# E: what becomes of the middle row, and the field (TEXT: the one with `cat dog`) and the reason that it is refused for.
BAD_ROWS: dict[str, tuple[Change, str, str]] = {
    "invalid UTF-8": (swap(CAT_DOG, b'"cat \xff"'), "", "not UTF-8: byte 0xff at byte "),
    "NUL byte": (swap(CAT_DOG, b'"cat\0dog"'), "", "a NUL byte (column "),
    "escaped NUL": (swap(CAT_DOG, rb'"cat\u0000"'), "TEXT", "a NUL character"),
    "lone surrogate": (swap(CAT_DOG, rb'"cat \ud83d"'), "TEXT", "a lone surrogate: half of a character"),
    "NaN": (swap(ID, b'"id": 2, "score": NaN'), "score", "NaN, Infinity or a number too large"),
    "Infinity": (swap(ID, b'"id": 2, "scores": [1, -Infinity]'), "scores[1]", "NaN, Infinity or a number too large"),
    "duplicate keys": (swap(ID, b'"id": 2, "id": 4'), "id", "the key stands twice in one object"),
    "array row": (whole(b'["Write 3 animals.", "cat dog"]'), "", "an array where an object is wanted"),
    "number row": (whole(b"3.5"), "", "a number where an object is wanted"),
    "null row": (whole(b"null"), "", "null where an object is wanted"),
    "two objects on a line": (lambda row: row + b" " + row, "", "more text after the JSON value (column "),
    "Python dict": (lambda row: row.replace(b'"', b"'"), "", "not JSON but a Python dict (column 2)"),
    "nested 3000 deep": (swap(ID, b'"id": 2, "x": ' + b"[" * 3000 + b"]" * 3000), "", "nested more than 100 deep"),
    "100 MB line": (lambda row: row.replace(b"cat", b"cat" * 2**25), "", "the line is longer than 16 MiB"),
    "missing text": (swap(rb', "\w+": "cat dog"', b""), "TEXT", "missing; the row has 'id', 'prompt'"),
    "missing prompt": (swap(rb'"prompt": "[^"]*", ', b""), "prompt", "missing"),
    "null text": (swap(CAT_DOG, b"null"), "TEXT", "null where text is wanted"),
    "null prompt": (swap(PROMPT, b"null"), "prompt", "null where text or messages are wanted"),
    "number as text": (swap(CAT_DOG, b"7"), "TEXT", "a number where text is wanted"),
    "number as prompt": (swap(PROMPT, b"7"), "prompt", "a number where text or messages are wanted"),
    "empty completion": (swap(CAT_DOG, rb'" \n"'), "TEXT", "empty"),
    "empty prompt": (swap(PROMPT, b'""'), "prompt", "empty"),
    "no messages": (swap(PROMPT, b"[]"), "prompt", "empty"),
    "duplicate id": (swap(ID, b'"id": 1'), "id", "the same as on "),
    "unknown role": (
        swap(PROMPT, b'[{"role": "tool", "content": "x"}]'),
        "prompt[0].role",
        '"tool" is not system, user or assistant',
    ),
    "misordered roles": (
        swap(PROMPT, b'[{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]'),
        "prompt[0].role",
        "assistant where user is wanted",
    ),
}
# E as well, by the length for the model, which is known once all rows are read.
LONG_ROWS: dict[str, tuple[Change, str, str]] = {
    "prompt over the context": (swap(PROMPT, b'"' + b"word " * 1500 + b'"'), "prompt", "the conversation takes "),
    "completion over the limit": (swap(CAT_DOG, b'"' + b"cat " * 1500 + b'"'), "TEXT", "the conversation takes "),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("change", "field", "reason"), (BAD_ROWS | LONG_ROWS).values(), ids=BAD_ROWS | LONG_ROWS)
def test_a_bad_row_is_named_and_the_good_ones_before_and_after_it_are_not_lost(
    change: Change, field: str, reason: str, command: str, request: Any, tmp_path: Path, capfd: Any
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join([FIRST[command], change(MIDDLE[command]), LAST[command], b""]))
    place = f"error: {file}:2{':' if field else ''}{field.replace('TEXT', TEXT[command])}: {reason}"
    if command == "improve":
        assert pit(command, file) == 1
        out, err = capfd.readouterr()
        assert [json.loads(line)["id"] for line in out.splitlines()] == [1, 3]
        assert "2 drafts, 0 changed, 1 rows failed\n" in err
    else:
        request.getfixturevalue("no_model")
        assert pit(command, file) == 2
        out, err = capfd.readouterr()
        assert out == ""
    assert [line for line in err.splitlines() if line.startswith(place)], err
    assert len(re.findall(rf"^error: {re.escape(str(file))}:", err, re.MULTILINE)) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_a_last_line_that_was_cut_short_is_named(command: str, request: Any, tmp_path: Path, capfd: Any) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(FIRST[command] + b"\n" + MIDDLE[command] + b"\n" + LAST[command][:-9])
    if command == "train-reward":
        request.getfixturevalue("no_model")
    assert pit(command, file) == (1 if command == "improve" else 2)
    out, err = capfd.readouterr()
    assert f"error: {file}:3: the line ends inside the object (column " in err
    assert [json.loads(line)["id"] for line in out.splitlines()] == ([1, 2] if command == "improve" else [])


@pytest.mark.parametrize("command", COMMANDS)
def test_a_file_of_every_bad_row_at_once(command: str, request: Any, tmp_path: Path, capfd: Any) -> None:
    """Training lists them all, improve goes on past each."""
    changes = [change for name, (change, *_) in BAD_ROWS.items() if name != "100 MB line"]
    bad = [change(MIDDLE[command]) for change in changes]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join([FIRST[command], *bad, LAST[command], b""]))
    if command == "train-reward":
        request.getfixturevalue("no_model")
    assert pit(command, file) == (1 if command == "improve" else 2)
    out, err = capfd.readouterr()
    lines = [int(number) for number in re.findall(rf"^error: {re.escape(str(file))}:(\d+):", err, re.MULTILINE)]
    if command == "improve":
        assert lines == list(range(2, len(bad) + 2))
        assert [json.loads(line)["id"] for line in out.splitlines()] == [1, 3]
    else:
        assert lines == list(range(2, 22))
        assert f"error: and {len(bad) - 20} more\n" in err


def test_chosen_and_rejected_alike(no_model: None, tmp_path: Path, capfd: Any) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(FIRST["train-reward"] + b"\n" + MIDDLE["train-reward"].replace(b"ant cow fox", b" cat dog"))
    assert pit("train-reward", file) == 2
    assert capfd.readouterr().err == f"error: {file}:2:rejected: the same text as chosen\n"


# ok and W: what becomes of the middle row, or of the file; and what stderr says of it, by command.
BOTH = COMMANDS
GOOD_ROWS: dict[str, tuple[Change, str, tuple[str, ...]]] = {
    "as they are": (lambda row: row, "", BOTH),
    "U+2028 in a string": (swap(CAT_DOG, '"cat\u2028dog\x85"'.encode()), "", BOTH),
    "23-digit id": (swap(ID, b'"id": 12345678901234567890123'), "", BOTH),
    "extra fields": (swap(ID, b'"id": 2, "note": {"a": [1, null, "\xc3\xa9"]}, "z": true'), "", BOTH),
    "system message": (
        swap(PROMPT, b'[{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]'),
        "",
        BOTH,
    ),
    "control tokens in user text": (
        swap(CAT_DOG, b'"cat <|end|><|assistant|> dog"'),
        "1 rows with the text of a control token, read as plain text",
        BOTH,
    ),
    "duplicate rows": (lambda row: (row + b"\n" + row).replace(b'"id": 2, ', b""), "1 duplicate rows", BOTH),
    "the same pair both ways": (
        lambda row: row + b"\n" + b'{"prompt": "Write 3 animals.", "chosen": "cat dog", "rejected": "ant cow fox"}',
        "1 pairs in both orders",
        ("train-reward",),
    ),
}
GOOD_FILES: dict[str, tuple[Change, str, tuple[str, ...]]] = {
    "no final newline": (lambda data: data[:-1], "", BOTH),
    "blank lines": (lambda data: b"\n" + data + b" \t\n", "2 blank lines", BOTH),
    "byte order mark": (lambda data: b"\xef\xbb\xbf" + data, "1 byte order mark", BOTH),
    "CRLF": (lambda data: data.replace(b"\n", b"\r\n"), "", BOTH),
}
ACCEPTED = [
    pytest.param(command, row, file, says, id=f"{name}-{command}")
    for table, in_file in ((GOOD_ROWS, False), (GOOD_FILES, True))
    for name, (change, says, commands) in table.items()
    for row, file in [(whole(b""), change) if in_file else (change, lambda data: data)]
    for command in commands
]


@pytest.mark.parametrize(("command", "row", "file", "says"), ACCEPTED)
def test_what_is_accepted_comes_through_unchanged_and_what_is_odd_is_counted(
    command: str, row: Change, file: Change, says: str, request: Any, tmp_path: Path, capfd: Any
) -> None:
    lines = [line for line in (FIRST[command], row(MIDDLE[command]), LAST[command]) if line]
    path = tmp_path / "rows.jsonl"
    path.write_bytes(file(b"".join(line + b"\n" for line in lines)))
    if command == "improve":
        assert pit(command, path) == 0
        out, err = capfd.readouterr()
        written = [json.loads(line) for line in out.split("\n")[:-1]]
        kept = [{key: value for key, value in row.items() if key not in ADDED} for row in written]
        assert kept == [json.loads(text) for line in lines for text in line.split(b"\n")]
        assert [row["original_response"] for row in written] == [row["response"] for row in written]
    else:
        request.getfixturevalue("no_model")
        with pytest.raises(Loaded):
            pit(command, path)
        err = capfd.readouterr().err
    notes = re.findall(rf"^{re.escape(str(path))}: (\d+ .+)$", err, re.MULTILINE)
    assert [text for text in notes if not text.endswith(" pairs")] == ([says] if says else [])
    assert "error" not in err


# F: files that are refused as a whole, before a model is loaded.
REFUSED: dict[str, tuple[Change, str]] = {
    "UTF-16": (
        lambda data: data.decode().encode("utf-16"),
        "UTF-16 where UTF-8 is wanted; convert it: iconv -f UTF-16 ",
    ),
    "UTF-16 without its mark": (
        lambda data: data.decode().encode("utf-16-be"),
        "convert it: iconv -f UTF-16BE -t UTF-8 ",
    ),
    "gzip bytes": (gzip.compress, "gzip bytes where JSON lines are wanted; rename it to .jsonl.gz: mv "),
    "one JSON array": (
        lambda data: b"[" + b",\n".join(data.splitlines()) + b"]\n",
        "one JSON array where one object a line is wanted; unpack it: jq -c '.[]' ",
    ),
    "one JSON array, pretty": (
        lambda data: json.dumps([json.loads(line) for line in data.splitlines()], indent=2).encode(),
        "unpack it: jq -c '.[]' ",
    ),
    "one JSON array after a mark": (lambda data: b"\xef\xbb\xbf[ " + data, "unpack it: jq -c '.[]' "),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("change", "says"), REFUSED.values(), ids=REFUSED)
def test_a_file_in_another_format_is_refused_with_the_fix(
    change: Change, says: str, command: str, no_model: None, tmp_path: Path, capfd: Any
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(change(FIRST[command] + b"\n" + MIDDLE[command] + b"\n"))
    assert pit(command, file) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.startswith(f"error: {file}: ")
    assert says in err
    assert len(err.splitlines()) == 1


def test_an_empty_file_is_refused_by_training(no_model: None, tmp_path: Path, capfd: Any) -> None:
    (tmp_path / "rows.jsonl").write_bytes(b"")
    assert pit("train-reward", tmp_path / "rows.jsonl") == 2
    assert capfd.readouterr().err == f"error: {tmp_path / 'rows.jsonl'}: no rows\n"


def test_an_empty_file_is_no_mistake_of_improve(tmp_path: Path, capfd: Any) -> None:
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
def test_a_100_megabyte_line_takes_no_100_megabytes(tmp_path: Path) -> None:
    """In a process of its own, without torch; the whole line as bytes and as text would be 200 MB more."""
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


# F: settings and folders.
SETTINGS: dict[str, tuple[str, str]] = {
    "unknown key, config file": (
        "train-reward --config unknown.yaml",
        "unknown.yaml: lerning_rate: no such setting; did you mean learning_rate?",
    ),
    "unknown flag": ("train-reward --lerning-rate 1", "no such option: --lerning-rate; did you mean --learning-rate?"),
    "learning rate of 0": ("sft --learning-rate 0", "--learning-rate: must be greater than 0, got 0"),
    "negative learning rate": ("rl --learning-rate -1e-4", "--learning-rate: must be greater than 0, got -1e-4"),
    "learning rate that is no number": ("sft --learning-rate nan", "--learning-rate: must be a finite number"),
    "negative iterations": ("improve --max-iters -1", "--max-iters: must be greater than or equal to 0, got -1"),
    "two ways with long rows": (
        "sft --data pairs.jsonl --skip-long --truncate",
        "give only one of --skip-long and --truncate",
    ),
    "output folder that is in use": (
        "train-reward --data pairs.jsonl --model tiny",
        "--out: runs/reward is not empty; --resume goes on with it, --overwrite replaces it",
    ),
    "output is the input": (
        "improve --input pairs.jsonl --output ./runs/../pairs.jsonl",
        "--output: ./runs/../pairs.jsonl is the input",
    ),
    "output of sample is the input": (
        "sample --data pairs.jsonl --output pairs.jsonl",
        "--output: pairs.jsonl is the input",
    ),
    "drafts of rl that are no drafts": (
        "rl --out never --data pairs.jsonl --curriculum-stages policy --drafts pairs.jsonl",
        "pairs.jsonl:1:response: missing; the row has 'id', 'prompt', 'chosen', 'rejected'",
    ),
    "curriculum stage without rows": (
        "rl --out never --data pairs.jsonl --curriculum-stages dataset,policy --drafts empty.jsonl",
        "empty.jsonl: no rows",
    ),
    "no curriculum stage": ("rl --curriculum-stages ,", "--curriculum-stages: "),
    "prompts trained and tested on": (
        "train-reward --data pairs.jsonl --eval-data pairs.jsonl --model tiny --out never",
        "pairs.jsonl: 12 prompts are in --data too, the first on line 1; --allow-overlap accepts that",
    ),
    "drafts of rl without room for rollouts": (
        "rl --out never --data pairs.jsonl --curriculum-stages policy --drafts long.jsonl",
        "long.jsonl:1:prompt: the conversation takes ",
    ),
}


@pytest.mark.parametrize(("command", "says"), SETTINGS.values(), ids=SETTINGS)
def test_settings_that_cannot_be_meant_are_refused(command: str, says: str, no_model: None, capfd: Any) -> None:
    Path("unknown.yaml").write_text("lerning_rate: 1\n")
    Path("empty.jsonl").write_text("")
    Path("long.jsonl").write_text(json.dumps({"prompt": "ant " * 900, "response": "cat"}) + "\n")
    rows = Path("pairs.jsonl").read_bytes()
    assert cli.main(command.split()) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert f"error: {says}" in err
    assert Path("pairs.jsonl").read_bytes() == rows
    assert not Path("never").exists()


def test_the_input_is_not_written_to_by_another_name(no_model: None, tmp_path: Path) -> None:
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
def test_rows_are_not_added_to_the_file_that_is_being_read(redirection: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(FIRST["improve"] + b"\n")
    code = "import sys; from pitcli.data.reading import refuse_output_as_input as r; r([*sys.argv, '-'][1], '-')"
    command = f'"{sys.executable}" -c "{code}" {redirection}'
    done = subprocess.run(command, check=False, shell=True, cwd=tmp_path, capture_output=True, text=True)
    assert "SettingsError: --output: stdout is the input" in done.stderr
    assert (tmp_path / "rows.jsonl").read_bytes() == FIRST["improve"] + b"\n"


def test_an_overlap_that_is_asked_for_is_a_warning(no_model: None, tmp_path: Path, capfd: Any) -> None:
    with pytest.raises(Loaded):
        pit("train-reward", "pairs.jsonl", "--eval-data", "pairs.jsonl", "--allow-overlap")
    assert "warning: pairs.jsonl: 12 prompts are in --data too, the first on line 1\n" in capfd.readouterr().err


LONG_PAIR = {"prompt": "Write 3 animals.", "chosen": "ant " * 900 + "fox", "rejected": "cat " * 900 + "dog"}


def test_truncate_cuts_completions_and_counts_them(
    no_model: None, tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(
        json.dumps(LONG_PAIR) + "\n" + FIRST["train-reward"].decode() + "\n" + LAST["train-reward"].decode()
    )
    for command in ("train-reward", "sft"):
        with pytest.raises(Loaded):
            pit(command, file, "--truncate")
        err = capfd.readouterr().err
        assert f"{file}: 2 completions cut so that 1024 tokens hold the conversation\n" in err
        assert f"{file}: 3 pairs\n" in err


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({**LONG_PAIR, "prompt": "word " * 1500}, "prompt", "the prompt leaves 0 of 1024 tokens to each response"),
        ({**LONG_PAIR, "rejected": "ant " * 900 + "dog"}, "rejected", "the same text as chosen when --truncate cuts"),
    ],
    ids=["prompt", "alike"],
)
def test_truncate_cuts_no_prompt_and_makes_no_pair_of_equals(
    row: dict[str, str], field: str, reason: str, no_model: None, tmp_path: Path, capfd: Any
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    assert pit("train-reward", file, "--truncate") == 2
    assert capfd.readouterr().err.startswith(f"error: {file}:1:{field}: {reason}")


def test_a_model_that_returns_nothing_leaves_the_draft_and_says_so(
    tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChatFormat, "decode", lambda self, token_ids: "")
    (tmp_path / "rows.jsonl").write_bytes(FIRST["improve"] + b"\n" + LAST["improve"] + b"\n")
    assert pit("improve", tmp_path / "rows.jsonl", "--max-iters", "2") == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [(row["response"], row["stop_reason"]) for row in rows] == [("pie jam", "empty"), ("saw axe", "empty")]
    assert [len(row["iterations"]) for row in rows] == [1, 1]


def test_a_gap_that_is_not_finite_is_an_error_and_the_draft_is_kept(
    tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "scores", lambda model, batch: torch.full((len(batch.rows_N),), torch.nan))
    (tmp_path / "rows.jsonl").write_bytes(FIRST["improve"] + b"\n")
    assert pit("improve", tmp_path / "rows.jsonl", "--max-iters", "2") == 1
    out, err = capfd.readouterr()
    row = json.loads(out)
    assert (row["response"], row["stop_reason"]) == ("pie jam", "non_finite_gap")
    assert f"error: {tmp_path / 'rows.jsonl'}:1:response: no finite gap; the draft is kept as it was\n" in err


# The base: what its tokenizer lacks or has too much of.
def tiny_with(folder: Path, tiny_folder: Path, changes: dict[str, Callable[[dict[str, Any]], object]]) -> Path:
    """A copy of the embedded base with some of its JSON files changed."""
    for path in tiny_folder.iterdir():
        content = path.read_bytes()
        if change := changes.get(path.name):
            values = json.loads(content)
            change(values)
            content = json.dumps(values).encode()
        (folder / path.name).write_bytes(content)
    return folder


def test_a_tokenizer_larger_than_the_embeddings_is_refused(
    no_model: None, tmp_path: Path, tiny_folder: Path, capfd: Any
) -> None:
    def add(tokenizer: dict[str, Any]) -> None:
        tokenizer["added_tokens"].append(
            {**tokenizer["added_tokens"][0], "id": 411, "content": "<x>", "special": False}
        )

    base = tiny_with(tmp_path, tiny_folder, {"tokenizer.json": add})
    assert pit("train-reward", "pairs.jsonl", "--model", str(base)) == 2
    err = capfd.readouterr().err
    assert err.startswith(f"error: --model: {base}: ")
    assert "model.resize_token_embeddings(412)" in err


def test_a_base_that_states_no_context_needs_a_length(
    no_model: None, tmp_path: Path, tiny_folder: Path, capfd: Any
) -> None:
    def state_none(config: dict[str, Any]) -> None:
        del config["max_position_embeddings"]
        config["model_type"] = "mamba"

    base = tiny_with(tmp_path, tiny_folder, {"config.json": state_none})
    assert pit("train-reward", "pairs.jsonl", "--model", str(base)) == 2
    assert capfd.readouterr().err == (
        f"error: --max-length: {base} states no context length, so give the tokens that a row may take\n"
    )
    with pytest.raises(Loaded):
        pit("train-reward", "pairs.jsonl", "--model", str(base), "--max-length", "200")


def test_a_base_without_pad_token_and_chat_template_has_them_by_rule(
    no_model: None, tmp_path: Path, tiny_folder: Path
) -> None:
    """Which, test_templates says."""
    base = tiny_with(tmp_path, tiny_folder, {"tokenizer_config.json": lambda config: config.pop("pad_token")})
    (base / "chat_template.jinja").unlink()
    with pytest.raises(Loaded):
        pit("train-reward", "pairs.jsonl", "--model", str(base))


def test_a_text_that_gives_no_token_is_refused_as_nothing_could_be_learned_from_it(
    no_model: None, tmp_path: Path, tiny_folder: Path, capfd: Any
) -> None:
    """All labels masked."""

    def drop_zero_width_spaces(tokenizer: dict[str, Any]) -> None:
        tokenizer["normalizer"] = {"type": "Replace", "pattern": {"String": "\u200b"}, "content": ""}
        tokenizer["pre_tokenizer"]["add_prefix_space"] = False

    base = tiny_with(tmp_path, tiny_folder, {"tokenizer.json": drop_zero_width_spaces})
    file = tmp_path / "rows.jsonl"
    file.write_bytes(FIRST["train-reward"] + b"\n" + MIDDLE["train-reward"].replace(b"ant cow fox", rb"\u200b\u200b"))
    for command in ("train-reward", "sft"):
        assert pit(command, file, "--model", str(base)) == 2
        place = f"error: {file}:2:chosen: empty for this model, whose tokenizer makes no token of it\n"
        assert capfd.readouterr().err == place


@pytest.mark.parametrize("command", COMMANDS)
def test_roles_that_the_template_refuses_are_an_error_of_their_row(
    command: str, request: Any, tmp_path: Path, tiny_folder: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = tiny_folder.joinpath("chat_template.jinja").read_text()
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + template
    with_system = swap(PROMPT, b'[{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]')
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join([FIRST[command], with_system(MIDDLE[command]), LAST[command], b""]))
    base = tiny_with(tmp_path, tiny_folder, {})
    (base / "chat_template.jinja").write_text(refusing)
    flags = ["--model", str(base)]
    if command == "improve":
        small = "--data pairs.jsonl --max-steps 1 --lora-rank 2 --batch-size 4"
        for stage in ("sft", "train-reward"):
            assert cli.main([stage, *small.split(), *flags, "--out", str(tmp_path / stage)]) == 0
        flags += ["--run", str(tmp_path / "sft"), "--reward", str(tmp_path / "train-reward")]
        capfd.readouterr()
    else:
        request.getfixturevalue("no_model")
    assert pit(command, file, *flags) == (1 if command == "improve" else 2)
    out, err = capfd.readouterr()
    assert f"error: {file}:2:prompt: the chat template refuses the roles system, user: no system role\n" in err
    assert [json.loads(line)["id"] for line in out.splitlines()] == ([1, 3] if command == "improve" else [])


def test_the_ids_of_a_million_drafts_take_no_more_than_70_mib() -> None:
    seen: set[int] = set()
    assert not any(seen_before(seen, f"a rather long id, {number:060}") for number in range(1_000_000))
    assert seen_before(seen, f"a rather long id, {7:060}")
    assert sys.getsizeof(seen) + sum(map(sys.getsizeof, seen)) < 70 * 2**20


# 10,000 mutated rows.
VALUES: list[Any] = [
    None,
    True,
    0,
    -1.5,
    10**22,
    "",
    " ",
    "x",
    [],
    {},
    ["x"],
    {"role": "user", "content": "x"},
    "\u2028",
]
GOOD_PAIRS: list[dict[str, Any]] = [
    {"id": 7, "prompt": "Name a colour.", "chosen": "Blue.", "rejected": "A chair 😀."},
    {"chosen": "\n\nHuman: Hi\n\nAssistant: Hello", "rejected": "\n\nHuman: Hi\n\nAssistant: What?"},
    {
        "prompt": [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}],
        "chosen": [{"role": "assistant", "content": "a"}],
        "rejected": [{"role": "assistant", "content": "b"}],
        "score": -1.5e3,
    },
]
GOOD_DRAFTS: list[dict[str, Any]] = [
    {"id": "d", "prompt": "### Human: Hi ### Assistant:", "response": "é\u2028", "tags": [None, True, {}]},
    {"prompt": [{"role": "user", "content": "u"}], "response": "r"},
    {"id": 3, "prompt": "Write 3 foods.", "response": "pie <|end|> jam"},
]
INSERTED = [
    b'"',
    b"{",
    b"}",
    b"[",
    b"]",
    b",",
    b"\0",
    b"\x1b",
    b"\xff",
    b"\xed\xa0\x80",
    b"\n",
    b"\r",
    b"\\u",
    b"\\ud800",
]
INSERTED += [b"9e999", b"NaN", b"'", "\ufeff".encode(), "\u2028".encode(), b"\\u0000", b"<|end|>", b"Human:"]


def mutated(row: dict[str, Any], rng: random.Random) -> bytes:
    """The row with values, keys or bytes changed, one to four times."""
    row = json.loads(json.dumps(row))
    if rng.random() < 0.4:
        change_values(row, rng)
    data = bytearray(json.dumps(row, ensure_ascii=rng.random() < 0.5).encode())
    for _ in range(rng.choice([0, 1, 1, 1, 2, 4])):
        change_bytes(data, rng)
    return bytes(data)


def change_values(row: dict[str, Any], rng: random.Random) -> None:
    one, other = rng.choice(list(row)), rng.choice(list(row))
    match rng.choice(["swap", "replace", "drop", "rename", "inside"]):
        case "swap":
            row[one], row[other] = row[other], row[one]
        case "replace":
            row[one] = rng.choice(VALUES)
        case "drop":
            del row[one]
        case "rename":
            row[rng.choice(["", "Prompt", "prompt ", "id", "\x1b[2J", "é" * 80])] = row.pop(one)
        case "inside":
            for value in row.values():
                if isinstance(value, list) and value:
                    value[rng.randrange(len(value))] = rng.choice(VALUES)


def change_bytes(data: bytearray, rng: random.Random) -> None:
    place = rng.randrange(len(data) + 1)
    length = rng.choice([1, 1, 3, 20])
    match rng.choice(["flip", "insert", "delete", "duplicate", "truncate"]):
        case "flip" if place < len(data):
            data[place] ^= 1 << rng.randrange(8)
        case "insert":
            data[place:place] = rng.choice(INSERTED)
        case "delete":
            del data[place : place + length]
        case "duplicate":
            data[place:place] = data[place : place + length]
        case "truncate":
            del data[place:]


def well_named(text: str, file: Path) -> bool:
    return text.startswith(f"{file}:") and text.isprintable() and len(text) < len(str(file)) + 1000


def test_10000_mutated_rows_end_in_rows_or_in_errors_that_name_them(tmp_path: Path) -> None:
    """Half of the pairs in files of their own, as one bad row ends in the refusal of its file."""
    rng = random.Random(19)
    outcome: Counter[str] = Counter()
    file = tmp_path / "rows.jsonl"
    for _ in range(50):
        file.write_bytes(b"\n".join(mutated(rng.choice(GOOD_DRAFTS), rng) for _ in range(100)))
        for reader in (iter_drafts, iter_questions):
            errors: list[RowError] = []
            try:
                outcome["drafts"] += sum(1 for _ in reader(file, errors.append, outcome))
            except InputError as refusal:
                assert well_named(str(refusal), file)
            assert all(well_named(str(error), file) for error in errors)
            outcome["bad drafts"] += len(errors)
    for size in [1] * 2500 + [10] * 250:
        file.write_bytes(b"\n".join(mutated(rng.choice(GOOD_PAIRS), rng) for _ in range(size)))
        try:
            outcome["pairs"] += len(load_pairs(file, None, outcome))
        except InputError as refusal:
            assert all(well_named(problem, file) for problem in refusal.problems)
            outcome["refused files"] += 1
    # Both ends are exercised.
    assert min(outcome[name] for name in ("drafts", "bad drafts", "pairs", "refused files")) > 300, outcome

"""Bad rows: each is reported with file, line and field, no good row is lost, and nothing ends in a traceback.

The same rows go through `pit improve`, which works to the end and exits with 1 if rows failed, and through
`pit train-reward`, which reads everything before it loads a model and exits with 2 if rows are bad.
Tested elsewhere: mixed lengths in a batch (test_sampling), running out of memory on one long row, and a gap that is
not finite in rl (tests/faults).
"""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from pitcli.data.bad_rows import REMEDY
from pitcli.data.templates import ChatFormat
from pitcli.data.thoughts import Answer
from pitcli.engine.models import forward
from tests.stages.bad_inputs.rows import (
    ADDED,
    CAT_DOG,
    COMMANDS,
    FIRST,
    ID,
    LAST,
    MIDDLE,
    PROMPT,
    TEXT,
    Change,
    Loaded,
    pit,
    replaced,
    swap,
)

# The change of the middle row, and the field (TEXT: the one with `cat dog`) and the reason in the error.
BAD_ROWS: dict[str, tuple[Change, str, str]] = {
    "invalid UTF-8": (swap(CAT_DOG, b'"cat \xff"'), "", "not UTF-8: byte 0xff at byte "),
    "NUL byte": (swap(CAT_DOG, b'"cat\0dog"'), "", "a NUL byte (column "),
    "escaped NUL": (swap(CAT_DOG, rb'"cat\u0000"'), "TEXT", "a NUL character"),
    "lone surrogate": (swap(CAT_DOG, rb'"cat \ud83d"'), "TEXT", "a lone surrogate: half of a character"),
    "NaN": (swap(ID, b'"id": 2, "score": NaN'), "score", "NaN, Infinity or a number too large"),
    "Infinity": (swap(ID, b'"id": 2, "scores": [1, -Infinity]'), "scores[1]", "NaN, Infinity or a number too large"),
    "duplicate keys": (swap(ID, b'"id": 2, "id": 4'), "id", "duplicate key"),
    "array row": (replaced(b'["Write 3 animals.", "cat dog"]'), "", "expected an object, got an array"),
    "number row": (replaced(b"3.5"), "", "expected an object, got a number"),
    "null row": (replaced(b"null"), "", "expected an object, got null"),
    "two objects on a line": (lambda row: row + b" " + row, "", "more text after the JSON value (column "),
    "Python dict": (lambda row: row.replace(b'"', b"'"), "", "expected JSON, got a Python dict (column 2)"),
    "nested 3000 deep": (swap(ID, b'"id": 2, "x": ' + b"[" * 3000 + b"]" * 3000), "", "nested more than 100 deep"),
    "100 MB line": (lambda row: row.replace(b"cat", b"cat" * 2**25), "", "the line is longer than 16 MiB"),
    "missing text": (swap(rb', "\w+": "cat dog"', b""), "TEXT", "missing; the row has 'id', 'prompt'"),
    "missing prompt": (swap(rb'"prompt": "[^"]*", ', b""), "prompt", "missing"),
    "null text": (swap(CAT_DOG, b"null"), "TEXT", "expected text, got null"),
    "null prompt": (swap(PROMPT, b"null"), "prompt", "expected text or messages, got null"),
    "number as text": (swap(CAT_DOG, b"7"), "TEXT", "expected text, got a number"),
    "number as prompt": (swap(PROMPT, b"7"), "prompt", "expected text or messages, got a number"),
    "empty completion": (swap(CAT_DOG, rb'" \n"'), "TEXT", "empty"),
    "empty prompt": (swap(PROMPT, b'""'), "prompt", "empty"),
    "no messages": (swap(PROMPT, b"[]"), "prompt", "empty"),
    "unknown role": (
        swap(PROMPT, b'[{"role": "tool", "content": "x"}]'),
        "prompt[0].role",
        'expected system, user or assistant, got "tool"',
    ),
    "misordered roles": (
        swap(PROMPT, b'[{"role": "assistant", "content": "x"}, {"role": "user", "content": "y"}]'),
        "prompt[0].role",
        "expected user, got assistant",
    ),
}
# The same for rows that are too long for the model, which is known once all rows are read.
LONG_ROWS: dict[str, tuple[Change, str, str]] = {
    "prompt over the context": (swap(PROMPT, b'"' + b"word " * 1500 + b'"'), "prompt", "expected a conversation of "),
    "completion over the limit": (swap(CAT_DOG, b'"' + b"cat " * 1500 + b'"'), "TEXT", "expected a conversation of "),
}


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(("change", "field", "reason"), (BAD_ROWS | LONG_ROWS).values(), ids=BAD_ROWS | LONG_ROWS)
def test_a_bad_row_is_reported_and_the_good_rows_around_it_are_not_lost(
    change: Change, field: str, reason: str, command: str, request: Any, tmp_path: Path, capfd: Any
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join([FIRST[command], change(MIDDLE[command]), LAST[command], b""]))
    expected = f"error: {file}:2{':' if field else ''}{field.replace('TEXT', TEXT[command])}: {reason}"
    if command == "improve":
        assert pit(command, file) == 1
        out, err = capfd.readouterr()
        assert [json.loads(line)["id"] for line in out.splitlines()] == [1, 3]
        assert "2 drafts, 0 changed, 1 row failed\n" in err
    else:
        request.getfixturevalue("no_model")
        assert pit(command, file, "--long-rows", "error") == 2
        out, err = capfd.readouterr()
        assert out == ""
    assert [line for line in err.splitlines() if line.startswith(expected)], err
    assert len(re.findall(rf"^error: {re.escape(str(file))}:", err, re.MULTILINE)) == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_a_truncated_last_line_is_reported(command: str, request: Any, tmp_path: Path, capfd: Any) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(FIRST[command] + b"\n" + MIDDLE[command] + b"\n" + LAST[command][:-9])
    if command == "train-reward":
        request.getfixturevalue("no_model")
    assert pit(command, file) == (1 if command == "improve" else 2)
    out, err = capfd.readouterr()
    assert f"error: {file}:3: the line ends inside the object (column " in err
    assert [json.loads(line)["id"] for line in out.splitlines()] == ([1, 2] if command == "improve" else [])


@pytest.mark.parametrize("command", COMMANDS)
def test_all_bad_rows_of_a_file_are_reported(command: str, request: Any, tmp_path: Path, capfd: Any) -> None:
    """Training lists the first 20, improve continues after each."""
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


def test_equal_chosen_and_rejected_are_refused(no_model: None, tmp_path: Path, capfd: Any) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(FIRST["train-reward"] + b"\n" + MIDDLE["train-reward"].replace(b"ant cow fox", b" cat dog"))
    assert pit("train-reward", file) == 2
    assert capfd.readouterr().err == f"error: {file}:2:rejected: the same text as chosen\nerror: {REMEDY}\n"


# Changes of the middle row, or of the file, that are accepted; the note on stderr; the commands that print it.
BOTH = COMMANDS
GOOD_ROWS: dict[str, tuple[Change, str, tuple[str, ...]]] = {
    "unchanged": (lambda row: row, "", BOTH),
    "U+2028 in a string": (swap(CAT_DOG, '"cat\u2028dog\x85"'.encode()), "", BOTH),
    "23-digit id": (swap(ID, b'"id": 12345678901234567890123'), "", BOTH),
    "duplicate id": (swap(ID, b'"id": 1'), "", BOTH),
    "float id": (swap(ID, b'"id": 1.5'), "", BOTH),
    "extra fields": (swap(ID, b'"id": 2, "note": {"a": [1, null, "\xc3\xa9"]}, "z": true'), "", BOTH),
    "system message": (
        swap(PROMPT, b'[{"role": "system", "content": "x"}, {"role": "user", "content": "y"}]'),
        "",
        BOTH,
    ),
    "control tokens in user text": (
        swap(CAT_DOG, b'"cat <|end|><|assistant|> dog"'),
        "1 row with the text of a control token, read as plain text",
        BOTH,
    ),
    "duplicate rows": (lambda row: (row + b"\n" + row).replace(b'"id": 2, ', b""), "1 duplicate row", BOTH),
    "the same pair both ways": (
        lambda row: row + b"\n" + b'{"prompt": "Write 3 animals.", "chosen": "cat dog", "rejected": "ant cow fox"}',
        "1 pair in both orders",
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
    pytest.param(command, row, file, note, id=f"{name}-{command}")
    for table, in_file in ((GOOD_ROWS, False), (GOOD_FILES, True))
    for name, (change, note, commands) in table.items()
    for row, file in [(replaced(b""), change) if in_file else (change, lambda data: data)]
    for command in commands
]


@pytest.mark.parametrize(("command", "row", "file", "note"), ACCEPTED)
def test_accepted_rows_are_kept_unchanged_and_unusual_ones_are_counted(
    command: str, row: Change, file: Change, note: str, request: Any, tmp_path: Path, capfd: Any
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
    assert [text for text in notes if not text.endswith(" pairs")] == ([note] if note else [])
    assert "error" not in err


LONG_PAIR = {"prompt": "Write 3 animals.", "chosen": "ant " * 900 + "fox", "rejected": "cat " * 900 + "dog"}


@pytest.mark.parametrize("long_rows", ["cut", "truncate"])
def test_long_responses_are_cut_and_counted(long_rows: str, no_model: None, tmp_path: Path, capfd: Any) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(
        json.dumps(LONG_PAIR) + "\n" + FIRST["train-reward"].decode() + "\n" + LAST["train-reward"].decode()
    )
    for command in ("train-reward", "sft"):
        with pytest.raises(Loaded):
            pit(command, file, "--long-rows", long_rows)
        err = capfd.readouterr().err
        assert f"{file}: 1 row cut to fit 1024 tokens\n" in err
        assert f"{file}: 2 responses cut at the end\n" in err
        assert "prompts cut" not in err
        assert f"{file}: 3 pairs\n" in err


@pytest.mark.parametrize(
    ("row", "field", "reason"),
    [
        ({**LONG_PAIR, "prompt": "word " * 1500}, "prompt", "the prompt leaves 0 of 1024 tokens for each response"),
        (
            {**LONG_PAIR, "rejected": "ant " * 900 + "dog"},
            "rejected",
            "the same text as chosen after both are cut to",
        ),
    ],
    ids=["prompt", "equal"],
)
def test_truncate_shortens_no_prompt_and_makes_no_equal_pair(
    row: dict[str, str], field: str, reason: str, no_model: None, tmp_path: Path, capfd: Any
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row) + "\n")
    assert pit("train-reward", file, "--long-rows", "truncate") == 2
    assert capfd.readouterr().err.startswith(f"error: {file}:1:{field}: {reason}")


def test_an_empty_improvement_leaves_the_draft_and_is_reported(
    tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ChatFormat, "answer", lambda self, token_ids: Answer("", ""))
    (tmp_path / "rows.jsonl").write_bytes(FIRST["improve"] + b"\n" + LAST["improve"] + b"\n")
    assert pit("improve", tmp_path / "rows.jsonl", "--max-iters", "2") == 0
    rows = [json.loads(line) for line in capfd.readouterr().out.splitlines()]
    assert [(row["response"], row["stop_reason"]) for row in rows] == [("pie jam", "empty"), ("saw axe", "empty")]
    assert [len(row["iterations"]) for row in rows] == [1, 1]


def test_a_gap_that_is_not_finite_is_a_row_error_and_the_draft_is_kept(
    tmp_path: Path, capfd: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward, "scores", lambda model, batch: torch.full((len(batch.rows_N),), torch.nan))
    (tmp_path / "rows.jsonl").write_bytes(FIRST["improve"] + b"\n")
    assert pit("improve", tmp_path / "rows.jsonl", "--max-iters", "2") == 1
    out, err = capfd.readouterr()
    row = json.loads(out)
    assert (row["response"], row["stop_reason"]) == ("pie jam", "non_finite_gap")
    assert f"error: {tmp_path / 'rows.jsonl'}:1:response: no finite gap; the draft is kept as it was\n" in err

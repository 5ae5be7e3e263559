"""10,000 mutated rows: each is read, or refused with an error that names it."""

import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

from pitcli.data.bad_rows import REMEDY
from pitcli.data.formats import iter_drafts, iter_questions
from pitcli.data.pair_reading import load_pairs
from pitcli.data.rows import RowError
from pitcli.errors import InputError

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
    {"instruction": "u", "completions": [{"response": "a", "overall_score": 1}, {"response": "b", "overall_score": 2}]},
    {
        "winner": "model_a",
        "conversation_a": [{"from": "human", "value": "u"}, {"role": "model", "content": "a"}],
        "conversation_b": [{"from": "human", "value": "u"}, {"from": "gpt", "value": "b"}],
    },
    {
        "system": "s",
        "history": [["u", "a"]],
        "prompt": "u",
        "chosen": {"role": "assistant", "content": [{"type": "text", "text": "a"}]},
        "rejected": "b",
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
    key, other = rng.choice(list(row)), rng.choice(list(row))
    match rng.choice(["swap", "replace", "drop", "rename", "inside"]):
        case "swap":
            row[key], row[other] = row[other], row[key]
        case "replace":
            row[key] = rng.choice(VALUES)
        case "drop":
            del row[key]
        case "rename":
            row[rng.choice(["", "Prompt", "prompt ", "id", "\x1b[2J", "é" * 80])] = row.pop(key)
        case "inside":
            for value in row.values():
                if isinstance(value, list) and value:
                    value[rng.randrange(len(value))] = rng.choice(VALUES)


def change_bytes(data: bytearray, rng: random.Random) -> None:
    index = rng.randrange(len(data) + 1)
    length = rng.choice([1, 1, 3, 20])
    match rng.choice(["flip", "insert", "delete", "duplicate", "truncate"]):
        case "flip" if index < len(data):
            data[index] ^= 1 << rng.randrange(8)
        case "insert":
            data[index:index] = rng.choice(INSERTED)
        case "delete":
            del data[index : index + length]
        case "duplicate":
            data[index:index] = data[index : index + length]
        case "truncate":
            del data[index:]


ADVICE = (REMEDY, "to read a row of no known format")


def names_file(text: str, file: Path) -> bool:
    return text.startswith(f"{file}:") and text.isprintable() and len(text) < len(str(file)) + 1000


def test_10000_mutated_rows_end_in_rows_or_in_errors_that_name_them(tmp_path: Path) -> None:
    """Half of the pairs are in separate files, because one bad row makes pit refuse its file."""
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
                assert names_file(str(refusal), file)
            assert all(names_file(str(error), file) for error in errors)
            outcome["bad drafts"] += len(errors)
    for size in [1] * 2500 + [10] * 250:
        file.write_bytes(b"\n".join(mutated(rng.choice(GOOD_PAIRS), rng) for _ in range(size)))
        try:
            outcome["pairs"] += len(load_pairs(file, None, outcome))
        except InputError as refusal:
            assert all(names_file(p, file) for p in refusal.problems if not p.startswith(ADVICE))
            outcome["refused files"] += 1
    # Both outcomes occur.
    assert min(outcome[name] for name in ("drafts", "bad drafts", "pairs", "refused files")) > 300, outcome

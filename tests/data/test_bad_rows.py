"""Rows that cannot be used as pairs: errors, or skipped and counted by reason; --list-bad lists all of them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from pitcli.data.bad_rows import MOST_REASONS, REMEDY, reason_of
from pitcli.data.formats import iter_questions
from pitcli.data.pair_reading import ReadingOptions, load_pairs, read_pairs
from pitcli.data.rows import RowError
from pitcli.errors import InputError, SettingsError

GOOD = {"prompt": "p", "chosen": "a", "rejected": "b"}
EMPTY = {"prompt": "q", "chosen": "a", "rejected": " "}
SAME = {"prompt": "r", "chosen": "a", "rejected": "a"}
SKIP = ReadingOptions(skip_bad=True)
STRICT = ReadingOptions(skip_bad=False)


def write(path: Path, *rows: object) -> Path:
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def transcript(*turns: str) -> str:
    return "".join(f"\n\n{('Human', 'Assistant')[n % 2]}: {turn}" for n, turn in enumerate(turns))


def test_bad_rows_are_errors_and_the_last_line_names_the_flag(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD, EMPTY, "{", SAME)
    with pytest.raises(InputError) as caught:
        load_pairs(path)
    first, _, third, last = caught.value.problems
    assert (first, third) == (f"{path}:2:rejected: empty", f"{path}:4:rejected: the same text as chosen")
    assert last == REMEDY
    assert "--skip-bad" in last


def test_skipped_rows_are_counted_by_reason(tmp_path: Path) -> None:
    long = [{**GOOD, "prompt": f"{n}", "chosen": [{"role": "tool", "content": "x"}] * n} for n in (1, 2)]
    path = write(
        tmp_path / "rows.jsonl", GOOD, EMPTY, {**EMPTY, "prompt": "s"}, '{"prompt": x', '{"a": NaN}', SAME, *long
    )
    notes: Counter[str] = Counter()
    assert [pair.line for pair in load_pairs(path, notes=notes, options=SKIP)] == [1]
    assert notes == {
        "rows skipped: rejected: empty": 2,
        "rows skipped: not JSON: Expecting value (column …)": 1,
        "rows skipped: a: NaN, Infinity or a number too large": 1,
        "rows skipped: rejected: the same text as chosen": 1,
        "rows skipped: chosen[…].role: expected system, user or assistant, got …": 2,
    }


def test_reasons_do_not_contain_what_the_rows_say() -> None:
    error = RowError("f", 3, "answers[12].rank", 'expected 7 or 8, got "x"; remove it')
    assert reason_of(error) == "rows skipped: answers[…].rank: expected … or …, got …"


def test_many_reasons_are_counted_together(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": {"role": "assistant", "content": {}}, f"x{n}": 1} for n in range(3)]
    rows += [{chr(97 + n): 1} for n in range(26)]
    names = [f'{{"{chr(97 + n)}": NaN}}' for n in range(26)]
    notes: Counter[str] = Counter()
    load_pairs(write(tmp_path / "rows.jsonl", GOOD, *rows, *names), notes=notes, options=SKIP)
    assert len(notes) == MOST_REASONS + 1
    assert sum(notes.values()) == 55
    assert notes["rows skipped: other reasons"] > 1


ODD = {
    "ends with the human": transcript("Hi", "Yes?", "Bye"),
    "empty last turn": transcript("Hi", " "),
    "parts earlier": transcript("Hi", "Yes?", "No", "x"),
    "the same": transcript("Hi", "Fine."),
    "an empty turn inside": transcript("Hi", "", "Hello?", "x"),
}


@pytest.mark.parametrize("odd", ODD.values(), ids=ODD)
def test_hh_transcripts_load_without_a_flag(odd: str, tmp_path: Path) -> None:
    """HH as published has such rows; in rows of one's own, the same is an error."""
    good = {"chosen": transcript("Hi", "Fine."), "rejected": transcript("Hi", "Bad.")}
    path = write(tmp_path / "rows.jsonl", good, {"chosen": transcript("Hi", "Fine."), "rejected": odd})
    notes: Counter[str] = Counter()
    assert len(load_pairs(path, notes=notes)) == 1
    assert list(notes.values()) == [1]
    assert next(iter(notes)).startswith("rows skipped: rejected: ")
    assert len(read_pairs(path, options=STRICT).errors) == 2
    messages = {
        field: [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(turns)]
        for field, turns in (("chosen", ("Hi", "Fine.")), ("rejected", ("Hi", " ")))
    }
    assert len(read_pairs(write(path, good, messages)).errors) == 2


def test_rows_that_are_not_transcripts_are_errors_even_among_transcripts(tmp_path: Path) -> None:
    good = {"chosen": transcript("Hi", "Fine."), "rejected": transcript("Hi", "Bad.")}
    path = write(tmp_path / "rows.jsonl", good, {"chosen": "a", "rejected": "b"}, "{")
    assert [line.partition(": ")[0] for line in read_pairs(path).errors[:2]] == [f"{path}:2:prompt", f"{path}:3"]


def test_bad_rows_of_a_data_set_of_the_hub_are_skipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    own = write(folder / "train.jsonl", GOOD, EMPTY)
    notes: Counter[str] = Counter()
    assert len(load_pairs(f"hub:{folder}", notes=notes)) == 1
    assert notes == {"rows skipped: rejected: empty": 1}
    assert read_pairs(f"hub:{folder}", options=STRICT).errors == [f"hub:{folder}:2:rejected: empty", REMEDY]
    # the choice is made for each file
    assert read_pairs(f"hub:{folder},{own}").errors == [f"{own}:2:rejected: empty", REMEDY]


@pytest.mark.parametrize("skip", [True, False])
def test_a_file_without_a_usable_row_is_an_error_that_says_why(skip: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", EMPTY, SAME)
    errors = read_pairs(path, options=ReadingOptions(skip_bad=skip)).errors
    assert errors[:2] == [f"{path}:1:rejected: empty", f"{path}:2:rejected: the same text as chosen"]
    assert errors[2:] == ([f"{path}: no pairs are left: 2 rows skipped"] if skip else [])


@pytest.mark.parametrize("skip", [True, False])
def test_all_bad_rows_are_listed_in_a_file(skip: bool, tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD, *[EMPTY] * 30, "{")
    bad = tmp_path / "bad.jsonl"
    bad.write_text("old\n")
    reading = read_pairs(path, options=ReadingOptions(skip_bad=skip, list_bad=str(bad)))
    assert len(reading.errors) == (0 if skip else 22)
    listed = [json.loads(line) for line in bad.read_text().splitlines()]
    assert listed[0] == {"file": str(path), "line": 2, "field": "rejected", "reason": "empty"}
    assert [row["line"] for row in listed] == list(range(2, 33))
    read_pairs(path, max_rows=1, options=ReadingOptions(list_bad=str(bad), append=True))
    assert len(bad.read_text().splitlines()) == 31
    read_pairs(write(path, GOOD), options=ReadingOptions(list_bad=str(bad)))
    assert bad.read_text() == ""


def test_the_list_must_not_be_the_input_and_needs_a_folder(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.jsonl", GOOD)
    for bad, problem in ((path, "is the input"), (tmp_path / "no" / "bad.jsonl", "is not an existing folder")):
        with pytest.raises(SettingsError, match=f"--list-bad: .* {problem}"):
            load_pairs(path, options=ReadingOptions(list_bad=str(bad)))
    with pytest.raises(SettingsError, match="Is a directory"):
        load_pairs(path, options=ReadingOptions(list_bad=str(tmp_path)))
    assert path.read_text() == json.dumps(GOOD) + "\n"


def test_questions_skip_and_list_bad_rows_too(tmp_path: Path) -> None:
    tie = {"context": "q", "response1": "a", "response2": "b", "overall_preference": 0}
    path, bad = write(tmp_path / "rows.jsonl", {"prompt": "p"}, {"prompt": " "}, "{", tie), tmp_path / "bad.jsonl"
    notes: Counter[str] = Counter()
    errors: list[Any] = []
    options = ReadingOptions(skip_bad=True, list_bad=str(bad))
    assert [line for line, _ in iter_questions(path, errors.append, notes, options)] == [1, 4]  # a tie has a prompt
    assert not errors
    assert notes["rows skipped: prompt: empty"] == 1
    assert [json.loads(line)["line"] for line in bad.read_text().splitlines()] == [2, 3]

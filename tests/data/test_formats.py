"""Rows of every supported format become the same pairs, and every unusable row is reported."""

import json
from collections import Counter
from pathlib import Path

import pytest

from pitcli.data.bad_rows import REMEDY
from pitcli.data.formats import iter_drafts, iter_questions, parse_draft
from pitcli.data.pair_formats import parse_pair
from pitcli.data.pair_reading import load_pairs
from pitcli.data.reading import read_rows
from pitcli.data.rows import Message, RowError
from pitcli.data.strict_json import RowProblem
from pitcli.errors import InputError

DATA = Path(__file__).parents[2] / ".." / "shared" / "data"


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


SYSTEM = {"role": "system", "content": "Be brief."}
ONE_TURN = (Message("user", "Hi"),)
THREE_TURNS = (Message("user", "Hi"), Message("assistant", "Hello"), Message("user", "Bye"))
HH_THREE = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: Bye\n\nAssistant:"

PAIRS = {
    "canonical": ({"prompt": "Hi", "chosen": "A", "rejected": "B"}, ONE_TURN),
    "canonical messages": ({"prompt": [user("Hi")], "chosen": "A", "rejected": "B"}, ONE_TURN),
    "completions are stripped": ({"prompt": "Hi", "chosen": " A\n", "rejected": "\tB"}, ONE_TURN),
    "system message": (
        {"prompt": [SYSTEM, user("Hi")], "chosen": "A", "rejected": "B"},
        (Message("system", "Be brief."), *ONE_TURN),
    ),
    "HH as published": ({"chosen": HH_THREE + " A", "rejected": HH_THREE + " B"}, THREE_TURNS),
    "HH without its first newlines": (
        {"chosen": HH_THREE[2:] + "A", "rejected": HH_THREE + "\n\nB"},
        THREE_TURNS,
    ),
    "HH prompt": ({"prompt": HH_THREE, "chosen": "A", "rejected": "B"}, THREE_TURNS),
    "HH prompt with white space at its end": (
        {"prompt": HH_THREE + " \n", "chosen": "A", "rejected": "B"},
        THREE_TURNS,
    ),
    "HH prompt that stops at the user": (
        {"prompt": HH_THREE[:-12], "chosen": "A", "rejected": "B"},
        THREE_TURNS,
    ),
    "HH with an assistant turn in two parts": (
        {
            "chosen": "\n\nHuman: Hi\n\nAssistant: One\n\nAssistant: two\n\nHuman: Bye\n\nAssistant: A",
            "rejected": "\n\nHuman: Hi\n\nAssistant: One\n\nAssistant: two\n\nHuman: Bye\n\nAssistant: B",
        },
        (Message("user", "Hi"), Message("assistant", "One\n\ntwo"), Message("user", "Bye")),
    ),
    "OpenAssistant prompt": (
        {
            "prompt": "### Human: Hi ### Assistant: Hello ### Human: Bye ### Assistant:",
            "chosen": "A",
            "rejected": "B",
        },
        THREE_TURNS,
    ),
    "TRL": ({"prompt": [user("Hi")], "chosen": [assistant("A")], "rejected": [assistant("B")]}, ONE_TURN),
    "TRL, implicit prompt": (
        {
            "chosen": [user("Hi"), assistant("Hello"), user("Bye"), assistant("A")],
            "rejected": [user("Hi"), assistant("Hello"), user("Bye"), assistant("B")],
        },
        THREE_TURNS,
    ),
    "UltraFeedback": (
        {"prompt": "Hi", "chosen": [user("Hi"), assistant("A")], "rejected": [user("Hi"), assistant("B")]},
        ONE_TURN,
    ),
    "text that only mentions a transcript": (
        {"prompt": "Human: is that a role?", "chosen": "A", "rejected": "B"},
        (Message("user", "Human: is that a role?"),),
    ),
    "a plain prompt is unchanged": (
        {"prompt": " Hi\n\nAssistant: ", "chosen": "A", "rejected": "B"},
        (Message("user", " Hi\n\nAssistant: "),),
    ),
}


@pytest.mark.parametrize(("row", "prompt"), PAIRS.values(), ids=PAIRS.keys())
def test_a_pair_is_recognised_without_a_flag(row, prompt):
    pair = parse_pair(row, "f", 1)
    assert (pair.prompt, pair.chosen, pair.rejected, pair.extra) == (prompt, "A", "B", {})


def test_extra_fields_are_kept():
    pair = parse_pair({"id": 1, "prompt": "Hi", "chosen": "A", "rejected": "B", "n": None, "l": [1]}, "f", 1)
    assert pair.extra == {"n": None, "l": [1]}


def test_ids_are_text_and_a_missing_one_comes_from_the_content():
    row = {"prompt": "Hi", "chosen": "A", "rejected": "B"}
    assert parse_pair({"id": "x", **row}, "f", 1).id == "x"
    assert parse_pair({"id": 12345678901234567890123, **row}, "f", 1).id == "12345678901234567890123"
    # printf '[[["user","Hi"]],"A","B"]' | sha256sum | cut -c1-16
    assert parse_pair(row, "f", 1).id == "b070fdbb9d5ee05b"
    for missing in (None, "", " "):
        assert parse_pair({"id": missing, **row, "extra": 1}, "g", 2).id == "b070fdbb9d5ee05b"
    for value, text in ((1.5, "1.5"), (True, "true"), (["a", 1], '["a", 1]'), (" x", " x")):
        assert parse_pair({"id": value, **row}, "f", 1).id == text
        assert parse_draft({"id": value, "prompt": "Hi", "response": "x"}, "f", 1).id == text


P, C, R = {"prompt": "Hi"}, {"chosen": "A"}, {"rejected": "B"}
BAD_PAIRS = {
    "missing chosen": ({**P, **R}, "chosen", "missing; the row has 'prompt', 'rejected'"),
    "missing rejected": ({**P, **C}, "rejected", "missing"),
    "missing everything": ({}, "chosen", "missing; the row has no fields"),
    "missing prompt": ({**C, **R}, "prompt", "missing, and chosen is not a transcript"),
    "null prompt": ({"prompt": None, **C, **R}, "prompt", "expected text or messages, got null"),
    "null chosen": ({**P, "chosen": None, **R}, "chosen", "expected text, got null"),
    "number prompt": ({"prompt": 3, **C, **R}, "prompt", "expected text or messages, got a number"),
    "number chosen": ({**P, "chosen": 3, **R}, "chosen", "expected text, got a number"),
    "boolean rejected": ({**P, **C, "rejected": True}, "rejected", "expected text, got true or false"),
    "empty chosen": ({**P, "chosen": " \n", **R}, "chosen", "empty"),
    "empty prompt": ({"prompt": "\n", **C, **R}, "prompt", "empty"),
    "no messages": ({"prompt": [], **C, **R}, "prompt", "empty"),
    "only a system message": (
        {"prompt": [SYSTEM], **C, **R},
        "prompt[0].role",
        "the prompt must end with a user",
    ),
    "same": ({**P, **C, "rejected": "A "}, "rejected", "the same text as chosen"),
    "unknown role": (
        {"prompt": [user("a"), {"role": "tool", "content": "b"}], **C, **R},
        "prompt[1].role",
        'expected system, user or assistant, got "tool"',
    ),
    "no role": (
        {"prompt": [{"content": "b"}], **C, **R},
        "prompt[0].role",
        "expected system, user or assistant, got null",
    ),
    "role that cannot be hashed": (
        {"prompt": [{"role": []}], **C, **R},
        "prompt[0].role",
        "expected system, user or assistant, got an array",
    ),
    "no message": ({"prompt": ["Hi"], **C, **R}, "prompt[0]", "expected a message with role and content, got text"),
    "number content": (
        {"prompt": [{"role": "user", "content": 3}], **C, **R},
        "prompt[0].content",
        "expected text, got a number",
    ),
    "empty content": ({"prompt": [user(" ")], **C, **R}, "prompt[0].content", "empty"),
    "two users": (
        {"prompt": [user("a"), assistant("b"), assistant("c")], **C, **R},
        "prompt[2].role",
        "expected user, got assistant",
    ),
    "late system": ({"prompt": [user("a"), SYSTEM], **C, **R}, "prompt[1].role", "expected assistant, got system"),
    "assistant first": (
        {"prompt": [assistant("a"), user("b")], **C, **R},
        "prompt[0].role",
        "expected user, got assistant",
    ),
    "assistant last": (
        {"prompt": [user("a"), assistant("b")], **C, **R},
        "prompt[1].role",
        "the prompt must end",
    ),
    "HH prompt that ends in an answer": (
        {"prompt": HH_THREE + " x", **C, **R},
        "prompt[3].role",
        "the prompt must end",
    ),
    "HH prompt with an empty turn": (
        {"prompt": "\n\nHuman: \n\nAssistant: x\n\nHuman: y\n\nAssistant:", **C, **R},
        "prompt",
        "turn 1 of the transcript (user) is empty",
    ),
    "HH, user last": (
        {"chosen": HH_THREE[:-12], "rejected": HH_THREE + " B"},
        "chosen",
        "must end with an assistant turn",
    ),
    "HH, last turn empty": (
        {"chosen": HH_THREE + " A", "rejected": HH_THREE},
        "rejected",
        "the last assistant turn is",
    ),
    "HH, same": (
        {"chosen": HH_THREE + " A", "rejected": HH_THREE + "A\n"},
        "rejected",
        "the same text as chosen",
    ),
    "HH, other prompts": (
        {"chosen": "\n\nHuman: a\n\nAssistant: A", "rejected": "\n\nHuman: b\n\nAssistant: B"},
        "rejected",
        "shares no prompt with chosen",
    ),
    "HH, different early": (
        {"chosen": HH_THREE + " A", "rejected": HH_THREE.replace("Bye", "Ciao") + " B"},
        "rejected",
        "differs from chosen at turn 3",
    ),
    "HH, one longer": (
        {"chosen": HH_THREE + " A", "rejected": "\n\nHuman: Hi\n\nAssistant: B"},
        "rejected",
        "differs from chosen at turn 2",
    ),
    "HH, assistant first": (
        {"chosen": "\n\nHuman: a", "rejected": "\n\nAssistant: A\n\nHuman: b"},
        "prompt",
        "missing, and rejected is not a transcript",
    ),
    "HH, no prompt": ({"chosen": "\n\nAssistant: A", "rejected": "\n\nAssistant: B"}, "prompt", "missing"),
    "TRL, user as completion": (
        {**P, "chosen": [user("A")], **R},
        "chosen",
        "must end with an assistant turn",
    ),
    "TRL, no completion": ({**P, "chosen": [], **R}, "chosen", "empty"),
    "TRL, another prompt": (
        {**P, "chosen": [user("Ho"), assistant("A")], **R},
        "chosen",
        "expected one assistant message",
    ),
    "TRL, implicit, no prompt": (
        {"chosen": [assistant("A")], "rejected": [assistant("B")]},
        "chosen",
        "empty",
    ),
    "TRL, implicit, different prompts": (
        {"chosen": [user("a"), assistant("A")], "rejected": [user("b"), assistant("B")]},
        "rejected",
        "shares no prompt",
    ),
    "TRL, implicit, misordered": (
        {
            "chosen": [user("a"), user("b"), assistant("A")],
            "rejected": [user("a"), user("b"), assistant("B")],
        },
        "chosen[1].role",
        "expected assistant, got user",
    ),
}


@pytest.mark.parametrize(("row", "field", "reason"), BAD_PAIRS.values(), ids=BAD_PAIRS.keys())
def test_a_bad_pair_names_its_field(row, field, reason):
    with pytest.raises(RowProblem) as caught:
        parse_pair(row, "f", 1)
    assert caught.value.field == field
    assert caught.value.reason.startswith(reason)


def test_a_draft_keeps_its_row_and_its_text():
    row = {"z": 1, "id": 12345678901234567890123, "response": " x\n", "prompt": HH_THREE}
    draft = parse_draft(row, "f", 1)
    assert (draft.id, draft.prompt, draft.response) == ("12345678901234567890123", THREE_TURNS, " x\n")
    assert draft.row is row
    assert list(draft.row) == ["z", "id", "response", "prompt"]
    assert parse_draft({"prompt": [user("Hi")], "response": "x"}, "f", 1).id is None


BAD_DRAFTS = {
    "missing response": ({"prompt": "Hi"}, "response", "missing; the row has 'prompt'"),
    "missing prompt": ({"response": "x"}, "prompt", "missing"),
    "null response": ({"prompt": "Hi", "response": None}, "response", "expected text, got null"),
    "number response": ({"prompt": "Hi", "response": 7}, "response", "expected text, got a number"),
    "empty response": ({"prompt": "Hi", "response": " "}, "response", "empty"),
    "messages as response": (
        {"prompt": "Hi", "response": [user("x")]},
        "response",
        "must end with an assistant turn",
    ),
    "empty prompt": ({"prompt": "", "response": "x"}, "prompt", "empty"),
    "misordered prompt": (
        {"prompt": [assistant("x")], "response": "x"},
        "prompt[0].role",
        "expected user, got assistant",
    ),
}


@pytest.mark.parametrize(("row", "field", "reason"), BAD_DRAFTS.values(), ids=BAD_DRAFTS.keys())
def test_a_bad_draft_names_its_field(row, field, reason):
    with pytest.raises(RowProblem) as caught:
        parse_draft(row, "f", 1)
    assert caught.value.field == field
    assert caught.value.reason.startswith(reason)


def fail(error: RowError) -> None:
    pytest.fail(str(error))


def write(tmp_path: Path, *rows: object) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows), "utf-8")
    return path


def pair(prompt: str, chosen: str = "A", rejected: str = "B", **fields: object) -> dict[str, object]:
    return {**fields, "prompt": prompt, "chosen": chosen, "rejected": rejected}


def test_all_errors_of_a_file_are_reported_at_once_in_order(tmp_path):
    path = write(tmp_path, pair("a"), "{", pair("", "A"), "", pair("b", "x", "x"))
    with pytest.raises(InputError) as caught:
        load_pairs(path)
    locations = [problem.split(": ")[0] for problem in caught.value.problems]
    assert locations == [f"{path}:2", f"{path}:3:prompt", f"{path}:5:rejected", REMEDY]


@pytest.mark.parametrize(("bad", "last"), [(20, "rows.jsonl:20:prompt: empty"), (23, "and 3 more")])
def test_at_most_twenty_errors_are_listed(tmp_path, bad, last):
    with pytest.raises(InputError) as caught:
        load_pairs(write(tmp_path, *[pair("")] * bad))
    assert len(caught.value.problems) == (20 if bad == 20 else 21)
    assert caught.value.problems[-1].endswith(last)


@pytest.mark.parametrize("rows", [(), ("", "  ")], ids=["empty", "blank lines"])
def test_a_file_without_rows_is_refused(tmp_path, rows):
    path = write(tmp_path, *rows)
    with pytest.raises(InputError) as caught:
        load_pairs(path)
    assert caught.value.problems == [f"{path}: no rows"]


def test_pairs_with_one_id_are_all_read_and_keep_it(tmp_path):
    rows = [pair("a", id=7), pair("b"), pair("c", id="7"), pair("d", id=7.0), pair("e", id=None), pair("a", "C", id=7)]
    notes: Counter[str] = Counter()
    loaded = load_pairs(write(tmp_path, *rows), notes=notes)
    assert [(p.prompt[0].content, p.chosen, p.id) for p in loaded if p.id in ("7", "7.0")] == [
        ("a", "A", "7"),
        ("c", "A", "7"),
        ("d", "A", "7.0"),
        ("a", "C", "7"),
    ]
    assert (len(loaded), notes) == (6, {})


def test_duplicate_rows_are_kept_once_and_pairs_in_both_orders_are_kept(tmp_path):
    notes: Counter[str] = Counter()
    rows = [pair("a", id=1), pair("a", id=1), pair("a"), pair("a", "B", "A"), pair("b", "B", "A")]
    loaded = load_pairs(write(tmp_path, *rows), notes=notes)
    assert [(p.prompt[0].content, p.chosen) for p in loaded] == [("a", "A"), ("a", "B"), ("b", "B")]
    assert notes == {"duplicate rows": 2, "pairs in both orders": 1}


def test_max_rows_keeps_the_first_rows_and_reads_no_further(tmp_path):
    path = write(tmp_path, pair("a"), pair("a"), pair("b"), pair(""), pair("c"))
    assert [p.prompt[0].content for p in load_pairs(path, max_rows=2)] == ["a", "b"]


def test_drafts_after_bad_rows_are_still_read(tmp_path):
    errors: list[RowError] = []
    path = write(tmp_path, {"prompt": "a", "response": "x"}, "null", {"prompt": "b"}, {"prompt": "c", "response": "y"})
    drafts = [(line, draft.response) for line, draft in iter_drafts(path, errors.append)]
    assert drafts == [(1, "x"), (4, "y")]
    assert [(error.line, error.field) for error in errors] == [(2, ""), (3, "response")]


def test_drafts_with_one_id_are_all_read(tmp_path):
    notes: Counter[str] = Counter()
    rows = [
        {"id": id, "prompt": "p", "response": f"r{index}"} for index, id in enumerate([7, "a", "7", None, None, 7.0])
    ]
    drafts = [(line, draft.row["id"]) for line, draft in iter_drafts(write(tmp_path, *rows), fail, notes)]
    assert drafts == [(1, 7), (2, "a"), (3, "7"), (4, None), (5, None), (6, 7.0)]
    assert not notes


def test_equal_drafts_are_counted_and_all_are_read(tmp_path):
    notes: Counter[str] = Counter()
    rows = [{"prompt": "p", "response": "r"}] * 3 + [{"id": i, "prompt": "p", "response": "r"} for i in (1, 2, 2)]
    assert len(list(iter_drafts(write(tmp_path, *rows), fail, notes))) == 6
    assert notes == {"duplicate rows": 3}


def test_questions_may_share_an_id(tmp_path):
    rows = [pair("a", id=1), pair("c", "C", id=1), pair("b")]
    assert [line for line, _ in iter_questions(write(tmp_path, *rows), fail)] == [1, 2, 3]


def test_a_draft_is_yielded_before_the_next_line_is_parsed(tmp_path):
    errors: list[RowError] = []
    drafts = iter_drafts(write(tmp_path, {"prompt": "a", "response": "x"}, "bad"), errors.append)
    assert next(drafts)[0] == 1
    assert errors == []


def test_an_unusable_file_of_drafts_is_refused_before_the_first_draft(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        iter_drafts(tmp_path / "none.jsonl", fail)


needs_data = pytest.mark.skipif(not DATA.is_dir(), reason="needs the HH rows of ../shared/data, which is absent")


@needs_data
@pytest.mark.parametrize(("fold", "published"), [("train", 6187), ("test", 1008)])
def test_every_hh_row_as_published_agrees_with_its_canonical_row(fold, published):
    raw = load_pairs(DATA / f"hh_raw_{fold}.jsonl.gz")
    canonical = {(p.prompt, p.chosen, p.rejected) for p in load_pairs(DATA / f"dialogue_{fold}.jsonl.gz")}
    agreeing = sum((p.prompt, p.chosen, p.rejected) in canonical for p in raw)
    assert (len(raw), agreeing) == (published, published)


@needs_data
def test_every_openassistant_prompt_becomes_turns():
    rows = read_rows(DATA / "oasst1_val_english.jsonl.gz", fail)
    turns = Counter(len(parse_draft({**row, "response": "x"}, "f", line).prompt) for line, row in rows)
    assert turns == {1: 187, 3: 228, 5: 4}


def test_several_files_are_read_one_after_another(tmp_path: Path) -> None:
    """Errors name the file."""
    first, second = (str(tmp_path / name) for name in ("a.jsonl", "b.csv"))
    Path(first).write_text('{"id": "1", "prompt": "p", "chosen": "c", "rejected": "r"}\n')
    Path(second).write_text("id,prompt,chosen,rejected\n2,p,c,r\n1,q,c,r\n1,p,c,\n")
    notes: Counter[str] = Counter()
    with pytest.raises(InputError) as problem:
        load_pairs(f"{first}, {second}")
    assert problem.value.problems == [f"{second}:4:rejected: empty", REMEDY]
    Path(second).write_text("id,prompt,chosen,rejected\n2,p,c,r\n1,q,c,r\n")
    pairs = load_pairs(f"{first},{second}", notes=notes)
    assert [(pair.id, pair.prompt[0].content, pair.file, pair.line) for pair in pairs] == [
        ("1", "p", first, 1),
        ("1", "q", second, 3),
    ]
    assert notes == {"duplicate rows": 1}
    assert len(load_pairs(f"{second},{first}", max_rows=1)) == 1

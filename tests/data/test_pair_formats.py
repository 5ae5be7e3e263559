"""Every published format is recognised by its fields and becomes the right pair."""

import json
from pathlib import Path
from typing import Any

import pytest

from pitcli.data.formats import iter_questions
from pitcli.data.known_formats import FORMATS, KNOWN, UnknownFormat
from pitcli.data.pair_formats import parse_pair, recognise
from pitcli.data.pair_reading import load_pairs
from pitcli.data.rows import Message
from pitcli.data.strict_json import RowProblem
from pitcli.errors import InputError
from pitcli.settings.preparing import PrepareConfig
from pitcli.stages import prepare
from tests.data.test_published_formats import LABELLED

SYSTEM, USER, ASSISTANT = (lambda text, role=role: Message(role, text) for role in ("system", "user", "assistant"))
QUESTION = "How long should I boil an egg?"
GOOD, BAD = "Seven minutes for a firm white and a soft yolk.", "Until it is done."


def turn(sender: str, text: str) -> dict[str, str]:
    return {"from": sender, "value": text}


def comparison(info: dict[str, Any], choice: object = 1) -> dict[str, Any]:
    """As in the `comparisons` subset: the texts of the published rows begin with a space."""
    summaries = [{"text": f" {BAD}", "policy": "sup4", "note": None}, {"text": f" {GOOD}", "policy": "ref"}]
    return {"info": info, "summaries": summaries, "choice": choice, "worker": "w1", "batch": "b2"}


POST = {"id": "t3_1", "post": "My neighbour sings.", "title": "Help", "subreddit": "advice", "article": None}
NEWS = {"id": "n1", "post": None, "title": None, "subreddit": None, "site": "x", "article": "It rained."}

ROWS: dict[str, tuple[dict[str, Any], str, tuple[Message, ...], dict[str, Any]]] = {
    "UltraFeedback": (
        {
            "prompt": QUESTION,
            "prompt_id": "9f",
            "chosen": [{"content": QUESTION, "role": "user"}, {"content": GOOD, "role": "assistant"}],
            "rejected": [{"content": QUESTION, "role": "user"}, {"content": BAD, "role": "assistant"}],
            "score_chosen": 8.5,
            "score_rejected": 3.0,
        },
        "UltraFeedback, binarised",
        (USER(QUESTION),),
        {"prompt_id": "9f", "score_chosen": 8.5, "score_rejected": 3.0},
    ),
    "Alpaca pairs": (
        {"instruction": "Answer the cook.", "input": QUESTION, "chosen": GOOD, "rejected": BAD, "source": "kitchen"},
        "Alpaca pairs",
        (USER(f"Answer the cook.\n{QUESTION}"),),
        {"source": "kitchen"},
    ),
    "Alpaca pairs with system and history": (
        {
            "instruction": QUESTION,
            "input": "",
            "system": "Be brief.",
            "history": [["Hi", "Hello"]],
            "chosen": GOOD,
            "rejected": BAD,
        },
        "Alpaca pairs",
        (SYSTEM("Be brief."), USER("Hi"), ASSISTANT("Hello"), USER(QUESTION)),
        {},
    ),
    "Alpaca, output of two": (
        {"instruction": QUESTION, "input": None, "output": [GOOD, BAD]},
        "Alpaca, output ranked",
        (USER(QUESTION),),
        {},
    ),
    "Alpaca, output and rejected": (
        {"instruction": QUESTION, "output": GOOD, "rejected": BAD},
        "Alpaca, output and rejected",
        (USER(QUESTION),),
        {},
    ),
    "Orca DPO": (
        {"system": "You are a cook.", "question": QUESTION, "chosen": GOOD, "rejected": BAD},
        "Orca DPO",
        (SYSTEM("You are a cook."), USER(QUESTION)),
        {},
    ),
    "Orca DPO without system": (
        {"system": "", "question": QUESTION, "chosen": GOOD, "rejected": BAD},
        "Orca DPO",
        (USER(QUESTION),),
        {},
    ),
    "LLaMA-Factory": (
        {
            "conversations": [
                turn("system", "Be kind."),
                turn("human", "Hi"),
                turn("gpt", "Yes?"),
                turn("human", QUESTION),
            ],
            "chosen": turn("gpt", GOOD),
            "rejected": turn("gpt", BAD),
        },
        "LLaMA-Factory, ShareGPT",
        (SYSTEM("Be kind."), USER("Hi"), ASSISTANT("Yes?"), USER(QUESTION)),
        {},
    ),
    "LLaMA-Factory with a system column": (
        {
            "conversations": [turn("human", QUESTION)],
            "system": "Be kind.",
            "chosen": turn("gpt", GOOD),
            "rejected": turn("gpt", BAD),
        },
        "LLaMA-Factory, ShareGPT",
        (SYSTEM("Be kind."), USER(QUESTION)),
        {},
    ),
    "Argilla": (
        {"system": "", "input": QUESTION, "chosen": GOOD, "rejected": BAD},
        "Argilla",
        (USER(QUESTION),),
        {},
    ),
    "ShareGPT with other names of roles": (
        {
            "conversation": [turn("Human", "Hi"), turn("ChatGPT", "Yes?"), turn("user", QUESTION)],
            "chosen": {"role": "Assistant", "content": GOOD},
            "rejected": turn("bard", BAD),
        },
        "ShareGPT, one conversation",
        (USER("Hi"), ASSISTANT("Yes?"), USER(QUESTION)),
        {},
    ),
    "Axolotl": (
        {
            "messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": QUESTION}],
            "chosen": {"role": "assistant", "content": GOOD},
            "rejected": {"role": "assistant", "content": BAD},
        },
        "Axolotl, chat template",
        (SYSTEM("Be kind."), USER(QUESTION)),
        {},
    ),
    "ms-swift": (
        {
            "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": GOOD}],
            "rejected_response": BAD,
        },
        "ms-swift, rejected_response",
        (USER(QUESTION),),
        {},
    ),
    "ms-swift with messages": (
        {
            "system": "Be kind.",
            "messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": GOOD}],
            "rejected_messages": [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": BAD}],
        },
        "ms-swift, rejected_messages",
        (SYSTEM("Be kind."), USER(QUESTION)),
        {},
    ),
    "ms-swift, query": (
        {"query": QUESTION, "response": GOOD, "rejected_response": BAD, "system": "Be kind.", "history": []},
        "ms-swift, query",
        (SYSTEM("Be kind."), USER(QUESTION)),
        {},
    ),
    "OpenAI": (
        {
            "input": {"messages": [{"role": "user", "content": QUESTION}], "tools": []},
            "preferred_output": [{"role": "assistant", "content": GOOD}],
            "non_preferred_output": [{"role": "assistant", "content": BAD}],
        },
        "OpenAI preferences",
        (USER(QUESTION),),
        {},
    ),
    "summarize-from-feedback": (
        comparison(POST),
        "summarize-from-feedback",
        (USER("SUBREDDIT: r/advice\n\nTITLE: Help\n\nPOST: My neighbour sings.\n\nTL;DR:"),),
        {"worker": "w1", "batch": "b2"},
    ),
    "summarize-from-feedback, news": (
        comparison(NEWS),
        "summarize-from-feedback",
        (USER("Article:\nIt rained.\n\nTL;DR:"),),
        {"worker": "w1", "batch": "b2"},
    ),
    "Aligner": (
        {"question": QUESTION, "answer": BAD, "correction": GOOD, "category": "food"},
        "Aligner",
        (USER(QUESTION),),
        {"category": "food"},
    ),
}


@pytest.mark.parametrize(("row", "name", "prompt", "extra"), ROWS.values(), ids=ROWS.keys())
def test_a_published_row_is_recognised_and_round_trips(row, name, prompt, extra, tmp_path: Path):
    assert recognise(row).name == name
    pair = parse_pair(row, "f", 1)
    assert (pair.prompt, pair.chosen, pair.rejected, pair.extra) == (prompt, GOOD, BAD, extra)
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    prepare.run(PrepareConfig(data=str(path), out=tmp_path / "out", folds="all=1"))
    assert load_pairs(tmp_path / "out" / "all.jsonl") == load_pairs(path) == [pair]


def test_every_format_is_tested():
    elsewhere = {"HH transcripts / TRL, implicit prompt", "canonical / TRL preference", "HelpSteer-like ratings"}
    tested = {name for _, name, *_ in (*ROWS.values(), *LABELLED.values())}
    assert tested | elsewhere == {known.name for known in FORMATS}


def test_choice_is_the_index_of_the_better_summary():
    pair = parse_pair(comparison(POST, 0), "f", 1)
    assert (pair.chosen, pair.rejected) == (BAD, GOOD)


def test_extra_fields_do_not_change_the_format_of_a_canonical_pair():
    row = {"prompt": "p", "chosen": "a", "rejected": "b", "question": "q", "instruction": "i", "answer": "x"}
    assert recognise(row).name == "canonical / TRL preference"
    assert parse_pair(row, "f", 1).extra == {"question": "q", "instruction": "i", "answer": "x"}


BAD_ROWS = {
    "one output": ({"instruction": "i", "output": "o"}, "output", "expected two texts, the better one first, got text"),
    "three outputs": (
        {"instruction": "i", "output": ["a", "b", "c"]},
        "output",
        "expected two texts, the better one first, got an array of 3",
    ),
    "empty output": ({"instruction": "i", "output": ["a", ""]}, "output[1]", "empty"),
    "history of three": (
        {"instruction": "i", "history": [["a", "b", "c"]], "output": ["a", "b"]},
        "history[0]",
        "expected a question and its answer, got an array of 3",
    ),
    "history that is text": (
        {"instruction": "i", "history": "x", "output": ["a", "b"]},
        "history",
        "expected an array of pairs of texts, got text",
    ),
    "system that is a number": (
        {"question": "q", "system": 3, "chosen": "a", "rejected": "b"},
        "system",
        "expected text, got a number",
    ),
    "unknown sender": (
        {"conversations": [turn("tool", "x")], "chosen": turn("gpt", "a"), "rejected": turn("gpt", "b")},
        "conversations[0].from",
        'expected system, user or assistant, got "tool"',
    ),
    "ShareGPT, no message": (
        {"conversations": "x", "chosen": "a", "rejected": "b"},
        "conversations",
        "expected messages",
    ),
    "ShareGPT, number as completion": (
        {"conversations": [turn("human", "x")], "chosen": 3, "rejected": turn("gpt", "b")},
        "chosen",
        "expected text, got a number",
    ),
    "ShareGPT, gpt last": (
        {"conversations": [turn("gpt", "x")], "chosen": turn("gpt", "a"), "rejected": turn("gpt", "b")},
        "conversations[0].role",
        "expected user, got assistant",
    ),
    "no post": (comparison({"title": "x"}), "info.post", "expected text, got null"),
    "no info": ({**comparison(POST), "info": None}, "info", "expected an object with post, got null"),
    "choice of two": (comparison(POST, 2), "choice", "expected 0 or 1, the index of the better summary, got 2"),
    "choice that is true": (
        comparison(POST, True),
        "choice",
        "expected 0 or 1, the index of the better summary, got true",
    ),
    "one summary": (
        {**comparison(POST), "summaries": [{"text": "x"}]},
        "summaries",
        "expected an array of two objects",
    ),
    "empty summary": (
        {**comparison(POST), "summaries": [{"text": "x"}, {"text": " "}]},
        "summaries[1].text",
        "empty",
    ),
    "a correction that corrects nothing": (
        {"question": "q", "answer": "a", "correction": "a "},
        "",
        "the same text as chosen",
    ),
    "more than one format": (
        {"question": "q", "answer": "a", "correction": "b", "instruction": "i", "output": ["x", "y"]},
        "",
        "fits more than one format: Alpaca, output ranked (instruction, output), or Aligner (question, answer, corr",
    ),
    "a typo": (
        {"question": "q", "answer": "a", "corection": "b"},
        "correction",
        "missing; the row has 'question', 'answer', 'corection'; the nearest format is Aligner (question, answer,",
    ),
}


@pytest.mark.parametrize(("row", "field", "reason"), BAD_ROWS.values(), ids=BAD_ROWS.keys())
def test_a_bad_row_names_its_field(row, field, reason):
    with pytest.raises(RowProblem) as caught:
        parse_pair(row, "f", 1)
    assert (caught.value.field, caught.value.reason[: len(reason)]) == (field, reason)


def test_the_known_formats_are_listed_once_if_rows_have_none_of_them(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"a": 1}\n{"b": 1}\n')
    with pytest.raises(InputError) as caught:
        load_pairs(path)
    assert [problem.split(": ")[0] for problem in caught.value.problems] == [
        f"{path}:1:chosen",
        f"{path}:2:chosen",
    ]
    assert [problem.endswith(KNOWN) for problem in caught.value.problems] == [True, False]
    assert all(known.name in KNOWN for known in FORMATS)
    with pytest.raises(UnknownFormat):
        recognise({"a": 1})


def test_a_question_is_taken_from_a_pair_of_any_format(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS["Aligner"][0]) + "\n")
    [(_, question)] = iter_questions(path, lambda error: pytest.fail(str(error)))
    assert question.prompt == (USER(QUESTION),)
    assert question.row["prompt"] == [{"role": "user", "content": QUESTION}]

"""Thoughts are cut from responses, and kept; which texts begin and end them, the tokenizer may declare."""

from types import SimpleNamespace
from typing import Any

import pytest

from pitcli.data.drafts import draft_without_thoughts
from pitcli.data.rows import Draft, Message, PreferencePair
from pitcli.data.strict_json import RowProblem
from pitcli.data.thoughts import (
    THINK,
    Tags,
    answer_of,
    declared_tags,
    open_thought,
    pair_without_thoughts,
)

PROMPT = (Message("user", "Which bird sings?"),)


@pytest.mark.parametrize(
    ("text", "answer", "thoughts"),
    [
        ("The lark.", "The lark.", ""),
        (" verbatim \n", " verbatim \n", ""),
        ("<think>\nA bird.\n</think>\n\nThe lark.\n", "The lark.", "A bird."),
        ("<think>\n\n</think>\n\nThe lark.", "The lark.", ""),
        ("A bird.\n</think>The lark.", "The lark.", "A bird."),  # the begin was in the prompt
        ("<think>A</think>The owl?<think>B</think>The lark.", "The lark.", "AThe owl?B"),  # as the templates cut it
        ("<think>A bird that", "", "A bird that"),  # cut by the token limit
        ("\n <think>A bird", "", "A bird"),
        ("<think>A</think><think>B", "", "AB"),
        ("The tag <think> begins a thought.", "The tag <think> begins a thought.", ""),
        ("x < y, [THINK]", "x < y, [THINK]", ""),
    ],
)
def test_the_answer_is_what_follows_the_thoughts(text: str, answer: str, thoughts: str) -> None:
    assert answer_of(text) == (answer, thoughts)


def test_other_tags() -> None:
    tags = (THINK, Tags("[THINK]", "[/THINK]"))
    assert answer_of("[THINK]A[/THINK]B", tags) == ("B", "A")
    assert answer_of("<think>A</think>B", tags) == ("B", "A")
    assert answer_of("[THINK]A", tags) == ("", "A")
    assert answer_of("[THINK]A[/THINK]B") == ("[THINK]A[/THINK]B", "")


def test_a_thought_that_a_prompt_leaves_open() -> None:
    tags = (THINK, Tags("[THINK]", "[/THINK]"))
    assert open_thought("<|assistant|><think>\n", tags) == THINK
    assert open_thought("<think>\n\n</think>\n\n", tags) is None
    assert open_thought("<think></think>[THINK]", tags) == tags[1]
    assert open_thought("<|assistant|>", tags) is None


def tokenizer(*tokens: str, **attributes: Any) -> Any:
    return SimpleNamespace(added_tokens_decoder=dict(enumerate(tokens)), **attributes)


@pytest.mark.parametrize(
    ("tokens", "tags"),
    [
        (["<|user|>", "<|end|>"], []),
        (["[THINK]", "[/THINK]", "[INST]", "[/INST]"], [Tags("[THINK]", "[/THINK]")]),
        (["<seed:think>", "</seed:think>"], [Tags("<seed:think>", "</seed:think>")]),
        (["<|begin_of_thought|>", "<|end_of_thought|>"], [Tags("<|begin_of_thought|>", "<|end_of_thought|>")]),
        (["<think>", "</think>"], []),  # known already
        (["<think_fast>"], []),
    ],
)
def test_tags_by_the_names_of_tokens(tokens: list[str], tags: list[Tags]) -> None:
    assert declared_tags(tokenizer(*tokens)) == (THINK, *tags)


def test_tags_of_a_response_template() -> None:
    field = {"open": "<|channel|>analysis<|message|>", "close": "<|end|>"}
    declared = {"fields": {"thinking": field, "content": {"open": "a", "close": "b"}}}
    found = declared_tags(tokenizer(response_template=declared))
    assert found == (THINK, Tags("<|channel|>analysis<|message|>", "<|end|>"))
    for damaged in (None, [], {"fields": []}, {"fields": {"thinking": "x"}}, {"fields": {"thinking": {"open": ["a"]}}}):
        assert declared_tags(tokenizer(response_template=damaged)) == (THINK,)


def test_a_pair_keeps_its_thoughts_in_fields() -> None:
    pair = PreferencePair("1", PROMPT, "<think>A</think>The lark.", "Ants", {"source": "x"})
    cut = pair_without_thoughts(pair)
    assert (cut.chosen, cut.rejected) == ("The lark.", "Ants")
    assert cut.extra == {"source": "x", "chosen_thoughts": "A"}
    assert pair_without_thoughts(cut) is cut


@pytest.mark.parametrize(
    ("chosen", "rejected", "field", "reason"),
    [
        ("<think>A</think>Ants", "<think>B</think>Ants", "rejected", "the same text as chosen"),
        ("<think>A", "Ants", "chosen", "nothing but thoughts"),
        ("Ants", "<think>A</think> ", "rejected", "nothing but thoughts"),
    ],
)
def test_a_pair_without_two_answers_is_an_error(chosen: str, rejected: str, field: str, reason: str) -> None:
    with pytest.raises(RowProblem, match=reason) as caught:
        pair_without_thoughts(PreferencePair("1", PROMPT, chosen, rejected, {}))
    assert caught.value.field == field


def test_a_draft_keeps_its_thoughts_in_a_field() -> None:
    row = {"prompt": "p", "response": "<think>A</think>Ants", "id": 7}
    cut = draft_without_thoughts(Draft("7", PROMPT, str(row["response"]), row))
    assert cut.response == "Ants"
    assert cut.row == {"prompt": "p", "response": "Ants", "id": 7, "thoughts": "A"}
    assert draft_without_thoughts(cut) is cut

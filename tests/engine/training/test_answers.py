"""Greedy responses that are always empty or the same, and when that is no fault of the training."""

from collections.abc import Sequence

import pytest

from pitcli.engine.training.answers import unusable_answers

PROMPTS = [[1], [2], [3], [4]]
DIFFERENT = ["a", "b", "c", "d"]


def problem(
    trained: Sequence[str], start: Sequence[str] = DIFFERENT, data: Sequence[str] = DIFFERENT, shown: int = 2
) -> str | None:
    texts = {"improver": trained, None: start}

    def ask(role: str | None, prompts: Sequence[list[int]]) -> list[str]:
        return [texts[role][PROMPTS.index(prompt)] for prompt in prompts]

    rows = list(zip(PROMPTS, data, strict=True))
    return unusable_answers(trained[:shown], lambda: rows, ask, "improver", None)


@pytest.mark.parametrize(("text", "said"), [("", "empty"), ("tan bat bat", "the same")])
def test_the_same_answer_to_everything(text: str, said: str) -> None:
    assert problem([text] * 4) == f"the greedy responses to 4 prompts are all {said}"


@pytest.mark.parametrize("trained", [DIFFERENT, ["", "b", "", ""], ["x", "x", "x", "y"], ["", "", "", "d"]])
def test_some_different_answers_are_enough(trained: list[str]) -> None:
    assert problem(trained) is None


def test_what_the_model_did_before_training_is_not_divergence() -> None:
    assert problem([""] * 4, start=[""] * 4) is None
    assert problem(["x"] * 4, start=["y"] * 4) is None


def test_data_may_ask_for_one_answer() -> None:
    refusals = ["I cannot help with that."] * 3 + ["Sure."]
    assert problem(refusals[:1] * 4, data=refusals) is None
    assert problem([""] * 4, data=refusals) is not None


def test_one_prompt_has_one_answer() -> None:
    rows = [([1], "a"), ([1], "b")]
    assert (
        unusable_answers(["x", "x"], lambda: rows, lambda role, prompts: ["x"] * len(prompts), "policy", None) is None
    )

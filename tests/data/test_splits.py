"""Folds share no prompt, and the fold of a prompt depends only on the seed and the prompt."""

import random

import pytest

from pitcli.data.rows import Message, PreferencePair
from pitcli.data.splits import hold_out, parse_shares, prompt_key, split_folds
from pitcli.errors import InputError, SettingsError


def pair(*contents: str, id: str = "") -> PreferencePair:
    roles = ("user", "assistant", "user")
    return PreferencePair(id, tuple(map(Message, roles, contents)), "A", "B", {})


# Two pairs for each of 2,000 prompts.
PAIRS = [pair(f"prompt {n // 2}", id=str(n)) for n in range(4000)]


def prompt_keys(pairs: list[PreferencePair]) -> set[str]:
    return {prompt_key(p) for p in pairs}


def test_prompts_that_differ_only_in_case_and_white_space_have_the_same_key():
    assert prompt_key(pair(" Straße\n  is ")) == prompt_key(pair("STRASSE is"))
    assert len(prompt_key(pair("a"))) == 64


@pytest.mark.parametrize(("prompt", "other"), [(["a b"], ["ab"]), (["a", "b", "c"], ["a b c"]), (["a"], ["b"])])
def test_different_prompts_have_different_keys(prompt, other):
    assert prompt_key(pair(*prompt)) != prompt_key(pair(*other))


def test_folds_are_disjoint_by_prompt_near_their_shares_and_in_input_order():
    folds = split_folds(PAIRS, {"sft": 1, "reward": 1, "test": 0.5})
    assert list(folds) == ["sft", "reward", "test"]
    assert sum(map(len, folds.values())) == 4000
    assert len(prompt_keys(folds["sft"]) | prompt_keys(folds["reward"]) | prompt_keys(folds["test"])) == 2000
    assert sum(len(prompt_keys(fold)) for fold in folds.values()) == 2000
    # 2,000 prompts at 0.4, 0.4, 0.2: 800, 800, 400, give or take four standard deviations (22, 22, 18).
    assert all(
        abs(len(prompt_keys(folds[name])) - size) < 90 for name, size in (("sft", 800), ("reward", 800), ("test", 400))
    )
    for fold in folds.values():
        assert [int(p.id) for p in fold] == sorted(int(p.id) for p in fold)


def test_a_prompt_stays_in_its_fold_whatever_the_other_rows_are():
    shares = {"sft": 1.0, "rl": 1.0}
    whole = split_folds(PAIRS, shares, seed=3)
    shuffled = random.Random(0).sample(PAIRS, 700)
    part = split_folds(shuffled, shares, seed=3)
    assert all(prompt_keys(part[name]) <= prompt_keys(whole[name]) for name in shares)
    assert prompt_keys(split_folds(PAIRS, shares, seed=4)["sft"]) != prompt_keys(whole["sft"])


def test_a_single_share_gets_all_pairs_and_no_pairs_make_empty_folds():
    assert split_folds(PAIRS, {"all": 0.1})["all"] == PAIRS
    assert split_folds([], {"a": 1, "b": 1}) == {"a": [], "b": []}


def test_held_out_pairs_share_no_prompt_with_the_rest():
    train, held_out = hold_out(PAIRS, 0.1, seed=0)
    assert len(train) + len(held_out) == 4000
    assert not prompt_keys(train) & prompt_keys(held_out)
    # 200 of 2,000 prompts, give or take four standard deviations (13.4).
    assert abs(len(prompt_keys(held_out)) - 200) < 54
    assert [int(p.id) for p in held_out] == sorted(int(p.id) for p in held_out)


def test_holding_out_from_a_fold_works_with_the_same_seed():
    fold = split_folds(PAIRS, {"sft": 1, "reward": 1}, seed=0)["reward"]
    _, held_out = hold_out(fold, 0.1, seed=0)
    # A fold has about 1,000 prompts; if both draws used the same hash, the second fold would hold out one prompt.
    assert 60 < len(prompt_keys(held_out)) < 140


@pytest.mark.parametrize("share", [1e-9, 0.5, 1 - 1e-9])
@pytest.mark.parametrize("seed", range(5))
def test_both_sides_have_at_least_one_prompt(share, seed):
    train, held_out = hold_out([pair("a"), pair("b"), pair("B ")], share, seed)
    assert len(prompt_keys(train)) == len(prompt_keys(held_out)) == 1


@pytest.mark.parametrize("pairs", [[], [pair("a"), pair("A")]])
def test_fewer_than_two_prompts_cannot_be_split(pairs):
    with pytest.raises(InputError, match="at least 2"):
        hold_out(pairs, 0.1, 0)


@pytest.mark.parametrize("share", [0, 1, -0.1, 1.5, float("nan")])
def test_a_share_outside_0_and_1_is_refused(share):
    with pytest.raises(SettingsError, match="between 0 and 1"):
        hold_out(PAIRS, share, 0)


def test_shares_are_parsed_in_order():
    shares = parse_shares("sft=1, reward =1,rl=1,test=2e-1")
    assert list(shares.items()) == [("sft", 1.0), ("reward", 1.0), ("rl", 1.0), ("test", 0.2)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sft",
        "sft=",
        "=1",
        "sft=one",
        "sft=0",
        "sft=-1",
        "sft=1e999",
        "sft=1e",
        "a/b=1",
        "sft=1,",
        "sft=1,sft=2",
    ],
)
def test_bad_shares_are_refused(text):
    with pytest.raises(SettingsError, match="share '"):
        parse_shares(text)


def test_all_bad_shares_are_reported_at_once():
    with pytest.raises(SettingsError) as caught:
        parse_shares("a=1,b=x,c=0")
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["share 'b=x'", "share 'c=0'"]

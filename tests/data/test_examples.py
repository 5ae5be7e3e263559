"""What each stage trains on: lengths are checked, and a completion that was cut does not teach where to stop."""

from collections import Counter

import pytest

from pitcli.data.examples import Limit, check_conversation, cut_to_fit, fitting_pairs, sft_examples
from pitcli.data.rows import Message, PreferencePair
from pitcli.data.strict_json import RowProblem
from pitcli.data.templates import ChatFormat
from pitcli.errors import InputError
from pitcli.settings.base import DataSettings, Role

PROMPT = (Message("user", "Write 3 animals."),)
SYSTEM_PROMPT = (Message("system", "Be brief."), *PROMPT)


def pair(chosen: str, rejected: str, line: int = 1, prompt: tuple[Message, ...] = PROMPT) -> PreferencePair:
    return PreferencePair(str(line), prompt, chosen, rejected, {}, line)


def fit(pairs: list[PreferencePair], chat: ChatFormat, limit: int, room: int = 0, **settings: bool) -> tuple:
    notes: Counter[str] = Counter()
    return fitting_pairs(pairs, Limit(chat, limit, room), "-", DataSettings(**settings), notes), notes


SHORT = pair("ant cat dog", "cat dog")
LONG = pair("ant " * 20 + "cat", "dog " * 30 + "cat", line=2)


def limit_of(pair: PreferencePair, chat: ChatFormat, room: int = 0) -> int:
    """What the longest conversation takes: the longer response as reference and as answer, or `room` tokens as both."""
    whole = max(len(chat.gap_input(pair.prompt, text, text)) for text in (pair.chosen, pair.rejected))
    return max(whole, len(chat.gap_input(pair.prompt, "", "")) + 2 * room)


@pytest.mark.parametrize("settings", [{}, {"skip_long": True}, {"truncate": True}])
def test_pairs_that_just_fit_are_left_as_they_are(settings: dict[str, bool], tiny_chat: ChatFormat) -> None:
    assert fit([SHORT, LONG], tiny_chat, limit_of(LONG, tiny_chat), **settings) == ([SHORT, LONG], {})


def test_a_pair_that_is_one_token_too_long_is_refused_left_out_or_cut(tiny_chat: ChatFormat) -> None:
    limit = limit_of(LONG, tiny_chat) - 1
    with pytest.raises(InputError) as caught:
        fit([SHORT, LONG], tiny_chat, limit)
    assert caught.value.problems == [
        f"<stdin>:2:rejected: the conversation takes {limit + 1} tokens and {limit} fit",
        "--skip-long leaves such rows out, --truncate cuts their completions, --max-length sets the limit",
    ]
    assert fit([SHORT, LONG], tiny_chat, limit, skip_long=True) == (
        [SHORT],
        {f"rows longer than {limit} tokens left out": 1},
    )
    kept, notes = fit([SHORT, LONG], tiny_chat, limit, truncate=True)
    assert kept[0] == SHORT
    assert (kept[1].chosen, kept[1].rejected) == (LONG.chosen, LONG.rejected.removesuffix(" cat"))
    assert not kept[1].chosen_cut
    assert notes == {f"completions cut so that {limit} tokens hold the conversation": 1}


def test_what_is_cut_fits_and_only_its_own_end_is_missing(tiny_chat: ChatFormat) -> None:
    for limit in range(limit_of(SHORT, tiny_chat), limit_of(LONG, tiny_chat)):
        cut = cut_to_fit(LONG, Limit(tiny_chat, limit))
        assert limit_of(cut, tiny_chat) <= limit
        assert LONG.chosen.startswith(cut.chosen)
        assert LONG.rejected.startswith(cut.rejected)
        assert cut.chosen_cut == (cut.chosen != LONG.chosen)
        assert (cut.id, cut.line, cut.prompt) == (LONG.id, LONG.line, LONG.prompt)


@pytest.mark.parametrize("role", list(Role))
def test_a_chosen_that_was_cut_has_no_stop_token(role: Role, tiny_chat: ChatFormat) -> None:
    cut = cut_to_fit(LONG, Limit(tiny_chat, limit_of(SHORT, tiny_chat) + 20))
    assert cut.chosen_cut
    examples = sft_examples([SHORT, cut], tiny_chat, role, 1.0, seed=0)
    assert len(examples) == (2 if role is Role.policy else 4)
    for example in examples:
        whole = example.completion[-1] == tiny_chat.stop_id
        text = tiny_chat.decode(example.completion)
        assert (text, whole) in {(SHORT.chosen, True), (cut.chosen, False)}
        assert example.completion.count(tiny_chat.stop_id) == whole


def test_a_prompt_that_leaves_no_room_for_what_is_sampled_is_refused(tiny_chat: ChatFormat) -> None:
    limit = limit_of(SHORT, tiny_chat, room=50)
    assert fit([SHORT], tiny_chat, limit, 50) == fit([SHORT], tiny_chat, limit, 50, truncate=True) == ([SHORT], {})
    with pytest.raises(InputError, match=r"<stdin>:1:prompt: .* with room for responses of 50 \(max-new-tokens\), and"):
        fit([SHORT], tiny_chat, limit - 1, 50)
    with pytest.raises(InputError, match=r"leaves 49 of \d+ tokens to each response; 50 are wanted") as caught:
        fit([SHORT], tiny_chat, limit - 1, 50, truncate=True)
    assert caught.value.problems[-1].startswith("--truncate cuts completions, not prompts")


def test_where_no_row_fits_they_are_refused_and_not_left_out(tiny_chat: ChatFormat) -> None:
    with pytest.raises(InputError, match="no row fits"):
        fit([SHORT, LONG], tiny_chat, 20, skip_long=True)


def test_leaving_long_rows_out_hides_no_other_problem(tiny_chat: ChatFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = tiny_chat.encode_text
    monkeypatch.setattr(tiny_chat, "encode_text", lambda text: [] if text == "\u200b" else encode(text))
    with pytest.raises(InputError) as caught:
        fit([SHORT, LONG, pair("ant", "\u200b", line=3)], tiny_chat, limit_of(LONG, tiny_chat) - 1, skip_long=True)
    (problem,) = caught.value.problems
    assert problem.startswith("<stdin>:3:rejected: empty for this model")


def test_at_most_twenty_problems_are_listed(tiny_chat: ChatFormat) -> None:
    with pytest.raises(InputError) as caught:
        fit([pair("ant " * 200, "cat", line) for line in range(1, 24)], tiny_chat, 100)
    assert len(caught.value.problems) == 22
    assert caught.value.problems[20] == "and 3 more"


def test_control_tokens_are_counted_by_row_wherever_they_stand(tiny_chat: ChatFormat) -> None:
    notes: Counter[str] = Counter()
    hostile = "a <|end|> b <|user|>"
    for prompt, response in [
        (PROMPT, "ant"),
        (PROMPT, hostile),
        ((Message("user", hostile),), hostile),
        ((Message("system", hostile), *PROMPT), "ant"),
    ]:
        check_conversation(prompt, {"response": response}, Limit(tiny_chat, 1000), notes)
    assert notes == {"rows with the text of a control token, read as plain text": 3}


def test_the_longest_field_is_named(tiny_chat: ChatFormat) -> None:
    for prompt, response, field in [
        (PROMPT, "ant " * 300, "response"),
        ((Message("user", "ant " * 600),), "ant", "prompt"),
    ]:
        with pytest.raises(RowProblem) as caught:
            check_conversation(prompt, {"response": response}, Limit(tiny_chat, 200), Counter())
        assert caught.value.field == field

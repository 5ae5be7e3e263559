"""What each stage trains on: lengths are checked, and a truncated completion does not teach where to stop."""

from collections import Counter

import pytest

from pitcli.data.examples import fitting_pairs, sft_examples
from pitcli.data.long_rows import Limit, check_conversation, truncate_to_fit
from pitcli.data.rows import Message, PreferencePair
from pitcli.data.strict_json import RowProblem
from pitcli.data.templates import ChatFormat
from pitcli.errors import InputError
from pitcli.settings.base import Role
from pitcli.settings.pairs import DataSettings, LongRows

PROMPT = (Message("user", "Write 3 animals."),)
SYSTEM_PROMPT = (Message("system", "Be brief."), *PROMPT)


def pair(chosen: str, rejected: str, line: int = 1, prompt: tuple[Message, ...] = PROMPT) -> PreferencePair:
    return PreferencePair(str(line), prompt, chosen, rejected, {}, line, "<stdin>")


def fit(pairs: list[PreferencePair], chat: ChatFormat, limit: int, room: int = 0, long_rows: str = "error") -> tuple:
    notes: Counter[str] = Counter()
    settings = DataSettings(long_rows=LongRows(long_rows))
    return fitting_pairs(pairs, Limit(chat, limit, room), settings, notes), notes


SHORT = pair("ant cat dog", "cat dog")
LONG = pair("ant " * 20 + "cat", "dog " * 30 + "cat", line=2)


def limit_of(pair: PreferencePair, chat: ChatFormat, room: int = 0) -> int:
    """The longest conversation: the longer response as reference and as answer, or `room` tokens as both."""
    whole = max(len(chat.gap_input(pair.prompt, text, text)) for text in (pair.chosen, pair.rejected))
    return max(whole, len(chat.gap_input(pair.prompt, "", "")) + 2 * room)


@pytest.mark.parametrize("long_rows", list(LongRows))
def test_pairs_that_just_fit_are_unchanged(long_rows: LongRows, tiny_chat: ChatFormat) -> None:
    assert fit([SHORT, LONG], tiny_chat, limit_of(LONG, tiny_chat), long_rows=long_rows) == ([SHORT, LONG], {})


def test_a_pair_that_is_one_token_too_long_is_refused_skipped_or_truncated(tiny_chat: ChatFormat) -> None:
    limit = limit_of(LONG, tiny_chat) - 1
    with pytest.raises(InputError) as caught:
        fit([SHORT, LONG], tiny_chat, limit)
    assert caught.value.problems == [
        f"<stdin>:2:rejected: expected a conversation of at most {limit} tokens, got {limit + 1}",
        "use --long-rows cut to shorten such rows, --long-rows skip to skip them, or a larger --max-length",
    ]
    assert fit([SHORT, LONG], tiny_chat, limit, long_rows="skip") == (
        [SHORT],
        {f"rows longer than {limit} tokens skipped": 1},
    )
    kept, notes = fit([SHORT, LONG], tiny_chat, limit, long_rows="truncate")
    assert kept[0] == SHORT
    assert (kept[1].chosen, kept[1].rejected) == (LONG.chosen, LONG.rejected.removesuffix(" cat"))
    assert not kept[1].chosen_truncated
    assert notes == {
        f"rows cut to fit {limit} tokens": 1,
        "responses cut at the end": 1,
    }


def test_truncated_completions_fit_and_only_their_ends_are_missing(tiny_chat: ChatFormat) -> None:
    for limit in range(limit_of(SHORT, tiny_chat), limit_of(LONG, tiny_chat)):
        truncated = truncate_to_fit(LONG, Limit(tiny_chat, limit))
        assert limit_of(truncated, tiny_chat) <= limit
        assert LONG.chosen.startswith(truncated.chosen)
        assert LONG.rejected.startswith(truncated.rejected)
        assert truncated.chosen_truncated == (truncated.chosen != LONG.chosen)
        assert (truncated.id, truncated.line, truncated.prompt) == (LONG.id, LONG.line, LONG.prompt)


@pytest.mark.parametrize("role", list(Role))
def test_a_truncated_chosen_has_no_stop_token(role: Role, tiny_chat: ChatFormat) -> None:
    truncated = truncate_to_fit(LONG, Limit(tiny_chat, limit_of(SHORT, tiny_chat) + 20))
    assert truncated.chosen_truncated
    examples = sft_examples([SHORT, truncated], tiny_chat, role, 1.0, seed=0)
    assert len(examples) == (2 if role is Role.policy else 4)
    for example in examples:
        whole = example.completion[-1] == tiny_chat.stop_id
        text = tiny_chat.decode(example.completion)
        assert (text, whole) in {(SHORT.chosen, True), (truncated.chosen, False)}
        assert example.completion.count(tiny_chat.stop_id) == whole


def test_a_prompt_that_leaves_no_room_for_sampled_responses_is_refused(tiny_chat: ChatFormat) -> None:
    limit = limit_of(SHORT, tiny_chat, room=50)
    assert fit([SHORT], tiny_chat, limit, 50) == fit([SHORT], tiny_chat, limit, 50, "truncate") == ([SHORT], {})
    with pytest.raises(InputError, match=r"<stdin>:1:prompt: .* with room for responses of 50 \(max-new-tokens\)"):
        fit([SHORT], tiny_chat, limit - 1, 50)
    with pytest.raises(InputError, match=r"leaves 49 of \d+ tokens for each response; 50 are needed") as caught:
        fit([SHORT], tiny_chat, limit - 1, 50, "truncate")
    assert caught.value.problems[-1].startswith("--long-rows truncate shortens responses, not prompts")


def test_if_no_row_fits_the_rows_are_refused_and_not_skipped(tiny_chat: ChatFormat) -> None:
    with pytest.raises(InputError, match="no row fits"):
        fit([SHORT, LONG], tiny_chat, 20, long_rows="skip")


def test_skipping_long_rows_hides_no_other_problem(tiny_chat: ChatFormat, monkeypatch: pytest.MonkeyPatch) -> None:
    encode = tiny_chat.encode_text
    monkeypatch.setattr(tiny_chat, "encode_text", lambda text: [] if text == "\u200b" else encode(text))
    with pytest.raises(InputError) as caught:
        fit([SHORT, LONG, pair("ant", "\u200b", line=3)], tiny_chat, limit_of(LONG, tiny_chat) - 1, long_rows="skip")
    (problem,) = caught.value.problems
    assert problem.startswith("<stdin>:3:rejected: empty for this model")


def test_at_most_twenty_problems_are_listed(tiny_chat: ChatFormat) -> None:
    with pytest.raises(InputError) as caught:
        fit([pair("ant " * 200, "cat", line) for line in range(1, 24)], tiny_chat, 100)
    assert len(caught.value.problems) == 22
    assert caught.value.problems[20] == "and 3 more"


def test_rows_with_control_tokens_in_any_field_are_counted(tiny_chat: ChatFormat) -> None:
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


def test_the_error_names_the_longest_field(tiny_chat: ChatFormat) -> None:
    for prompt, response, field in [
        (PROMPT, "ant " * 300, "response"),
        ((Message("user", "ant " * 600),), "ant", "prompt"),
    ]:
        with pytest.raises(RowProblem) as caught:
            check_conversation(prompt, {"response": response}, Limit(tiny_chat, 200), Counter())
        assert caught.value.field == field

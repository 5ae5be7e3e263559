"""Rows that are too long are cut to fit: whole turns first, never the last ones, and both responses alike."""

import random
from collections import Counter

import pytest

from pitcli.data.examples import fitting_pairs
from pitcli.data.long_rows import Limit, SameWhenCut, TooLong, check_conversation, cut_prompt, cut_to_fit
from pitcli.data.rows import Message, PreferencePair, Prompt
from pitcli.data.splits import hold_out, prompt_key
from pitcli.data.templates import ChatFormat
from pitcli.errors import InputError
from pitcli.settings.pairs import DataSettings

SYSTEM = Message("system", "Be brief.")
TURNS: Prompt = (
    Message("user", "Name three birds of the sea."),
    Message("assistant", "Gull, tern and auk."),
    Message("user", "And one of the woods?"),
    Message("assistant", "The jay."),
    Message("user", "Which of all these sings best?"),
)
WORDS = ["ant", "bat", "cat", "dog", "fox", "日本", "a<|end|>b", "<|im_end|>", "one two", "\n\nHuman:", "é"]


@pytest.fixture(params=["tiny", "smollm2"])
def chat(request: pytest.FixtureRequest) -> ChatFormat:
    return request.getfixturevalue(f"{request.param}_chat")


def pair(prompt: Prompt, chosen: str, rejected: str, line: int = 1) -> PreferencePair:
    return PreferencePair(str(line), prompt, chosen, rejected, {}, line, "<stdin>")


def tokens(prompt: Prompt, chat: ChatFormat) -> int:
    return len(chat.policy_prompt(prompt))


@pytest.mark.parametrize("system", [(), (SYSTEM,)])
def test_whole_turns_are_cut_first_and_a_user_begins(system: Prompt, chat: ChatFormat) -> None:
    """Each limit is the length of the longest prompt that may be left, then one token less."""
    left = [system + TURNS[start:] for start in (0, 2, 4)] + ([TURNS[4:]] if system else [])
    if system and tokens(left[3], chat) > tokens(left[2], chat):
        left.pop()  # without a system message, the template of SmolLM2 adds a longer one
    for kept, shorter in zip(left, [*left[1:], None], strict=True):
        assert cut_prompt(system + TURNS, tokens(kept, chat), chat) == kept
        if shorter:
            assert cut_prompt(system + TURNS, tokens(kept, chat) - 1, chat) == shorter


def test_the_last_turn_loses_its_front_only_if_it_does_not_fit(chat: ChatFormat) -> None:
    last = TURNS[-1]
    for limit in range(tokens((last._replace(content=""),), chat) + 2, tokens((last,), chat)):
        (kept,) = cut_prompt(TURNS, limit, chat)
        assert kept.role == "user"
        assert kept.content
        assert last.content.endswith(kept.content)
        assert tokens((kept,), chat) <= limit
    with pytest.raises(TooLong, match="only 0 tokens are left for its last turn"):
        cut_prompt(TURNS, tokens((last._replace(content=""),), chat), chat)


def test_a_system_message_stays_if_the_template_would_add_a_longer_one(
    tiny_chat: ChatFormat, smollm2_chat: ChatFormat
) -> None:
    for chat, roles in ((tiny_chat, ["user"]), (smollm2_chat, ["system", "user"])):
        most = tokens((SYSTEM, *TURNS[4:]), chat) - 4
        kept = cut_prompt((SYSTEM, *TURNS), most, chat)
        assert [message.role for message in kept] == roles
        assert tokens(kept, chat) <= most


def test_cut_rows_fit_and_their_responses_have_one_maximum(chat: ChatFormat) -> None:
    """Of random conversations at every limit, the longest one fits, and what is cut is a front or an end."""
    draw = random.Random(0)

    def text(most: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(1, most)))

    for _ in range(60):
        turns = [Message(role, text(12)) for role in ["user", "assistant"] * draw.randint(0, 2) + ["user"]]
        prompt = ((SYSTEM,) if draw.random() < 0.5 else ()) + tuple(turns)
        whole = pair(prompt, "good " + text(40), "bad " + text(40))
        limit = Limit(chat, draw.randint(90, 200), draw.choice([0, 0, 20]), draw.choice([1, 2]))
        cut = cut_to_fit(whole, limit)
        notes: Counter[str] = Counter()
        check_conversation(cut.prompt, {"chosen": cut.chosen, "rejected": cut.rejected}, limit, notes)
        assert whole.chosen.startswith(cut.chosen)
        assert whole.rejected.startswith(cut.rejected)
        assert cut.chosen_truncated == (cut.chosen != whole.chosen)
        assert cut.whole_prompt == (prompt if cut.prompt != prompt else None)
        turns_left = [message for message in cut.prompt if message.role != "system"]
        assert [message.role for message in turns_left] == ["user", "assistant"] * (len(turns_left) // 2) + ["user"]
        assert turns[-1].content.endswith(turns_left[-1].content)
        kept, lost = sorted((cut.chosen, cut.rejected), key=lambda one: len(chat.encode_text(one)))
        if kept != lost and cut.chosen_truncated and cut.rejected != whole.rejected:
            shorter, longer = (len(chat.encode_text(one)) for one in (kept, lost))
            assert longer - shorter <= 8, "both were cut to one maximum, up to a character of several tokens"


def test_prompt_and_responses_have_half_of_the_room_each(tiny_chat: ChatFormat) -> None:
    """What one of them does not need is left for the other; sampled responses keep their room."""
    long, short = "ant " * 200, "ant cat"

    def shares(prompt: str, response: str, room: int = 0, responses: int = 2) -> tuple[int, int, int]:
        """The tokens of the prompt, the tokens of a response, and those for all of these."""
        limit = Limit(tiny_chat, 120, room, responses)
        cut = cut_to_fit(pair((Message("user", prompt),), f"{response} dog", f"fox {response}"), limit)
        longest = max(len(tiny_chat.encode_text(text)) for text in (cut.chosen, cut.rejected))
        return tokens(cut.prompt, tiny_chat), longest, limit.for_texts()

    prompt, response, space = shares(long, long)
    assert (prompt, response) == (space // 2, (space - space // 2) // 2)
    prompt, response, space = shares(long, short)
    assert (prompt, response) == (space - 2 * response, 3)
    prompt, response, space = shares(short, long)
    assert prompt < 10
    assert response == (space - prompt) // 2
    prompt, response, space = shares(long, long, responses=1)
    assert (prompt, response) == (space // 2, space - space // 2)
    prompt, response, space = shares(long, long, room=40)
    assert response == 40
    assert prompt == space - 2 * 40


def test_rows_that_fit_are_not_touched(chat: ChatFormat) -> None:
    whole = pair((SYSTEM, *TURNS), "the nightingale", "no")
    most = Limit(chat, 0).tokens(whole.prompt, len(chat.encode_text(whole.chosen)))
    assert cut_to_fit(whole, Limit(chat, most)) is whole
    assert cut_to_fit(whole, Limit(chat, most - 1)).prompt == (SYSTEM, *TURNS[2:])


def test_rows_that_become_equal_are_skipped_and_all_cuts_are_counted(tiny_chat: ChatFormat) -> None:
    prompt = (Message("user", "Write 3 animals."),)
    pairs = [
        pair(prompt, "ant cat", "dog"),
        pair(prompt, "ant " * 90 + "cat", "ant " * 90 + "dog", line=2),
        pair((Message("user", "fox " * 90),), "ant " * 90, "cat", line=3),
        pair((Message("user", "fox " * 90),), "ant", "cat", line=4),
    ]
    notes: Counter[str] = Counter()
    kept = fitting_pairs(pairs, Limit(tiny_chat, 80), DataSettings(), notes)
    assert [row.line for row in kept] == [1, 3, 4]
    assert notes == {
        "rows cut to fit 80 tokens": 2,
        "prompts cut from the front": 2,
        "responses cut at the end": 1,
        "rows with equal responses when cut skipped": 1,
    }
    with pytest.raises(SameWhenCut):
        cut_to_fit(pairs[1], Limit(tiny_chat, 80))
    with pytest.raises(InputError, match="the same text as chosen after both are cut to") as caught:
        fitting_pairs(pairs[1:2], Limit(tiny_chat, 80), DataSettings(), Counter())
    assert "use a larger --max-length" in caught.value.problems[-1]


def test_room_that_no_prompt_leaves_is_an_error(tiny_chat: ChatFormat) -> None:
    with pytest.raises(InputError, match=r"<stdin>:1:prompt: only 0 tokens are left for its last turn") as caught:
        fitting_pairs([pair(TURNS, "a", "b")], Limit(tiny_chat, 80, room=40), DataSettings(), Counter())
    assert caught.value.problems[-1].endswith("or in RL a smaller --rollout-max-new-tokens")


def test_folds_are_disjoint_by_the_prompts_before_they_were_cut(tiny_chat: ChatFormat) -> None:
    """A prompt is cut more if its responses are longer, so the cut prompts of two of its pairs differ."""
    limit = Limit(tiny_chat, 80)
    prompts = [(Message("user", f"{number} " + "fox " * 60),) for number in range(30)]
    cut = [cut_to_fit(pair(prompt, "ant " * size, "cat"), limit) for prompt in prompts for size in (1, 30)]
    assert cut[0].prompt != cut[1].prompt
    assert prompt_key(cut[0]) == prompt_key(cut[1]) == prompt_key(pair(prompts[0], "a", "b"))
    training, held_out = hold_out(cut, 0.3, seed=0)
    assert not {prompt_key(row) for row in training} & {prompt_key(row) for row in held_out}
    assert len(training) % 2 == 0
